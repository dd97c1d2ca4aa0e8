"""MODEL as users name it: where its files are, and in which form.

A path is asked what it is: `form_of` looks at all of a directory and at what is in its
files, so that no single name decides. Each form has one reader in `loading`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from elmojax.atomic import read_object
from elmojax.errors import InputError, one_line
from elmojax.formats.archive import called, is_archive, unpacked
from elmojax.formats.fetch import fetch_model, is_url
from elmojax.formats.hdf5 import OPTIONS, SOFTMAX, VOCABULARY, WEIGHTS
from elmojax.formats.hugging_face import MODEL_TYPE, fetch_repository, is_repository
from elmojax.formats.manylangs import is_manylangs
from elmojax.formats.tf_bundle import checkpoint_prefix
from elmojax.formats.tf_hub import VARIABLES
from elmojax.text.corpus import SUMMARY

Form = Literal[
    "run",
    "HDF5",
    "safetensors",
    "TensorFlow checkpoint",
    "TF-Hub module",
    "ELMoForManyLangs",
]

BUNDLED = Path(__file__).parent.with_name("models")
"""Directory of the models that ship with elmojax, as HDF5."""


def bundled() -> list[str]:
    """Names of the models that ship with elmojax; a directory of such a name is
    `./NAME`."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{OPTIONS}"))


@contextlib.contextmanager
def located(model: str | os.PathLike[str]) -> Iterator[Path]:
    """Where the files of a model are: fetched if need be, and unpacked for the time of
    the block."""
    if is_repository(model):
        path = fetch_repository(str(model))
        with called(str(model), str(path)):
            yield path
        return
    if is_url(model):
        path = fetch_model(str(model))
    else:
        path = BUNDLED / model if model in bundled() else Path(model)
    if is_archive(path):
        with unpacked(path) as directory:
            yield directory
    else:
        yield path


def form_of(path: Path) -> Form:
    """The form of the model at a path.

    Raises:
      InputError: if there is none; it says what is there.
    """
    try:
        form = _form_of_directory(path) if path.is_dir() else _form_of_file(path)
        what = "" if form else _what(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if form is None:
        raise InputError(f"{path} {what}.")
    return form


def _form_of_directory(path: Path) -> Form | None:
    config = _config(path)
    has_checkpoints = (path / "checkpoints").is_dir()
    recorded = isinstance(config.get("train"), dict) and "vocabulary" in config
    if recorded or (has_checkpoints and (path / "config.json").exists()):
        return "run"
    if config.get("model_type") == MODEL_TYPE:
        return "safetensors"
    if hdf5_files(path):
        return "HDF5"
    if (path / "checkpoint").is_file() or any(path.glob("*.ckpt*.index")):
        return "TensorFlow checkpoint"
    if Path(f"{path / VARIABLES}.index").is_file():
        return "TF-Hub module"
    if is_manylangs(path):
        return "ELMoForManyLangs"
    return "run" if has_checkpoints else None


def _form_of_file(path: Path) -> Form | None:
    if path.suffix in HDF5_ENDINGS and path.is_file():
        return "HDF5"
    if path.name and Path(f"{checkpoint_prefix(path)}.index").is_file():
        return "TensorFlow checkpoint"
    if not path.exists():
        raise InputError(
            f"There is no model {str(path)!r}: give a run directory of `elmojax "
            "pretrain`, a directory or archive with options.json and weights.hdf5, or "
            f"the name of a model that ships with elmojax ({', '.join(bundled())})."
        )
    return None


# --- HDF5 ----------------------------------------------------------------------------

HDF5_ENDINGS = (".hdf5", ".h5")


def hdf5_files(path: Path) -> tuple[Path, Path] | None:
    """Options and weights in a directory, or beside a file of weights.

    Options are options.json or the only `*options*.json`; beside a file of weights,
    first the one with the same beginning. Weights are weights.hdf5, model.hdf5 (as the
    NLPL repository has it), the only `*weights.hdf5` or the only HDF5 file there.
    """
    if path.is_file():
        weights: Path | None = path
        start = re.sub(r"(weights.*|\.\w+)$", "", path.name)
        names = (f"{start}{OPTIONS}", OPTIONS)
        options = _the_only(path.parent, names, _options_in(path.parent))
    else:
        found = _weights_in(path)
        named = [file for file in found if file.name.endswith(WEIGHTS)]
        weights = _the_only(path, (WEIGHTS, "model.hdf5"), named, found)
        options = _the_only(path, (OPTIONS,), _options_in(path))
    return (options, weights) if options and weights else None


def _the_only(path: Path, names: tuple[str, ...], *found: list[Path]) -> Path | None:
    """A file of the first of these names that is there, else the only one found, in
    the first list that has but one."""
    named = [[path / name] for name in names if (path / name).is_file()]
    return next((files[0] for files in (*named, *found) if len(files) == 1), None)


def _options_in(path: Path) -> list[Path]:
    return sorted(path.glob("*options*.json"))


def _weights_in(path: Path) -> list[Path]:
    files = sorted(path.iterdir())
    return [p for p in files if p.suffix in HDF5_ENDINGS and p.name != SOFTMAX]


def vocabulary_file(path: Path) -> Path | None:
    """The words beside the files of a model, whatever their file is called."""
    folder = path if path.is_dir() else path.parent
    names = (VOCABULARY, f"{VOCABULARY}.gz", "vocab.txt", "vocab.txt.gz")
    return _the_only(folder, names)


# --- what is no model ----------------------------------------------------------------


def _config(path: Path) -> dict[str, Any]:
    """config.json; nothing where it is not there or is none."""
    try:
        return read_object(path / "config.json")
    except (OSError, ValueError):
        return {}


def _what(path: Path) -> str:
    """What a path is that holds no model that is read, and what to do: the rest of a
    sentence."""
    if not path.is_dir():
        return (
            "is not a run directory, an archive or an HDF5 file, or anything else that "
            "a model is; give the directory of one"
        )
    config, names = _config(path), sorted(entry.name for entry in path.iterdir())
    options, weights = _options_in(path), _weights_in(path)
    told = config.get("architectures")
    said = (config.get("model_type"), *(told if isinstance(told, list) else ()))
    kind = next((each for each in said if isinstance(each, str)), "")
    if options and weights:
        several, what = (
            (weights, "files of weights")
            if len(weights) > 1
            else (options, "files of options")
        )
        listed = ", ".join(file.name for file in several[:5])
        return (
            f"has {len(several)} {what} ({listed}); name the weights of one model, "
            f"such as {weights[0]}"
        )
    if kind or "transformers_version" in config:
        kind = one_line(kind.upper(), 40)
        return f"is a Hugging Face {kind} model; elmojax reads ELMo"
    if SUMMARY in names:
        return (
            "is a prepared corpus and no model: it has no config.json; give the "
            "--workdir of `elmojax pretrain`"
        )
    for pattern, found in FOREIGN.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return f"is {found}; elmojax reads ELMo"
    if options or weights:
        there, missing = (
            ("options", "weights (*.hdf5)")
            if options
            else ("weights", "options (options.json)")
        )
        file = (options or weights)[0].name
        return f"has {there} ({file}) and no {missing}; put both into one directory"
    if not names:
        return (
            "is no model but an empty directory: it has no config.json of a run and no "
            "options.json; give one that holds a model"
        )
    listed = ", ".join(names[:5]) + (" ..." if names[5:] else "")
    return (
        f"is not a run directory and no other model: it has no config.json of one and "
        f"no options.json, but {listed}"
    )


FOREIGN = {
    r".*\.jax_export": "what `elmojax export` wrote, which JAX runs without elmojax",
    r"weights\.th": "a model of AllenNLP, and not the ELMo inside it",
    r"(saved_model|keras_metadata)\.pb": "a TensorFlow SavedModel of something else",
    r"pytorch_model.*\.bin|.*\.(pt|pth|safetensors|ckpt)": "a model of PyTorch",
    r".*\.(msgpack|gguf|onnx)": "a model of another program",
}
"""Patterns of file names, and whose they are."""

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
from typing import Literal

from elmojax import cloud
from elmojax.errors import InputError, one_line, reading
from elmojax.formats.archive import is_archive, name_in_errors, unpacked, unpacked_once
from elmojax.formats.fetch import (
    SCHEMES,
    Missing,
    cached_name,
    fetch,
    fetch_first,
    split_address,
)
from elmojax.formats.hdf5 import OPTIONS, SOFTMAX, VOCABULARY, WEIGHTS
from elmojax.formats.hugging_face import (
    MODEL_TYPE,
    config_in,
    fetch_repository,
    is_repository,
)
from elmojax.formats.manylangs import is_manylangs
from elmojax.formats.tf_bundle import checkpoint_prefix
from elmojax.formats.tf_checkpoint import VARIABLES
from elmojax.text.corpus import SUMMARY
from elmojax.training.remote import bring_model, step_of

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


def bundled_models() -> list[str]:
    """Names of the models that ship with elmojax; a directory of such a name is
    `./NAME`."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{OPTIONS}"))


@contextlib.contextmanager
def located(model: str | os.PathLike[str], step: int | None = None) -> Iterator[Path]:
    """Where the files of a model are: fetched if need be (of a run, those of a step;
    None = the newest), and unpacked for the time of the block."""
    if is_repository(model):
        path = fetch_repository(str(model))
        with name_in_errors(str(model), str(path)):
            yield path
        return
    if (copy := _brought(model, step)) is not None:
        path = copy
    elif is_url(model):
        path = fetch_model(str(model))
    else:
        path = BUNDLED / model if model in bundled_models() else Path(model)
    if is_archive(path):
        with unpacked(path) as directory:
            yield directory
    else:
        yield path


# --- addresses -----------------------------------------------------------------------

IN_STORES = re.compile(
    r"(config|corpus|[^/]*options[^/]*)\.json|vocab(ulary)?\.txt(\.gz)?|[^/]*\.dic"
    r"|(README|card)\.md|([^/]*weights[^/]*|model|softmax)\.(hdf5|h5)"
    r"|model\.safetensors|(encoder|token_embedder)\.pkl"
    r"|checkpoint|[^/]*\.(index|data-\d+-of-\d+)|variables/variables\.[^/]+"
)
"""Files that are brought of a directory in an object store, but for those of runs."""


def _brought(model: str | os.PathLike[str], step: int | None) -> Path | None:
    """The copy of a directory in an object store that has a model; None for whatever
    else names one."""
    name = os.fspath(model)
    if re.search(r"[?#]|\.(json|hdf5|h5|zip|tar|tgz|gz|xz|bz2)$", name):
        return None
    if not re.match(rf"({'|'.join(cloud.SCHEMES)}):/", name, re.IGNORECASE):
        return None
    found = cloud.address(name)
    assert found is not None
    there = cloud.listing(found)
    if not any(map(IN_STORES.fullmatch, there)):
        return None
    if any(step_of(name) is not None for name in there):
        return bring_model(found, step)
    if "config.json" in there:
        copy = cloud.bring(found, "config.json".__eq__)
        if _form_of_directory(copy) == "run":
            return bring_model(found, step)
    return cloud.bring(found, IN_STORES.fullmatch, lambda name: True)


REGISTERED = "allennlp:"
ARCHIVE = re.compile(
    r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))(\?|$)|\?tf-hub-format=compressed", re.I
)
"""In the address of an archive; the last is how TF-Hub names the one of a module."""
HDF5_BEGINNING = rb"(?s:.{512}|.{1024}|.{2048})?\x89HDF\r\n\x1a\n"
ALLENNLP = "https://s3-us-west-2.amazonaws.com/allennlp/models/elmo/"


def _published(folder: str, names: str = "", weights: str = WEIGHTS) -> tuple[str, str]:
    start = f"{ALLENNLP}{folder}/{names}"
    return f"{start}{OPTIONS}", f"{start}{weights}"


REGISTRY: dict[str, tuple[str, str]] = {
    **{
        name: _published(shape, f"elmo_{shape}_")
        for name, shape in (
            ("small", "2x1024_128_2048cnn_1xhighway"),
            ("medium", "2x2048_256_2048cnn_1xhighway"),
            ("original", "2x4096_512_2048cnn_2xhighway"),
            ("original-5.5B", "2x4096_512_2048cnn_2xhighway_5.5B"),
        )
    },
    "pt": _published("contributed/pt", "elmo_pt_"),
    "pt-wikipedia": _published("contributed/pt/wikipedia", "", "elmo_pt_weights.hdf5"),
    "pt-brwac": _published("contributed/pt/brwac", "", "elmo_pt_weights_dgx1.hdf5"),
    "pubmed": _published(
        "contributed/pubmed",
        "elmo_2x4096_512_2048cnn_2xhighway_",
        "weights_PubMed_only.hdf5",
    ),
}
"""Name -> addresses of options and weights; no SHA-256 of them was published.

The models of https://allennlp.org/elmo. `allennlp:NAME` is their address for short.
"""


def is_url(model: object) -> bool:
    """Whether a model is named by an address, as `fetch_model` takes them."""
    starts = (REGISTERED, *(f"{scheme}://" for scheme in SCHEMES))
    return isinstance(model, str) and model.lower().startswith(starts)


def fetch_model(url: str) -> Path:
    """Downloads a model, unless it is in the cache.

    Args:
      url: one of
        - a directory that holds options.json and weights.hdf5 or model.hdf5;
        - either of two files side by side: `..._options.json` and `..._weights.hdf5`,
          as AllenNLP names them, options.json and an HDF5 file of any name, or
          options262.json and `XX_weights.hdf5`, as CrossLingualELMo has them;
        - a ZIP or tar archive of a model in any form that `load` takes;
        - `allennlp:NAME`, NAME one of `REGISTRY`;

        with `#sha256=...` of the weights or the archive at its end, if you like.

    Returns:
      A directory with options.json and weights.hdf5, for `load_hdf5`, or with what an
      archive holds, which is unpacked once.

    Raises:
      InputError: as `fetch` does; and if the registry has no such name, the other file
        is not found, or what came is not JSON, not HDF5 or no sound archive (then it is
        not kept).
    """
    address, sha256 = split_address(url)
    if ARCHIVE.search(address):
        return unpacked_once(fetch(url))
    options, weights = _files(address)
    folder = cloud.cache_directory() / cached_name(weights[0])
    try:
        fetch_first(folder / OPTIONS, options, None, ("a JSON object", rb"\s*\{"))
        fetch_first(folder / WEIGHTS, weights, sha256, ("HDF5", HDF5_BEGINNING))
    except Missing as error:
        raise InputError(
            f"{error} A model at {address} is two files side by side, options.json and "
            "weights.hdf5 or ..._options.json and ..._weights.hdf5; where they have "
            "other names, download both and give a directory that holds them."
        ) from None
    return folder


def _files(url: str) -> tuple[list[str], list[str]]:
    """Where the options and the weights may be."""
    if url.startswith(REGISTERED):
        name = url.removeprefix(REGISTERED)
        if name not in REGISTRY:
            raise InputError(
                f"{REGISTERED} has no model {name!r}; it has {', '.join(REGISTRY)}."
            )
        option, weight = REGISTRY[name]
        return [option], [weight]
    for pair in REGISTRY.values():
        for file in pair:
            base = url.removesuffix(file.removeprefix(ALLENNLP))
            if base != url and base.endswith("models/elmo/"):  # there, or a copy of it
                option, weight = (part.replace(ALLENNLP, base) for part in pair)
                return [option], [weight]
    path, mark, query = url.partition("?")
    query = mark + query
    folder, _, name = path.rpartition("/")
    names, files = [OPTIONS], [WEIGHTS, "model.hdf5"]
    if match := re.fullmatch(r"(.*)options\.json", name):
        files = [f"{match[1]}{WEIGHTS}", *files[1:]]
        names = [name]
    elif match := re.fullmatch(r"(.*?)(weights.*)?\.(hdf5|h5)", name):
        files = [name]
        if match[2]:
            shared = (f"{match[1]}{OPTIONS}", OPTIONS, "options262.json")
            names = [*dict.fromkeys(shared)]
    else:
        folder = path.rstrip("/")
    there = f"{folder}/{{}}{query}".format
    return [*map(there, names)], [*map(there, files)]


# --- forms ---------------------------------------------------------------------------


def form_of(path: Path) -> Form:
    """The form of the model at a path.

    Raises:
      InputError: if there is none; it says what is there.
    """
    with reading(path):
        form = _form_of_directory(path) if path.is_dir() else _form_of_file(path)
        what = "" if form else _what(path)
    if form is None:
        raise InputError(f"{path} {what}.")
    return form


def _form_of_directory(path: Path) -> Form | None:
    config = config_in(path)
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
            "the name of a model that ships with elmojax "
            f"({', '.join(bundled_models())})."
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


def _what(path: Path) -> str:
    """What a path is that holds no model that is read, and what to do: the rest of a
    sentence."""
    if not path.is_dir():
        return (
            "is not a run directory, an archive or an HDF5 file, or anything else that "
            "a model is; give the directory of one"
        )
    config, names = config_in(path), sorted(entry.name for entry in path.iterdir())
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

"""Models as repositories of the Hugging Face Hub have them, read, written and fetched.

    config.json         model_type elmojax, and what options.json says; see `published`
    model.safetensors   the arrays of weights.hdf5 and softmax.hdf5, under their names
    vocabulary.txt      the words of the softmax, or of a model that reads word ids
    README.md           the card

Only this module knows huggingface_hub and safetensors (the extra `hub`), and imports
them when they are used; whatever goes wrong in them is an `InputError`. Repositories
with the files of AllenNLP are fetched too. Where they are kept, and the token, is as
huggingface_hub has it: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from elmojax.disk import local, read_object
from elmojax.errors import InputError, one_line
from elmojax.formats.assembly import (
    Arrays,
    assemble,
    head_arrays,
    head_of,
    published_arrays,
    storable,
)
from elmojax.formats.hdf5 import VOCABULARY, staged
from elmojax.formats.published import Options, Shape, options_of
from elmojax.model.bilm import ElmoParams, Placement
from elmojax.shapes import Params
from elmojax.text.vocabulary import Vocabulary

CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
MODEL_TYPE = "elmojax"
SCHEME = "hf://"
FLOATS = ("F64", "F32", "F16", "BF16")
SMALL_FILES = ["*.json", "*.txt", "*.txt.gz", "*.dic", README, "card.md"]
WEIGHT_FILES = ["*.hdf5", "*.h5", "encoder.pkl", "token_embedder.pkl", WEIGHTS]


# --- a directory ---------------------------------------------------------------------


def load_safetensors(
    directory: Path, *, head: bool = True, sharding: Placement = None
) -> tuple[ElmoParams, Params | None]:
    """The model in a directory that `save_safetensors` wrote, and its softmax.

    Args:
      directory: with config.json and model.safetensors.
      head: whether to read the softmax.
      sharding: where the arrays of the biLM go, as for `restore`.

    Raises:
      InputError: for a file that is missing, damaged or not of this form; an array
        that is missing, of another shape or not finite; or without safetensors.
    """
    try:
        options = Options(read_object(directory / CONFIG), directory / CONFIG)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory / CONFIG} cannot be read ({one_line(error)}); get it again."
        ) from error
    weights = directory / WEIGHTS
    with _library("safetensors"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(weights, framework="np") as file:
            found: dict[str, Shape | None] = {}
            for name in file.keys():
                part = file.get_slice(name)
                floating = part.get_dtype() in FLOATS
                found[name] = tuple(part.get_shape()) if floating else None
            arrays = Arrays(found, file.get_tensor, weights, directory / CONFIG)
            params = assemble(options, arrays, sharding)
            softmax = any(re.match("(adaptive_)?softmax/", name) for name in found)
            if not (head and softmax):
                return params, None
            return params, head_of(arrays, params.config.lstm.projection)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{weights} is missing, damaged or cut short ({one_line(error)}). Get it "
            "again, whole."
        ) from error


def save_safetensors(
    params: ElmoParams,
    directory: str | os.PathLike[str],
    head: Params | None = None,
    vocabulary: Vocabulary | None = None,
    card: str | None = None,
    overwrite: bool = False,
    version: str = "",
) -> None:
    """Writes config.json, model.safetensors, README.md and the vocabulary.

    Args:
      params: any model; the numbers are stored as float32, unchanged.
      directory: made if need be. It is a model once config.json is there, which comes
        last.
      head: parameters of the softmax.
      vocabulary: its words.
      card: what README.md says besides how to load the model.
      overwrite: replace the model of this form in `directory`, if there is one.
      version: of elmojax, for the record.

    Raises:
      InputError: if a file is there already or cannot be written, or a number is not
        finite.
    """
    directory = local(directory)
    ours = config_in(directory).get("model_type") == MODEL_TYPE
    if overwrite and (directory / CONFIG).exists() and not ours:
        raise InputError(
            f"{directory / CONFIG} belongs to something else than a model that "
            "save_pretrained wrote, and is not replaced; choose another directory."
        )
    arrays = dict(published_arrays(params)) | (head_arrays(head) if head else {})
    stored = {
        name: np.ascontiguousarray(storable(name, array))
        for name, array in arrays.items()
    }
    config = {"model_type": MODEL_TYPE, "elmojax": version, **options_of(params.config)}
    with _library("safetensors"):
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    with staged(directory, overwrite, (CONFIG, WEIGHTS, VOCABULARY, README)) as stage:
        try:
            save_file(stored, stage / WEIGHTS)
        except SafetensorError as error:  # its own for a disk that is full
            raise OSError(one_line(error)) from error
        if vocabulary is not None:
            vocabulary.write(stage / VOCABULARY)
        text = _readme(params, card)
        (stage / README).write_text(text, encoding="utf-8")
        text = json.dumps(config, indent=2) + "\n"
        (stage / CONFIG).write_text(text, encoding="utf-8")


def config_in(directory: Path) -> dict[str, Any]:
    """config.json; nothing where it is not there or is none."""
    try:
        return read_object(directory / CONFIG)
    except (OSError, ValueError):
        return {}


FRONT = "---\nlibrary_name: elmojax\ntags:\n- elmo\n---\n\n"
PLACE = f"{SCHEME}OWNER/NAME"
USE = f"""
## Use

```python
import elmojax

params = elmojax.load("{PLACE}")  # or a directory with these files
```
"""


def card_of(readme: str | None) -> str | None:
    """The card in a README.md that `save_safetensors` wrote; whole if it is another."""
    return readme and readme.removeprefix(FRONT).partition("\n## Use\n")[0]


def _readme(params: ElmoParams, card: str | None) -> str:
    lstm = params.config.lstm
    about = card or (
        "# ELMo\n\nA bidirectional language model (ELMo, Peters et al. 2018): "
        f"{lstm.layers} LSTM layers of {lstm.dim} cells in each direction, projected "
        f"to {lstm.projection}; vectors of {params.config.dim} numbers a word.\n"
    )
    return FRONT + about + USE


# --- the Hub -------------------------------------------------------------------------


def is_repository(model: object) -> bool:
    """Whether a model is named as hf://OWNER/NAME."""
    return isinstance(model, str) and model.lower().startswith(SCHEME)


def fetch_repository(address: str) -> Path:
    """Downloads the model in a repository, unless it is in the cache of the Hub.

    What is too large for a look comes only if the small files do not say that it is
    the model of another program.

    Args:
      address: hf://OWNER/NAME or hf://OWNER/NAME@REVISION, a branch, tag or commit.

    Returns:
      A directory with its files.

    Raises:
      InputError: if there is no such repository or revision, it cannot be reached and
        is not in the cache, it holds no model of ELMo, or without huggingface_hub.
    """
    name, revision = _parts(address)
    small = _snapshot(address, name, revision, SMALL_FILES)
    # Whatever has none, the whole will say.
    kind = config_in(small).get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE and not any(small.glob("*options*.json")):
        kind = one_line(kind, 40).upper()
        raise InputError(
            f"{address} is a Hugging Face {kind} model; elmojax reads ELMo."
        )
    return _snapshot(address, name, revision, [*SMALL_FILES, *WEIGHT_FILES])


def _parts(address: str) -> tuple[str, str | None]:
    """OWNER/NAME and REVISION of an address."""
    pattern = rf"(?i:{SCHEME})([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?"
    match = re.fullmatch(pattern, address, flags=re.ASCII)
    if match is None:
        raise InputError(
            f"{address!r} is no repository of the Hugging Face Hub; give "
            f"{SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION."
        )
    return match[1], match[2]


def _snapshot(
    address: str, name: str, revision: str | None, patterns: list[str]
) -> Path:
    with _library("huggingface_hub"):
        from huggingface_hub import snapshot_download
    with _answering(address):
        endpoint = os.environ.get("HF_ENDPOINT")
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, endpoint=endpoint
            )
        )


def push_safetensors(
    params: ElmoParams,
    repository: str,
    head: Params | None = None,
    vocabulary: Vocabulary | None = None,
    card: str | None = None,
    version: str = "",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """`save_safetensors` into a repository, which is made if need be.

    Returns its address for `load`. `InputError` where the Hub refuses.
    """
    name, branch = _parts(f"{SCHEME}{repository.removeprefix(SCHEME)}")
    revision = revision or branch
    address = f"{SCHEME}{name}" + (f"@{revision}" if revision else "")
    with _library("huggingface_hub"):
        from huggingface_hub import HfApi
    with tempfile.TemporaryDirectory(prefix="elmojax-") as folder:
        save_safetensors(params, folder, head, vocabulary, card, version=version)
        readme = Path(folder, README)
        text = readme.read_text(encoding="utf-8").replace(PLACE, address)
        readme.write_text(text, encoding="utf-8")
        with _answering(address):
            api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, revision=revision)
    return address


@contextlib.contextmanager
def _library(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{name} is needed for models of the Hugging Face Hub: pip install "
            f"'elmojax[hub]' ({error})."
        ) from None


@contextlib.contextmanager
def _answering(address: str) -> Iterator[None]:
    """What goes wrong in huggingface_hub is an `InputError`, and not raised from its
    own exception, which may hold the token."""
    from huggingface_hub import errors

    try:
        with _quiet():
            yield
    except Exception as error:
        if isinstance(error, errors.RepositoryNotFoundError):
            what = "is not there, or not for us to see"
        elif isinstance(error, errors.RevisionNotFoundError):
            what = "has no such revision"
        elif isinstance(error, errors.LocalEntryNotFoundError):
            what = "cannot be reached, and is not (whole) in the cache"
        else:
            what = f"cannot be used ({one_line(error, 120)})"
        raise InputError(
            f"{address} {what}. Check the name, the network and, where it is needed, "
            "the token in HF_TOKEN."
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars where no terminal shows them."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    chosen = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    if chosen or sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()

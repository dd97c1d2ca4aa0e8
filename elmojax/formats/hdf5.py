"""options.json + weights.hdf5: the files of bilm-tf and AllenNLP, read and written.

    options.json      the shape of the model; see `published`
    weights.hdf5      encoder and LSTM; names and shapes in `published`
    softmax.hdf5      softmax/W [words, projection], softmax/b [words], as the softmax
                      files of the published models have them; an adaptive softmax,
                      which only elmojax has, is in the group adaptive_softmax
    token embeddings  embedding [words, projection], as `dump_token_embeddings` of
                      bilm-tf writes it, rows in the order of its vocabulary file
    vocabulary.txt    the words of the softmax, or of a model that reads word ids

Every number is a float32 and goes through unchanged. Files of half the size, in
float16, are written where they are asked for, and read like the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np

from elmojax.arguments import checked
from elmojax.config import WordTableConfig
from elmojax.disk import local, replacing, unfailing
from elmojax.errors import InputError, reading, writing
from elmojax.formats.assembly import (
    Arrays,
    Stored,
    assemble,
    head_arrays,
    head_of,
    published_arrays,
    storable,
)
from elmojax.formats.published import Shape, options_of, read_options
from elmojax.model.bilm import ElmoParams, Placement
from elmojax.shapes import Params
from elmojax.text.vocabulary import Vocabulary

ADVICE = "Choose another place, or free space."
"""Where a file cannot be written."""


def load_head(softmax_file: PathLike, projection: int) -> Params:
    """The softmax beside a biLM, as `training` and `save_hdf5` take it.

    Returns {"kernel" [words, projection], "bias" [words]}; for an adaptive softmax
    also its tails, and the bias only if it has one.

    Raises:
      InputError: if the file is none, or its arrays do not fit `projection`.
    """
    with open_hdf5(Path(softmax_file), f"a projection of {projection}") as arrays:
        return head_of(arrays, projection)


def save_token_embeddings(
    params: ElmoParams, embedding_file: PathLike, overwrite: bool = False
) -> None:
    """Writes the table of `cache_words` as bilm-tf's token embeddings.

    Its rows are those of `WordIndex(words).words`; bilm-tf reads them beside a
    vocabulary file with one of these words a line.

    Raises:
      InputError: if `params` have no such table, or the file is there already or
        cannot be written.
    """
    path = Path(embedding_file)
    config = params.config
    if not isinstance(config.encoder, WordTableConfig) or (
        config.encoder.dim != config.lstm.projection
    ):
        raise InputError("save_token_embeddings takes what cache_words returns.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already; choose another name.")
    table = np.asarray(params.encoder["embedding"])
    with writing(path, ADVICE), replacing(path) as partial:
        write_arrays(partial, {"embedding": table})


OPTIONS, WEIGHTS = "options.json", "weights.hdf5"
SOFTMAX, VOCABULARY = "softmax.hdf5", "vocabulary.txt"
PathLike: TypeAlias = str | os.PathLike[str]

# --- reading -------------------------------------------------------------------------


@checked
def load_hdf5(
    options_file: PathLike, weights_file: PathLike, *, sharding: Placement = None
) -> ElmoParams:
    """A biLM in the files of AllenNLP and bilm-tf.

    All their shapes: any filters and number of layers, with and without highways, skip
    connections, clipping, projection of the CNN or of the LSTM (one that is left out
    becomes the identity); models over words too (an `embedding` data set).

    Args:
      options_file: options.json.
      weights_file: weights.hdf5.
      sharding: where the arrays go, as for `restore`; None = uncommitted.

    Returns:
      ElmoParams with float32 leaves and, unless `save_hdf5` wrote one, a zero initial
      state.

    Raises:
      InputError: if a file is missing, is not what it should be or is damaged, a key
        or data set is missing or has another shape, or a number is not finite; the
        message names the file and the key. Or if `sharding` does not fit.
    """
    options = read_options(Path(options_file))
    with open_hdf5(Path(weights_file), options_file) as arrays:
        return assemble(options, arrays, sharding)


@contextlib.contextmanager
def open_hdf5(path: Path, options: object = "") -> Iterator[Arrays]:
    """The data sets of an HDF5 file. What goes wrong with it is an `InputError`.

    So is a file whose data lie in other files, which could be any of this machine.

    Args:
      path: the file.
      options: as for `Arrays`.
    """
    with reading(path), open(path, "rb") as plain:
        start = plain.read(8)
    if not h5py.is_hdf5(path):
        what = "text" if start.strip() and start.isascii() else "something else"
        raise InputError(
            f"{path} is not an HDF5 file but {what if start else 'empty'}. Give the "
            "weights as they were published, not their options or a web page."
        )
    try:
        with h5py.File(path, "r") as file:

            def read(name: str) -> np.ndarray:
                with _damage():
                    return file[name].astype(np.float32)[()]

            yield Arrays(_shapes_of(file, path), read, path, options)
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged or cut short ({error}). Get it again, whole."
        ) from error


def _shapes_of(file: h5py.File, path: Path) -> dict[str, Shape | None]:
    """All data sets with their shapes; None for one that does not hold floats."""
    found: dict[str, Shape | None] = {}
    names: list[str | bytes] = []
    with _damage():
        file.visit_links(names.append)  # h5py bears no error inside of a visit
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"{name!r} is no name")
            link = file.get(name, getlink=True)
            item = file[name] if isinstance(link, h5py.HardLink) else link
            if isinstance(item, h5py.Dataset):
                outside = item.is_virtual or item.external
                found[name] = item.shape if item.dtype.kind == "f" else None
            else:  # a soft link stays in this file
                outside = isinstance(item, h5py.ExternalLink)
            if outside:
                raise InputError(
                    f"{path}: {name} lies in another file, which is not read. Get a "
                    "file that holds all of its arrays itself."
                )
    return found


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """h5py stumbles over a damaged file in many ways; for `open_hdf5` they are one."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise OSError(str(error)) from error


# --- writing -------------------------------------------------------------------------


@checked
def save_hdf5(
    params: ElmoParams,
    directory: PathLike,
    head: Params | None = None,
    vocabulary: Vocabulary | None = None,
    overwrite: bool = False,
    dtype: Stored = "float32",
) -> None:
    """Writes a biLM as options.json and weights.hdf5, to be loaded unedited elsewhere.

    AllenNLP loads character models with skip connections, bilm-tf nearly all (`notes`
    of `check_hdf5` says when not). `load_hdf5` gives back the same float32 arrays, bit
    by bit. An initial state other than zero is saved too; only elmojax reads it.

    Args:
      params: any model.
      directory: made if need be. It is a model once options.json is there, which
        comes last: what was cut short has none.
      head: parameters of the softmax, for softmax.hdf5.
      vocabulary: written to vocabulary.txt.
      overwrite: replace the model in `directory`, if there is one.
      dtype: in which numbers are stored. float16 takes half the space and keeps 3
        digits.

    Raises:
      InputError: if a file is there already, cannot be written, or a number of the
        model is not finite in `dtype`.
    """
    arrays = {WEIGHTS: dict(published_arrays(params))}
    if head is not None:
        arrays[SOFTMAX] = head_arrays(head)
    with staged(local(directory), overwrite) as stage:
        for name, content in arrays.items():
            write_arrays(stage / name, content, dtype)
        if vocabulary is not None:
            vocabulary.write(stage / VOCABULARY)
        text = json.dumps(options_of(params.config), indent=2) + "\n"
        (stage / OPTIONS).write_text(text, encoding="utf-8")


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], dtype: Stored = "float32"
) -> None:
    """An HDF5 file of data sets; `InputError` for a number that is not finite."""
    with unfailing(path) as (plain, _), h5py.File(plain, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=storable(name, array, dtype))


@contextlib.contextmanager
def staged(
    directory: Path,
    overwrite: bool,
    names: Sequence[str] = (OPTIONS, WEIGHTS, SOFTMAX, VOCABULARY),
) -> Iterator[Path]:
    """A folder whose files move into `directory` when all of them are there.

    The first of `names` goes away first and comes back last, so that no mixture of an
    old and a new model passes for one.
    """
    there = [name for name in names if (directory / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"{directory / there[0]} is there already; choose another directory, or "
            "--overwrite (overwrite=True) to replace the model in it."
        )
    stage, made = directory / f".partial-{os.getpid()}", not directory.exists()
    with writing(directory, ADVICE):
        stage.mkdir(parents=True)
        try:
            yield stage
            for name in there:
                (directory / name).unlink()
            for name in reversed(names):
                if (stage / name).exists():
                    os.replace(stage / name, directory / name)
        except BaseException:
            made = made and not any(directory.glob("[!.]*"))
            raise
        else:
            made = False
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            if made:
                directory.rmdir()

"""Two tables that lie beside a biLM as HDF5 files: the softmax, and encoded words.

softmax.hdf5      softmax/W [words, projection], softmax/b [words], as the softmax
                  files of the published models have them; an adaptive softmax,
                  which only elmojax has, is in the group adaptive_softmax
token embeddings  embedding [words, projection], as `dump_token_embeddings` of
                  bilm-tf writes it, rows in the order of its vocabulary file
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from elmojax.atomic import replaced
from elmojax.config import CharCnnConfig
from elmojax.errors import InputError
from elmojax.formats.hdf5 import (
    HEAD_NAMES,
    PathLike,
    open_hdf5,
    read_array,
    shapes_of,
    to_jax,
    unwritable,
    write_arrays,
)
from elmojax.model.bilm import ElmoParams
from elmojax.shapes import Params


def load_head(softmax_file: PathLike, projection: int) -> Params:
    """The softmax beside a biLM, as `training` and `save_hdf5` take it.

    Returns {"kernel" [words, projection], "bias" [words]}; for an adaptive softmax
    also its tails, and the bias only if it has one.

    Raises:
      InputError: if the file is none, or its arrays do not fit `projection`.
    """
    with open_hdf5(Path(softmax_file)) as file:
        found = shapes_of(file)
        prefix = "adaptive_softmax/"
        names = {n.removeprefix(prefix): n for n in found if n.startswith(prefix)}
        names = names or HEAD_NAMES
        needed: dict[str, tuple[int | None, ...]] = {"kernel": (None, projection)}
        if "bias" in names:  # an adaptive softmax may have none
            needed["bias"] = (None,)
        for name, wanted in needed.items():
            shape = found.get(names.get(name, ""))
            if shape is None or len(shape) != len(wanted) or shape[1:] != wanted[1:]:
                raise InputError(
                    f"{softmax_file} has no {names.get(name, prefix + name)} with "
                    f"{len(wanted)} axes that fits a projection of {projection}."
                )
        arrays = {k: np.zeros(found[n] or (), np.float32) for k, n in names.items()}
        for name, into in arrays.items():
            read_array(file, names[name], into, softmax_file)
    if "bias" in arrays and len(arrays["kernel"]) != len(arrays["bias"]):
        raise InputError(
            f"{softmax_file}: {names['kernel']} has {len(arrays['kernel'])} rows and "
            f"{names['bias']} {len(arrays['bias'])}; they must be the same words."
        )
    return to_jax(arrays)


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
    if isinstance(config.encoder, CharCnnConfig) or (
        config.encoder.dim != config.lstm.projection
    ):
        raise InputError("save_token_embeddings takes what cache_words returns.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already; choose another name.")
    table = np.asarray(params.encoder["embedding"])
    try:
        with replaced(path) as partial:
            write_arrays(partial, {"embedding": table})
    except OSError as error:
        unwritable(path, error)

"""Ids from outside, held against what a model reads; `InputError` says what would be
right."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elmojax.config import (
    CharCnnConfig,
    ElmoConfig,
    UnicodeCnnConfig,
    WordTableConfig,
)
from elmojax.errors import InputError
from elmojax.shapes import Tokens
from elmojax.text.characters import BEGIN, END, PADDING, encoder_ids


def as_ids(name: str, ids: Any, axes: int, wanted: str) -> Array:
    """Ids from outside as an array of JAX; `InputError` for another form."""
    if not isinstance(ids, jax.Array):
        ids = np.asarray(ids)
        if ids.dtype.kind in "iu" and ids.dtype.itemsize > 4:
            # JAX would keep the lower half of a number, which may be that of a row.
            least, most = max(-1, np.iinfo(ids.dtype).min), np.iinfo(np.int32).max
            ids = ids.clip(least, most).astype(np.int32)
    if ids.ndim != axes:
        raise InputError(
            f"{name} have shape {ids.shape}; this model takes ids {wanted}."
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"{name} are {ids.dtype}; give int32 ids {wanted}.")
    return jnp.asarray(ids)


def checked_tokens(config: ElmoConfig, tokens: Tokens) -> Array:
    """Ids of sentences; `InputError` if they cannot be what the model reads.

    Shapes are always checked; numbers where they are known, not while JAX traces them
    and not where other processes hold some of them.
    """
    encoder = config.encoder
    if isinstance(encoder, CharCnnConfig):
        tokens = as_ids("tokens", tokens, 3, "[batch, time, characters]")
        columns, most = tokens.shape[-1], encoder.max_characters
        widest = max(max(width for width, _ in encoder.filters), 4)
        if columns < widest:
            raise InputError(
                f"tokens have {columns} character columns; the model needs at least "
                f"{widest} (batch_to_ids(sentences, {most}) makes {most})."
            )
        if columns > most:
            raise InputError(
                f"tokens have {columns} character columns, and this model reads {most} "
                f"of a word; make them with batch_to_ids(sentences, {most}), where "
                f"{most} is params.config.encoder.max_characters."
            )
    elif isinstance(encoder, UnicodeCnnConfig):
        (columns,) = encoder.id_shape
        wanted = f"[batch, time, {columns}] of unicode_ids(params.config.encoder, ...)"
        tokens = as_ids("tokens", tokens, 3, wanted)
        if tokens.shape[-1] != columns:
            raise InputError(
                f"tokens have {tokens.shape[-1]} columns; this model has dictionaries "
                f"and takes ids {wanted}."
            )
    else:
        tokens = as_ids("tokens", tokens, 2, "[batch, time]")
    if isinstance(tokens, jax.core.Tracer) or not tokens.is_fully_addressable:
        return tokens
    ids = np.asarray(jax.device_get(tokens))
    if isinstance(encoder, CharCnnConfig):
        # Max-pooling sees windows of nothing but padding in the full width. In fewer
        # columns a word has them too, or it would get other vectors.
        if columns < most and not np.isin(ids[..., -widest:], (0, PADDING + 1)).all():
            raise InputError(
                f"tokens have {columns} character columns, too few for the longest of "
                f"these words; this model reads {most}: make them with "
                f"batch_to_ids(sentences, {most})."
            )
    _refuse_marks(config, ids)
    return tokens


def _refuse_marks(config: ElmoConfig, ids: np.ndarray) -> None:
    """`InputError` where every sentence is already `<S> ... </S>`."""
    begin, end = mark_ids(config)
    if ids.ndim == 3:  # what is left out is padding
        begin, end = begin[: ids.shape[2]], end[: ids.shape[2]]
    real = (ids > 0).any(axis=-1) if ids.ndim == 3 else ids > 0
    lengths = real.sum(axis=1)
    ids, lengths = ids[lengths > 0], lengths[lengths > 0]
    if not len(ids) or np.any(ids[:, 0] != begin):
        return
    if np.any(ids[np.arange(len(ids)), lengths - 1] != end):
        return
    where = f"tokens[:, 1:] == {end}"
    if ids.ndim == 3:
        place = 2 if isinstance(config.encoder, UnicodeCnnConfig) else 1
        where = f"tokens[:, 1:, {place}:{place + 1}] == {end[place]}"
    raise InputError(
        "Every sentence of tokens begins with <S> and ends with </S> (as from the "
        "Batcher of bilm-tf); embed and encode add these themselves. Make ids of the "
        "words alone, or take the marks out: "
        f"`np.where({where}, 0, tokens[:, 1:])`."
    )


def mark_ids(config: ElmoConfig) -> np.ndarray:
    """Ids of `<S>` and `</S>`: [2, characters], or [2] for a model of word ids."""
    encoder = config.encoder
    if isinstance(encoder, WordTableConfig):
        return np.array([encoder.begin_row, encoder.end_row], np.int32) + 1
    return encoder_ids(encoder, (BEGIN, END))

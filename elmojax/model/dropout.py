"""Dropout that draws for each row by itself.

Which numbers of a row are dropped depends on the key, the row and the layer, never on
which other rows are computed beside it: a batch in pieces, or in shares on many
devices, trains as the whole one.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def row_keys(key: Array, rows: Array) -> Array:
    """A key for each of these rows of the global batch (int32 [rows])."""
    return jax.vmap(partial(jax.random.fold_in, key))(rows)


def dropped(x: Array, rate: float, keys: Array, layer: int) -> Array:
    """x [time, two, rows, width] with a share `rate` of 0, the rest scaled up."""

    def draw(key: Array) -> Array:
        one_row = (*x.shape[:2], x.shape[3])
        kept = jnp.float32(1 - rate)  # else jax_enable_x64 draws other numbers
        return jax.random.bernoulli(jax.random.fold_in(key, layer), kept, one_row)

    kept = jax.vmap(draw, out_axes=2)(keys)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))

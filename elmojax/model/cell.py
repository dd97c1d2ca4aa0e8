"""What both forms of the recurrence share: weights, state, clips and gates."""

from __future__ import annotations

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from elmojax.model.platforms import Platform
from elmojax.model.precision import Dtype
from elmojax.shapes import Cell, Hidden

FORGET_BIAS = 1.0
"""Added to the forget gate when it is computed, never stored (as in TensorFlow)."""


class State(NamedTuple):
    """What a layer carries from one position to the next."""

    cell: Cell
    hidden: Hidden


class Weights(NamedTuple):
    """One layer: kernel [two, inputs + projection, gates], bias [two, gates],
    projection [two, dim, projection]."""

    kernel: Array
    bias: Array
    projection: Array


class Backend(enum.Enum):
    """How the recurrence is computed; the values are the same."""

    REFERENCE = "reference"
    """`lax.scan` differentiated by JAX: short, and the truth for tests."""
    LEAN = "lean"
    """Own gradient: little is kept for it, weight gradients after the loop."""


class Options(NamedTuple):
    """What does not change while a program runs."""

    cell_clip: float
    projection_clip: float
    axis: str | None = None
    """Mesh axis over which `dim` is split; the projection is summed over it."""
    backend: Backend = Backend.LEAN
    dtype: Dtype = jnp.float32
    """Of matrix products."""
    platform: Platform = None


def activated(z: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    """Gates i, j, f, o, which lie one after the other along an axis of `z`."""
    i, j, f, o = jnp.split(z, 4, axis=axis)
    sigmoid = jax.nn.sigmoid
    return sigmoid(i), jnp.tanh(j), sigmoid(f + FORGET_BIAS), sigmoid(o)

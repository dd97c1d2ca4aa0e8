"""Array types: the axis letters once, then a name for every array that travels.

    batch       sentences handed in together     time        words of a sentence
    rows        streams of a training batch      window      positions of a row a step
    characters  columns of character ids         words       distinct words of a batch
    two         0 = forward, 1 = backward        layers      LSTM layers
    dim         cells of a layer and direction   projection  width of one direction
    vector      2 * projection                   gates       4 * dim: i, j, f, o
    positions   rows * window * two              mixes       mixes of layers at once

Ids are int32, masks bool, everything else floating point. The names are checked as the
tests run (`pytest --shapes`); otherwise they are just `jax.Array`, and jaxtyping is not
needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING or os.environ.get("ELMOJAX_SHAPES"):
    from jaxtyping import Bool, Float, Int
else:

    class Float:
        """Stands in for jaxtyping: `Float[jax.Array, "..."]` is `jax.Array`."""

        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]

    Bool = Int = Float

Params: TypeAlias = Any
"""Nested dict of arrays, as Linen keeps parameters."""

Tokens: TypeAlias = jax.Array | np.ndarray
"""Ids from outside: [batch, time, characters], or word ids [batch, time]."""
Numbers: TypeAlias = ArrayLike | Sequence[float]
"""What users write where an array of weights is meant."""

Key: TypeAlias = Any
"""Of `jax.random.key`."""

Mask: TypeAlias = Bool[jax.Array, "batch time"]
Layers: TypeAlias = Float[jax.Array, "batch layers time vector"]
Mix: TypeAlias = Float[jax.Array, "*mixes batch time vector"]
Gammas: TypeAlias = Float[jax.Array, "*mixes layers"]

Inputs: TypeAlias = Float[jax.Array, "time two batch inputs"]
Cell: TypeAlias = Float[jax.Array, "two batch dim"]
Hidden: TypeAlias = Float[jax.Array, "two batch projection"]
Lengths: TypeAlias = Int[jax.Array, " batch"]

Positions: TypeAlias = Float[jax.Array, "positions projection"]
Targets: TypeAlias = Int[jax.Array, " positions"]
PerPosition: TypeAlias = Float[jax.Array, " positions"]

"""Array types: the axis letters once, then a name for every array that travels.

    batch       sentences handed in together        time        words of a sentence
    rows        streams of a training batch         window      positions a step of a stream
    characters  columns of a word's character ids   words       distinct words of a batch
    two         0 = forward, 1 = backward           layers      LSTM layers
    dim         cells of a layer and direction      projection  width of one direction
    vector      2 * projection: forward, backward   gates       4 * dim: i, j, f, o
    positions   rows * window * two                 mixes       mixes of layers at once

Ids are int32, masks bool, everything else floating point.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
from jaxtyping import Bool, Float, Int

Params: TypeAlias = Any
"""Nested dict of arrays, as Linen keeps parameters."""

CharacterIds: TypeAlias = Int[jax.Array, "batch time characters"]
WordIds: TypeAlias = Int[jax.Array, "batch time"]
Mask: TypeAlias = Bool[jax.Array, "batch time"]
Layers: TypeAlias = Float[jax.Array, "batch layers time vector"]
Mix: TypeAlias = Float[jax.Array, "*mixes batch time vector"]
Gammas: TypeAlias = Float[jax.Array, "*mixes layers"]

Inputs: TypeAlias = Float[jax.Array, "time two batch inputs"]
Cell: TypeAlias = Float[jax.Array, "two batch dim"]
Hidden: TypeAlias = Float[jax.Array, "two batch projection"]
Valid: TypeAlias = Bool[jax.Array, "time batch"]

Positions: TypeAlias = Float[jax.Array, "positions projection"]
Targets: TypeAlias = Int[jax.Array, " positions"]
PerPosition: TypeAlias = Float[jax.Array, " positions"]

"""Values that differ between the devices of a mesh, inside `jax.shard_map`."""

from __future__ import annotations

import jax
from jax import Array


def varying_as(other: Array, leaf: Array) -> Array:
    """`leaf`, for `jax.shard_map` as different between devices as `other` is.

    A loop needs it: what it carries must vary over the same mesh axes before and after.
    So does a gradient of one's own, which JAX then adds up over these axes.
    """
    axes, own = (jax.typeof(a).manual_axis_type.varying for a in (other, leaf))
    missing = tuple(sorted(axes - own))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

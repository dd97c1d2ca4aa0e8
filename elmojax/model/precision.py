"""One rule of precision: products run in the dtype of the weights, sums in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def contract(subscripts: str, left: Array, right: Array, dtype: jnp.dtype) -> Array:
    """`einsum` of two arrays: factors rounded to `dtype`, result float32.

    float32 means float32 on every machine: `HIGHEST` keeps GPUs from TF32 and TPUs
    from bfloat16. Half-width factors are multiplied natively on accelerators; CPUs,
    whose kernels lack some of those products, multiply the rounded values in float32,
    which gives the same numbers.
    """
    if dtype == jnp.float32:
        return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST)
    left, right = left.astype(dtype), right.astype(dtype)
    return jax.lax.platform_dependent(
        left,
        right,
        cpu=lambda a, b: jnp.einsum(
            subscripts, a.astype(jnp.float32), b.astype(jnp.float32)
        ),
        default=lambda a, b: jnp.einsum(
            subscripts, a, b, preferred_element_type=jnp.float32
        ),
    )

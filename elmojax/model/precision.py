"""One rule of precision: products in the dtype of the run, everything else in float32.

`contract` is every matrix product of the model. Its factors are rounded to the dtype of
the run; sums are float32, and so is what leaves it: activations, and in the backward
pass the gradients of weights and of activations, whose products are rounded the same
way. Weights, biases, states, clips and sums over devices are float32 throughout.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.varying import varying_as

Dtype: TypeAlias = Any
"""Of matrix products: `jnp.float32`, `jnp.bfloat16` or `jnp.float16`."""


def contract(subscripts: str, left: Array, right: Array, dtype: Dtype) -> Array:
    """`einsum` of two arrays: factors rounded to `dtype`, sums and result float32.

    float32 means float32 on every machine: `HIGHEST` keeps GPUs from TF32 and TPUs
    from bfloat16. `...` stands for leading axes of `left` and of the result.
    """
    if dtype == jnp.float32:
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
        return jnp.einsum(subscripts, left, right, precision=lax.Precision.HIGHEST)
    leading = "ABCDEFGH"[: left.ndim - len(subscripts.partition(",")[0].strip("."))]
    factors, _, out = subscripts.replace("...", leading).partition("->")
    own, _, other = factors.partition(",")
    dtypes = (jnp.dtype(dtype), left.dtype, right.dtype)
    left = varying_as(right, left)
    return _rounded((own, other, out), dtypes, left, varying_as(left, right))


def sum_over(axis: str, x: Array) -> Array:
    """`psum` over a mesh axis, in float32 whatever becomes of the sum."""
    return summed(lax.psum(x, axis))


def summed(x: Array) -> Array:
    """`x` of float32, of which devices that hold parts add these up in float32.

    Where products round it next, a TPU's compiler would add it up in bfloat16; it does
    not look through numbers that are taken for integers on the way.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type(lax.optimization_barrier(bits), jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rounded(
    axes: tuple[str, str, str], dtypes: tuple[Any, ...], left: Array, right: Array
) -> Array:
    return _forward(axes, dtypes, left, right)[0]


def _product(axes: tuple[str, str, str], left: Array, right: Array) -> Array:
    own, other, out = axes
    return jnp.einsum(
        f"{own},{other}->{out}",
        left,
        right,
        precision=lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _forward(
    axes: tuple[str, str, str], dtypes: tuple[Any, ...], left: Array, right: Array
) -> tuple[Array, tuple[Array, Array]]:
    factors = left.astype(dtypes[0]), right.astype(dtypes[0])
    return _product(axes, *factors), factors


def _backward(
    axes: tuple[str, str, str],
    dtypes: tuple[Any, ...],
    factors: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, Array]:
    (own, other, out), (left, right) = axes, factors
    rounded = cotangent.astype(dtypes[0])
    d_left = _product((out, other, own), rounded, right)
    d_right = _product((own, out, other), left, rounded)
    return d_left.astype(dtypes[1]), d_right.astype(dtypes[2])


_rounded.defvjp(_forward, _backward)

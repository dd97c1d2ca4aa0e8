"""What the exact and the sampled softmax are made with: gradients in the pass of the
loss, and positions in chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from elmojax.model.precision import Dtype

Static = tuple[Mesh | None, Dtype]
"""Mesh and dtype of products: what does not change while a program runs."""


def weighted_sum(run: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """The sum of weight * loss, and the losses: differentiable by the first alone.

    `run(static, gradient, params, hidden, targets, weights, more)` gives the losses and
    float32 gradients of their weighted sum by params and hidden, if they are asked for;
    arrays of positions may be trees of them. Training runs it once.
    """

    def summed(each: Any, weights: Any) -> Array:
        parts = jax.tree.map(lambda loss, weight: (loss * weight).sum(), each, weights)
        return sum(jax.tree.leaves(parts), jnp.float32(0))

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def both(static: Static, *arguments: Any) -> tuple[Array, Any]:
        each, *_ = run(static, False, *arguments)
        return summed(each, arguments[3]), each

    def forward(static: Static, *arguments: Any) -> tuple[tuple[Array, Any], Any]:
        params, hidden, _, weights, _ = arguments
        each, *found = run(static, True, *arguments)
        like = (params, hidden)
        found = jax.tree.map(lambda a, d: d.astype(a.dtype), like, tuple(found))
        return (summed(each, weights), each), (*found, each)

    def backward(static: Static, saved: Any, cotangents: Any) -> tuple[Any, ...]:
        d_params, d_hidden, d_weights = jax.tree.map(
            lambda d: d * cotangents[0].astype(d.dtype), saved
        )
        return d_params, d_hidden, None, d_weights, None

    both.defvjp(forward, backward)
    return both


def in_chunks(
    run: Callable[[Any, Any], tuple[Any, Any]],
    sums: Any,
    arrays: Any,
    size: int,
    count: Array | None = None,
) -> tuple[Any, Any]:
    """`run(sums, part) -> sums, found` for `size` positions after the other.

    Args:
      arrays: a tree of [shards, positions, ...]; the last part is filled with zeros.
      count: how many positions matter, the first ones; None = all.

    Returns:
      The last sums, and what was found for [shards, positions, ...].
    """
    positions = jax.tree.leaves(arrays)[0].shape[1]
    chunks = max(1, -(-positions // size))
    arrays = jax.tree.map(lambda array: filled(array, chunks * size), arrays)

    def part(n: Any) -> Any:
        return jax.tree.map(
            lambda a: lax.dynamic_slice_in_dim(a, n * size, size, 1), arrays
        )

    def chunk(n: Array, state: Any) -> Any:
        sums, outputs = state
        sums, found = run(sums, part(n))
        put = partial(lax.dynamic_update_slice_in_dim, start_index=n * size, axis=1)
        return sums, jax.tree.map(put, outputs, found)

    outputs = jax.tree.map(
        lambda one: jnp.zeros((one.shape[0], chunks * size, *one.shape[2:]), one.dtype),
        jax.eval_shape(run, sums, part(0))[1],
    )
    last = jnp.int32(chunks) if count is None else -(-count // size)
    sums, outputs = lax.fori_loop(jnp.int32(0), last, chunk, (sums, outputs))
    return sums, jax.tree.map(lambda array: array[:, :positions], outputs)


def filled(array: Array, length: int) -> Array:
    """[shards, positions, ...] with zeros after the last position."""
    more = (0, length - array.shape[1])
    return jnp.pad(array, [(0, 0), more, *[(0, 0)] * (array.ndim - 2)])

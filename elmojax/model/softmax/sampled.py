"""The sampled softmax, as bilm-tf trains with it (Jean et al. 2015).

A target is told apart from a few thousand words drawn at random, not from all of them.
What comes out is a training loss: a sampled_loss, and no probability. Each logit is
lowered by the logarithm of how often its word is expected among the drawn ones, and a
drawn word that is the target itself does not count against it.

Only the rows of the table that a step touches come in, so no gradient is as large as
the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.model.precision import Dtype, contract
from elmojax.model.softmax.parameters import Static, gradients_as, rounded, scaled
from elmojax.shapes import Params, PerPosition, Positions, Targets

TILE = 1 << 22
"""Logits in memory at once."""
NEVER = -1e30
"""The logit of a word that does not count."""


class Candidates(NamedTuple):
    """Words drawn at random, the same for all positions of a direction."""

    rows: Array
    """int32 [samples]: distinct rows of the parameters."""
    log_expected: Array
    """float32 [rows of the parameters]: log of how often each is expected here."""


def sampled_loss(
    params: Params,
    hidden: Positions,
    targets: Targets,
    weights: PerPosition,
    candidates: Candidates,
    mesh: Mesh | None = None,
    dtype: Dtype = None,
) -> tuple[Array, PerPosition]:
    """Sum of weight * sampled loss, and the loss of each position; differentiable.

    Args:
      params: kernel [rows, projection] and bias [rows] (if there is one) of the words
        that take part: targets and candidates.
      hidden: [shards, positions, projection], or without shards.
      targets: int32, rows of `params`; NaN comes of one that is none.
      mesh: with axes `data` and `model`, which both split the positions.
      dtype: of matrix products; None = that of the weights.

    The gradient flows through the sum, into params, hidden and weights.
    """
    shape = jnp.shape(targets)
    if hidden.ndim == 2:
        hidden, targets, weights = hidden[None], targets[None], weights[None]
    direction = (hidden, targets, weights, candidates)
    total, (each,) = sampled_losses(params, [direction], mesh, dtype)
    return total, each.reshape(shape)


Direction = tuple[Positions, Targets, PerPosition, Candidates]
"""What `sampled_loss` takes besides parameters and mesh."""


def sampled_losses(
    params: Params,
    directions: Sequence[Direction],
    mesh: Mesh | None = None,
    dtype: Dtype = None,
) -> tuple[Array, tuple[PerPosition, ...]]:
    """`sampled_loss` of several directions: their sum, and the losses of each.

    They share the rows of `params`, whose gradient devices add up once for all.
    """
    total, each = _sampled((mesh, dtype), params, *zip(*directions, strict=True))
    return total, lax.stop_gradient(each)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sampled(static: Static, *arguments: Any) -> tuple[Array, tuple[Array, ...]]:
    return _everywhere(static, False, *arguments)[:2]


def _forward(static: Static, *arguments: Any) -> tuple[tuple[Array, Any], Any]:
    params, hidden, *_ = arguments
    total, each, d_params, d_hidden = _everywhere(static, True, *arguments)
    return (total, each), (*gradients_as(params, hidden, d_params, d_hidden), each)


def _backward(static: Static, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    d_params, d_hidden, d_weights = scaled(saved, cotangents[0])
    return d_params, d_hidden, None, d_weights, None


_sampled.defvjp(_forward, _backward)


def _everywhere(
    static: Static,
    gradient: bool,
    params: Params,
    hidden: tuple[Array, ...],
    targets: tuple[Array, ...],
    weights: tuple[Array, ...],
    candidates: tuple[Candidates, ...],
) -> tuple[Array, tuple[Array, ...], Params, tuple[Array, ...]]:
    """All directions; on a mesh every device takes a share of their positions."""
    mesh, dtype = static
    run = jax.vmap(
        partial(_loss_and_gradients, gradient, rounded(params, dtype)),
        (None, 0, 0, 0),
    )
    total, losses, d_params, d_hidden = jnp.float32(0), [], [], []
    for drawn, *arrays in zip(candidates, hidden, targets, weights, strict=True):
        parts = [_shares(mesh, array) for array in arrays]
        each, d_kernel, d_x = run(drawn, *parts)
        total = total + (each * parts[2]).sum()
        d_params.append(d_kernel)
        losses.append(_joined(each, arrays[1]))
        d_hidden.append(_joined(d_x, arrays[0]) if gradient else d_x)
    d_params = jax.tree.map(lambda *leaves: sum(leaves).sum(0), *d_params)
    return total, tuple(losses), d_params, tuple(d_hidden)


def _shares(mesh: Mesh | None, array: Array) -> Array:
    """[shards, positions, ...] with a shard for every device, filled up with zeros."""
    if mesh is None:
        return array
    model = mesh.shape["model"]
    array = filled(array, 1, model)
    array = array.reshape(array.shape[0] * model, -1, *array.shape[2:])
    place = NamedSharding(mesh, P(("data", "model")))
    return lax.with_sharding_constraint(array, place)


def _joined(array: Array, like: Array) -> Array:
    """What `_shares` made of an array like another."""
    array = array.reshape(like.shape[0], -1, *like.shape[2:])
    return array[:, : like.shape[1]]


def _loss_and_gradients(
    gradient: bool,
    params: Params,
    candidates: Candidates,
    hidden: Array,
    targets: Array,
    weights: Array,
) -> tuple[Array, Params, Array]:
    """Losses, and gradients of their weighted sum, a block of positions at a time."""
    kernel, positions = params["kernel"], len(hidden)
    rows, log_expected = candidates
    dtype, as_float32 = kernel.dtype, partial(jnp.asarray, dtype=jnp.float32)
    shift = as_float32(params.get("bias", jnp.zeros(len(kernel)))) - log_expected
    targets = jnp.where(targets < 0, len(kernel), targets)  # -1 is not the last row
    own = [a.at[targets].get(mode="fill", fill_value=jnp.nan) for a in (kernel, shift)]
    drawn = [kernel[rows], shift[rows]]

    def losses(drawn: Any, x: Array, own: Any, target: Array) -> Array:
        (table, bias), (row, own_bias) = drawn, own
        logits = contract("pd,sd->ps", x, table, dtype) + bias[None]
        logits = jnp.where(target[:, None] == rows[None], NEVER, logits)
        true = (x * row).sum(-1) + own_bias
        most = lax.stop_gradient(jnp.maximum(true, logits.max(-1)))
        total = jnp.exp(true - most) + jnp.exp(logits - most[:, None]).sum(-1)
        return most + jnp.log(total) - true

    def block(sums: Any, part: Any) -> tuple[Any, Any]:
        x, own, target, weight = part
        if not gradient:
            return sums, (losses(drawn, x, own, target), ())
        loss, pull = jax.vjp(partial(losses, target=target), drawn, x, own)
        d_drawn, *d_part = pull(weight)
        return jax.tree.map(jnp.add, sums, d_drawn), (loss, d_part)

    size = max(1, min(positions, TILE // len(rows)))
    x, own = as_float32(hidden.astype(dtype)), jax.tree.map(as_float32, own)
    blocks = jax.tree.map(
        lambda a: filled(a, 0, size).reshape(-1, size, *a.shape[1:]),
        (x, own, targets, weights),
    )
    drawn = jax.tree.map(as_float32, drawn)
    zeros = jax.tree.map(jnp.zeros_like, drawn)
    sums, (each, d_parts) = lax.scan(block, zeros, blocks)
    each = each.reshape(-1)[:positions]
    if not gradient:
        return each, {}, jnp.zeros((0, 0), jnp.float32)
    d_hidden, d_own = jax.tree.map(
        lambda a: a.reshape(-1, *a.shape[2:])[:positions], d_parts
    )
    d_params = {}
    for name, own_part, drawn_part in zip(("kernel", "bias"), d_own, sums, strict=True):
        zeros = jnp.zeros((len(kernel), *own_part.shape[1:]), jnp.float32)
        d_params[name] = zeros.at[targets].add(own_part, mode="drop")
        d_params[name] = d_params[name].at[rows].add(drawn_part)
    return each, {name: d_params[name] for name in params}, d_hidden


def filled(array: Array, axis: int, multiple: int) -> Array:
    """Zeros after the last entry along an axis, up to a multiple."""
    more = [(0, 0)] * array.ndim
    more[axis] = (0, -array.shape[axis] % multiple)
    return jnp.pad(array, more)

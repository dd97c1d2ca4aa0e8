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
    direction = (hidden, targets, weights)
    if hidden.ndim == 2:
        direction = tuple(array[None] for array in direction)
    losses = sampled_losses(params, [(*direction, candidates)], mesh, dtype)
    return losses[0], losses[1][0].reshape(targets.shape)


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
    kernel, positions = params["kernel"], hidden.shape[0]
    bias = params.get("bias", jnp.zeros(len(kernel), kernel.dtype)).astype(jnp.float32)
    shift = bias - candidates.log_expected
    drawn = kernel[candidates.rows]
    block = max(1, min(positions, TILE // len(candidates.rows)))

    def body(sums: Any, part: Any) -> tuple[Any, Any]:
        x, target, weight = part
        target = jnp.where(target < 0, len(kernel), target)  # -1 is not the last row
        logits = contract("pd,sd->ps", x, drawn, drawn.dtype)
        logits = logits + shift[candidates.rows][None]
        hit = target[:, None] == candidates.rows[None]
        logits = jnp.where(hit, NEVER, logits)
        row = kernel.at[target].get(mode="fill", fill_value=jnp.nan)
        row = row.astype(jnp.float32)
        rounded = x.astype(drawn.dtype).astype(jnp.float32)
        true = (rounded * row).sum(-1) + shift.at[target].get(mode="fill")
        most = jnp.maximum(true, logits.max(axis=-1))
        each = jnp.exp(logits - most[:, None])
        total = jnp.exp(true - most) + each.sum(axis=-1)
        loss = most + jnp.log(total) - true
        if not gradient:
            return sums, (loss, ())
        scale = weight / total
        d_true = jnp.exp(true - most) * scale - weight
        d_x = contract("ps,sd->pd", each, drawn, drawn.dtype) * scale[:, None]
        d_x = d_x + d_true[:, None] * row
        scaled = x * scale[:, None]
        d_kernel, d_bias, d_drawn, d_drawn_bias = sums
        return (
            d_kernel.at[target].add(d_true[:, None] * rounded, mode="drop"),
            d_bias.at[target].add(d_true, mode="drop"),
            d_drawn + contract("ps,pd->sd", each, scaled, drawn.dtype),
            d_drawn_bias + (each * scale[:, None]).sum(axis=0),
        ), (loss, d_x)

    arrays = (kernel, bias, drawn, candidates.rows)
    zeros = [jnp.zeros(a.shape, jnp.float32) for a in arrays]
    sums = tuple(zeros) if gradient else ()
    parts = tuple(_blocks(array, block) for array in (hidden, targets, weights))
    sums, (each, d_hidden) = lax.scan(body, sums, parts)
    each = each.reshape(-1)[:positions]
    if not gradient:
        return each, {}, jnp.zeros((0, 0), jnp.float32)
    d_hidden = d_hidden.reshape(-1, hidden.shape[-1])[:positions]
    d_kernel, d_bias, d_drawn, d_drawn_bias = sums
    d_params = {
        "kernel": d_kernel.at[candidates.rows].add(d_drawn),
        "bias": d_bias.at[candidates.rows].add(d_drawn_bias),
    }
    return each, {name: d_params[name] for name in params}, d_hidden


def _blocks(array: Array, block: int) -> Array:
    """[positions, ...] -> [blocks, block, ...], filled up with zeros."""
    return filled(array, block).reshape(-1, block, *array.shape[1:])

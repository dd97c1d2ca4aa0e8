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

from elmojax.model.cluster_loss import round_matrices
from elmojax.model.ops import (
    Dtype,
    Static,
    contract,
    in_chunks,
    pad_positions,
    weighted_sum,
)
from elmojax.shapes import Params

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


def sampled_losses(
    params: Params,
    directions: Sequence[tuple[Array, Array, Array, Candidates]],
    mesh: Mesh | None = None,
    dtype: Dtype = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Sum of weight * sampled loss over directions, and the losses of each.

    Args:
      params: kernel [rows, projection] and bias [rows] (if there is one) of the words
        that take part: targets and candidates. Directions share them, and devices add
        up their gradient once for all.
      directions: hidden [shards, positions, projection]; targets, int32 rows of
        `params` (NaN comes of one that is none), and weights, both [shards, positions];
        and candidates.
      mesh: with axes `data` and `model`, which both split the positions.
      dtype: of matrix products; None = that of the weights.

    The gradient flows through the sum, into params, hidden and weights.
    """
    total, losses = _sampled((mesh, dtype), params, *zip(*directions, strict=True))
    return total, losses


def _everywhere(
    static: Static, gradient: bool, params: Params, *directions: Any
) -> tuple[Any, Params, Any]:
    """All directions; on a mesh every device takes a share of their positions."""
    (mesh, dtype), (*arrays, candidates) = static, directions
    shares = jax.tree.map(partial(_shares, mesh), tuple(arrays))
    run = partial(_one_pass, gradient, round_matrices(params, dtype))
    losses, d_params, d_x = zip(*map(run, candidates, *shares), strict=True)
    d_params = jax.tree.map(lambda *leaves: sum(leaves).sum(0), *d_params)
    d_hidden = jax.tree.map(_joined, d_x, arrays[0]) if gradient else None
    return jax.tree.map(_joined, losses, arrays[1]), d_params, d_hidden


_sampled = weighted_sum(_everywhere)


def _shares(mesh: Mesh | None, array: Array) -> Array:
    """[shards, positions, ...] with a shard for every device, filled up with zeros."""
    if mesh is None:
        return array
    model, (shards, positions, *more) = mesh.shape["model"], array.shape
    array = pad_positions(array, -(-positions // model) * model)
    sharding = NamedSharding(mesh, P(("data", "model")))
    array = array.reshape(shards * model, -1, *more)
    return lax.with_sharding_constraint(array, sharding)


def _joined(array: Array, like: Array) -> Array:
    """What `_shares` made of an array like another."""
    array = array.reshape(like.shape[0], -1, *like.shape[2:])
    return array[:, : like.shape[1]]


def _one_pass(
    gradient: bool,
    params: Params,
    candidates: Candidates,
    hidden: Array,
    targets: Array,
    weights: Array,
) -> tuple[Array, Params, Array | None]:
    """Losses, and gradients of their weighted sum, a block of positions at a time."""
    kernel, (rows, log_expected) = params["kernel"], candidates
    dtype, as_float32 = kernel.dtype, partial(jnp.asarray, dtype=jnp.float32)
    shift = as_float32(params.get("bias", jnp.zeros(len(kernel)))) - log_expected
    targets = jnp.where(targets < 0, len(kernel), targets)  # -1 is not the last row
    own = [
        as_float32(a.at[targets].get(mode="fill", fill_value=jnp.nan))
        for a in (kernel, shift)
    ]
    drawn = [as_float32(a[rows]) for a in (kernel, shift)]

    def loss_of(drawn: Any, x: Array, own: Any, target: Array) -> Array:
        (kernels, biases), (own_kernel, own_bias) = drawn, own
        logits = contract("pd,sd->ps", x, kernels, dtype) + biases[None]
        logits = jnp.where(target[:, None] == rows[None], NEVER, logits)
        true = (x * own_kernel).sum(-1) + own_bias
        largest = lax.stop_gradient(jnp.maximum(true, logits.max(-1)))
        total = jnp.exp(true - largest) + jnp.exp(logits - largest[:, None]).sum(-1)
        return largest + jnp.log(total) - true

    def one(x: Array, own: Any, target: Array, weight: Array) -> tuple[Any, Any]:
        if not gradient:
            return (), (loss_of(drawn, x, own, target), None, None)
        loss, pull = jax.vjp(partial(loss_of, target=target), drawn, x, own)
        d_drawn, *d_part = pull(weight)
        return d_drawn, (loss, *d_part)

    def block(sums: Any, part: Any) -> tuple[Any, Any]:
        more, found = jax.vmap(one)(*part)
        return jax.tree.map(jnp.add, sums, more), found

    @jax.vmap
    def gradients(at: Array, own: Array, drawn: Array) -> Array:
        zeros = jnp.zeros((len(kernel), *own.shape[1:]), jnp.float32)
        return zeros.at[at].add(own, mode="drop").at[rows].add(drawn)

    arrays = (as_float32(hidden.astype(dtype)), own, targets, weights)
    size = max(1, min(hidden.shape[1], TILE // len(rows)))
    start = [jnp.zeros((len(hidden), *a.shape), jnp.float32) for a in drawn]
    sums, found = in_chunks(block, start if gradient else (), arrays, size)
    losses, d_hidden, d_own = found
    if not gradient:
        return losses, {}, None
    names = [name for name in ("kernel", "bias") if name in params]
    parts = zip(names, d_own, sums, strict=False)
    return losses, {name: gradients(targets, *part) for name, *part in parts}, d_hidden

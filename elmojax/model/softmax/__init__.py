"""The softmax over the vocabulary: adaptive (Grave et al. 2017) or full, and exact.

Parameters are those of `Softmax`; hidden is [positions, projection], targets are word
ids [positions]; logarithms are natural and float32. On a mesh all arrays of positions
have an axis before, their shards, which is split over `data`. `sampled` has the sampled
softmax of bilm-tf, a training loss and no probability.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from elmojax.errors import InputError
from elmojax.model.precision import Dtype, contract
from elmojax.model.softmax.clusters import Plan, weighted_loss
from elmojax.model.softmax.parameters import Softmax as Softmax
from elmojax.model.softmax.parameters import check_cutoffs as check_cutoffs
from elmojax.model.softmax.parameters import checked, rounded
from elmojax.model.softmax.parameters import edges_of as edges_of
from elmojax.model.softmax.passes import Static, in_chunks
from elmojax.shapes import Params, PerPosition, Positions, Targets

TILE = 1 << 22
"""Logits that `predict` has in memory at once."""


def log_prob(
    params: Params,
    hidden: Positions,
    targets: Targets,
    members: Plan = None,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype = None,
) -> PerPosition:
    """Log-probability of each target, [positions]; differentiable.

    Args:
      params: of `Softmax`, one dict of arrays.
      targets: word ids; one that is outside the vocabulary raises `InputError`, and
        inside a compiled program gives NaN.
      members: of each tail cluster, [shards, capacity]; where there are none they are
        looked for in the targets, and work still follows their number.
      mesh: with axes `data`, which the shards of [shards, positions] are split over,
        and `model`, which the words of clusters are split over; None = one device.
      dtype: of matrix products; None = that of the weights. Sums, results and
        gradients are float32, or as what they belong to.
    """
    shape = np.shape(targets)
    params, hidden, targets = checked(params, hidden, targets)
    found = _log_prob((mesh, dtype), params, hidden, targets, members)
    return found.reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_prob(static: Static, *arguments: Any) -> Array:
    params, hidden, targets, members = arguments
    ones = jnp.ones(targets.shape, jnp.float32)
    return -weighted_loss(static, params, hidden, targets, ones, members)[1]


def _log_prob_backward(static: Static, saved: Any, weights: Array) -> tuple[Any, ...]:
    params, hidden, targets, members = saved

    def total(params: Params, hidden: Array) -> Array:
        return weighted_loss(static, params, hidden, targets, -weights, members)[0]

    return *jax.grad(total, (0, 1))(params, hidden), None, None


_log_prob.defvjp(lambda *all: (_log_prob(*all), all[1:]), _log_prob_backward)


def negative_log_likelihood(
    params: Params,
    hidden: Positions,
    targets: Targets,
    weights: PerPosition,
    members: Plan = None,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype = None,
) -> tuple[Array, PerPosition]:
    """Sum of -weight * log p(target), and -log p of each position.

    What trains: its gradients by params, hidden and weights are made in the same pass
    as the sum. No gradient flows through the second result; `log_prob` has one.
    Arguments as for `log_prob`; every target is counted exactly, whatever the mix of
    clusters.
    """
    shape = np.shape(targets)
    params, hidden, targets = checked(params, hidden, targets)
    weights = jnp.asarray(weights, jnp.float32).reshape(targets.shape)
    arguments = (params, hidden, targets, weights, members)
    total, each = weighted_loss((mesh, dtype), *arguments)
    return total, each.reshape(shape)


def log_prob_all(params: Params, hidden: Positions, dtype: Dtype = None) -> Array:
    """Log-probability of every word, natural logarithm, float32.

    Takes hidden [positions, projection] and gives [positions, vocabulary]; memory is
    positions x vocabulary. `dtype` is that of the products, None that of the weights.
    """
    params, edges = rounded(params, dtype), edges_of(params)
    kernel = params["kernel"]
    logits = contract("pd,vd->pv", hidden, kernel, kernel.dtype)
    if "bias" in params:
        logits = logits + params["bias"].astype(jnp.float32)[None]
    head = jax.nn.log_softmax(logits)
    parts = [head[:, : edges[0]]]
    for k in range(len(edges) - 1):
        down, up = params[f"down_{k}"], params[f"up_{k}"]
        narrow = contract("pd,dn->pn", hidden, down, down.dtype)
        inside = jax.nn.log_softmax(contract("pn,vn->pv", narrow, up, up.dtype))
        parts.append(head[:, edges[0] + k, None] + inside)
    return jnp.concatenate(parts, axis=-1)


def predict(params: Params, hidden: Positions, k: int = 1) -> tuple[Array, Array]:
    """The k most probable words of each position: ids and log-probabilities.

    Both [positions, k], falling; equal probabilities by id. Exact, a block of positions
    at a time. Raises `InputError` unless k is between 1 and the vocabulary size.
    """
    vocabulary, positions = edges_of(params)[-1], hidden.shape[0]
    if not 1 <= k <= vocabulary:
        raise InputError(
            f"predict gives the k best of {vocabulary} words; k is {k}: choose one "
            f"between 1 and {vocabulary}."
        )
    size = max(1, min(positions, TILE // vocabulary))

    def best(sums: tuple[()], block: Array) -> tuple[tuple[()], tuple[Array, Array]]:
        log_probs, ids = lax.top_k(log_prob_all(params, block[0]), k)
        return sums, (ids[None], log_probs[None])

    _, (ids, log_probs) = in_chunks(best, (), jnp.asarray(hidden)[None], size)
    return ids[0], log_probs[0]

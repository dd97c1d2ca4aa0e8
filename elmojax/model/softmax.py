"""The softmax over the vocabulary: adaptive (Grave et al. 2017) or full, and exact.

Words are numbered by falling count. The first cluster, the shortlist, holds the words
below the first cutoff and one entry a tail cluster; a word of tail cluster k costs its
entry in the shortlist and a softmax inside the cluster, over hidden vectors narrowed by
div_value ** k (Grave et al. 2017, "Efficient softmax approximation for GPUs"). Without
cutoffs the shortlist holds every word: the full softmax.

Parameters are those of `Softmax`; hidden is [positions, projection], targets are word
ids [positions]; logarithms are natural and float32. `cluster_loss` computes them, with
their gradients in the same pass.

`sampled_softmax` has the one of bilm-tf, a training loss and no probability.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from elmojax.errors import InputError
from elmojax.model.cluster_loss import TailPlan, edges_of, round_matrices, weighted_loss
from elmojax.model.ops import Dtype, Static, alike, contract, in_chunks
from elmojax.shapes import Params, PerPosition, Positions, Targets


class Softmax(nn.Module):
    """Log-probabilities of words, and the parameters of the shortlist and tails:

    kernel [first cutoff + tails, projection], bias [the same] (if there is one); of
    tail k: down_k [projection, narrow] and up_k [words of the cluster, narrow], one row
    a word.
    """

    vocabulary: int
    cutoffs: tuple[int, ...] = ()
    div_value: float = 4.0
    bias: bool = True

    def setup(self) -> None:
        check_cutoffs(self.cutoffs, self.vocabulary)

    @nn.compact
    def __call__(self, hidden: Array, targets: Array | None = None) -> Array:
        """Hidden [positions, projection] -> the log-probability of each target,
        [positions], or without targets that of every word, [positions, vocabulary]."""
        dim = hidden.shape[-1]
        edges = (*self.cutoffs, self.vocabulary)
        entries = edges[0] + len(self.cutoffs)
        start = nn.initializers.normal(dim**-0.5)
        params = {"kernel": self.param("kernel", start, (entries, dim), jnp.float32)}
        if self.bias:
            zeros = nn.initializers.zeros
            params["bias"] = self.param("bias", zeros, (entries,), jnp.float32)
        for k, (low, high) in enumerate(itertools.pairwise(edges)):
            narrow = max(1, int(dim // self.div_value ** (k + 1)))
            down, up = (dim, narrow), (high - low, narrow)
            params[f"down_{k}"] = self.param(f"down_{k}", start, down, jnp.float32)
            start_up = nn.initializers.normal(narrow**-0.5)
            params[f"up_{k}"] = self.param(f"up_{k}", start_up, up, jnp.float32)
        if targets is None:
            return log_prob_all(params, hidden)
        return log_prob(params, hidden, targets)


def check_cutoffs(cutoffs: tuple[int, ...], vocabulary: int) -> None:
    """Raises `InputError` unless cutoffs increase inside the vocabulary."""
    edges = (0, *cutoffs, vocabulary)
    if any(low >= high for low, high in itertools.pairwise(edges)):
        raise InputError(
            f"Softmax cutoffs {tuple(cutoffs)} must increase strictly and lie between "
            f"0 and the vocabulary of {vocabulary} words; choose others, or none."
        )


def arrays_of(params: Params, hidden: Any, targets: Any) -> tuple[Params, Array, Array]:
    """Arguments of a softmax as arrays of JAX, those of positions in shards.

    Raises `InputError` for shapes that do not go together and for a target outside the
    vocabulary. Inside a compiled program numbers cannot be looked at; there the
    log-probability of such a target, and every gradient that it takes part in, is NaN.
    """
    width, shape = params["kernel"].shape[1], np.shape(hidden)
    fits = len(shape) in (2, 3) and shape[-1] == width
    if not fits or np.shape(targets) != shape[:-1]:
        raise InputError(
            f"The softmax takes hidden [positions, {width}] and targets [positions], "
            f"not {list(shape)} and {list(np.shape(targets))}; put positions on one "
            "axis, or on one for each shard of them."
        )
    _check_targets(targets, edges_of(params)[-1])
    params, hidden, targets = jax.tree.map(jnp.asarray, (params, hidden, targets))
    if targets.dtype == jnp.int64:  # of NumPy, under x64
        targets = targets.astype(jnp.int32)
    return (
        (params, hidden, targets)
        if len(shape) == 3
        else (params, hidden[None], targets[None])
    )


def _check_targets(targets: Any, vocabulary: int) -> None:
    if isinstance(targets, jax.core.Tracer) or not np.size(targets):
        return
    numbers = np.asarray(targets)
    if numbers.dtype.kind not in "iu":
        raise InputError(f"Targets are word ids, integers, and not {numbers.dtype}.")
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < 0 or highest >= vocabulary:
        raise InputError(
            f"Target {lowest if lowest < 0 else highest} lies outside the vocabulary "
            f"of {vocabulary} words (0 to {vocabulary - 1}); were the targets numbered "
            "by another vocabulary?"
        )


TILE = 1 << 22
"""Logits that `predict` has in memory at once."""


def log_prob(
    params: Params,
    hidden: Positions,
    targets: Targets,
    members: TailPlan = None,
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
    params, hidden, targets = alike(arrays_of(params, hidden, targets))
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
    members: TailPlan = None,
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
    params, hidden, targets = arrays_of(params, hidden, targets)
    weights = jnp.asarray(weights, jnp.float32).reshape(targets.shape)
    arguments = (params, hidden, targets, weights, members)
    total, losses = weighted_loss((mesh, dtype), *arguments)
    return total, losses.reshape(shape)


def log_prob_all(params: Params, hidden: Positions, dtype: Dtype = None) -> Array:
    """Log-probability of every word, natural logarithm, float32.

    Takes hidden [positions, projection] and gives [positions, vocabulary]; memory is
    positions x vocabulary. `dtype` is that of the products, None that of the weights.
    """
    params, edges = round_matrices(params, dtype), edges_of(params)
    kernel = params["kernel"]
    logits = contract("pd,vd->pv", hidden, kernel, kernel.dtype)
    if "bias" in params:
        logits = logits + params["bias"].astype(jnp.float32)[None]
    shortlist = jax.nn.log_softmax(logits)
    parts = [shortlist[:, : edges[0]]]
    for k in range(len(edges) - 1):
        down, up = params[f"down_{k}"], params[f"up_{k}"]
        narrow = contract("pd,dn->pn", hidden, down, down.dtype)
        inside = jax.nn.log_softmax(contract("pn,vn->pv", narrow, up, up.dtype))
        parts.append(shortlist[:, edges[0] + k, None] + inside)
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

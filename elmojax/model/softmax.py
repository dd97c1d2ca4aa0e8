"""The softmax over the vocabulary: adaptive (Grave et al. 2017) or full, and exact.

Words are numbered by falling count. The head holds the words below the first cutoff
and one entry a tail cluster; a word of tail cluster k costs its entry in the head and
a softmax inside the cluster, over hidden vectors narrowed by div_value ** k. Without
cutoffs the head holds every word: the full softmax.

Two forms compute the same numbers. `log_prob_all` is the reference: short, dense,
[positions, vocabulary]. `negative_log_likelihood` is what trains: each cluster sees
only its own positions, in blocks, and its gradient is made in the same pass.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from elmojax.errors import InputError
from elmojax.model.precision import contract
from elmojax.shapes import Params, PerPosition, Positions, Targets

BLOCK_ELEMENTS = 1 << 23
"""Logits in memory at once; bounds temporary memory, whatever the vocabulary."""


class Softmax(nn.Module):
    """Parameters of the head and the tails; `init` with hidden [..., projection].

    kernel [first cutoff + tails, projection], bias [the same]; of tail k: down_k
    [projection, narrow] and up_k [words of the cluster, narrow], one row a word.
    """

    vocabulary: int
    cutoffs: tuple[int, ...] = ()
    div_value: float = 4.0

    def setup(self) -> None:
        check_cutoffs(self.cutoffs, self.vocabulary)

    @nn.compact
    def __call__(self, hidden: Array) -> dict[str, Array]:
        dim = hidden.shape[-1]
        edges = (*self.cutoffs, self.vocabulary)
        entries = edges[0] + len(self.cutoffs)
        start = nn.initializers.normal(dim**-0.5)
        params = {
            "kernel": self.param("kernel", start, (entries, dim)),
            "bias": self.param("bias", nn.initializers.zeros, (entries,)),
        }
        for k, (low, high) in enumerate(itertools.pairwise(edges)):
            narrow = max(1, int(dim // self.div_value ** (k + 1)))
            down, up = (dim, narrow), (high - low, narrow)
            params[f"down_{k}"] = self.param(f"down_{k}", start, down)
            start_up = nn.initializers.normal(narrow**-0.5)
            params[f"up_{k}"] = self.param(f"up_{k}", start_up, up)
        return params


def check_cutoffs(cutoffs: tuple[int, ...], vocabulary: int) -> None:
    """Raises `InputError` unless cutoffs increase inside the vocabulary."""
    edges = (0, *cutoffs, vocabulary)
    if any(low >= high for low, high in itertools.pairwise(edges)):
        raise InputError(
            f"Softmax cutoffs {tuple(cutoffs)} must increase strictly and lie between "
            f"0 and the vocabulary of {vocabulary} words; choose others, or none."
        )


def _tails(params: Params) -> int:
    return sum(name.startswith("up_") for name in params)


def edges_of(params: Params) -> tuple[int, ...]:
    """Where clusters begin and end: first cutoff, ..., vocabulary size."""
    edges = [params["kernel"].shape[0] - _tails(params)]
    for k in range(_tails(params)):
        edges.append(edges[-1] + params[f"up_{k}"].shape[0])
    return tuple(edges)


def log_prob_all(params: Params, hidden: Positions) -> Array:
    """Log-probability of every word, [positions, vocabulary]: the reference form."""
    kernel = params["kernel"]
    logits = contract("pd,vd->pv", hidden, kernel, kernel.dtype)
    head = jax.nn.log_softmax(logits + params["bias"].astype(jnp.float32)[None])
    first = edges_of(params)[0]
    parts = [head[:, :first]]
    for k in range(_tails(params)):
        down, up = params[f"down_{k}"], params[f"up_{k}"]
        narrow = contract("pd,dn->pn", hidden, down, down.dtype)
        inside = jax.nn.log_softmax(contract("pn,vn->pv", narrow, up, up.dtype))
        parts.append(head[:, first + k, None] + inside)
    return jnp.concatenate(parts, axis=-1)


def log_prob(params: Params, hidden: Positions, targets: Targets) -> PerPosition:
    """Log-probability of each target, natural logarithm, float32 [positions]."""
    ones, each = jnp.ones(hidden.shape[0]), jnp.zeros(hidden.shape[0])
    for cluster in _clusters(params, targets):
        each = each - _run(cluster, hidden, ones, gradient=False)[0]
    return each


@jax.custom_vjp
def negative_log_likelihood(
    params: Params, hidden: Positions, targets: Targets, weights: PerPosition
) -> tuple[Array, PerPosition]:
    """Sum of -weight * log p(target), and -log p of each position (no gradient).

    Differentiable in params and hidden through the sum. Every target is counted
    exactly, whatever the mix of clusters; targets must lie in the vocabulary.
    """
    each = -log_prob(params, hidden, targets)
    return jnp.vdot(each, weights), each


def _nll_forward(
    params: Params, hidden: Array, targets: Array, weights: Array
) -> tuple[tuple[Array, Array], tuple[Params, Array]]:
    each = jnp.zeros(hidden.shape[0], jnp.float32)
    d_hidden = jnp.zeros(hidden.shape, jnp.float32)
    d_params: dict[str, Array] = {}
    for cluster in _clusters(params, targets):
        loss, d_rows, d_cluster = _run(cluster, hidden, weights, gradient=True)
        each, d_hidden = each + loss, d_hidden + d_rows
        d_params |= dict(zip(cluster.names, d_cluster, strict=True))
    d_params = {name: d_params[name].astype(params[name].dtype) for name in params}
    return (jnp.vdot(each, weights), each), (d_params, d_hidden.astype(hidden.dtype))


def _nll_backward(
    saved: tuple[Params, Array], cotangents: tuple[Array, Array]
) -> tuple[Params, Array, None, None]:
    d_params, d_hidden = jax.tree.map(
        lambda d: d * cotangents[0].astype(d.dtype), saved
    )
    return d_params, d_hidden, None, None


negative_log_likelihood.defvjp(_nll_forward, _nll_backward)


class Cluster(NamedTuple):
    """The head (`members` None: every position) or one tail, and its targets."""

    names: tuple[str, str]
    weights: tuple[Array, Array]
    targets: Targets
    members: Array | None

    @property
    def words(self) -> int:
        return self.weights[0 if self.members is None else 1].shape[0]


def _clusters(params: Params, targets: Targets) -> list[Cluster]:
    edges = edges_of(params)
    number = (targets[None] >= jnp.array(edges[:-1], jnp.int32)[:, None]).sum(0)
    number = number.astype(jnp.int32)
    in_head = jnp.where(targets < edges[0], targets, edges[0] - 1 + number)
    head = (params["kernel"], params["bias"])
    clusters = [Cluster(("kernel", "bias"), head, in_head, None)]
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        names = (f"down_{k}", f"up_{k}")
        weights = (params[names[0]], params[names[1]])
        inside = jnp.clip(targets - low, 0, high - low - 1)
        clusters.append(Cluster(names, weights, inside, number == k + 1))
    return clusters


Gradients: TypeAlias = tuple[Array, ...]
"""Of the two weights of a cluster; empty where no gradient is asked for."""


def _run(
    cluster: Cluster, hidden: Array, weights: Array, *, gradient: bool
) -> tuple[Array, Any, Gradients]:
    """-log p inside one cluster of its members, 0 elsewhere; with gradients if asked.

    Members are sorted to the front and taken in blocks; a while loop runs as many
    blocks as there are members, so that work follows their number with static shapes.
    """
    positions = hidden.shape[0]
    block = max(8, min(positions, BLOCK_ELEMENTS // cluster.words, 1024))
    if cluster.members is None:
        order, count = jnp.arange(positions), jnp.int32(positions)
    else:
        order = jnp.argsort(~cluster.members, stable=True)
        count = cluster.members.sum(dtype=jnp.int32)
    # A last block that is not full repeats no position: it points past the end.
    order = jnp.pad(order, (0, -positions % block), constant_values=positions)
    kind = _block_head if cluster.members is None else _block_tail
    one_block = partial(kind, cluster.weights)

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        start, losses, d_rows, d_weights = state
        rows = lax.dynamic_slice_in_dim(order, start, block)
        rows = jnp.where(start + jnp.arange(block) < count, rows, positions)
        x = hidden.at[rows].get(mode="fill", fill_value=0)
        target = cluster.targets.at[rows].get(mode="fill", fill_value=0)
        weight = weights.at[rows].get(mode="fill", fill_value=0)
        loss, d_x, d_block = one_block(x, target, weight, gradient)
        losses = losses.at[rows].set(loss, mode="drop")
        if gradient:
            d_rows = d_rows.at[rows].set(d_x, mode="drop")
            d_weights = tuple(a + b for a, b in zip(d_weights, d_block, strict=True))
        return start + block, losses, d_rows, d_weights

    zeros = partial(jnp.zeros, dtype=jnp.float32)
    d_rows: Any = zeros(hidden.shape) if gradient else ()
    d_weights: Gradients = ()
    if gradient:
        d_weights = tuple(zeros(w.shape) for w in cluster.weights)
    state = (jnp.int32(0), zeros(positions), d_rows, d_weights)
    _, losses, d_rows, d_weights = lax.while_loop(
        lambda state: state[0] < count, body, state
    )
    return losses, d_rows, d_weights


def _block_head(
    weights: tuple[Array, Array],
    x: Array,
    target: Array,
    weight: Array,
    gradient: bool,
) -> tuple[Array, Any, Gradients]:
    kernel, bias = weights
    logits = (
        contract("pd,vd->pv", x, kernel, kernel.dtype) + bias.astype(jnp.float32)[None]
    )
    loss, d_logits = _cross_entropy(logits, target, weight)
    if not gradient:
        return loss, (), ()
    d_x = contract("pv,vd->pd", d_logits, kernel, kernel.dtype)
    d_kernel = contract("pv,pd->vd", d_logits, x, kernel.dtype)
    return loss, d_x, (d_kernel, d_logits.sum(axis=0))


def _block_tail(
    weights: tuple[Array, Array],
    x: Array,
    target: Array,
    weight: Array,
    gradient: bool,
) -> tuple[Array, Any, Gradients]:
    down, up = weights
    narrow = contract("pd,dn->pn", x, down, down.dtype)
    logits = contract("pn,vn->pv", narrow, up, up.dtype)
    loss, d_logits = _cross_entropy(logits, target, weight)
    if not gradient:
        return loss, (), ()
    d_narrow = contract("pv,vn->pn", d_logits, up, up.dtype)
    d_up = contract("pv,pn->vn", d_logits, narrow, up.dtype)
    d_down = contract("pd,pn->dn", x, d_narrow, down.dtype)
    return loss, contract("pn,dn->pd", d_narrow, down, down.dtype), (d_down, d_up)


def _cross_entropy(logits: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """-log softmax at the target, and the gradient of its weighted sum by logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(shifted)
    total = exponentials.sum(axis=-1, keepdims=True)
    is_target = jnp.arange(logits.shape[-1])[None] == target[:, None]
    picked = jnp.where(is_target, shifted, 0.0).sum(axis=-1)
    loss = jnp.log(total[:, 0]) - picked
    one_hot = is_target.astype(jnp.float32)
    return loss, (exponentials / total - one_hot) * weight[:, None]

"""The fast form: each cluster sees its own positions only, in blocks.

Positions are sorted by the cluster of their target. A while loop takes as many blocks
of a cluster as it has positions, so that work follows their number with static shapes,
no target is dropped, and gradients of the weights are added up in place.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.precision import Dtype, contract
from elmojax.model.softmax.parameters import rounded
from elmojax.model.softmax.tiles import (
    Sums,
    Words,
    block_size,
    cross_entropy,
    turned,
)
from elmojax.shapes import Params


class Axes(NamedTuple):
    """Mesh axes: `data` splits positions, `model` the words of clusters."""

    data: str
    model: str


class Cluster(NamedTuple):
    """The head (`down` None: every position) or one tail."""

    words: Words
    down: Array | None
    targets: Array
    """[positions] numbers in the cluster; anything for positions of others."""
    order: Array
    """[positions] those of the cluster first."""
    members: Array
    """How many there are."""


def clusters_of(
    params: Params, targets: Array, edges: tuple[int, ...], axes: Axes | None
) -> list[Cluster]:
    """The head and the tails, with the positions of each.

    Args:
      edges: `edges_of` the whole parameters, of which `params` may be a share.
    """
    model = None if axes is None else axes.model
    tails, positions = len(edges) - 1, targets.shape[0]
    number = (targets[None] >= jnp.array(edges[:-1], jnp.int32)[:, None]).sum(0)
    number = number.astype(jnp.int32)
    in_head = jnp.where(targets < edges[0], targets, edges[0] - 1 + number)
    words = Words(params["kernel"], params.get("bias"), edges[0] + tails, model)
    every = jnp.arange(positions, dtype=jnp.int32)
    clusters = [Cluster(words, None, in_head, every, jnp.int32(positions))]
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        words = Words(params[f"up_{k}"], None, high - low, model)
        inside = jnp.clip(targets - low, 0, high - low - 1)
        member = number == k + 1
        count = member.sum(dtype=jnp.int32)
        order = jnp.argsort(~member, stable=True).astype(jnp.int32)
        clusters.append(Cluster(words, params[f"down_{k}"], inside, order, count))
    return clusters


def loss_and_gradients(
    params: Params,
    hidden: Array,
    targets: Array,
    weights: Array,
    edges: tuple[int, ...],
    *,
    gradient: bool,
    axes: Axes | None = None,
    dtype: Dtype = None,
) -> tuple[Array, Params, Array]:
    """-log p of each target; gradients of their weighted sum by params and hidden.

    Args:
      params, hidden, targets, weights: this device's share, with `axes`; the words of
        kernel, bias and up_k split evenly and filled up, positions split evenly.
      edges: `edges_of` the whole parameters.
      dtype: of matrix products; None = that of the weights.

    Returns:
      -log p [positions] (NaN where the target is no word), gradients as `params` and
      `hidden` are, float32; empty and zeros where none are asked for.
    """
    params = rounded(params, dtype)
    valid = (targets >= 0) & (targets < edges[-1])
    targets = jnp.where(valid, targets, 0)
    weights = jnp.where(valid, weights, jnp.nan)
    each = jnp.zeros(hidden.shape[0], jnp.float32)
    d_hidden = jnp.zeros(hidden.shape if gradient else (0, 0), jnp.float32)
    d_params: dict[str, Array] = {}
    for k, cluster in enumerate(clusters_of(params, targets, edges, axes)):
        (each, d_hidden), sums, d_down = _run(
            cluster, hidden, weights, (each, d_hidden), gradient, axes
        )
        if sums is None:
            continue
        names = ("kernel", "bias") if not k else (f"up_{k - 1}", "")
        d_params[names[0]] = sums.table.T if turned(cluster.words) else sums.table
        if sums.bias is not None:
            d_params[names[1]] = sums.bias
        if d_down is not None:
            d_params[f"down_{k - 1}"] = d_down
    if axes is not None and gradient:
        d_hidden = lax.psum(d_hidden, axes.model)
        for name, leaf in d_params.items():
            whole = name.startswith("down_")
            d_params[name] = lax.psum(leaf, tuple(axes) if whole else axes.data)
    return jnp.where(valid, each, jnp.nan), d_params, d_hidden


def _run(
    cluster: Cluster,
    hidden: Array,
    weights: Array,
    outputs: tuple[Array, Array],
    gradient: bool,
    axes: Axes | None,
) -> tuple[tuple[Array, Array], Sums | None, Array | None]:
    """Adds a cluster's share to `outputs`: -log p of its positions, and d_hidden.

    Large blocks while there are enough positions, then small ones for the rest.
    """
    positions, down = hidden.shape[0], cluster.down
    large = small = block_size(cluster.words, positions)
    if down is not None:  # a share of the positions that is not known beforehand
        large = min(large, max(8, positions // 8))
        small = -(-large // 4)
    # A last block that is not full repeats no position: it points past the end.
    order = jnp.pad(cluster.order, (0, large), constant_values=positions)
    most = cluster.members if axes is None else lax.pmax(cluster.members, axes.data)

    def body(block: int, state: Any) -> Any:
        start, (each, d_hidden), sums, d_down = state
        rows = lax.dynamic_slice_in_dim(order, start, block)
        number = start + jnp.arange(block, dtype=jnp.int32)
        rows = jnp.where(number < cluster.members, rows, positions)
        x = hidden.at[rows].get(mode="fill", fill_value=0)
        target = cluster.targets.at[rows].get(mode="fill", fill_value=0)
        weight = weights.at[rows].get(mode="fill", fill_value=0)
        y = x if down is None else contract("pd,dn->pn", x, down, down.dtype)
        loss, d_y, sums = cross_entropy(cluster.words, y, target, weight, sums)
        each = each.at[rows].add(loss, mode="drop")
        if gradient:
            d_x = d_y
            if down is not None:
                d_x = contract("pn,dn->pd", d_y, down, down.dtype)
                d_down = d_down + contract("pd,pn->dn", x, d_y, down.dtype)
            d_hidden = d_hidden.at[rows].add(d_x, mode="drop")
        return start + block, (each, d_hidden), sums, d_down

    sums, d_down = None, None
    if gradient:
        sums = Sums.zeros(cluster.words)
        d_down = None if down is None else jnp.zeros(down.shape, jnp.float32)
    state = (jnp.int32(0), outputs, sums, d_down)
    if small < large:
        state = lax.while_loop(
            lambda state: state[0] + large <= most, partial(body, large), state
        )
    state = lax.while_loop(lambda state: state[0] < most, partial(body, small), state)
    return state[1:]

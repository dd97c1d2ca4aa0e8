"""Each cluster for its own positions: loss and gradient in one pass, in even chunks.

The head sees all positions, a tail those whose target it has: a plan of static size,
made by who knows the targets beforehand, or here. No array has all positions and all
words of a large cluster, and no target is dropped.

Positions lie in shards, split over the mesh axis `data`; words of clusters are split
over `model`. What is said here of one shard is done by all, and their gradients of the
weights are added up once, at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.model.precision import contract
from elmojax.model.softmax.parameters import Static, edges_of, rounded
from elmojax.shapes import Params

MOST = 1 << 26
"""Logits of a chunk where so few positions would not pay for reading a wide table."""
LEAST = 8
"""Positions of a chunk: fewer fill no registers."""
NARROW = 32
"""Width up to which words are taken as [width, words]: a row of them fills no lanes."""


class Form(NamedTuple):
    """How a platform takes the positions of a cluster."""

    tile: int
    """Logits of a chunk."""
    skips: bool
    """Whether the length of a loop follows the members: it has to be known beforehand,
    or a chip waits for it."""
    looks_up: bool
    """Whether the logit of a target is read out, or a sum that other passes take along.
    """


CPU = Form(1 << 19, True, True)
"""A chunk stays in the cache."""
GPU = Form(1 << 26, False, False)
"""Few kernels; logits go through memory anyway."""
TPU = Form(1 << 24, False, False)
"""As float32 they fill half the on-chip memory."""


class Members(NamedTuple):
    """Positions of a tail cluster, and what they look for there."""

    positions: Any
    """int32 [shards, capacity], rising; past the last position where there are less."""
    targets: Any
    """int32 [shards, capacity]: numbers in the cluster."""


Plan = Sequence[Members] | None
"""Of each tail cluster, from who knows the targets beforehand; or none."""


class Results(NamedTuple):
    """Of a cluster, or of a chunk of its positions; gradients only where asked for."""

    positions: list[Array]
    """-log p [shards, positions], its gradient by x [shards, positions, width]."""
    words: list[Array]
    """Gradients of the table and of the bias."""


def loss_and_gradients(
    static: Static, gradient: bool, *arguments: Any
) -> tuple[Array, Params, list[Array]]:
    """-log p of each target; gradients of their weighted sum by params and hidden.

    Args:
      static: mesh and dtype of products.
      arguments: params, hidden [shards, positions, projection], targets and weights
        [shards, positions], and a plan; without one members are found here, with room
        for all positions.

    Returns:
      -log p [shards, positions] (NaN where the target is no word), gradients as
      `params` and `hidden` are, float32; none where `gradient` is not asked for.
    """
    cpu, gpu, tpu = (
        partial(_clusters, form, static, gradient) for form in (CPU, GPU, TPU)
    )
    each = lax.platform_dependent(*arguments, cpu=cpu, cuda=gpu, rocm=gpu, default=tpu)
    return cast(tuple[Array, Params, list[Array]], each)


def _clusters(
    form: Form,
    static: Static,
    gradient: bool,
    params: Params,
    hidden: Array,
    targets: Array,
    weights: Array,
    members: Plan,
) -> tuple[Array, Params, list[Array]]:
    (mesh, dtype), edges = static, edges_of(params)
    params = rounded(params, dtype)
    valid = (targets >= 0) & (targets < edges[-1])
    targets = jnp.where(valid, targets, 0).astype(jnp.int32)
    weights = jnp.where(valid, weights, jnp.nan)
    number = sum((targets >= edge).astype(jnp.int32) for edge in edges[:-1])
    in_head = jnp.where(targets < edges[0], targets, edges[0] - 1 + number)
    form = form._replace(skips=form.skips or members is None)
    if members is None:
        members = [
            _found(number == k + 1, jnp.clip(targets - low, 0, high - low - 1))
            for k, (low, high) in enumerate(itertools.pairwise(edges))
        ]
    run = partial(_cluster, form, mesh, gradient)
    taken = [_taken(members, array) for array in (hidden, weights)]
    head = (params["kernel"], params.get("bias"))
    (each, *d_hidden), sums = run(head, hidden, in_head, weights, None)
    d_params = dict(zip(("kernel", "bias"), sums, strict=False))
    for k, (plan, x, weight) in enumerate(zip(members, *taken, strict=True)):
        down, up = params[f"down_{k}"], params[f"up_{k}"]
        y = contract("...pd,dn->...pn", x, down, down.dtype)
        count = (plan.positions < targets.shape[1]).sum(1, dtype=jnp.int32).max()
        (loss, *d_y), sums = run((up, None), y, plan.targets, weight, count)
        each = _added(each, plan.positions, loss)
        if gradient:
            d_x = contract("...pn,dn->...pd", d_y[0], down, down.dtype)
            d_hidden = [_added(d_hidden[0], plan.positions, d_x)]
            d_down = contract("spd,spn->sdn", x, d_y[0], down.dtype)
            d_params |= {f"down_{k}": d_down.sum(0), f"up_{k}": sums[0]}
    return jnp.where(valid, each, jnp.nan), d_params, d_hidden


def _found(member: Array, targets: Array) -> Members:
    """The members of a tail among [shards, positions]."""
    order = jnp.argsort(~member, axis=1, stable=True).astype(jnp.int32)
    here, targets = (jnp.take_along_axis(a, order, 1) for a in (member, targets))
    return Members(jnp.where(here, order, member.shape[1]), targets)


def _taken(members: Sequence[Members], array: Array) -> list[Array]:
    """What [shards, positions, ...] has for the members of each tail, read at once."""
    if not members:
        return []
    every = jnp.concatenate([plan.positions for plan in members], axis=1)
    taken = jax.vmap(lambda rows, at: rows.at[at].get(mode="fill", fill_value=0))
    ends = np.cumsum([plan.positions.shape[1] for plan in members])
    return jnp.split(taken(array, every), ends[:-1], axis=1)


@jax.vmap
def _added(array: Array, positions: Array, more: Array) -> Array:
    rows = array.at[positions]
    return rows.add(more, mode="drop", indices_are_sorted=True)


def _chunks(tile: int, positions: int, words: int, width: int) -> tuple[int, int]:
    """How many even chunks the positions are taken in, and how many are in each."""
    most = max(LEAST, tile // words, min(width, MOST // words))
    chunks = -(-positions // most)
    size = -(-positions // chunks)
    size = size if chunks == 1 else -(-size // LEAST) * LEAST
    return -(-positions // size), size


def _cluster(
    form: Form,
    mesh: Mesh | None,
    gradient: bool,
    words: tuple[Array, Array | None],
    x: Array,
    targets: Array,
    weights: Array,
    members: Array | None,
) -> Results:
    """Cross-entropy of positions over the words of one cluster, in chunks.

    Args:
      words: table [words, width], and bias [words] or None.
      x: [shards, positions, width]; targets and weights: [shards, positions].
      members: how many of the positions count, the first ones; None = all.
    """
    (table, bias), (shards, positions, width) = words, x.shape
    chunks, size = _chunks(form.tile, positions, *table.shape)
    turned = width <= NARROW
    axes = (None, "model") if turned else ("model",)
    place = partial(_placed, mesh)
    table = place(table, "model")
    bias = bias if bias is None else place(bias, "model")
    run = jax.vmap(partial(_cross_entropy, form.looks_up, gradient), (None, None, 0, 0, 0))

    def chunk(n: Array, state: Results) -> Results:
        part = (lax.dynamic_slice_in_dim(a, n * size, size, 1) for a in arrays)
        found, sums = run(table, bias, *part)
        put = partial(
            lax.dynamic_update_slice_in_dim, start_index=n * size, axis=1
        )
        return Results(
            jax.tree.map(put, state.positions, found),
            jax.tree.map(jnp.add, state.words, sums),
        )

    more = (0, chunks * size - positions)
    arrays = [
        jnp.pad(a, ((0, 0), more, *[(0, 0)] * (a.ndim - 2)))
        for a in (x, targets, weights)
    ]
    skips = form.skips and members is not None
    start = jnp.zeros if skips else lax.empty  # of which every place is written
    outputs = [start(arrays[2].shape, jnp.float32)]
    sums = []
    if gradient:
        outputs.append(start(arrays[0].shape, jnp.float32))
        shape = table.shape[::-1] if turned else table.shape
        zeros = jnp.zeros((shards, *shape), jnp.float32)
        sums.append(place(zeros, "data", *axes))
        if bias is not None:
            zeros = jnp.zeros((shards, len(bias)), jnp.float32)
            sums.append(place(zeros, "data", "model"))
    last = -(-members // size) if skips else jnp.int32(chunks)
    state = Results(outputs, sums)
    outputs, sums = lax.fori_loop(jnp.int32(0), last, chunk, state)
    sums = [leaf.sum(0) for leaf in sums]
    if gradient and turned:
        sums[0] = sums[0].T
    return Results([array[:, :positions] for array in outputs], sums)


def _placed(mesh: Mesh | None, array: Array, *spec: str | None) -> Array:
    """An array with its axes over those of a mesh."""
    if mesh is None:
        return array
    return lax.with_sharding_constraint(array, NamedSharding(mesh, P(*spec)))


def _cross_entropy(
    looks_up: bool,
    gradient: bool,
    table: Array,
    bias: Array | None,
    x: Array,
    targets: Array,
    weights: Array,
) -> Results:
    """Of a chunk [positions, width] of one shard; no position is in two chunks."""
    dtype = table.dtype
    logits = contract("pn,vn->pv", x, table, dtype)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)[None]
    most = logits.max(-1)
    each = jnp.exp(logits - most[:, None])
    total = each.sum(-1)
    # p - 1 at the target is exact where p is near 1; two sums would not be.
    if looks_up:
        at = (jnp.arange(len(x), dtype=jnp.int32), targets)
        target, each = logits[at], each.at[at].add(-total)
    else:
        hit = targets[:, None] == lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        target = jnp.where(hit, logits, 0).sum(-1)
        each = jnp.where(hit, each - total[:, None], each)
    loss = most + jnp.log(total) - target
    if not gradient:
        return Results([loss], [])
    d_logits = each * (weights / total)[:, None]
    d_x = contract("pv,vn->pn", d_logits, table, dtype)
    if x.shape[1] <= NARROW:
        sums = [contract("pn,pv->nv", x, d_logits, dtype)]
    else:
        sums = [contract("pv,pn->vn", d_logits, x, dtype)]
    if bias is not None:
        sums.append(d_logits.sum(0))
    return Results([loss, d_x], sums)

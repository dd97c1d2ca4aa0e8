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

from elmojax.model.precision import Dtype, contract, summed
from elmojax.model.softmax.parameters import Static, edges_of, rounded
from elmojax.shapes import Params

MOST = 1 << 26
"""Logits of a chunk where so few positions would not pay for reading a wide table."""
LEAST = 8
"""Positions of a chunk: fewer fill no registers."""
PIECE = 1 << 24
"""Numbers of a gradient that a CPU has beside it."""
NARROW = 32
"""Width up to which a gradient is added up as [width, words], which a CPU does faster;
accelerators, whose lanes so few numbers do not fill, take the words themselves so."""


class Form(NamedTuple):
    """How a platform takes the positions of a cluster."""

    tile: int
    """Logits of a chunk."""
    cpu: bool
    """Chunks without members are left out, for which accelerators would have to wait;
    and what fuses there is written out, as numbers in memory are looked up."""


CPU = Form(1 << 19, cpu=True)
"""A chunk stays in the cache."""
GPU = Form(1 << 26, cpu=False)
"""Few kernels; logits go through memory anyway."""
TPU = Form(1 << 24, cpu=False)
"""As float32 they fill half the on-chip memory."""


class Members(NamedTuple):
    """Positions of a tail cluster, and what they look for there."""

    positions: Any
    """int32 [shards, capacity], rising; past the last position where there are less."""
    targets: Any
    """int32 [shards, capacity]: numbers in the cluster."""


Plan = Sequence[Members] | None
"""Of each tail cluster, from who knows the targets beforehand; or none."""


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
    forms = {"cpu": cpu, "cuda": gpu, "rocm": gpu, "default": tpu}
    found = lax.platform_dependent(*arguments, **forms)
    return cast(tuple[Array, Params, list[Array]], found)


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
    number: Any = sum((targets >= edge).astype(jnp.int32) for edge in edges[:-1])
    in_head = jnp.where(targets < edges[0], targets, edges[0] - 1 + number)
    skips = form.cpu or members is None
    if members is None:
        members = [
            _found(targets, low, high) for low, high in itertools.pairwise(edges)
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
        most = count if skips else None
        (loss, *d_y), sums = run((up, None), y, plan.targets, weight, most)
        each = _added(each, plan.positions, loss)
        if gradient:
            d_x = contract("...pn,dn->...pd", d_y[0], down, down.dtype)
            d_hidden = [_added(d_hidden[0], plan.positions, d_x)]
            d_down = contract("spd,spn->sdn", x, d_y[0], down.dtype)
            d_params |= {f"down_{k}": d_down.sum(0), f"up_{k}": sums[0]}
    return jnp.where(valid, each, jnp.nan), d_params, d_hidden


def _found(targets: Array, low: int, high: int) -> Members:
    """The members of a tail among [shards, positions], with room for all."""
    member = (targets >= low) & (targets < high)
    order = jnp.argsort(~member, axis=1, stable=True).astype(jnp.int32)
    here, targets = (jnp.take_along_axis(a, order, 1) for a in (member, targets))
    positions = jnp.where(here, order, targets.shape[1])
    return Members(positions, jnp.where(here, targets - low, 0))


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
) -> tuple[list[Array], list[Array]]:
    """Cross-entropy of positions over the words of one cluster, in chunks.

    Args:
      words: table [words, width], and bias [words] or None.
      x: [shards, positions, width]; targets and weights: [shards, positions].
      members: how many of the positions count, the first ones; None = all.

    Returns:
      -log p [shards, positions], and its gradient by x if one is asked for; gradients
      of table and bias.
    """
    (table, bias), (shards, positions, width) = words, x.shape
    chunks, size = _chunks(form.tile, positions, *table.shape)
    turned = width <= NARROW
    axes = (None, "model") if turned else ("model",)
    place = partial(_placed, mesh)
    shape = table.shape[::-1] if turned else table.shape
    if turned and not form.cpu:
        table = place(table.T, *axes)
    else:
        table = place(table, "model")
    bias = bias if bias is None else place(bias, "model")
    run = partial(_cross_entropy, form.cpu, gradient, table, bias)

    def chunk(n: Array, state: Any) -> Any:
        outputs, sums = state
        part = [lax.dynamic_slice_in_dim(a, n * size, size, 1) for a in arrays]
        found = jax.vmap(run)(*part)
        if gradient:
            d_logits = found.pop()
            sums = _added_up(form, sums, part[0], d_logits, table.dtype)
        if mesh is not None:
            found = [summed(array) for array in found]
        put = partial(lax.dynamic_update_slice_in_dim, start_index=n * size, axis=1)
        return list(map(put, outputs, found)), sums

    more = (0, chunks * size - positions)
    arrays = [
        jnp.pad(a, ((0, 0), more, *[(0, 0)] * (a.ndim - 2)))
        for a in (x, targets, weights)
    ]
    start = jnp.zeros if members is not None else lax.empty  # all of it is written
    outputs = [start(arrays[2].shape, jnp.float32)]
    sums = []
    if gradient:
        outputs.append(start(arrays[0].shape, jnp.float32))
        zeros = jnp.zeros((shards, *shape), jnp.float32)
        sums.append(place(zeros, "data", *axes))
        if bias is not None:
            zeros = jnp.zeros((shards, len(bias)), jnp.float32)
            sums.append(place(zeros, "data", "model"))
    last = jnp.int32(chunks) if members is None else -(-members // size)
    outputs, sums = lax.fori_loop(jnp.int32(0), last, chunk, (outputs, sums))
    sums = [leaf.sum(0) for leaf in sums]
    if gradient and turned:
        sums[0] = sums[0].T
    sums = [place(leaf, *_divided(mesh, leaf)) for leaf in sums]
    return [array[:, :positions] for array in outputs], sums


def _divided(mesh: Mesh | None, leaf: Array) -> list[str | None]:
    """The first axis over `model` that it divides: results have to be even."""
    model = 1 if mesh is None else mesh.shape["model"]
    even = [size % model == 0 for size in leaf.shape]
    return [None] * even.index(True) + ["model"] if any(even) else []


def _added_up(
    form: Form, sums: list[Array], x: Array, d_logits: Array, dtype: Dtype
) -> list[Array]:
    """Gradients of table and bias, with those of a chunk."""
    table, *bias = sums
    words, width = d_logits.shape[-1], x.shape[-1]
    if width <= NARROW:
        table = table + contract("spn,spv->snv", x, d_logits, dtype)
    elif not form.cpu or words * width <= PIECE:
        table = table + contract("spv,spn->svn", d_logits, x, dtype)
    else:  # a CPU has the product in memory before it adds it
        piece = min(words, max(8, PIECE // width))

        def add(n: Array, table: Array) -> Array:
            start = jnp.minimum(n * piece, words - piece)  # the last overlaps
            part = lax.dynamic_slice_in_dim(d_logits, start, piece, 2)
            new = start + jnp.arange(piece, dtype=jnp.int32) >= n * piece
            part = jnp.where(new[None, None], part, 0)
            part = contract("spv,spn->svn", part, x, dtype)
            part = part + lax.dynamic_slice_in_dim(table, start, piece, 1)
            return lax.dynamic_update_slice_in_dim(table, part, start, 1)

        pieces = jnp.int32(-(-words // piece))
        table = lax.fori_loop(jnp.int32(0), pieces, add, table)
    return [table, *(b + d_logits.sum(1) for b in bias)]


def _placed(mesh: Mesh | None, array: Array, *spec: str | None) -> Array:
    """An array with its axes over those of a mesh."""
    if mesh is None:
        return array
    return lax.with_sharding_constraint(array, NamedSharding(mesh, P(*spec)))


def _cross_entropy(
    cpu: bool,
    gradient: bool,
    table: Array,
    bias: Array | None,
    x: Array,
    targets: Array,
    weights: Array,
) -> list[Array]:
    """-log p of a chunk of one shard; gradients of the weighted sum by x and logits."""
    dtype, axes = table.dtype, "vn" if cpu or x.shape[1] > NARROW else "nv"
    logits = contract(f"pn,{axes}->pv", x, table, dtype)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)[None]
    most = logits.max(-1)
    each = jnp.exp(logits - most[:, None])
    total = each.sum(-1)
    # p - 1 at the target is exact where p is near 1; two sums would not be.
    if cpu:
        at = (jnp.arange(len(x), dtype=jnp.int32), targets)
        target, each = logits[at], each.at[at].add(-total)
    else:
        hit = targets[:, None] == lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        target = jnp.where(hit, logits, 0).sum(-1)
        each = jnp.where(hit, each - total[:, None], each)
    loss = most + jnp.log(total) - target
    if not gradient:
        return [loss]
    d_logits = each * (weights / total)[:, None]
    return [loss, contract(f"pv,{axes}->pn", d_logits, table, dtype), d_logits]

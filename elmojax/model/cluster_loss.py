"""Loss and gradients of the softmax in one pass, cluster after cluster, in even chunks.

The shortlist sees all positions, a tail cluster those whose target it has: a plan of
static size, made by who knows the targets beforehand, or here. No array has all
positions and all words of a large cluster, and no target is dropped. `softmax` says
what is computed and has the functions that take and give the arrays of a user.

On a mesh all arrays of positions have an axis before, their shards, which is split over
the axis `data`; words of clusters are split over `model`. What is said here of one
shard is done by all, and their gradients of the weights are added up once, at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.model.ops import (
    Dtype,
    Static,
    contract,
    in_chunks,
    keep_sum_float32,
    weighted_sum,
)
from elmojax.shapes import Params


def edges_of(params: Params) -> tuple[int, ...]:
    """Where clusters end: first cutoff, ..., vocabulary size."""
    tails = sum(name.startswith("up_") for name in params)
    sizes = [params[f"up_{k}"].shape[0] for k in range(tails)]
    return tuple(itertools.accumulate([params["kernel"].shape[0] - tails, *sizes]))


def round_matrices(params: Params, dtype: Dtype) -> Params:
    """Parameters as products take them: matrices in `dtype` (None = as they are)."""
    return {
        name: leaf if name == "bias" else leaf.astype(dtype or leaf.dtype)
        for name, leaf in params.items()
    }


MAX_LOGITS = 1 << 26
"""Logits of a chunk where so few positions would not pay for reading a wide table."""
MIN_POSITIONS = 8
"""Positions of a chunk: fewer fill no registers."""
TABLE_BLOCK = 1 << 24
"""Numbers of a gradient that a CPU has beside it."""
NARROW = 32
"""Width up to which a table is taken as [width, words]; its rows fill no lanes."""


class Chunking(NamedTuple):
    """How a platform takes the positions of a cluster."""

    tile: int
    """Logits of a chunk."""
    cpu: bool
    """Chunks without members are left out, for which accelerators would have to wait,
    and no product lies in memory beside a sum as large."""


CPU = Chunking(1 << 19, cpu=True)
"""A chunk stays in a cache; a sum as large as a table is rarely added to."""
GPU = Chunking(1 << 26, cpu=False)
"""Few kernels; logits go through memory anyway."""
TPU = Chunking(1 << 24, cpu=False)
"""As float32 they fill half the on-chip memory."""


TailMembers: TypeAlias = tuple[Array, Array]
"""Of a tail cluster: positions with a target in it, int32 [shards, capacity], rising,
past the last position where there are fewer; and the targets' numbers in the cluster,
alike."""

TailPlan = Sequence[TailMembers] | None
"""Of each tail cluster, from who knows the targets beforehand; or none."""


def loss_and_gradients(
    static: Static, gradient: bool, *arguments: Any
) -> tuple[Array, Params, Any]:
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
    return cast(tuple[Array, Params, Any], found)


weighted_loss = weighted_sum(loss_and_gradients)
"""Of static, params, hidden, targets, weights, plan: the sum, and each -log p."""


def _clusters(
    form: Chunking,
    static: Static,
    gradient: bool,
    params: Params,
    hidden: Array,
    targets: Array,
    weights: Array,
    members: TailPlan,
) -> tuple[Array, Params, Array | None]:
    (mesh, dtype), edges = static, edges_of(params)
    params = round_matrices(params, dtype)
    valid = (targets >= 0) & (targets < edges[-1])
    targets = jnp.where(valid, targets, 0).astype(jnp.int32)
    weights = jnp.where(valid, weights, jnp.nan)
    number: Any = sum((targets >= edge).astype(jnp.int32) for edge in edges[:-1])
    in_shortlist = jnp.where(targets < edges[0], targets, edges[0] - 1 + number)
    skips = form.cpu or members is None
    if members is None:
        members = [_find_members(targets, *ends) for ends in itertools.pairwise(edges)]
    run = partial(_cluster, form, mesh, gradient)
    shortlist = [params[name] for name in ("kernel", "bias") if name in params]
    (losses, *d_hidden), sums = run(shortlist, hidden, in_shortlist, weights, None)
    d_params = dict(zip(("kernel", "bias"), sums, strict=False))
    taken = [_gather_members(members, array) for array in (hidden, weights)]
    for k, ((at, inside), x, weight) in enumerate(zip(members, *taken, strict=True)):
        down, up = params[f"down_{k}"], params[f"up_{k}"]
        y = contract("...pd,dn->...pn", x, down, down.dtype)
        count = (at < targets.shape[1]).sum(1, dtype=jnp.int32).max()
        used = count if skips else None
        (loss, *d_y), sums = run([up], y, inside, weight, used)
        losses = _scatter_add(losses, at, loss)
        if gradient:
            d_x = contract("...pn,dn->...pd", d_y[0], down, down.dtype)
            d_hidden = [_scatter_add(d_hidden[0], at, d_x)]
            d_down = contract("spd,spn->sdn", x, d_y[0], down.dtype)
            d_params |= {f"down_{k}": d_down.sum(0), f"up_{k}": sums[0]}
    losses = jnp.where(valid, losses, jnp.nan)
    return losses, d_params, d_hidden[0] if gradient else None


@partial(jax.vmap, in_axes=(0, None, None))
def _find_members(targets: Array, low: int, high: int) -> TailMembers:
    """The members of a tail among [positions], with room for all."""
    member, size = (targets >= low) & (targets < high), len(targets)
    (positions,) = jnp.nonzero(member, size=size, fill_value=size)
    inside = targets.at[positions].get(mode="fill", fill_value=low) - low
    return positions.astype(jnp.int32), inside


def _gather_members(members: Sequence[TailMembers], array: Array) -> list[Array]:
    """What [shards, positions, ...] has for the members of each tail, read at once."""
    if not members:
        return []
    every = jnp.concatenate([positions for positions, _ in members], axis=1)
    taken = jax.vmap(lambda rows, at: rows.at[at].get(mode="fill", fill_value=0))
    ends = itertools.accumulate(positions.shape[1] for positions, _ in members)
    return jnp.split(taken(array, every), list(ends)[:-1], axis=1)


@jax.vmap
def _scatter_add(array: Array, positions: Array, more: Array) -> Array:
    rows = array.at[positions]
    return rows.add(more, mode="drop", indices_are_sorted=True)


def _chunk_size(tile: int, positions: int, words: int, width: int) -> int:
    """Positions of a chunk, of which all have as many."""
    limit = max(MIN_POSITIONS, tile // words, min(width, MAX_LOGITS // words))
    chunks = -(-positions // limit)
    return -(-positions // (chunks * MIN_POSITIONS)) * MIN_POSITIONS


def _cluster(
    form: Chunking,
    mesh: Mesh | None,
    gradient: bool,
    parameters: list[Array],
    x: Array,
    targets: Array,
    weights: Array,
    count: Array | None,
) -> tuple[list[Array], list[Array]]:
    """Cross-entropy of positions over the words of one cluster, in chunks.

    Args:
      parameters: table [words, width], and bias [words] if there is one.
      x: [shards, positions, width]; targets and weights: [shards, positions].
      count: how many of the positions matter, the first ones; None = all.

    Returns:
      -log p [shards, positions], and its gradient by x if one is asked for; gradients
      of table and bias.
    """
    table, *bias = parameters
    size = _chunk_size(form.tile, x.shape[1], *table.shape)
    transposed = x.shape[2] <= NARROW
    own = (None, "model") if transposed else ("model",)
    specs = [own, *(("model",) for _ in bias)]
    leaves = [table.T if transposed else table, *bias]
    leaves = [_constrain(mesh, *pair) for pair in zip(leaves, specs, strict=True)]
    cross_entropy = jax.vmap(partial(_cross_entropy, gradient, leaves))

    def chunk(sums: list[Array], part: Any) -> tuple[list[Array], list[Array]]:
        found = cross_entropy(*part)
        if gradient:
            sums = _add_gradients(form, sums, part[0], found.pop(), table.dtype)
        return sums, found if mesh is None else [
            keep_sum_float32(array) for array in found
        ]

    sums = []
    if gradient:
        zeros = [jnp.zeros((len(x), *leaf.shape), jnp.float32) for leaf in leaves]
        pairs = zip(zeros, specs, strict=True)
        sums = [_constrain(mesh, leaf, ("data", *spec)) for leaf, spec in pairs]
    sums, found = in_chunks(chunk, sums, (x, targets, weights), size, count)
    sums = [leaf.sum(0) for leaf in sums]
    if gradient and transposed:
        sums[0] = sums[0].T
    return found, [_constrain(mesh, leaf, _even_spec(mesh, leaf)) for leaf in sums]


def _constrain(mesh: Mesh | None, array: Array, spec: Sequence[str | None]) -> Array:
    """An array with its axes over those of a mesh."""
    if mesh is None:
        return array
    return lax.with_sharding_constraint(array, NamedSharding(mesh, P(*spec)))


def _even_spec(mesh: Mesh | None, leaf: Array) -> list[str | None]:
    """The first axis over `model` that it divides: results have to be even."""
    model = 1 if mesh is None else mesh.shape["model"]
    even = [size % model == 0 for size in leaf.shape]
    return [None] * even.index(True) + ["model"] if any(even) else []


def _add_gradients(
    form: Chunking, sums: list[Array], x: Array, d_logits: Array, dtype: Dtype
) -> list[Array]:
    """Gradients of table and bias, with those of a chunk."""
    (table, *bias), width = sums, x.shape[2]
    if width <= NARROW:
        table = table + contract("spn,spv->snv", x, d_logits, dtype)
    elif not form.cpu or table.size <= TABLE_BLOCK:
        table = table + contract("spv,spn->svn", d_logits, x, dtype)
    else:
        size = min(len(table[0]), max(MIN_POSITIONS, TABLE_BLOCK // width))
        last = len(table[0]) - size

        def add(n: Array, table: Array) -> Array:
            start = jnp.minimum(n * size, last)  # the last block overlaps
            part = lax.dynamic_slice_in_dim(d_logits, start, size, 2)
            new = start + jnp.arange(size, dtype=jnp.int32) >= n * size
            part = contract("spv,spn->svn", jnp.where(new, part, 0), x, dtype)
            part = part + lax.dynamic_slice_in_dim(table, start, size, 1)
            return lax.dynamic_update_slice_in_dim(table, part, start, 1)

        blocks = jnp.int32(1 - last // -size)
        table = lax.fori_loop(jnp.int32(0), blocks, add, table)
    return [table, *(b + d_logits.sum(1) for b in bias)]


def _cross_entropy(
    gradient: bool, leaves: list[Array], x: Array, targets: Array, weights: Array
) -> list[Array]:
    """-log p of a chunk of a shard; gradients of the weighted sum by x and logits."""
    table, *bias = leaves
    dtype, axes = table.dtype, "nv" if x.shape[1] <= NARROW else "vn"
    logits = contract(f"pn,{axes}->pv", x, table, dtype)
    for vector in bias:  # one or none
        logits = logits + vector.astype(jnp.float32)[None]
    largest = logits.max(-1)
    exponentials = jnp.exp(logits - largest[:, None])
    total = exponentials.sum(-1)
    hit = targets[:, None] == lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    loss = largest + jnp.log(total) - jnp.where(hit, logits, 0).sum(-1)
    if not gradient:
        return [loss]
    # p - 1 at the target is exact where p is near 1; two sums would not be.
    d_logits = jnp.where(hit, exponentials - total[:, None], exponentials)
    d_logits = d_logits * (weights / total)[:, None]
    return [loss, contract(f"pv,{axes}->pn", d_logits, table, dtype), d_logits]

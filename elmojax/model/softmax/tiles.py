"""Cross-entropy of a block of positions over the words of one cluster.

Two ways to the same numbers. `whole_rows` holds the logits of the block for all words
of the cluster: each exponential is taken once. `in_pieces` goes through the words
twice, a piece at a time: where the table of words is so large that reading it for a few
positions would cost more than taking exponentials twice.

Either runs on all words, or on one device's share of them (`Words.axis`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.precision import contract

TILE = 1 << 22
"""Logits in memory at once; bounds temporary memory, whatever the vocabulary."""
LEAST = 24
"""Positions of a block at least: fewer do not pay for reading a table of words."""
LARGE_TABLE = 1 << 24
"""Elements of a table of words from which on it is read in pieces."""
NARROW = 32
"""Width up to which a gradient is added up as [width, words]: faster on a CPU."""
NEVER = -1e30
"""The logit of what is no word."""


class Words(NamedTuple):
    """The words of a cluster, or the share of them that this device has."""

    table: Array
    """[words here, width]"""
    bias: Array | None
    """[words here]"""
    size: int
    """Words of the whole cluster; what lies past them is filling."""
    axis: str | None = None
    """Mesh axis that the words are split over."""

    @property
    def first(self) -> Any:
        """Number of the first word here."""
        if self.axis is None:
            return 0
        return lax.axis_index(self.axis) * self.table.shape[0]

    def logits(self, x: Array, start: Any, count: int) -> Array:
        """[positions, count], of the words here from `start` on."""
        rows = lax.dynamic_slice_in_dim(self.table, start, count)
        logits = contract("pn,vn->pv", x, rows, rows.dtype)
        if self.bias is not None:
            bias = lax.dynamic_slice_in_dim(self.bias, start, count)
            logits = logits + bias.astype(jnp.float32)[None]
        if self.axis is None:
            return logits
        number = self.first + start + jnp.arange(count, dtype=jnp.int32)
        real = number < self.size
        return jnp.where(real[None], logits, NEVER)

    def sum(self, array: Array) -> Array:
        return array if self.axis is None else lax.psum(array, self.axis)

    def max(self, array: Array) -> Array:
        return array if self.axis is None else lax.pmax(array, self.axis)


class Sums(NamedTuple):
    """Gradients of a cluster's words, added up over blocks; float32."""

    table: Array
    """[words here, width], or the other way round where that is `turned`."""
    bias: Array | None

    @classmethod
    def zeros(cls, words: Words) -> Sums:
        shape, bias = words.table.shape, words.bias
        shape = shape[::-1] if turned(words) else shape
        bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
        return cls(jnp.zeros(shape, jnp.float32), bias)


def filled(array: Array, multiple: int) -> Array:
    """Zeros after the last row, up to a multiple."""
    more = -array.shape[0] % multiple
    return jnp.pad(array, ((0, more), *[(0, 0)] * (array.ndim - 1)))


def turned(words: Words) -> bool:
    """Whether `Sums.table` is [width, words here]."""
    return words.table.shape[1] <= NARROW and not _large(words)


class Target(NamedTuple):
    """The words to be predicted."""

    at: Array
    """[positions] place in the table here; past its end where the word is not here."""
    logit: Array
    """[positions]"""


def find(words: Words, x: Array, targets: Array) -> Target:
    """Where the targets are, and their logits from `x` as `contract` rounds it."""
    here = words.table.shape[0]
    at = targets - words.first
    at = jnp.where((at >= 0) & (at < here), at, here)
    row = words.table.at[at].get(mode="fill", fill_value=0).astype(jnp.float32)
    logit = (x.astype(words.table.dtype).astype(jnp.float32) * row).sum(-1)
    if words.bias is not None:
        bias = words.bias.at[at].get(mode="fill", fill_value=0)
        logit = logit + bias.astype(jnp.float32)
    return Target(at, words.sum(logit))


def block_size(words: Words, positions: int) -> int:
    """Positions of a block: all of them in few, even blocks."""
    here = words.table.shape[0]
    most = 1024 if _large(words) else min(1024, max(LEAST, TILE // here // 8 * 8))
    blocks = -(-positions // most)
    return max(1, -(-positions // blocks))


def _large(words: Words) -> bool:
    return words.table.size > LARGE_TABLE


def cross_entropy(
    words: Words, x: Array, targets: Array, weights: Array, sums: Sums | None
) -> tuple[Array, Array, Sums | None]:
    """-log p(target) of a block, and the gradients of its weighted sum.

    Args:
      x: [positions, width]; targets: numbers in the cluster; weights: [positions].
      sums: gradients of the words so far; None = no gradient is asked for.

    Returns:
      -log p [positions]; its gradient by x (zeros when none is asked for; on a share of
      the words, the share of the gradient); sums with those of this block.
    """
    target = find(words, x, targets)
    run = in_pieces if _large(words) else whole_rows
    log_total, d_x, sums = run(words, x, target.at, weights, sums)
    return log_total - target.logit, d_x, sums


def whole_rows(
    words: Words, x: Array, at: Array, weights: Array, sums: Sums | None
) -> tuple[Array, Array, Sums | None]:
    """Log of the sum of exponentials, and gradients with targets at `at`."""
    logits = words.logits(x, 0, words.table.shape[0])
    most = words.max(logits.max(axis=-1))
    each = jnp.exp(logits - most[:, None])
    total = words.sum(each.sum(axis=-1))
    log_total = most + jnp.log(total)
    if sums is None:
        return log_total, jnp.zeros_like(x, jnp.float32), None
    # p - 1 at the target is exact where p is near 1; two sums would not be.
    row = jnp.arange(len(x), dtype=jnp.int32)
    each = each.at[row, at].add(-total, mode="drop")
    scale = weights / total
    d_x = contract("pv,vn->pn", each, words.table, words.table.dtype)
    return log_total, d_x * scale[:, None], _added(words, sums, 0, each, x, scale)


def in_pieces(
    words: Words, x: Array, at: Array, weights: Array, sums: Sums | None
) -> tuple[Array, Array, Sums | None]:
    """`whole_rows` with a piece of the words in memory at once."""
    here = words.table.shape[0]
    count = min(here, max(8, TILE // x.shape[0]))
    pieces = -(-here // count)

    def piece(k: Array) -> tuple[Array, Array]:
        """Where piece k begins, and its logits; the last overlaps the one before."""
        start = jnp.minimum(k * count, here - count)
        logits = words.logits(x, start, count)
        new = start + jnp.arange(count, dtype=jnp.int32) >= k * count
        return start, jnp.where(new[None], logits, NEVER)

    def add(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        most, total = state
        _, logits = piece(k)
        higher = jnp.maximum(most, logits.max(axis=-1))
        each = jnp.exp(logits - higher[:, None]).sum(axis=-1)
        return higher, total * jnp.exp(most - higher) + each

    begin = tuple(jnp.full(x.shape[0], n, jnp.float32) for n in (NEVER, 0.0))
    first, end = jnp.int32(0), jnp.int32(pieces)  # else int64 under x64
    most, total = lax.fori_loop(first, end, add, begin)
    highest = words.max(most)
    log_total = highest + jnp.log(words.sum(total * jnp.exp(most - highest)))
    d_x = jnp.zeros_like(x, jnp.float32)
    if sums is None:
        return log_total, d_x, None

    def gradient(k: Array, state: tuple[Array, Sums]) -> tuple[Array, Sums]:
        d_x, sums = state
        start, logits = piece(k)
        each = jnp.exp(logits - log_total[:, None])
        new = (at >= k * count) & (at < start + count)
        column = jnp.where(new, at - start, count)
        row = jnp.arange(len(x), dtype=jnp.int32)
        each = each.at[row, column].add(-1.0, mode="drop")
        rows = lax.dynamic_slice_in_dim(words.table, start, count)
        d_x = d_x + contract("pv,vn->pn", each, rows, rows.dtype)
        return d_x, _added(words, sums, start, each, x, weights)

    d_x, sums = lax.fori_loop(first, end, gradient, (d_x, sums))
    return log_total, d_x * weights[:, None], sums


def _added(
    words: Words, sums: Sums, start: Any, each: Array, x: Array, scale: Array
) -> Sums:
    """`sums` with the gradient of the words from `start` on (all, where `turned`)."""
    (table, bias), scaled, dtype = sums, x * scale[:, None], words.table.dtype
    if turned(words):
        table = table + contract("pn,pv->nv", scaled, each, dtype)
    else:
        table = _add_at(table, contract("pv,pn->vn", each, scaled, dtype), start)
    if bias is not None:
        bias = _add_at(bias, (each * scale[:, None]).sum(axis=0), start)
    return Sums(table, bias)


def _add_at(total: Array, part: Array, start: Any) -> Array:
    before = lax.dynamic_slice_in_dim(total, start, part.shape[0])
    return lax.dynamic_update_slice_in_dim(total, before + part, start, 0)

"""Documents of any length, exactly, in memory bounded by a chunk.

The backward direction needs the end of the document first. So it is read twice: from
right to left for the backward state at the end of every chunk, which is all that is
kept, then from left to right with both directions, chunk by chunk. The result is that
of one pass over the whole; the cost is half a pass more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elmojax.embedding.engine import RowPlan, Selection, begin, finish, run
from elmojax.embedding.words import EncodedWords
from elmojax.model.bilm import BiLM, ElmoParams
from elmojax.model.lstm import Reset
from elmojax.model.ops import automatic
from elmojax.model.state import LstmState

CHUNK = 512
"""Steps of one run."""


class _Chunk:
    """Part of a document: `CHUNK` positions of `<S>`, the words and `</S>`.

    Chunks end together with the document; the first begins with padding.
    """

    def __init__(self, number: int, words: int) -> None:
        self.chunks = -(-(words + 2) // CHUNK)
        last = words + 1 - (self.chunks - 1 - number) * CHUNK
        self.positions = np.arange(last - CHUNK + 1, last + 1)
        inside = (self.positions > 0) & (self.positions <= words)
        self.inside, self.count = inside, int(inside.sum())
        self.first = max(int(self.positions[0]) - 1, 0)
        """Its first word's number in the document."""
        self.begins = self.positions == 0
        self.ends = self.positions == words + 1

    def rows(self, table: EncodedWords, words: Sequence[str]) -> np.ndarray:
        """Rows of the word table, int32 [CHUNK]; those of the padding mean nothing."""
        index = self.ends.astype(np.int32)
        some = words[self.first : self.first + self.count]
        index[self.inside] = table.rows(some)
        return index

    def plan(self, index: np.ndarray) -> RowPlan:
        """Both directions over this chunk, in a single row."""
        target = np.full(CHUNK, CHUNK, np.int32)
        target[self.inside] = np.arange(self.count)
        both = ((index, index), (target, target), (self.begins, self.ends))
        return RowPlan(*(np.stack([f, b[::-1]], axis=1)[..., None] for f, b in both))


def document(
    params: ElmoParams, table: EncodedWords, words: Sequence[str], selection: Selection
) -> Iterator[tuple[int, Array]]:
    """Yields (count, vectors [CHUNK, ..., vector]) of the words in order: the first
    `count` vectors are theirs."""
    total = _Chunk(0, len(words)).chunks
    state = jax.tree.map(lambda leaf: leaf[:, 1:], _start(params))
    after: list[LstmState] = [state] * total
    for number in range(total - 1, 0, -1):
        chunk = _Chunk(number, len(words))
        plan = chunk.plan(chunk.rows(table, words))
        state = _backward(params, table.vectors, state, plan)
        after[number - 1] = state
    forward = jax.tree.map(lambda leaf: leaf[:, :1], _start(params))
    for number in range(total):
        chunk = _Chunk(number, len(words))
        plan = chunk.plan(chunk.rows(table, words))
        kept, _ = begin(params, CHUNK, 1, selection.layers, selection.dtype)
        kept, state = run(
            params,
            table.vectors,
            kept,
            _join(forward, after[number]),
            plan,
            selection.gammas,
            layers=selection.layers,
        )
        forward = jax.tree.map(lambda leaf: leaf[:, :1], state)
        yield chunk.count, finish(kept)


def pass_over(table: EncodedWords, words: Sequence[str]) -> None:
    """Leaves the word table as `document` would, without reading the document."""
    chunks = [
        _Chunk(number, len(words)) for number in range(_Chunk(0, len(words)).chunks)
    ]
    for chunk in [*chunks[:0:-1], *chunks]:
        chunk.rows(table, words)


def _start(params: ElmoParams) -> LstmState:
    return params.initial_state.for_batch(1)


@jax.jit
def _join(forward: LstmState, backward: LstmState) -> LstmState:
    def join(one: Array, other: Array) -> Array:
        return jnp.concatenate([one, other], axis=1)

    return jax.tree.map(join, forward, backward)


@jax.jit
@automatic
def _backward(
    params: ElmoParams, table: Array, state: LstmState, plan: RowPlan
) -> LstmState:
    """The backward direction's state after a chunk; states have one direction here."""
    lstm = jax.tree.map(lambda leaf: leaf[1:], params.lstm)
    start = jax.tree.map(lambda leaf: leaf[:, 1:], params.initial_state)
    starts = Reset(plan.begins[:, 1:], start)
    apply: Any = BiLM(params.config, directions=1).apply
    read = {"params": {"lstm": lstm}}, table[plan.words[:, 1:]], state
    return apply(*read, reset=starts, method="contextualize")[1]

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

from elmojax.embedding.engine import (
    RowPlan,
    Selection,
    empty_vectors,
    join_directions,
    read_steps,
)
from elmojax.embedding.pooling import Block
from elmojax.embedding.words import EncodedWords
from elmojax.model.bilm import BiLM, ElmoParams
from elmojax.model.lstm import Reset
from elmojax.model.ops import automatic
from elmojax.model.state import LstmState

CHUNK = 512
"""Steps of one run."""


def document(
    params: ElmoParams, table: EncodedWords, words: Sequence[str], selection: Selection
) -> Iterator[Block]:
    """The vectors of the words, in order; each block has unused rows at the end."""
    start = params.initial_state.for_batch(1)
    forward, after = _direction(start, 0), [_direction(start, 1)]
    for number in range(_chunks(words) - 1, 0, -1):
        plan, _ = _plan(table, words, number)
        after.append(_backward(params, table.encoded(), after[-1], plan))
    left = len(words)
    for number in range(_chunks(words)):
        plan, count = _plan(table, words, number)
        vectors, _ = empty_vectors(params, CHUNK, 1, selection.layers, selection.dtype)
        vectors, state = read_steps(
            params,
            table.encoded(),
            vectors,
            _both_directions(forward, after.pop()),
            plan,
            selection.gammas,
            layers=selection.layers,
        )
        forward = _direction(state, 0)
        left -= count
        if count:
            yield Block((count,), join_directions(vectors), left > 0)


def pass_over(table: EncodedWords, words: Sequence[str]) -> None:
    """Leaves the word table as `document` would, without reading the document."""
    for number in [*range(_chunks(words) - 1, 0, -1), *range(_chunks(words))]:
        _plan(table, words, number)


def _chunks(words: Sequence[str]) -> int:
    return -(-(len(words) + 2) // CHUNK)


def _plan(
    table: EncodedWords, words: Sequence[str], number: int
) -> tuple[RowPlan, int]:
    """A chunk as a single row, `CHUNK` positions of `<S>`, the words and `</S>`, and
    how many words are in it.

    Chunks end together with the document; the first begins with padding.
    """
    size = len(words)
    last = size + 1 - (_chunks(words) - 1 - number) * CHUNK
    positions = np.arange(last - CHUNK + 1, last + 1)
    begins, ends = positions == 0, positions == size + 1
    inside = (positions > 0) & (positions <= size)
    table_rows, numbers = ends.astype(np.int32), np.full(CHUNK, CHUNK, np.int32)
    table_rows[inside] = table.rows(words[max(last - CHUNK, 0) : last])
    count = int(inside.sum())
    numbers[inside] = np.arange(count)
    both = ((table_rows, table_rows), (numbers, numbers), (begins, ends))
    arrays = (np.stack([f, b[::-1]], axis=1)[..., None] for f, b in both)
    return RowPlan(*arrays), count


def _direction(state: LstmState, number: int) -> LstmState:
    return jax.tree.map(lambda leaf: leaf[:, number : number + 1], state)


@jax.jit
def _both_directions(forward: LstmState, backward: LstmState) -> LstmState:
    return jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), forward, backward)


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
    read = {"params": {"lstm": lstm}}, table[plan.table_rows[:, 1:]], state
    return apply(*read, reset=starts, method="contextualize")[1]

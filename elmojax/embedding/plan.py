"""Which sentence goes where: rows of a batch that hold sentences one after the other.

A sentence of n words takes n + 1 steps of its row: `<S>` and the words for the forward
direction, `</S>` and the words from the last for the backward one. There is no padding
but at the end of rows, so few shapes serve texts of any length.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

STEPS = (64, 8)
"""Steps of one run of the LSTM; longer rows go on from its state in the next."""
ROWS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048)
"""Rows of one run."""
STEP_COST = 24
"""What a step costs besides its rows, in rows: it reads all weights."""
LEAST_STEPS = 64
"""Steps of a full batch on the widest rows, at least."""
FEW = 256
"""Words of a small batch, for which there are small shapes: one sentence comes soon."""
FEW_ROWS = 16
"""The most rows of a small batch."""


class Plan(NamedTuple):
    """Where the words of a batch of sentences are read: arrays of NumPy, or of JAX
    inside its programs."""

    words: Any
    """int32 [steps, two, rows]: row of the word table."""
    target: Any
    """int32 [steps, two, rows]: number of the word in the batch; past all words where
    nothing is kept."""
    begins: Any
    """bool [steps, two, rows]: a sentence begins."""


def full(batch_tokens: int) -> int:
    """Steps that the sentences of a batch may take: a few less than it has, so that
    they nearly always fit into its rows."""
    return batch_tokens - batch_tokens // 100


def room(words: int, batch_tokens: int) -> int:
    """Words that there is room for in a batch of `words` words."""
    return FEW if words <= FEW < batch_tokens else batch_tokens


def possible_rows(room: int) -> list[int]:
    """Numbers of rows that a batch with room for so many words may take."""
    most = FEW_ROWS if room <= FEW else max(room // LEAST_STEPS, 1)
    return [rows for rows in ROWS if rows <= most]


def shapes(batch_tokens: int) -> list[tuple[int, int, int]]:
    """Every (steps, rows, room) there is for batches of at most `batch_tokens`."""
    rooms = sorted({room(1, batch_tokens), batch_tokens})
    return [(s, r, n) for n in rooms for r in possible_rows(n) for s in STEPS]


def make_plans(
    words: Sequence[np.ndarray], sizes: Sequence[np.ndarray], room: int
) -> Plan:
    """The plan for a batch on each of some devices, as `make_plan` has them.

    All have as many rows, which follow on each other, and the number of a word is that
    in its own batch.
    """
    rows = max(_best_rows(each, room) for each in sizes)
    plans = [make_plan(*one, room, rows) for one in zip(words, sizes, strict=True)]
    steps = max(len(plan.words) for plan in plans)

    def join(arrays: Sequence[np.ndarray], filling: int) -> np.ndarray:
        joined = np.full((steps, 2, len(arrays), rows), filling, arrays[0].dtype)
        for number, array in enumerate(arrays):
            joined[: len(array), :, number] = array
        return joined.reshape(steps, 2, -1)

    return Plan(*map(join, zip(*plans, strict=True), (0, room, False)))


def make_plan(
    words: np.ndarray, sizes: np.ndarray, room: int, rows: int | None = None
) -> Plan:
    """The plan for a batch of sentences.

    Args:
      words: rows of the word table, all sentences one after the other: `<S>` is row
        0, `</S>` row 1.
      sizes: words of each sentence; 0 for one without words, which takes no place.
      room: of the batch; words without a place in it get this number.
      rows: None = the number that takes least time.
    """
    rows = rows or _best_rows(sizes, room)
    row, first, steps = _place(sizes, rows)
    index = np.zeros((steps, 2, rows), np.int32)
    target = np.full((steps, 2, rows), room, np.int32)
    begins = np.zeros((steps, 2, rows), bool)
    filled = sizes > 0
    begins[first[filled], :, row[filled]] = True
    index[first[filled], 1, row[filled]] = 1
    number = np.arange(len(words))
    place = number - np.repeat(np.cumsum(sizes) - sizes, sizes)
    row, first = np.repeat(row, sizes), np.repeat(first, sizes)
    forward, backward = first + 1 + place, first + np.repeat(sizes, sizes) - place
    for direction, step in enumerate((forward, backward)):
        index[step, direction, row] = words
        target[step, direction, row] = number
    return Plan(index, target, begins)


def _best_rows(sizes: np.ndarray, room: int) -> int:
    def cost(rows: int) -> int:
        return _least_steps(sizes, rows) * (rows + STEP_COST)

    return min(possible_rows(room), key=cost)


def _least_steps(sizes: np.ndarray, rows: int) -> int:
    """Steps, in whole runs, below which the sentences cannot fit."""
    taken = sizes + (sizes > 0)
    steps = max(int(taken.max(initial=1)), -(-int(taken.sum()) // rows))
    return -(-steps // STEPS[-1]) * STEPS[-1]


def _place(sizes: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Row and first step of each sentence, and the number of steps."""
    steps = _least_steps(sizes, rows)
    while (found := _fit(sizes, rows, steps)) is None:
        steps += STEPS[-1]
    return *found, steps


def _fit(
    sizes: np.ndarray, rows: int, steps: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Best-fit decreasing: each sentence, the longest first, into the fullest row
    that has the room; None if one finds no room."""
    row, first = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    free = [(steps, number) for number in range(rows)]
    for sentence in np.argsort(-sizes, kind="stable").tolist():
        need = int(sizes[sentence]) + 1
        if need == 1:
            break
        place = bisect_left(free, (need, 0))
        if place == len(free):
            return None
        left, number = free.pop(place)
        row[sentence], first[sentence] = number, steps - left
        insort(free, (left - need, number))
    return row, first


def windows(steps: int) -> list[slice]:
    """`steps`, a multiple of the shortest run, cut into runs of the given lengths."""
    cuts, begin = [], 0
    for size in STEPS:
        while steps - begin >= size:
            cuts.append(slice(begin, begin + size))
            begin += size
    return cuts

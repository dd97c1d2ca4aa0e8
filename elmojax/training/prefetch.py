"""Batches on the devices before the step that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from elmojax.training.processes import Agreement
from elmojax.training.sharding import local_shards, place
from elmojax.training.signals import Stop
from elmojax.training.start import Run

AHEAD = 2
"""Batches made and sent to the devices ahead of time."""


def prefetched(run: Run, first: int, stop: Stop) -> Iterator[tuple[Any, int]]:
    """Batches of the steps from `first` on, made by a thread ahead of time.

    With each comes the signal that asked one of several processes to stop before it,
    or 0: all processes hear of it at the same step.
    """
    config, mesh = run.record.train, run.lm.mesh
    assert mesh is not None
    agreement, local = Agreement("batch"), local_shards(mesh)

    def make(step: int) -> tuple[Any, int]:
        asked = 0

        def sizes(words: int, columns: int) -> tuple[int, int]:
            nonlocal asked
            mine = stop.signal or 0
            words, columns, asked = agreement.highest(words, columns, mine)
            return words, columns

        batch = run.text.batch(step, sizes)
        pieces = config.accumulate > 1
        return place(mesh, batch, "batch.", local, pieces), asked

    with ThreadPoolExecutor(1) as thread:
        ahead = [
            thread.submit(make, step)
            for step in range(first, min(first + AHEAD, run.steps))
        ]
        for step in range(first, run.steps):
            if step + AHEAD < run.steps:
                ahead.append(thread.submit(make, step + AHEAD))
            yield ahead.pop(0).result()


class TableShapes:
    """The shapes that the tables of words have had: a program is compiled for each.

    A batch whose words do not fit the shapes before gets a larger one, and loses none.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[int, ...]] = set()

    def numbers(self, batch: Any) -> dict[str, int]:
        """What metrics.jsonl says of the table: all rows of a piece, and columns."""
        rows = batch.words.shape[batch.weights.ndim - 2 :]
        return dict(zip(("table_words", "table_columns"), rows, strict=False))

    def is_new(self, batch: Any) -> bool:
        """Whether no batch before had tables of this shape."""
        shape = batch.words.shape
        known = shape in self._seen
        self._seen.add(shape)
        return not known

    def news(self, batch: Any, step: int) -> str | None:
        """Of a new shape, after the first, a sentence."""
        if len(self._seen) == 1:
            return None
        sizes = " x ".join(str(size) for size in self.numbers(batch).values())
        return (
            f"The words of step {step} take a table of another shape, {sizes}; its "
            f"program is compiled once ({len(self._seen)} shapes so far)."
        )

"""Batches on the devices before the steps that take them, and programs for them.

Batches are made a block of steps ahead. So it is known early whether one of them needs
larger arrays than usual: then its program is compiled while the steps before it run,
and several processes agree on it once a block, not once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from elmojax.text.batches import distinct_words
from elmojax.text.tables import Sizes
from elmojax.training.distributed import Stop, gather
from elmojax.training.sharding import (
    batch_shardings,
    local_shards,
    put_on_mesh,
    sharded_shapes,
)
from elmojax.training.sizes import batch_shapes
from elmojax.training.start import Run
from elmojax.training.step import Guard, compile_train_step

BLOCK = 16
"""Steps whose batches are made together, while those of the block before run."""
ASK = 4
"""Steps before the end of a block at which processes speak of the next one."""


class Ready(NamedTuple):
    """The batch of a step, on the devices."""

    batch: Any
    level: int
    """How often the usual sizes of its arrays were doubled."""
    words: int
    """Distinct words in its tables. Of several processes each knows its own, and takes
    the others to have as many."""
    asked: int = 0
    """The signal that asked one of several processes to stop before it, or 0; all
    processes hear of it at the same step."""


def prefetched(
    run: Run,
    first: int,
    stop: Stop,
    ahead: Callable[[int, int], None] = lambda step, level: None,
) -> Iterator[Ready]:
    """Batches of the steps from `first` on, made ahead in a thread, block by block.

    While the steps of a block run, the batches of the next one are made. `ASK` steps
    before its end the processes exchange the levels that these batches need and whether
    a signal came; the answer is read when the next block begins. A batch of a lower
    level than another process needs is then made anew.

    Args:
      ahead: is told number and level of each step of a block before the first is given.
    """
    config, mesh = run.record.train, run.lm.mesh
    assert mesh is not None
    local = local_shards(mesh)
    microbatches, share = config.accumulate > 1, len(local) / mesh.shape["data"]

    def make(step: int, least: int = 0) -> Ready:
        level, batch = run.text.batch_at_level(step, least)
        placed = put_on_mesh(mesh, batch, "batch.", local, microbatches)
        return Ready(placed, level, round(distinct_words(batch) / share))

    def begin(start: int) -> list[Future[Ready]]:
        steps = range(start, min(start + BLOCK, run.steps))
        return [thread.submit(make, step) for step in steps]

    def ask(block: list[Future[Ready]]) -> Callable[[], Any]:
        return gather(stop.signal or 0, *(made.result().level for made in block))

    thread = ThreadPoolExecutor(1)
    try:
        coming = begin(first)
        answer = ask(coming)
        for start in range(first, run.steps, BLOCK):
            block, coming = coming, []
            asked, *levels = answer().max(axis=0).tolist()
            for n, level in enumerate(levels):
                if block[n].result().level < level:
                    block[n] = thread.submit(make, start + n, level)
                ahead(start + n, level)
            coming = begin(start + BLOCK)
            for n, made in enumerate(block):
                if coming and n == BLOCK - ASK:
                    answer = ask(coming)
                yield made.result()._replace(asked=0 if n else asked)
    finally:
        thread.shutdown(cancel_futures=True)


class Programs:
    """The compiled steps of a run, for each level of sizes and what is trained."""

    def __init__(self, run: Run) -> None:
        config = run.record.train
        self._run, self._freeze = run, config.freeze_steps
        guard = Guard(config.skip_nonfinite, config.spike_guard)
        parts = (run.lm, run.optimizer, run.state, guard)
        kinds = (None, "head") if self._freeze else (None,)
        self._steps: Any = {only: compile_train_step(*parts, only) for only in kinds}
        formats = jax.tree.map(lambda leaf: leaf.format, run.state)
        self._state = sharded_shapes(run.state, formats)
        self._thread = ThreadPoolExecutor(1)
        self._compiling: dict[tuple[str | None, int], Future[None]] = {}
        self._used: set[tuple[str | None, int]] = set()

    def ahead(self, step: int, level: int) -> None:
        """Begins to compile what a step to come needs.

        A CPU does so when the step comes: it has no cores to spare, and its memory is
        better not taken twice.
        """
        key = self._key(step, level)
        if key not in self._compiling and jax.default_backend() != "cpu":
            self._compiling[key] = self._thread.submit(self._compile, *key)

    def take(self, step: int, level: int) -> tuple[Any, bool]:
        """What runs a step, counted from 0, and whether its program is a new one; `jit`
        chooses the program by the shapes of the batch."""
        key = self._key(step, level)
        new = key not in self._used
        self._used.add(key)
        if key in self._compiling:
            self._compiling[key].result()
        return self._steps[key[0]], new

    def news(self, step: int, level: int) -> str:
        """What to say of a program for more words than usual."""
        usual, now = (self._run.text.capacities.at(n) for n in (0, level))
        return (
            f"Step {step + 1} has more words than are usual ({_said(usual)} a device); "
            f"the program for {_said(now)} is compiled once."
        )

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _key(self, step: int, level: int) -> tuple[str | None, int]:
        return "head" if step < self._freeze else None, level

    def _compile(self, only: str | None, level: int) -> None:
        """Compiles a step for these shapes: `jit` keeps the program for the call."""
        config, mesh = self._run.record.train, self._run.lm.mesh
        assert mesh is not None
        text, data = self._run.text, mesh.shape["data"]
        sizes = text.capacities.at(level)
        batch = batch_shapes(config, sizes, text.words.columns, data)
        wanted = batch_shardings(mesh, batch, config.accumulate > 1)
        self._steps[only].lower(self._state, sharded_shapes(batch, wanted)).compile()


def _said(sizes: Sizes) -> str:
    return " + ".join(f"{size:,}" for size in (*sizes.words, *sizes.members))

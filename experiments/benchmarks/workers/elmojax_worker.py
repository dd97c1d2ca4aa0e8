"""Worker of `peers.py`: pretraining as `elmojax pretrain` does it.

The run is started by the same code in a directory of its own, batches come from its
prefetching thread, and the numbers of a step are read while the next one runs. Only
checkpoints and log lines are left out. Batches come in a few sizes; the program of a
size is compiled before the turn that needs it first, outside the clocks.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
from protocol import Turns, read_task

from elmojax.config import (
    ElmoConfig,
    HeadConfig,
    OptimizerConfig,
    TrainConfig,
    from_json,
)
from elmojax.training.distributed import Stop
from elmojax.training.memory import StepMemory, keep_freed_memory
from elmojax.training.prefetch import prefetched
from elmojax.training.start import start
from elmojax.training.step import compile_train_step

STEPS = 1_000_000
"""Length of the run: more than anybody waits for."""


def configuration(task: dict[str, Any]) -> TrainConfig:
    """The paper's optimiser and dropout, like all peers."""
    kind = task["variant"]
    cutoffs = tuple(task["cutoffs"]) if kind == "adaptive" else ()
    head = HeadConfig(kind, cutoffs, task["div_value"], samples=task["negatives"])
    return TrainConfig(
        data=Path(task["corpus"]),
        workdir=Path(task["workdir"]),
        model=from_json(ElmoConfig, task["config"], "the task"),
        head=head,
        optimizer=OptimizerConfig("adagrad", 0.2),
        steps=STEPS,
        rows=task["rows"],
        window=task["window"],
        dropout=0.1,
    )


class Training:
    """A run, its programs by shape of the batch, and the step that comes next."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.run = start(configuration(task), "benchmark")
        self.state, self.number = self.run.state, 0
        self._step = compile_train_step(self.run.lm, self.run.optimizer, self.state)
        self._programs: dict[Any, Any] = {}
        self._memory = StepMemory()
        self._batches = prefetched(self.run, 0, Stop())

    def compile(self, count: int) -> dict[str, Any]:
        """Compiles what the next steps need."""
        begin, known = time.perf_counter(), len(self._programs)
        for number in range(self.number, self.number + count):
            batch = self.run.text.batch(number)
            if _shape(batch) not in self._programs:
                with self._memory.of_step(self.state, compiles=True):
                    program = self._step.lower(self.state, batch).compile()
                self._programs[_shape(batch)] = program
        found = len(self._programs) - known
        seconds = time.perf_counter() - begin if found else 0.0
        return {"compiled": found, "compile_seconds": seconds}

    def steps(self, count: int) -> float:
        """Takes training steps; returns the loss of the last."""
        late, name = None, self.run.lm.loss_name
        for _ in range(count):
            batch = next(self._batches).batch
            program = self._programs[_shape(batch)]
            with self._memory.of_step(self.state):
                self.state, metrics = program(self.state, batch)
            if late is not None:
                jax.tree.map(float, late)
            late = metrics
        self.number += count
        assert late is not None
        jax.block_until_ready(self.state)
        return float(late[name])

    def close(self) -> None:
        self.run.checkpoints.close()
        if self.run.lock is not None:
            self.run.lock.release()


def _shape(batch: Any) -> Any:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def main() -> None:
    keep_freed_memory()
    turns, task = Turns(), read_task()
    training = Training(task)
    training.compile(1)
    loss = training.steps(1)
    about = {"versions": {"jax": jax.__version__}, "loss": loss}
    turns.ready(task["rows"] * task["window"], **about)
    turns.serve(training.steps, training.compile)
    training.close()


if __name__ == "__main__":
    main()

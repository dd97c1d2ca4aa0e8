"""Worker of `peers.py`: pretraining as `elmojax pretrain` does it.

The run is started by the same code in a directory of its own, and batches come from its
prefetching thread. Only checkpoints, metrics and log lines are left out. Batches come
in a few sizes; the program of a size is compiled before the turn that needs it first,
outside the clocks.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
from harness import Steps
from turns import Turns, read_task

from elmojax.config import HeadConfig, TrainConfig, from_json
from elmojax.training.distributed import Stop
from elmojax.training.memory import keep_freed_memory
from elmojax.training.prefetch import prefetched
from elmojax.training.start import start


def main() -> None:
    keep_freed_memory()
    turns, task = Turns(), read_task()
    config = from_json(TrainConfig, task["config"], "the task")
    if task["variant"] != config.head.kind:
        config = replace(config, head=HeadConfig("sampled", samples=task["negatives"]))
    run = start(replace(config, workdir=Path(task["workdir"])), "benchmark")
    training, done = Steps(run.lm, run.optimizer, run.state), 0
    batches = (ready.batch for ready in prefetched(run, 0, Stop()))

    def prepare(count: int) -> None:
        for number in range(done, done + count):
            training.program(run.text.batch(number))

    def steps(count: int) -> float:
        nonlocal done
        training.run(islice(batches, count))
        done += count
        return training.loss

    prepare(1)
    loss = steps(1)
    versions = {"jax": jax.__version__}
    turns.ready(config.rows * config.window, versions=versions, loss=loss)
    turns.serve(steps, prepare)
    run.checkpoints.close()
    if run.lock is not None:
        run.lock.release()


if __name__ == "__main__":
    main()

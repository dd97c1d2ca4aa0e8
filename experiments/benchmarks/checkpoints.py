"""What checkpoints cost, and whether a run grows: mini training, in one process.

    python experiments/benchmarks/checkpoints.py --data DIR [--steps 2000] [--every 100]

Periods of `--every` steps, by turns with a checkpoint at their beginning and without:
the ratio of their times is what saving every so many steps costs, everything in it
that waits or works in the background. A save alone, over a period without, is the same
on a busy machine. Memory is what the process holds (resident, without mapped files) at
the end of each period. Prints one JSON object.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import harness
import jax
from harness import Row, Steps, clocked

from elmojax.config import TrainConfig
from elmojax.training.distributed import Stop
from elmojax.training.prefetch import prefetched
from elmojax.training.start import Run, start

ALONE = 8
"""Saves while nothing else is done."""


def main() -> None:
    parser = harness.options(
        __doc__,
        data=(Path, "A prepared corpus; without it the text inside the package."),
        preset="mini",
        rows=64,
        steps=(2000, "Steps in all."),
        every=(100, "Steps of a period."),
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as workdir:
        config = replace(
            TrainConfig.preset(args.preset),
            data=args.data,
            workdir=Path(workdir) / "run",
            rows=args.rows,
            steps=args.steps,
        )
        print(json.dumps(measure(start(config, "benchmark"), args.every)))


def measure(run: Run, every: int) -> Row:
    """Seconds of the periods with a checkpoint and without, and memory after each."""
    steps = Steps(run.lm, run.optimizer, run.state)
    batches = (ready.batch for ready in prefetched(run, 0, Stop()))
    blocked, periods, resident = [], [], []

    def save(number: int, wait: bool = False) -> None:
        state = steps.state
        run.checkpoints.save(number, state.params, state.replace(params={}))
        if wait:
            run.checkpoints.settle()

    def period(first: int) -> None:
        if first // every % 2 == 0:
            blocked.append(clocked(partial(save, first)))
        steps.run(islice(batches, every))

    for first in range(0, run.steps - every + 1, every):
        periods.append(clocked(partial(period, first)))
        resident.append(harness.memory("RssAnon"))
    run.checkpoints.settle()
    numbers = range(run.steps, run.steps + ALONE)
    alone = [clocked(partial(save, number, wait=True)) for number in numbers]
    run.checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(steps.state))
    found = {
        "a period with a save": periods[2::2],  # the first one compiles
        "a period without": periods[1::2],
        "the loop, for a save": blocked[1:],
        "a save alone": alone,
    }
    return {
        "machine": harness.machine(),
        "device": str(jax.devices()[0]),
        "megabytes_of_state": round(size / 1e6, 1),
        **{
            f"{kind} of {name} (median, least, most)": harness.spread(values)
            for name, pairs in found.items()
            for kind, values in zip(
                ("seconds", "CPU-seconds"), zip(*pairs, strict=True), strict=True
            )
        },
        "megabytes_resident": [round(value / 1e6) for value in resident],
        "megabytes_at_most": round(harness.memory("VmHWM") / 1e6),
    }


if __name__ == "__main__":
    main()

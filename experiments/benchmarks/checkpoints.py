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
import statistics
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import harness
import jax
from harness import Row, Steps

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
        run = start(config, "benchmark")
        print(json.dumps(measure(run, args.every)))


def measure(run: Run, every: int) -> Row:
    """Seconds of the periods with a checkpoint and without, and memory after each."""
    steps = Steps(run.lm, run.optimizer, run.state)
    batches = (ready.batch for ready in prefetched(run, 0, Stop()))
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    resident, blocked = [], []

    def save(number: int) -> None:
        state = steps.state
        run.checkpoints.save(number, state.params, state.replace(params={}))

    def period(first: int, saving: bool) -> None:
        if saving:
            blocked.append(harness.clocked(lambda: save(first))[0])
        for _ in range(0, every, 10):
            steps.run(islice(batches, 10))

    for first in range(0, run.steps - every + 1, every):
        saving = first // every % 2 == 0
        spent = harness.clocked(lambda first=first, s=saving: period(first, s))
        if first:  # the first period compiles
            found[saving].append(spent)
        resident.append(harness.memory("RssAnon"))

    def save_alone(number: int) -> None:
        save(number)
        run.checkpoints.settle()

    run.checkpoints.settle()
    numbers = range(run.steps, run.steps + ALONE)
    alone = [harness.clocked(lambda n=n: save_alone(n)) for n in numbers]
    run.checkpoints.close()
    walls, cpus = (
        {saving: [pair[kind] for pair in each] for saving, each in found.items()}
        for kind in (0, 1)
    )

    def middle(values: Any) -> float:
        return round(statistics.median(values), 3)

    def ratio(values: dict[bool, list[float]]) -> float:
        return round(statistics.mean(values[True]) / statistics.mean(values[False]), 4)

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(steps.state))
    return {
        "machine": f"{harness.machine()['processor']}, {jax.devices()[0]}",
        "megabytes_of_state": round(size / 1e6, 1),
        "seconds_a_period_with": middle(walls[True]),
        "seconds_a_period_without": middle(walls[False]),
        "ratio": ratio(walls),
        "ratio_of_cpu_seconds": ratio(cpus),
        "seconds_blocked_by_a_save": middle(blocked[1:]),
        "seconds_of_a_save_alone": middle(pair[0] for pair in alone),
        "cpu_seconds_of_a_save_alone": middle(pair[1] for pair in alone),
        "cpu_seconds_a_period_without": middle(cpus[False]),
        "periods": len(walls[True]) + len(walls[False]),
        "megabytes_resident": [round(value / 1e6) for value in resident],
        "megabytes_at_most": round(harness.memory("VmHWM") / 1e6),
    }


if __name__ == "__main__":
    main()

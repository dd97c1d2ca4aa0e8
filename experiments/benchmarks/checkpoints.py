"""What checkpoints cost, and whether a run grows: mini training, in one process.

    python experiments/benchmarks/checkpoints.py --data DIR [--steps 2000] [--every 100]

Periods of `--every` steps, by turns with a checkpoint at their beginning and without:
the ratio of their times is what saving every so many steps costs, everything in it
that waits or works in the background. A save alone, over a period without, is the same
on a busy machine. Memory is what the process holds (resident, without mapped files) at
the end of each period. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from elmojax.config import TrainConfig
from elmojax.training.distributed import Stop
from elmojax.training.prefetch import prefetched
from elmojax.training.start import Run, start
from elmojax.training.step import compile_train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="none: the text inside the package")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100)
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


def measure(run: Run, every: int) -> dict[str, object]:
    """Seconds of the periods with a checkpoint and without, and memory after each."""
    step = compile_train_step(run.lm, run.optimizer, run.state)
    state, seconds, cpu = run.state, {True: [], False: []}, {True: [], False: []}
    memory, blocked, saving = [], [], False
    began = used = 0.0
    for number, ready in enumerate(prefetched(run, 0, Stop())):
        batch = ready.batch
        if number % every == 0:
            jax.block_until_ready(state)
            now, cpu_now = time.perf_counter(), time.process_time()
            if number > every:  # the first period compiles
                seconds[saving].append(now - began)
                cpu[saving].append(cpu_now - used)
            memory.append(resident())
            saving = not saving
            began, used = time.perf_counter(), time.process_time()
            if saving:
                rest = state.replace(params={})
                run.checkpoints.save(number, state.params, rest)
                blocked.append(time.perf_counter() - began)
        state, metrics = step(state, batch)
        if number % 10 == 0:
            float(metrics["loss"])
    alone = save_alone(run, state, number)
    run.checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {
        "machine": f"{platform.processor() or platform.machine()}, {jax.devices()[0]}",
        "megabytes_of_state": round(size / 1e6, 1),
        "seconds_a_period_with": round(statistics.median(seconds[True]), 3),
        "seconds_a_period_without": round(statistics.median(seconds[False]), 3),
        "ratio": ratio(seconds),
        "ratio_of_cpu_seconds": ratio(cpu),
        "seconds_blocked_by_a_save": round(statistics.median(blocked[1:]), 3),
        "seconds_of_a_save_alone": alone[0],
        "cpu_seconds_of_a_save_alone": alone[1],
        "cpu_seconds_a_period_without": round(statistics.median(cpu[False]), 3),
        "periods": len(seconds[True]) + len(seconds[False]),
        "megabytes_resident": [round(value / 1e6) for value in memory],
        "megabytes_at_most": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        ),
    }


def save_alone(run: Run, state: Any, step: int, times: int = 8) -> tuple[float, float]:
    """Seconds and CPU-seconds of a save while nothing else is done: the middle one."""
    run.checkpoints.settle()
    seconds, cpu = [], []
    for number in range(step + 1, step + 1 + times):
        began, used = time.perf_counter(), time.process_time()
        run.checkpoints.save(number, state.params, state.replace(params={}))
        run.checkpoints.settle()
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return round(statistics.median(seconds), 3), round(statistics.median(cpu), 3)


def ratio(values: dict[bool, list[float]]) -> float:
    return round(statistics.mean(values[True]) / statistics.mean(values[False]), 4)


def resident() -> int:
    """Bytes of memory that this process holds now, without files that it maps."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (own,) = (line for line in lines if line.startswith("RssAnon"))
    return int(own.split()[1]) * 1024


if __name__ == "__main__":
    main()

"""Temporary memory of real training steps, beside what `elmojax estimate` says.

    python experiments/benchmarks/memory.py --out memory.json

For each configuration three fresh processes: the estimate; a run on the sample text
whose own step, with its own arrays, is compiled and asked; and the same run's memory as
the operating system sees it: the highest resident memory during some steps less the
resident memory before them, after a first one. Linux only.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
from harness import Row, Steps

CONFIGURATIONS = {
    "mini (pretrain's default)": "",
    "small, 64 rows, 2,048 samples": (
        "--preset small --rows 64 --head.kind sampled --head.samples 2048"
    ),
    "original, 16 rows": "--preset original --rows 16",
    "mini, whole words, full softmax, 512 rows in 2 microbatches": (
        "--encoder words --head.kind full --rows 512 --accumulate 2"
    ),
}


def real_run(flags: list[str], steps: int) -> Row:
    """Trains some steps in this process."""
    from elmojax.cli.pretrain import RecipeArguments, parse_recipe
    from elmojax.training.memory import return_freed_memory
    from elmojax.training.sharding import place
    from elmojax.training.start import start
    from elmojax.training.step import Guard

    asked, _ = parse_recipe(RecipeArguments, "memory", flags)
    run = start(asked.train_config(), "memory")
    config, mesh = run.record.train, run.lm.mesh
    microbatches = config.accumulate > 1
    batches = [
        place(mesh, run.text.batch(step), "batch.", microbatches=microbatches)
        for step in range(steps)
    ]
    guard = Guard(config.skip_nonfinite, config.spike_guard)
    real = Steps(run.lm, run.optimizer, run.state, guard)
    real.run(batches[:1])  # what stays after it is not temporary
    gc.collect()
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before = harness.memory("VmRSS")
    real.run(batches)
    return {
        "compiled MB": harness.temporary_bytes(real.program(batches[0])) / 1e6,
        "resident MB": (harness.memory("VmHWM") - before) / 1e6,
    }


def compare(args: Any) -> Iterator[Row]:
    for name, flags in CONFIGURATIONS.items():
        with tempfile.TemporaryDirectory() as workdir:
            own = (sys.executable, __file__, "--steps", args.steps)
            row = harness.alone(*own, "--flags", f"{flags} --workdir {workdir}/run")
            text = ["--data", f"{workdir}/run/sample-train", "--json"]
            command = [sys.executable, "-m", "elmojax", "estimate", *flags.split()]
            found = harness.alone(*command, *text)["memory_per_device"]
        estimate = found["temporary"] / 1e6
        differs = {f"to {key}": f"{estimate / row[key] - 1:+.1%}" for key in row}
        yield {"name": name, "estimate MB": estimate, **row, **differs}


def main() -> None:
    parser = harness.options(
        __doc__,
        steps=4,
        flags=(str, "The flags of one run, which this process makes."),
        out=Path,
    )
    args = parser.parse_args()
    if args.flags is not None:
        print(json.dumps(real_run(args.flags.split(), args.steps)))
    else:
        harness.report(args, compare(args))


if __name__ == "__main__":
    main()

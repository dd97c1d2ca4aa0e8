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
from pathlib import Path

import harness
from harness import Steps

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


def real_run(flags: list[str], steps: int) -> dict[str, int]:
    """Trains some steps in this process."""
    from elmojax.cli.pretrain import RecipeArguments, parse_recipe
    from elmojax.training.memory import return_freed_memory
    from elmojax.training.sharding import put_on_mesh
    from elmojax.training.start import start
    from elmojax.training.step import Guard

    asked, _ = parse_recipe(RecipeArguments, "memory", flags)
    run = start(asked.train_config(), "memory")
    config, mesh = run.record.train, run.lm.mesh
    microbatches = config.accumulate > 1
    batches = [
        put_on_mesh(mesh, run.text.batch(step), "batch.", microbatches=microbatches)
        for step in range(steps)
    ]
    guard = Guard(config.skip_nonfinite, config.spike_guard)
    real = Steps(run.lm, run.optimizer, run.state, guard)
    real.run(batches[:1])  # what stays after it is not temporary
    gc.collect()
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before = harness.memory("VmRSS")
    for batch in batches:
        real.run([batch])
    resident = harness.memory("VmHWM") - before
    assert run.lock is not None
    run.lock.release()
    return {
        "compiled": harness.temporary_bytes(real.program(batches[0])),
        "resident": resident,
    }


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
        return
    rows = []
    for name, flags in CONFIGURATIONS.items():
        with tempfile.TemporaryDirectory() as workdir:
            own = (sys.executable, __file__, "--steps", args.steps)
            row = harness.alone(*own, "--flags", f"{flags} --workdir {workdir}/run")
            text = ["--data", f"{workdir}/run/sample-train", "--json"]
            command = [sys.executable, "-m", "elmojax", "estimate", *flags.split()]
            found = harness.alone(*command, *text)["memory_per_device"]
        row = {"name": name, "flags": flags, **row, "estimate": found["temporary"]}
        row["to_compiled"] = row["estimate"] / row["compiled"] - 1
        row["to_resident"] = row["estimate"] / row["resident"] - 1
        rows.append(row)
        mega = {key: row[key] / 1e6 for key in ("estimate", "compiled", "resident")}
        harness.say(
            f"{name:55} estimate {mega['estimate']:7.1f} MB   compiled step "
            f"{mega['compiled']:7.1f} ({row['to_compiled']:+.1%})   resident "
            f"{mega['resident']:7.1f} ({row['to_resident']:+.1%})"
        )
    harness.write(args.out, args, rows=rows)


if __name__ == "__main__":
    main()

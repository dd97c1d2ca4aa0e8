"""Temporary memory of real training steps, beside what `elmojax estimate` says.

    python experiments/benchmarks/memory.py --out memory.json

For each configuration three fresh processes: the estimate; a run on the sample text
whose own step, with its own arrays, is compiled and asked; and the same run's memory as
the operating system sees it: the highest resident memory during some steps less the
resident memory before them, after a first one. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import write

CONFIGURATIONS = {
    "mini (pretrain's default)": "",
    "small, 64 rows, 2,048 samples": (
        "--preset small --rows 64 --head.kind sampled --head.samples 2048"
    ),
    "original, 16 rows": "--preset original --rows 16",
    "mini, whole words, full softmax, 512 rows in 2 pieces": (
        "--encoder words --head.kind full --rows 512 --accumulate 2"
    ),
}


def resident(field: str) -> int:
    """Bytes: `VmRSS` is now, `VmHWM` the highest."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def real_run(flags: list[str], steps: int) -> dict[str, int]:
    """Trains some steps in this process."""
    import jax

    from elmojax.cli.common import RecipeArguments, defaults, parse, train_config
    from elmojax.training.memory import return_freed_memory
    from elmojax.training.sharding import place
    from elmojax.training.start import start
    from elmojax.training.step import Guard, compile_train_step

    default = defaults(RecipeArguments, flags)
    asked = parse(RecipeArguments, "memory", flags, default=default)
    run = start(train_config(asked), "memory")
    config = run.record.train
    microbatches = config.accumulate > 1
    batches = [
        place(run.lm.mesh, run.text.batch(step), "batch.", microbatches=microbatches)
        for step in range(steps)
    ]
    guard = Guard(config.skip_nonfinite, config.spike_guard)
    step: Any = compile_train_step(run.lm, run.optimizer, run.state, guard)
    program = step.lower(run.state, batches[0]).compile()
    compiled = program.memory_analysis().temp_size_in_bytes

    def steps_of(state: Any, batches: list[Any]) -> Any:
        for batch in batches:
            state, _ = program(state, batch)
            jax.block_until_ready(state)
        return state

    state = steps_of(run.state, batches[:1])  # what stays after it is not temporary
    gc.collect()
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before = resident("VmRSS")
    steps_of(state, batches)
    assert run.lock is not None
    run.lock.release()
    return {"compiled": compiled, "resident": resident("VmHWM") - before}


def in_process(*command: str) -> dict[str, Any]:
    """The JSON object that a fresh Python prints last."""
    ran = subprocess.run(
        [sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--flags", help="of the run of this process, for itself")
    args = parser.parse_args()
    if args.flags is not None:
        print(json.dumps(real_run(args.flags.split(), args.steps)))
        return
    rows = []
    for name, flags in CONFIGURATIONS.items():
        with tempfile.TemporaryDirectory() as workdir:
            own = [__file__, "--steps", str(args.steps), "--flags"]
            row = in_process(*own, f"{flags} --workdir {workdir}/run")
            text = ["--data", f"{workdir}/run/sample-train"]
            command = ["-m", "elmojax", "estimate", *flags.split(), *text, "--json"]
            found = in_process(*command)["memory_per_device"]
        row = {"name": name, "flags": flags, **row, "estimate": found["temporary"]}
        row["to_compiled"] = row["estimate"] / row["compiled"] - 1
        row["to_resident"] = row["estimate"] / row["resident"] - 1
        rows.append(row)
        mega = {key: row[key] / 1e6 for key in ("estimate", "compiled", "resident")}
        print(
            f"{name:55} estimate {mega['estimate']:7.1f} MB   compiled step "
            f"{mega['compiled']:7.1f} ({row['to_compiled']:+.1%})   resident "
            f"{mega['resident']:7.1f} ({row['to_resident']:+.1%})",
            flush=True,
        )
    write(args.out, args, rows=rows)


if __name__ == "__main__":
    main()

"""Does the same run end with the same bits on this machine, interrupted or not?

    python experiments/check_determinism.py [--steps N] [flags of `elmojax pretrain`]
    XLA_FLAGS=--xla_gpu_deterministic_ops=true python experiments/check_determinism.py

Trains a run twice, and once with an interruption in the middle, each time in processes
of their own that compile for themselves; then compares every array of the last
checkpoints (parameters, optimiser, LSTM state, random key) bit by bit. One line a
comparison; exit status 1 where there is a difference.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import elmojax
from elmojax.training.record import read_record
from elmojax.training.sharding import path_name
from elmojax.training.start import start


def train(run: Path, steps: int, schedule: int, flags: list[str]) -> None:
    """One call of `elmojax pretrain`, which compiles everything anew."""
    command = [sys.executable, "-m", "elmojax", "pretrain", *flags]
    command += ["--workdir", str(run), "--steps", str(steps)]
    command += ["--optimizer.decay", "cosine", "--schedule-steps", str(schedule)]
    plain = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, env=plain, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def arrays(run: Path) -> dict[str, np.ndarray]:
    """What the last checkpoint of a run holds, by path."""
    started = start(read_record(run).train, elmojax.__version__)
    if started.lock is not None:
        started.lock.release()
    leaves = jax.tree_util.tree_leaves_with_path(started.state)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> str:
    """Which arrays do not have the same bits; nothing where all have."""
    names = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    return f"{len(names)} differ, {names[0]} first" if names else ""


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("--steps", type=int, default=20, help="steps of each run")
    asked, flags = parser.parse_known_args()
    steps, failed = asked.steps, False
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / name for name in ("first", "second", "interrupted")]
        for run in runs[:2]:
            train(run, steps, steps, flags)
        for until in (steps // 2, steps):
            train(runs[2], until, steps, flags)
        wanted, *others = [arrays(run) for run in runs]
        device = jax.devices()[0].device_kind
    flags_of_xla = os.environ.get("XLA_FLAGS", "")
    print(f"{device}, jax {jax.__version__}, XLA_FLAGS={flags_of_xla!r}")
    for name, found in zip(("trained twice", "interrupted"), others, strict=True):
        what = difference(wanted, found)
        failed = failed or bool(what)
        print(f"{name}: of {len(wanted)} arrays {what or 'all have the same bits'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()

"""Whether the device ever waits for the host: the real training loop, looked at.

    python experiments/benchmarks/waiting.py --data DIR --steps 60
    python experiments/benchmarks/waiting.py --preset original --rows 512 --profile

Runs `elmojax.pretrain` and prints what the loop says of its time at the end: steps,
compilation, waiting for the next batch. `--profile` also takes the trace of `elmojax
pretrain --profile` and tells the share of it in which the device worked, from its first
to its last work.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import harness
import jax

from elmojax.config import TrainConfig
from elmojax.training.loop import pretrain
from elmojax.training.metrics import Profile, Tracker


class Notes(Tracker):
    """Prints what the loop says."""

    def note(self, text: str) -> None:
        harness.say(text)


def busy_share(trace: Path) -> float:
    """The share of a trace in which the device worked."""
    spans = sorted((begin, end) for _, begin, end in harness.device_work(trace))
    first = end = spans[0][0]
    busy = 0.0
    for begin, until in spans:
        busy += max(0.0, until - max(begin, end))
        end = max(end, until)
    return busy / (end - first)


def main() -> None:
    parser = harness.options(
        __doc__,
        data=(Path, "A prepared corpus; without it the text inside the package."),
        preset="mini",
        rows=64,
        steps=(60, "Steps in all."),
        profile=(False, "Say how much of a trace the device worked."),
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            TrainConfig.preset(args.preset),
            data=args.data,
            workdir=Path(folder) / "run",
            rows=args.rows,
            steps=args.steps,
            checkpoint_every=0,
        )
        trace = Path(folder) / "profile"
        pretrain(config, [Notes(), *([Profile(trace)] if args.profile else [])])
        if args.profile:
            device = jax.devices()[0].device_kind
            harness.say(f"{device} worked {busy_share(trace):.0%} of the trace.")


if __name__ == "__main__":
    main()

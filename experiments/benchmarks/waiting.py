"""Whether the device ever waits for the host: the real training loop, looked at.

    python experiments/benchmarks/waiting.py --data DIR --steps 60
    python experiments/benchmarks/waiting.py --preset original --rows 512 --profile

Runs `elmojax.training.loop.pretrain` with a clock around what the main thread does in a
step: waiting for the next batch, handing the step over, waiting for the numbers of the
step before (the device is at work on the next one by then), and the rest. A step counts
as handed over in time if the one before was not finished at that moment: then the
device goes from one to the next without the host. A CPU is given a step when the one
before is finished, and how long that is waited for is a part of its own. `--profile`
also takes the trace of `elmojax pretrain --profile` and reads the share of it in which
the device worked. Prints one JSON object.
"""

from __future__ import annotations

import gzip
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import jax
from harness import Row

from elmojax.config import TrainConfig
from elmojax.training import loop, prefetch
from elmojax.training.metrics import Profile
from elmojax.training.prefetch import prefetched
from elmojax.training.step import compile_train_step

BATCH, FINISH = "waiting for the batch", "step before, on a CPU"
HANDING, NUMBERS = "handing the step over", "numbers of the step before"
LABELS = (BATCH, FINISH, HANDING, NUMBERS)


class Clocks:
    """Seconds a step, by what the main thread did."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)
        self.begins: list[float] = []
        self.in_time: list[bool] = []
        self._last: Any = None

    def timed(self, plain: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return plain(*arguments)
            finally:
                self.spent[label].append(time.perf_counter() - begin)

        return call

    def prefetched(self, *args: Any) -> Iterator[Any]:
        following = self.timed(partial(next, prefetched(*args), None), BATCH)
        while True:
            self.begins.append(time.perf_counter())
            if (batch := following()) is None:
                return
            yield batch

    def compiled(self, *args: Any) -> Callable[..., Any]:
        step = compile_train_step(*args)
        run = self.timed(step, HANDING)

        def handed(*arguments: Any) -> Any:
            last, found = self._last, run(*arguments)
            busy = last is not None and not last["gradient_norm"].is_ready()
            self.in_time.append(busy)
            self._last = found[1]
            return found

        handed.lower = step.lower
        return handed

    def report(self, skip: int) -> Row:
        total = [b - a for a, b in pairwise(self.begins)][skip:-1]
        end = skip + len(total)
        parts = {label: sum(self.spent[label][skip:end]) for label in LABELS}
        known = {label: seconds / sum(total) for label, seconds in parts.items()}
        report = {
            "steps": len(total),
            "seconds_a_step": statistics.median(total),
            "shares": {**known, "the rest": 1 - sum(known.values())},
        }
        if jax.default_backend() != "cpu":
            report["handed_over_in_time"] = statistics.mean(self.in_time[skip:])
        return report


def busy_share(profile: Path) -> float | None:
    """Share of a trace in which the device worked, from its first to its last work."""
    (path,) = sorted(profile.rglob("*.trace.json.gz"))[-1:]
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    named = {
        (e["pid"], e.get("tid") if e["name"] == "thread_name" else None): e["args"][
            "name"
        ]
        for e in events
        if e.get("ph") == "M" and e["name"] in ("process_name", "thread_name")
    }

    def of_device(event: dict[str, Any]) -> bool:
        process = named.get((event["pid"], None), "")
        thread = named.get((event["pid"], event["tid"]), "")
        return "/device:" in process or thread.startswith("tf_XLA")

    spans = sorted(
        (e["ts"], e["ts"] + e["dur"])
        for e in events
        if e.get("ph") == "X" and of_device(e)
    )
    if not spans:
        return None
    busy, end = 0.0, spans[0][0]
    for begin, until in spans:
        busy += max(0.0, until - max(begin, end))
        end = max(end, until)
    return busy / (end - spans[0][0])


def main() -> None:
    parser = harness.options(
        __doc__,
        data=(Path, "A prepared corpus; without it the text inside the package."),
        preset="mini",
        rows=64,
        steps=(60, "Steps in all."),
        skip=(20, "Steps that may compile, and do not count."),
        profile=(False, "Say how much of a trace the device worked."),
    )
    args = parser.parse_args()
    clocks, patch = Clocks(), mock.patch.object
    read_late = clocks.timed(loop._Loop._read_metrics, NUMBERS)
    finish = clocks.timed(jax.block_until_ready, FINISH)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            TrainConfig.preset(args.preset),
            data=args.data,
            workdir=Path(folder) / "run",
            rows=args.rows,
            steps=args.steps,
            checkpoint_every=0,
        )
        trackers = [Profile(Path(folder) / "profile")] if args.profile else []
        with (
            patch(loop, "prefetched", clocks.prefetched),
            patch(prefetch, "compile_train_step", clocks.compiled),
            patch(loop._Loop, "_read_metrics", lambda which: read_late(which)),
            patch(jax, "block_until_ready", finish),
        ):
            loop.pretrain(config, trackers)
        report = clocks.report(args.skip)
        if args.profile:
            report["device_busy"] = busy_share(Path(folder) / "profile")
    report["device"] = jax.devices()[0].device_kind
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

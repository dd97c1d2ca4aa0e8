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

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from elmojax.config import TrainConfig
from elmojax.training import loop, prefetch
from elmojax.training.metrics import Profile


class Clocks:
    """Seconds a step, by what the main thread did."""

    def __init__(self) -> None:
        self.batch: list[float] = []
        self.handing: list[float] = []
        self.numbers: list[float] = []
        self.finish: list[float] = []
        self.begins: list[float] = []
        self.in_time: list[bool] = []
        self._last: Any = None

    def prefetched(self, plain: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        def batches(*args: Any) -> Iterator[Any]:
            stream = plain(*args)
            while True:
                begin = time.perf_counter()
                try:
                    batch = next(stream)
                except StopIteration:
                    return
                self.begins.append(begin)
                self.batch.append(time.perf_counter() - begin)
                yield batch

        return batches

    def compiled(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any) -> Callable[..., Any]:
            step = plain(*args)

            def handed(*arguments: Any) -> Any:
                last, begin = self._last, time.perf_counter()
                state, metrics = step(*arguments)
                self.handing.append(time.perf_counter() - begin)
                busy = last is not None and not last["gradient_norm"].is_ready()
                self.in_time.append(busy)
                self._last = metrics
                return state, metrics

            handed.lower = step.lower
            return handed

        return make

    @staticmethod
    def timed(plain: Callable[[Any], None], into: list[float]) -> Callable[[Any], None]:
        def call(which: Any) -> None:
            begin = time.perf_counter()
            plain(which)
            into.append(time.perf_counter() - begin)

        return call

    def report(self, skip: int) -> dict[str, Any]:
        ends = [*self.begins[1:], self.begins[-1]]
        total = [b - a for a, b in zip(self.begins, ends, strict=True)][skip:-1]
        parts = {
            "waiting for the batch": self.batch[skip:-1],
            "step before, on a CPU": self.finish[skip:-1],
            "handing the step over": self.handing[skip:-1],
            "numbers of the step before": self.numbers[skip : len(self.batch) - 1],
        }
        known = {name: sum(each) / sum(total) for name, each in parts.items()}
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="none: the text inside the package")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--skip", type=int, default=20, help="steps that may compile")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    clocks = Clocks()
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
            mock.patch.object(loop, "prefetched", clocks.prefetched(loop.prefetched)),
            mock.patch.object(
                prefetch,
                "compile_train_step",
                clocks.compiled(prefetch.compile_train_step),
            ),
            mock.patch.object(
                loop._Loop,
                "_read_late",
                clocks.timed(loop._Loop._read_late, clocks.numbers),
            ),
            mock.patch.object(
                jax,
                "block_until_ready",
                clocks.timed(jax.block_until_ready, clocks.finish),
            ),
        ):
            loop.pretrain(config, trackers)
        report = clocks.report(args.skip)
        if args.profile:
            report["device_busy"] = busy_share(Path(folder) / "profile")
    report["device"] = jax.devices()[0].device_kind
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

"""The numbers of a run: its speed, and where they go (file, plot)."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from elmojax.disk import parse_json, replacing
from elmojax.errors import reading, writing
from elmojax.plots import can_draw, draw_losses, save


class Tracker:
    """Hears what a run does; numbers are plain floats. Each method may be left out."""

    def begin(self, step: int, steps: int) -> None:
        """The run starts (or goes on) at `step` of `steps`."""

    def step(self, step: int, loss: float) -> None:
        """Every step, and nothing slow: its number and its loss."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of some steps; keys as in metrics.jsonl."""

    def note(self, text: str) -> None:
        """A sentence for people."""

    def close(self) -> None:
        """The run is over, for whatever reason."""


class JsonLines(Tracker):
    """metrics.jsonl: one JSON object a line, each with its `step`."""

    def __init__(self, path: Path, resume_at: int) -> None:
        """Lines after step `resume_at` are dropped: they will be written again."""
        self.path = path
        kept = [line for line in read_metrics(path) if 0 < resume_at >= line["step"]]
        with self._writing():
            with replacing(path) as partial:
                lines = (json.dumps(line) + "\n" for line in kept)
                partial.write_text("".join(lines), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises `InputError` where the disk takes no more."""
        with self._writing():
            # JSON knows no number that is not finite.
            known = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
            self._file.write(json.dumps({"step": step, **known}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what was not written was said
            self._file.close()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        advice = "Make room and give the same command again; the run goes on from its "
        return writing(self.path, advice + "last checkpoint.")


def readable(number: float, digits: int = 1) -> str:
    """A number for people, short however large it is."""
    return f"{number:,.{digits}f}" if abs(number) < 1e9 else f"{number:.3g}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, with `step` and finite numbers, or None, of the rest.

    What was cut short or is no number is left out, and so are lines without a step.
    Raises `InputError` where the file is there and cannot be read.
    """
    with reading(path):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
    lines = []
    for line in text.splitlines():
        try:
            found = parse_json(line)
        except ValueError:
            continue
        if isinstance(found, dict) and type(found.get("step")) is int:
            values = {k: v for k, v in found.items() if v is None or _is_number(v)}
            if values.get("step", -1) >= 0:
                lines.append(values)
    return lines


HELDOUT = "heldout_"
"""What the keys of a held-out evaluation begin with in metrics.jsonl."""
MEASURE = "geometric_perplexity"
"""The number of an evaluation that the best checkpoint has the lowest of."""


def evaluations(lines: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """The held-out evaluations in lines of metrics.jsonl: by step, as `Evaluator` gave
    them, without numbers that are not finite."""
    found = {}
    for line in lines:
        scores = {
            name.removeprefix(HELDOUT): value
            for name, value in line.items()
            if name.startswith(HELDOUT) and value is not None
        }
        if scores:
            found[line["step"]] = scores
    return found


def step_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Time of all steps, from the speed that was noted along the way."""
    total, tokens = 0.0, 0.0
    for line in lines:
        if line.get("tokens") and line.get("tokens_per_second"):
            total += (line["tokens"] - tokens) / line["tokens_per_second"]
        tokens = line.get("tokens") or tokens
    return total


def _is_number(value: object) -> bool:
    """Whether it is a number of reasonable size, and so finite."""
    return type(value) in (int, float) and -1e300 < value < 1e300  # type: ignore


class Profile(Tracker):
    """A trace of some steps, for TensorBoard's profiler and Perfetto."""

    AFTER, STEPS = 10, 10

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._first, self._last, self._runs = 0, 0, False

    def begin(self, step: int, steps: int) -> None:
        """Steps that compile are left out, unless the run has no others."""
        self._first = step + min(self.AFTER, max(1, (steps - step) // 2))
        self._last = self._first + self.STEPS

    def step(self, step: int, loss: float) -> None:
        if self._first <= step < self._last and not self._runs:
            jax.profiler.start_trace(str(self._directory))
            self._runs = True
        elif step >= self._last:
            self.close()

    def close(self) -> None:
        if self._runs:
            jax.profiler.stop_trace()
        self._runs, self._first = False, self._last


def plot_losses(run: Path) -> Path | None:
    """Draws loss.png from metrics.jsonl; None where it cannot: a run is worth more."""
    if not can_draw():
        return None
    path = run / "loss.png"
    try:
        save(draw_losses({run.name: read_metrics(run / "metrics.jsonl")}), path)
    except OSError:
        return None
    return path


Item = TypeVar("Item")

WAITING = "waiting for data"
PARTS = ("compiling", WAITING, "evaluation", "checkpoints")
"""What is not a step, and takes time."""


class Clock:
    """Tokens a second since the last look, without compilation and pauses."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self._steps, self._since = -1, time.perf_counter()  # the first step compiles
        self._began, self._spent = self._since, dict.fromkeys(PARTS, 0.0)

    def tick(self) -> None:
        self._steps += 1
        if not self._steps:
            self._since = time.perf_counter()

    def rate(self) -> float:
        now = time.perf_counter()
        rate = self._steps * self.tokens_per_step / (now - self._since)
        self._steps, self._since = 0, now
        return max(rate, 0.0)

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Around what takes the time of one of `PARTS`; waiting slows training down."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._spent[part] += took
            if part != WAITING:
                self._since += took

    def awaited(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; until the next one comes, training waits for data."""
        iterator = iter(items)
        while True:
            with self.spent(WAITING):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def summary(self) -> str:
        """Where the time went since the clock was made."""
        total = time.perf_counter() - self._began
        parts = {"steps": total - sum(self._spent.values()), **self._spent}
        said = (f"{name} {s:,.1f} s ({s / total:.0%})" for name, s in parts.items())
        return f"Time: {total:,.1f} s, of which {', '.join(said)}."

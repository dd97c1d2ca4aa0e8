"""How fast a run trains, and where its time goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

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

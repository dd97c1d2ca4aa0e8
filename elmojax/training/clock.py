"""How fast a run trains."""

from __future__ import annotations

import time


class Clock:
    """Tokens a second since the last look, without compilation and pauses."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self._steps, self._since = -1, time.perf_counter()  # the first step compiles

    def tick(self) -> None:
        self._steps += 1
        if not self._steps:
            self._since = time.perf_counter()

    def rate(self) -> float:
        now = time.perf_counter()
        rate = self._steps * self.tokens_per_step / (now - self._since)
        self._steps, self._since = 0, now
        return max(rate, 0.0)

    def paused(self) -> _Pause:
        return _Pause(self)


class _Pause:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock._since += time.perf_counter() - self._began

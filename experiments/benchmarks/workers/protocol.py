"""What `peers.py` and its workers say to each other; for Python 3.7 and later.

A worker gets one argument, a JSON file that describes the task. It builds its model,
takes one step, says what it is, and then waits: on each line with a number it takes as
many training steps and answers with one line of JSON; the end of its input ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


def read_task() -> dict[str, Any]:
    """The description of the task that the command line names."""
    with open(sys.argv[1], encoding="utf-8") as file:
        return dict(json.load(file))


def peak_bytes() -> int:
    """The most memory this process had so far.

    Linux counts the memory of the program that started it in `ru_maxrss`.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            kilobytes = [line.split()[1] for line in file if line.startswith("VmHWM")]
        return int(kilobytes[0]) * 1024
    except (OSError, IndexError):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Turns:
    """The turns of a worker: iterate over them, and `finish` each."""

    def __init__(self) -> None:
        # What libraries print must not come between the answers.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start = time.perf_counter()
        self._wall = self._cpu = self._waits = self._idle = 0.0
        self._steps = self._tokens = 0

    def ready(self, tokens: int, **about: Any) -> None:
        """Says that the first step is done; tokens: of a step."""
        self._tokens = tokens
        about["start_seconds"] = time.perf_counter() - self._start
        self._say(about)

    def __iter__(self) -> Iterator[int]:
        """The steps of each turn."""
        for line in sys.stdin:
            self._idle = time.process_time() - self._waits
            self._steps = int(line)
            yield self._steps

    def begin(self) -> None:
        """Starts the clocks; what comes before in a turn is not counted."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def finish(self, loss: float, **more: Any) -> None:
        """Stops the clocks and answers; loss: of the last step."""
        seconds = time.perf_counter() - self._wall
        cpu = time.process_time()
        answer = {
            "steps": self._steps,
            "tokens": self._steps * self._tokens,
            "seconds": seconds,
            "cpu_seconds": cpu - self._cpu,
            "idle_cpu_seconds": self._idle,
            "loss": loss,
            "peak_bytes": peak_bytes(),
        }
        answer.update(more)
        self._say(answer)

    def serve(
        self,
        steps: Callable[[int], float],
        prepare: Callable[[int], dict[str, Any]] = lambda _: {},
    ) -> None:
        """All turns: `steps` takes so many steps and returns the last loss.

        `prepare` is called before the clocks start.
        """
        for count in self:
            more = prepare(count)
            self.begin()
            self.finish(steps(count), **more)

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
        self._waits = time.process_time()

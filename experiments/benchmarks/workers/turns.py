"""Both ends of what `peers.py` and its workers say to each other; for Python 3.7 and
later.

A worker gets one argument, a JSON file that describes the task. It builds its model,
takes one step, says what it is, and then waits: on each line with a number it takes as
many training steps and answers with one line of JSON; the end of its input ends it.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# --- a worker ------------------------------------------------------------------------


def read_task() -> dict[str, Any]:
    """The description of the task that the command line names."""
    return dict(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


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

    def finish(self, loss: float) -> None:
        """Stops the clocks and answers; loss: of the last step."""
        seconds, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        tokens = self._steps * self._tokens
        answer = {
            "steps": self._steps,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "cpu_seconds_per_token": cpu / tokens,
            "idle_cpu_seconds": self._idle,
            "loss": loss,
            "peak_bytes": peak_bytes(),
        }
        self._say(answer)

    def serve(
        self,
        steps: Callable[[int], float],
        prepare: Callable[[int], None] = lambda _: None,
    ) -> None:
        """All turns: `steps` takes so many steps and returns the last loss.

        `prepare` is called before the clocks start.
        """
        for count in self:
            prepare(count)
            self.begin()
            self.finish(steps(count))

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
        self._waits = time.process_time()


# --- the process that asks them ------------------------------------------------------


class Worker:
    """One program in a process of its own; it waits until it is asked."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        """Starts it and waits until it has taken its first step."""
        self.name, self.log = name, log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                universal_newlines=True,
            )
        try:
            self.about = self._answer()
        except BaseException:
            self.process.kill()
            self.end()
            raise

    def turn(self, steps: int) -> dict[str, Any]:
        """Lets it take so many steps; what it says of them."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def fitting(self, seconds: float) -> int:
        """How many steps take about so long; takes some to find out."""
        turn = self.turn(1)
        while turn["seconds"] < seconds / 8:
            share = seconds / 4 / turn["seconds"]
            turn = self.turn(math.ceil(turn["steps"] * min(share, 8)))
        return max(1, round(seconds * turn["steps"] / turn["seconds"]))

    def end(self) -> None:
        """Ends it as it likes to end, or else at once."""
        try:
            self.process.communicate(timeout=60)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        status = self.process.wait()
        said = self.log.read_text("utf-8", "replace").splitlines()
        tail = "\n".join("    " + line for line in said[-12:])
        raise SystemExit(f"The worker {self.name} ended with status {status}:\n{tail}")


def take_turns(
    starts: Mapping[str, Callable[[], Worker]], rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Starts all programs, one after the other, and times them in rounds.

    Each round begins with another program. Returns what each said of itself and its
    turns.
    """
    workers: list[Worker] = []
    found: dict[str, dict[str, Any]] = {}
    try:
        for name, start in starts.items():
            workers.append(start())
            steps, about = workers[-1].fitting(seconds), workers[-1].about
            about["first_loss"] = about.pop("loss")
            found[name] = {**about, "steps": steps, "turns": []}
            print(f"{name}: ready, {steps} steps a turn", flush=True)
        for number in range(rounds):
            shift = number % len(workers)
            for worker in workers[shift:] + workers[:shift]:
                turn = worker.turn(found[worker.name]["steps"])
                found[worker.name]["turns"].append(turn)
                rate = f"{worker.name:20}{turn['tokens_per_second']:10,.1f} tokens/s"
                print(f"round {number + 1}: {rate}", flush=True)
    finally:
        for worker in workers:
            worker.end()
    return found

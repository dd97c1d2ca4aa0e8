"""Workers of `peers.py`: processes that take turns, one at a time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Turn = dict[str, Any]


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
                text=True,
            )
        try:
            self.about = self._answer()
        except BaseException:
            self.kill()
            raise

    def turn(self, steps: int) -> Turn:
        """Lets it take so many steps; what it says, and what the machine did."""
        assert self.process.stdin is not None
        wall, busy, own = time.perf_counter(), machine_cpu(), self._cpu()
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        turn = self._answer()
        wall = time.perf_counter() - wall
        others = machine_cpu() - busy - (self._cpu() - own)
        turn["tokens_per_second"] = turn["tokens"] / turn["seconds"]
        turn["cpu_seconds_per_token"] = turn["cpu_seconds"] / turn["tokens"]
        turn["cores_of_others"] = max(0.0, others / wall)
        return turn

    def fitting(self, seconds: float) -> int:
        """How many steps take about so long; takes some to find out."""
        turn = self.turn(1)
        while turn["seconds"] < seconds / 8:
            share = seconds / 4 / turn["seconds"]
            turn = self.turn(math.ceil(turn["steps"] * min(share, 8)))
        return max(1, round(seconds * turn["steps"] / turn["seconds"]))

    def end(self) -> None:
        """Ends it as it likes to end, or else at once."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(60)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def _answer(self) -> Turn:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        status = self.process.wait()
        said = self.log.read_text("utf-8", "replace").splitlines()
        tail = "\n".join(f"    {line}" for line in said[-12:])
        raise SystemExit(f"The worker {self.name} ended with status {status}:\n{tail}")

    def _cpu(self) -> float:
        """CPU-seconds of the process so far."""
        try:
            line = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return 0.0
        return sum(map(int, line.rpartition(")")[2].split()[11:13])) / _ticks()


def machine_cpu() -> float:
    """CPU-seconds that all processes of the machine took so far."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq = map(int, fields)
    return (user + nice + system + irq + softirq) / _ticks()


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


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
            steps = workers[-1].fitting(seconds)
            about = workers[-1].about
            found[name] = {**about, "first_loss": about.pop("loss"), "turns": []}
            found[name] |= {"steps": steps}
            print(f"{name}: ready, {steps} steps a turn", flush=True)
        for number in range(rounds):
            shift = number % len(workers)
            for worker in workers[shift:] + workers[:shift]:
                turn = worker.turn(found[worker.name]["steps"])
                found[worker.name]["turns"].append(turn)
                rate = turn["tokens_per_second"]
                print(
                    f"round {number + 1}: {worker.name:20}{rate:10,.1f} tokens/s",
                    flush=True,
                )
    finally:
        for worker in workers:
            worker.end()
    return found

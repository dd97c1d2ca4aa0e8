"""The training loop: dispatch a step, read the numbers of the one before."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elmojax.config import TrainConfig
from elmojax.errors import InputError
from elmojax.training.checkpoint import METRIC
from elmojax.training.evaluate import place
from elmojax.training.metrics import JsonLines, Tracker, plot_losses
from elmojax.training.optim import make_schedule
from elmojax.training.signals import Stop, Stopped
from elmojax.training.start import Initialize, Run, start
from elmojax.training.step import compile_train_step

PREFETCH = 2
"""Batches made and sent to the devices ahead of the step that takes them."""


@dataclass(frozen=True)
class Result:
    """What a call of `pretrain` did."""

    run: Path
    began_at: int
    step: int
    before: dict[str, float] | None
    """Held-out evaluation before the first step; None when resumed or without text."""
    after: dict[str, float] | None
    best: int | None
    """Step of the best checkpoint, where held-out text was given."""
    plot: Path | None
    signal: int | None
    """The signal that asked to stop before the last step, if one did."""


def pretrain(
    config: TrainConfig,
    trackers: Sequence[Tracker] = (),
    version: str = "",
    initialize: Initialize | None = None,
) -> Result:
    """Makes a pretraining run, or goes on with the one in `config.workdir`.

    Args:
      trackers: hear of progress, besides metrics.jsonl.
      version, initialize: see `start`.

    Raises:
      InputError: for what the user can put right, a loss that is not finite among it.
    """
    run = start(config, version, initialize)
    directory = run.record.train.workdir
    lines = JsonLines(directory / "metrics.jsonl", run.step)
    loop = _Loop(run, [lines, *trackers])
    with loop.stop:
        try:
            loop.train()
        finally:
            for tracker in loop.trackers:
                tracker.close()
            run.checkpoints.close()
            run.lock.release()
    return Result(
        directory,
        run.step,
        loop.step,
        loop.before,
        loop.after,
        run.checkpoints.best,
        plot_losses(directory),
        loop.stop.signal,
    )


class _Loop:
    """The moving parts of a run."""

    def __init__(self, run: Run, trackers: list[Tracker]) -> None:
        self.run, self.config, self.trackers = run, run.record.train, trackers
        self.state, self.step = run.state, run.step
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] | None = None
        self.stop = Stop()
        self._late: tuple[int, dict[str, Any]] | None = None
        self._rate = make_schedule(self.config.optimizer, run.steps)
        self._clock = _Clock(self.config.rows * self.config.window)
        self._train_step = compile_train_step(run.lm, run.optimizer, run.state)

    def train(self) -> None:
        run, config = self.run, self.config
        for tracker in self.trackers:
            tracker.begin(self.step, run.steps)
        for note in run.notes:
            self._note(note)
        if self.step >= run.steps:
            self._note(f"{config.workdir} has done its {run.steps} steps already.")
            return
        if self.step:
            epoch = run.text.epoch(self.step)
            self._note(
                f"Going on from the checkpoint of step {self.step} in "
                f"{config.workdir} (epoch {epoch:.2f}): same data position and state."
            )
        try:
            self._steps()
        except Stopped as stopped:
            self._read_late()
            if self.step > (run.checkpoints.latest or 0):
                self._save(None)
            self._note(
                f"Stopped by {stopped} after step {self.step}; the same command goes "
                "on from there."
            )

    def _steps(self) -> None:
        run = self.run
        if not self.step:
            self.before = self._evaluate()
        for batch in _prefetched(run, self.step):
            self.stop.check()
            self.state, metrics = self._train_step(self.state, batch)
            self._read_late()
            self.step += 1
            self._late = (self.step, metrics)
            self._clock.tick()
            if self.step < run.steps:
                self._at_intervals()
        self._read_late()
        self.after = self._evaluate()
        self._save(self.after)

    def _at_intervals(self) -> None:
        config, scores = self.config, None
        due = config.evaluate_every and self.step % config.evaluate_every == 0
        if due and self.run.evaluator:
            self._read_late()
            scores = self._evaluate()
        every = config.checkpoint_every
        if scores or (every and self.step % every == 0):
            self._read_late()
            self._save(scores)

    def _read_late(self) -> None:
        """Takes the numbers of the step before, by now long computed."""
        if self._late is None:
            return
        (step, metrics), self._late = self._late, None
        numbers = {name: float(value) for name, value in metrics.items()}
        loss = numbers[self.run.lm.loss_name]
        if not math.isfinite(loss + numbers["gradient_norm"]):
            saved = self.run.checkpoints.latest
            raise InputError(
                f"The loss of step {step} is {loss} and its gradient norm "
                f"{numbers['gradient_norm']}; the run stops. The last checkpoint is "
                f"{'of step ' + str(saved) if saved else 'none'}; try a lower "
                "--optimizer.learning-rate in another --workdir."
            )
        for tracker in self.trackers:
            tracker.step(step, loss)
        if step % self.config.log_every and step not in (1, self.run.steps):
            return
        numbers |= {
            "learning_rate": float(self._rate(step - 1)),
            "epoch": self.run.text.epoch(step),
            "tokens": step * self._clock.tokens_per_step,
            "tokens_per_second": self._clock.rate(),
        }
        self._log(step, numbers)

    def _evaluate(self) -> dict[str, float] | None:
        if self.run.evaluator is None:
            return None
        with self._clock.paused():
            scores = self.run.evaluator(self.state.params, self.stop.check)
        self._log(self.step, {f"heldout_{name}": v for name, v in scores.items()})
        return scores

    def _save(self, scores: dict[str, float] | None) -> None:
        metric = {METRIC: scores["geometric_perplexity"]} if scores else {}
        with self._clock.paused():
            rest = replace(self.state, params={})
            self.run.checkpoints.save(self.step, self.state.params, rest, **metric)

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, numbers)

    def _note(self, text: str) -> None:
        for tracker in self.trackers:
            tracker.note(text)


class _Clock:
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
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock._since += time.perf_counter() - self._began


def _prefetched(run: Run, first: int) -> Iterator[Any]:
    """Batches of the steps from `first` on, made by a thread ahead of time."""

    def make(step: int) -> Any:
        return place(run.lm, run.text.batch(step), "batch.")

    with ThreadPoolExecutor(1) as thread:
        ahead = [
            thread.submit(make, step)
            for step in range(first, min(first + PREFETCH, run.steps))
        ]
        for step in range(first, run.steps):
            if step + PREFETCH < run.steps:
                ahead.append(thread.submit(make, step + PREFETCH))
            yield ahead.pop(0).result()

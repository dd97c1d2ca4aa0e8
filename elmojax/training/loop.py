"""The training loop: dispatch a step, read the numbers of the one before."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from elmojax.cloud import Unreachable, origin
from elmojax.config import TrainConfig
from elmojax.errors import InputError, one_line
from elmojax.training.card import write_card
from elmojax.training.damage import SaveFailed
from elmojax.training.distributed import (
    Stop,
    Stopped,
    explain_lost_process,
    is_first,
    is_multiprocess,
)
from elmojax.training.memory import StepMemory, explain_out_of_memory
from elmojax.training.metrics import (
    HELDOUT,
    MEASURE,
    Clock,
    JsonLines,
    Tracker,
    plot_losses,
    read_metrics,
    readable,
)
from elmojax.training.prefetch import Programs, prefetched
from elmojax.training.record import Status
from elmojax.training.remote import Sending
from elmojax.training.start import Initialize, Run, start
from elmojax.training.step import all_finite
from elmojax.training.utilization import utilization


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
    early: bool
    """Whether patience ended it."""


def pretrain(
    config: TrainConfig,
    trackers: Sequence[Tracker] = (),
    version: str = "",
    initialize: Initialize | None = None,
    stop: Stop | None = None,
) -> Result:
    """Makes a pretraining run, or goes on with the one in `config.workdir`.

    Args:
      trackers: hear of progress, besides metrics.jsonl.
      version, initialize: see `start`.
      stop: hears signals, also before and after this call.

    Raises:
      InputError: for what the user can put right, a loss that is not finite among it.
      TryAgain: where another process of the run was lost.
    """
    with stop or Stop() as stop:  # else Ctrl-C could be lost in a library
        with explain_lost_process():
            run = start(config, version, initialize)
        directory, plot = run.record.train.workdir, None
        try:
            loop = _Loop(run, stop, trackers)
            _run_and_record(loop, directory)
            if is_first():
                write_card(directory)
                plot = plot_losses(directory)
            loop.send_last()
        finally:
            if run.lock is not None:
                run.lock.release()
    best = run.checkpoints.best
    return Result(
        run=directory,
        began_at=run.step,
        step=loop.step,
        before=loop.before,
        after=loop.after,
        best=None if best is None else best[1],
        plot=plot,
        signal=stop.signal,
        early=loop.early,
    )


def _run_and_record(loop: _Loop, directory: Path) -> None:
    """The steps of a run, and what its directory says of them."""

    def say(state: str, why: str = "") -> None:
        if is_first():
            Status(state, loop.step, loop.run.steps, why).write(directory)

    say("training")
    try:
        loop.sending.send()
        # Steps are dispatched ahead: what failed may be the step before, so "by".
        with (
            explain_lost_process(),
            explain_out_of_memory(loop.config, lambda: f"by step {loop.step + 1}"),
        ):
            loop.train()
            loop.run.checkpoints.close()
            if is_first() and loop.stop.signal is None:
                loop.check_loss()
    except BaseException as error:
        if not is_multiprocess():  # others might not come to finish what is being saved
            with contextlib.suppress(SaveFailed):
                loop.run.checkpoints.close()
        say("failed", one_line(error, 1000) or type(error).__name__)
        with contextlib.suppress(InputError):
            loop.sending.send()
        raise
    finally:
        loop.close()
    if loop.stop.signal is not None:
        say("stopped", f"by {signal.Signals(loop.stop.signal).name}")
    else:
        say("stopped early" if loop.early else "finished")


class _Loop:
    """The moving parts of a run."""

    def __init__(self, run: Run, stop: Stop, trackers: Sequence[Tracker]) -> None:
        self.run, self.config, self.stop = run, run.record.train, stop
        config, self.state, self.step = self.config, run.state, run.step
        self.sending = Sending(config.workdir)
        self.notes = [*run.notes, *self.sending.claim()]
        self.trackers: list[Tracker] = []
        if is_first():
            lines = JsonLines(config.workdir / "metrics.jsonl", run.step)
            self.trackers = [lines, *trackers]
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] | None = None
        self.early = False
        self._unread: tuple[int, dict[str, Any]] | None = None
        self._clock = Clock(config.rows * config.window)
        self._programs, self._memory = Programs(run), StepMemory()
        self._utilization = utilization(config, run.lm, run.text.words.corpus)

    def close(self) -> None:
        self._programs.close()
        for tracker in self.trackers:
            tracker.close()

    def train(self) -> None:
        run, config = self.run, self.config
        for tracker in self.trackers:
            tracker.begin(self.step, run.steps)
        for note in self.notes:
            self._note(note)
        finished = self.step >= run.steps
        if finished:
            self._note(
                f"{origin(config.workdir)} has done its {run.steps} steps already."
            )
        elif self._lost_patience():
            return
        elif self.step:
            epoch, where = run.text.epoch(self.step), origin(config.workdir)
            self._note(
                f"Going on from the checkpoint of step {self.step} in {where} (epoch "
                f"{epoch:.2f}): same data position and state."
            )
        try:
            self._catch_up()
            if not (finished or self.early):
                self._steps()
        except Stopped as stopped:
            self._read_metrics()
            self._save_last()
            self._note(
                f"Stopped by {stopped} after step {self.step}; the same command goes "
                "on from there."
            )
        if self.step > run.step:
            self._note(self._clock.summary())

    def _catch_up(self) -> None:
        """The evaluation of the checkpoint, where the run was stopped in it."""
        due = self.step == self.run.steps or self._due(self.config.evaluate_every)
        if self.step and due and self.step not in self.run.checkpoints.perplexities:
            self.after = self._evaluate()
            self._lost_patience()

    def _steps(self) -> None:
        run = self.run
        if not self.step:
            self.before = self._evaluate()
        programs = self._programs
        batches = prefetched(run, self.step, self.stop, programs.ahead)
        for ready in self._clock.awaited(batches):
            self.stop.hear(ready.asked)
            step, new = programs.take(self.step, ready.level)
            if new and ready.level:
                self._note(programs.news(self.step, ready.level))
            compiling = self._clock.spent("compiling") if new else nullcontext()
            with self._memory.of_step(self.state, compiles=new), compiling:
                self.state, metrics = step(self.state, ready.batch)
            self._read_metrics()
            self.step += 1
            self._unread = (self.step, metrics | {"table_words": ready.words})
            self._clock.tick()
            if self.step < run.steps:
                self._at_intervals()
                if self.early:
                    return
        self._read_metrics()
        self.after = self._evaluate()
        self._save_last()

    def _at_intervals(self) -> None:
        evaluates = self._due(self.config.evaluate_every)
        if not (evaluates or self._due(self.config.checkpoint_every)):
            return
        self._read_metrics()
        scores = self._evaluate() if evaluates else None
        self._finish_pending_save(wait=True)
        with self._tolerating_failed_saves():
            self._save()
        if evaluates and self._lost_patience():
            self.after = scores
            self._save_last()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _lost_patience(self) -> bool:
        """Whether the best evaluation is too many evaluations old."""
        config, best = self.config, self.run.checkpoints.best
        if config.patience and best is not None:
            perplexity, step = best
            self.early = self.step - step >= config.patience * config.evaluate_every
            if self.early:
                self._note(
                    f"Stopped early after step {self.step}: the best held-out "
                    f"perplexity is {readable(perplexity)} of step {step}, which is "
                    "kept."
                )
        return self.early

    def _read_metrics(self) -> None:
        """Reads the numbers of the step before and tells them to the trackers: they
        are computed while the next step is handed over, so the devices never wait."""
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        numbers = {name: float(v) for name, v in jax.device_get(metrics).items()}
        bad, skipped = numbers.pop("bad"), int(numbers.pop("skipped"))
        loss = numbers[self.run.lm.loss_name]
        if bad:
            self._refuse(step, loss, numbers["gradient_norm"], skipped)
        for tracker in self.trackers:
            tracker.step(step, loss)
        if step % self.config.log_every and step not in (1, self.run.steps):
            return
        self._finish_pending_save(wait=False)
        if skipped:
            numbers["skipped"] = skipped
        rate = self._clock.rate()
        numbers |= {
            "learning_rate": float(self.run.rate(step - 1)),
            "epoch": self.run.text.epoch(step),
            "tokens": step * self._clock.tokens_per_step,
            "tokens_per_second": rate,
            **self._utilization(rate),
        }
        self._log(step, numbers)

    def _refuse(self, step: int, loss: float, norm: float, skipped: int) -> None:
        """Says that an update was skipped, or stops where none may be any more."""
        config, saved = self.config, self.run.checkpoints.latest
        what = f"The loss of step {step} is {loss:.4g} and its gradient norm {norm:.4g}"
        if skipped <= config.skip_nonfinite:
            allowed = f"{skipped} of {config.skip_nonfinite}"
            return self._note(f"{what}; its update is skipped ({allowed}).")
        before = f", after {skipped - 1} updates were skipped" if skipped > 1 else ""
        raise InputError(
            f"{what}; the run stops{before}. The last checkpoint is "
            f"{'of step ' + str(saved) if saved else 'none'}; go on from it with "
            "--skip-nonfinite N, or try a lower --optimizer.learning-rate in another "
            "--workdir."
        )

    def _evaluate(self) -> dict[str, float] | None:
        if self.run.evaluator is None:
            return None
        # Of several processes none may leave an evaluation before the others.
        check = (lambda _: None) if is_multiprocess() else self.stop.check
        with self._clock.spent("evaluation"):
            scores = self.run.evaluator(self.state.params, check)
        self._log(self.step, {HELDOUT + name: v for name, v in scores.items()})
        self.run.checkpoints.perplexities[self.step] = scores[MEASURE]
        return scores

    def _save(self) -> None:
        if not all_finite(self.state.params):
            raise InputError(
                f"Step {self.step} made parameters that are not finite; the run stops, "
                "and its checkpoints are left alone. Try a lower "
                "--optimizer.learning-rate in another --workdir."
            )
        with self._clock.spent("checkpoints"):
            rest = replace(self.state, params={})
            self.run.checkpoints.save(self.step, self.state.params, rest)

    def _finish_pending_save(self, wait: bool) -> None:
        """Sends what has been saved; without `wait`, if it is whole by now."""
        with self._tolerating_failed_saves(), self._clock.spent("checkpoints"):
            if self.run.checkpoints.settle(wait):
                self.sending.send()

    @contextlib.contextmanager
    def _tolerating_failed_saves(self) -> Iterator[None]:
        """Inside, a save may fail: the last one may not, and nothing is lost."""
        try:
            yield
        except SaveFailed as error:
            if is_multiprocess():  # the others know nothing of it
                raise
            self._note(f"{error} Training goes on, and the next save tries again.")
        except Unreachable as error:
            self._note(f"{error} Training goes on, and the next checkpoint is sent.")

    def send_last(self) -> None:
        """Raises `InputError` where a run that is over could not be sent."""
        try:
            self.sending.send()
        except Unreachable as error:
            raise InputError(
                f"{error} The run is whole in {self.config.workdir}, and the same "
                "command sends it from there."
            ) from error

    def _save_last(self) -> None:
        """What goes on later goes on from here: this save must not fail."""
        self._finish_pending_save(wait=True)
        if self.step > (self.run.checkpoints.latest or 0):
            self._save()
            self.run.checkpoints.settle()

    def check_loss(self) -> None:
        """Raises `InputError` for a run that ends far worse than by guessing."""
        lines = reversed(read_metrics(self.config.workdir / "metrics.jsonl"))
        known = (line.get(key) for line in lines for key in ("heldout_loss", "loss"))
        loss = next((value for value in known if value is not None), 0.0)
        guessing = math.log(self.run.record.vocabulary)
        if loss > 20 * guessing:  # no run that learns comes near
            raise InputError(
                f"The run diverged: its last loss is {loss:.4g}, and guessing has "
                f"{guessing:.4g}. Try a lower --optimizer.learning-rate in another "
                "--workdir."
            )

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, numbers)

    def _note(self, text: str) -> None:
        for tracker in self.trackers:
            tracker.note(text)

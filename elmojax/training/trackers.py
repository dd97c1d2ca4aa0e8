"""Other programs that hear of a run: TensorBoard, Weights & Biases, trackio.

Each is asked for by name, and none talks to any address otherwise. A run never waits
for them and never ends by them: they work in threads of their own, and what goes wrong
there is said once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from elmojax.config import to_json
from elmojax.disk import replacing
from elmojax.errors import InputError, one_line
from elmojax.training.metrics import Tracker
from elmojax.training.record import read_record

TrackerName = Literal["tensorboard", "wandb", "trackio"]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
PATIENCE = 30
"""Seconds to wait, at the end of a run, for numbers that are on their way."""
ID = "tracker-id.txt"
"""File of a run directory with the identity that trackers know the run by."""


def make_tracker(name: TrackerName, run: Path, warn: Callable[[str], None]) -> Tracker:
    """The tracker of a run directory.

    Args:
      warn: is told, in one sentence, when the tracker fails.

    Raises:
      InputError: if its package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGES[name])
    if spec is None or spec.origin is None:  # a directory of that name is no package
        raise InputError(
            f"--tracker {name} needs the extra: pip install 'elmojax[{name}]'."
        )
    kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}
    return Threaded(name, kinds[name](run), warn)


class Threaded(Tracker):
    """A tracker in a thread of its own, which hears nothing more once it has failed."""

    def __init__(
        self, name: str, tracker: Tracker, warn: Callable[[str], None]
    ) -> None:
        self._name, self._tracker, self._warn = name, tracker, warn
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._failed = self._over = False

    def begin(self, step: int, steps: int) -> None:
        self._thread.start()
        self._calls.put(lambda: self._tracker.begin(step, steps))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        kept = dict(metrics)
        self._calls.put(lambda: self._tracker.log(step, kept))

    def close(self) -> None:
        if self._thread.ident is None:
            return
        self._calls.put(self._end)
        self._thread.join(PATIENCE)
        if self._thread.is_alive() and not self._failed:
            self._fail(f"it has not taken all numbers within {PATIENCE} s")

    def _work(self) -> None:
        while not self._over:
            call = self._calls.get()
            if self._failed and call != self._end:
                continue
            try:
                call()
            # Whatever a library comes to; some exit.
            except BaseException as error:
                if not self._failed:
                    self._fail(one_line(error) or type(error).__name__)

    def _end(self) -> None:
        self._over = True
        self._tracker.close()

    def _fail(self, why: str) -> None:
        self._failed = True
        self._warn(
            f"The tracker {self._name} failed ({why.rstrip('.')}); the run does "
            "without it, and metrics.jsonl has all numbers."
        )


class TensorBoard(Tracker):
    """Scalars for TensorBoard, in the run directory."""

    def __init__(self, run: Path) -> None:
        self._directory = run / "tensorboard"
        self._writer: Any = None

    def begin(self, step: int, steps: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self._directory), purge_step=step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Service(Tracker):
    """A run of a service, which goes on when the run directory does."""

    def __init__(self, run: Path) -> None:
        self._directory = run
        self._run: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class WeightsAndBiases(_Service):
    """A run of Weights & Biases.

    Its environment variables count (WANDB_MODE=offline, WANDB_PROJECT, ...). The files
    of its offline mode are in the run directory, for `wandb sync`.
    """

    def begin(self, step: int, steps: int) -> None:
        import wandb

        self._run = wandb.init(
            **_described(self._directory, "WANDB_PROJECT"),
            id=_identity(self._directory),
            dir=str(self._directory),
            resume="allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                login_timeout=PATIENCE // 2,
                init_timeout=PATIENCE // 2,
            ),
        )


class Trackio(_Service):
    """A run of trackio.

    Its environment variables count (TRACKIO_DIR, TRACKIO_SPACE_ID, ...).
    """

    def begin(self, step: int, steps: int) -> None:
        import trackio

        named = _described(self._directory, "TRACKIO_PROJECT")
        named["name"] += f"-{_identity(self._directory)}"  # all that it knows a run by
        self._run = trackio.init(**named, resume="allow", embed=False)


def _described(run: Path, project: str) -> dict[str, Any]:
    """Project, name and configuration of a run, as its record has them."""
    return {
        "project": os.environ.get(project) or "elmojax",
        "name": run.resolve().name,
        "config": json.loads(to_json(read_record(run))),
    }


def _identity(run: Path) -> str:
    """What a run is known by, however often it goes on; made when it is first asked."""
    path = run / ID
    if not path.exists():
        with replacing(path) as partial:
            partial.write_text(f"{secrets.token_hex(6)}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()

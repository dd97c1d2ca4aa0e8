"""How a run stands: status.json of its directory, and what can be read beside it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elmojax.atomic import replaced
from elmojax.errors import InputError
from elmojax.training.lock import is_locked
from elmojax.training.metrics import read_metrics
from elmojax.training.record import checkpoint_steps, read_record

FILE = "status.json"


@dataclass(frozen=True)
class Status:
    """What the process that trains says of itself."""

    state: str
    """training, finished, stopped early, stopped, or failed."""
    step: int
    """Steps done when this was written."""
    steps: int
    """Length of the whole run."""
    why: str = ""
    """Why it stopped or failed."""
    written: float = 0.0
    """Seconds since 1970."""

    def write(self, run: Path) -> None:
        """Replaces status.json of a run; a disk that is full changes nothing else."""
        values = asdict(self) | {"written": time.time()}
        with contextlib.suppress(OSError), replaced(run / FILE) as partial:
            partial.write_text(json.dumps(values) + "\n", encoding="utf-8")


def find_runs(directory: Path) -> list[Path]:
    """Run directories at and below `directory`, by name.

    Raises `InputError` where there is no such directory, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; give one that holds runs.")
    runs = []
    for folder, below, files in os.walk(directory):
        if "config.json" in files and "vocabulary.txt" in files:
            runs.append(Path(folder))
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith("."))
    if not runs:
        raise InputError(
            f"There is no run in {directory}; give the directory above some --workdir."
        )
    return sorted(runs)


def describe(run: Path) -> dict[str, Any]:
    """One run in numbers, from its files alone; None for what is not known.

    Keys: run, state, step, steps, saved (step of the newest checkpoint), loss,
    perplexity (the last held-out one, geometric mean of both directions), best
    (the lowest), best_step, tokens_per_second, seconds_left, why.

    A run that says it trains, and whose lock nobody holds, was killed.
    """
    record, said = read_record(run), _read(run / FILE)
    lines = read_metrics(run / "metrics.jsonl")
    last: dict[str, Any] = next(
        (line for line in reversed(lines) if "tokens" in line), {}
    )
    scores = [
        (line["heldout_geometric_perplexity"], line["step"])
        for line in lines
        if line.get("heldout_geometric_perplexity")
    ]
    state = said.get("state", "unknown")
    if state == "training":
        state = "training" if is_locked(run) else "killed"
    saved = checkpoint_steps(run)
    saved_scores = [score for score in scores if score[1]]  # at step 0 nothing is saved
    best = min(saved_scores, default=(None, None))
    return {
        "run": str(run),
        "state": state,
        "step": max([last.get("step", 0), said.get("step", 0), *saved]),
        "steps": said.get("steps", record.train.steps),
        "saved": max(saved, default=None),
        "loss": last.get("loss", last.get("sampled_loss")),
        "perplexity": scores[-1][0] if scores else None,
        "best": best[0],
        "best_step": best[1],
        "tokens_per_second": last.get("tokens_per_second"),
        "seconds_left": _seconds_left(state, last, said),
        "why": said.get("why") or None,
    }


def _seconds_left(
    state: str, last: dict[str, Any], said: dict[str, Any]
) -> float | None:
    """How long a run still takes at the speed of its last steps."""
    rate = last.get("tokens_per_second")
    if state != "training" or not rate or "steps" not in said:
        return None
    return (said["steps"] - last["step"]) * last["tokens"] / last["step"] / rate


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}

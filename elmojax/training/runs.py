"""Runs as their files tell: where they are, how they stand, what they differ in."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elmojax.config import to_json
from elmojax.disk import is_locked
from elmojax.errors import InputError
from elmojax.training.metrics import (
    MEASURE,
    evaluations,
    read_metrics,
    step_seconds,
)
from elmojax.training.record import LOCK, Status, checkpoint_steps, read_record


def find_runs(directory: Path) -> list[Path]:
    """Run directories at and below `directory`, by name.

    Raises `InputError` where there is no such directory, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; give one that holds runs.")
    os.listdir(directory)  # `walk` passes over what it may not read
    runs = []
    for folder, below, files in os.walk(directory):
        other = any(name.endswith(".safetensors") for name in files)
        if {"config.json", "vocabulary.txt"} <= {*files} and not other:
            runs.append(Path(folder))
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith("."))
    if not runs:
        raise InputError(
            f"There is no run in {directory}; give the directory above some --workdir."
        )
    return sorted(runs)


def describe(run: Path, lines: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """One run in numbers, from its files alone; None for what is not known.

    `lines` are those of its metrics.jsonl, where they have been read already.

    Keys: run, state, step, steps, saved (step of the newest checkpoint), loss,
    perplexity (the last held-out one, geometric mean of both directions), best
    (the lowest), best_step, tokens_per_second, seconds_left, why.

    A run that says it trains, and whose lock nobody holds, was killed.
    """
    record, said = read_record(run), Status.read(run)
    lines = read_metrics(run / "metrics.jsonl") if lines is None else lines
    last = next((line for line in reversed(lines) if line.get("tokens")), {"step": 0})
    known = evaluations(lines).items()
    scores = [(found[MEASURE], step) for step, found in known if found.get(MEASURE)]
    state = "unknown" if said is None else said.state
    if state == "training" and is_locked(run / LOCK) is False:
        state = "killed"
    saved = checkpoint_steps(run)
    # At step 0 nothing is saved.
    best = min((score for score in scores if score[1]), default=(None, None))
    rate, left = last.get("tokens_per_second"), None
    if said is not None and state == "training" and rate and last["step"]:
        left = (said.steps - last["step"]) * last["tokens"] / last["step"] / rate
    return {
        "run": str(run),
        "state": state,
        "step": max([last["step"], 0 if said is None else said.step, *saved]),
        "steps": record.train.steps if said is None else said.steps,
        "saved": max(saved, default=None),
        "loss": last.get("loss", last.get("sampled_loss")),
        "perplexity": scores[-1][0] if scores else None,
        "best": best[0],
        "best_step": best[1],
        "tokens_per_second": rate,
        "seconds_left": None if left is None else max(0.0, left),
        "why": (said and said.why) or None,
    }


OWN = ("train.workdir", "format")
"""Entries of config.json in which any two runs may differ."""


def differences(runs: Sequence[Path]) -> dict[str, list[Any]]:
    """Entries of config.json that are not the same in all runs: dotted name -> the
    value of each run, None where it has no such entry.

    Raises `InputError` for a run whose record cannot be read.
    """
    records = [_dotted(json.loads(to_json(read_record(run)))) for run in runs]
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return {
        name.removeprefix("train."): values
        for name, values in columns.items()
        if name not in OWN and any(value != values[0] for value in values)
    }


def _dotted(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        inner = isinstance(value, dict)
        found |= _dotted(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def results(run: Path, lines: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """`describe` of a run, and over all of its steps: `tokens` seen,
    `tokens_per_second` (median) and `seconds` that the steps took."""
    lines = read_metrics(run / "metrics.jsonl") if lines is None else lines
    rates = [
        line["tokens_per_second"] for line in lines if line.get("tokens_per_second")
    ]
    return describe(run, lines) | {
        "tokens": max((line.get("tokens") or 0 for line in lines), default=0),
        "tokens_per_second": statistics.median(rates) if rates else None,
        "seconds": step_seconds(lines),
    }

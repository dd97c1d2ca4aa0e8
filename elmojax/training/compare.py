"""What several runs differ in, and what came of each, from their files alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elmojax.config import to_json
from elmojax.training.card import step_seconds
from elmojax.training.metrics import read_metrics
from elmojax.training.record import describe, read_record

OWN = ("train.workdir", "format")
"""Entries of config.json in which any two runs may differ."""


def differences(runs: Sequence[Path]) -> dict[str, list[Any]]:
    """Entries of config.json that are not the same in all runs: dotted name -> the
    value of each run, None where it has no such entry.

    Raises `InputError` for a run whose record cannot be read.
    """
    records = [_flat(json.loads(to_json(read_record(run)))) for run in runs]
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return {
        name.removeprefix("train."): values
        for name, values in columns.items()
        if name not in OWN and any(value != values[0] for value in values)
    }


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def results(run: Path) -> dict[str, Any]:
    """`describe` of a run, and over all of its steps: `tokens` seen,
    `tokens_per_second` (median) and `seconds` that the steps took."""
    lines = read_metrics(run / "metrics.jsonl")
    rates = [
        line["tokens_per_second"] for line in lines if line.get("tokens_per_second")
    ]
    return describe(run, lines) | {
        "tokens": max((line.get("tokens") or 0 for line in lines), default=0),
        "tokens_per_second": statistics.median(rates) if rates else None,
        "seconds": step_seconds(lines),
    }

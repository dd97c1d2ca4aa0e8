"""`elmojax runs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from elmojax.cli.common import Json, arg, parse, print_json
from elmojax.errors import InputError
from elmojax.training.metrics import readable

HEADINGS: tuple[str, ...] = (
    "run",
    "state",
    "step",
    "saved",
    "loss",
    "perplexity",
    "best",
    "left",
)


@dataclass(frozen=True)
class RunsArguments:
    """Lists the pretraining runs in a directory, and how they stand."""

    directory: Annotated[Path, tyro.conf.Positional, arg(metavar="DIR")] = Path("runs")
    """Directory that holds runs, at any depth."""
    json: Json = False


def runs(argv: list[str]) -> None:
    """list pretraining runs: step, perplexity, state"""
    from elmojax.training.record import describe, find_runs

    asked = parse(RunsArguments, "runs", argv)
    found: list[dict[str, Any]] = []
    for run in find_runs(asked.directory):
        try:
            found.append(describe(run))
        except (InputError, OSError) as error:  # it hides no other
            found.append({"run": str(run), "state": "unreadable", "why": str(error)})
    if asked.json:
        print_json({"runs": found})
        return
    rows = [HEADINGS, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    for entry in found:
        if entry.get("why"):
            print(f"{entry['run']}: {entry['why']}")


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    def number(key: str, digits: int) -> str:
        return "-" if run.get(key) is None else readable(run[key], digits)

    left = run.get("seconds_left")
    best = number("best", 1)
    if run.get("best_step") is not None:
        best += f" (step {run['best_step']})"
    return (
        run["run"],
        run["state"],
        f"{run.get('step', '-')}/{run.get('steps', '-')}",
        "-" if run.get("saved") is None else f"{run['saved']}",
        number("loss", 3),
        number("perplexity", 1),
        best,
        "-" if left is None else tqdm.format_interval(left),
    )

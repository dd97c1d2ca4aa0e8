"""`elmojax runs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm
from tyro.conf import Positional, arg

from elmojax.cli import common
from elmojax.errors import InputError
from elmojax.training.metrics import readable

HEADINGS = ("run", "state", "step", "saved", "loss", "perplexity", "best", "left")
RESULTS = {
    "step": 0,
    "tokens": 0,
    "loss": 3,
    "perplexity": 1,
    "best": 1,
    "best_step": 0,
    "tokens_per_second": 0,
    "seconds": 1,
}
"""Numbers that --compare shows, and their digits."""


@dataclass(frozen=True)
class RunsArguments:
    """Lists pretraining runs and how they stand, or compares them.

    With --compare each run is a column: first what their configurations differ in, then
    what came of it. Perplexities are of the run's own held-out text; seconds are those
    of its steps, without compilation, evaluation and checkpoints.
    """

    directories: Annotated[
        tuple[Path, ...], Positional, arg(metavar="DIR [DIR ...]")
    ] = (Path("runs"),)
    """Directories that are runs, or hold runs at any depth."""
    compare: common.Switch = False
    """Compare the runs side by side."""
    json: common.Json = False


def runs(argv: list[str]) -> None:
    """list pretraining runs (step, perplexity, state), or compare them"""
    from elmojax.training.record import describe, find_runs

    asked = common.parse(RunsArguments, "runs", argv)
    paths = [run for directory in asked.directories for run in find_runs(directory)]
    paths = list(dict.fromkeys(paths))
    if asked.compare:
        return _compare(paths, asked.json)
    found: list[dict[str, Any]] = []
    for run in paths:
        try:
            found.append(describe(run))
        except (InputError, OSError) as error:  # it hides no other
            found.append({"run": str(run), "state": "unreadable", "why": str(error)})
    lines = common.table([HEADINGS, *map(_row, found)])
    lines += [f"{run['run']}: {run['why']}" for run in found if run.get("why")]
    common.show(asked.json, {"runs": found}, "\n".join(lines))


def _compare(paths: list[Path], as_json: bool) -> None:
    from elmojax.training.record import compare_configs, results

    if len(paths) < 2:
        raise InputError(f"{paths[0]} is one run; name others that it is compared to.")
    differ, found = compare_configs(paths), [results(run) for run in paths]
    rows = [
        ("", *common.names_of(paths)),
        *((name, *map(_shown, values)) for name, values in differ.items()),
        ("state", *(run["state"] for run in found)),
    ]
    rows += [
        (name.replace("_", " "), *(_number(run, name, digits) for run in found))
        for name, digits in RESULTS.items()
    ]
    common.show(
        as_json, {"differences": differ, "runs": found}, "\n".join(common.table(rows))
    )


def _shown(value: Any) -> str:
    said = "-" if value is None else str(value)
    return said if len(said) <= 40 else f"{said[:18]}...{said[-19:]}"


def _number(run: dict[str, Any], key: str, digits: int) -> str:
    return "-" if run.get(key) is None else readable(run[key], digits)


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    left = run.get("seconds_left")
    best = _number(run, "best", 1)
    if run.get("best_step") is not None:
        best += f" (step {run['best_step']})"
    return (
        run["run"],
        run["state"],
        f"{run.get('step', '-')}/{run.get('steps', '-')}",
        "-" if run.get("saved") is None else f"{run['saved']}",
        _number(run, "loss", 3),
        _number(run, "perplexity", 1),
        best,
        "-" if left is None else tqdm.format_interval(left),
    )

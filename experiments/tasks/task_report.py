"""Reports of tasks: JSON of one, and a Markdown table and a plot of several.

    python experiments/tasks/task_report.py results/*.json --table tasks.md \\
        --plot tasks.png
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from features import Features
from fitting import Fitted, mixes
from task_options import FeatureOptions, check_place, run_command

import elmojax
from elmojax import InputError
from elmojax.disk import read_object, replacing
from elmojax.errors import writing

Report = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one seed gave."""

    score: float
    """On test, in per cent."""
    fitted: Fitted
    seconds: float
    """Of training and scoring."""
    milliseconds: float
    """The network's for a sentence of test, without making its features."""
    more: dict[str, float] | None = None
    """Other figures of this seed."""


def summary(
    task: str,
    metric: str,
    options: FeatureOptions,
    features: Sequence[Features] | None,
    outcomes: Sequence[Outcome],
    **more: Any,
) -> Report:
    """The report of a task.

    Args:
      task: its name.
      metric: what the score is.
      options: as they were given.
      features: of its parts, the last of them test; None without.
      outcomes: of each seed.
      more: what else belongs to the report.
    """
    making = 0.0
    if features is not None:
        making = 1000 * features[-1].seconds / max(len(features[-1].starts) - 1, 1)
    network = statistics.mean(outcome.milliseconds for outcome in outcomes)
    report = {
        "task": task,
        "features": options.features,
        "model": model_name(options),
        "layer": options.layer,
        "metric": metric,
        **spread([outcome.score for outcome in outcomes]),
        "dev": [round(outcome.fitted.dev, 2) for outcome in outcomes],
        "mix": mix_weights(outcomes),
        "epochs": [len(outcome.fitted.epochs) for outcome in outcomes],
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "feature_seconds": round(sum(part.seconds for part in features or ()), 1),
        "milliseconds": {"features": round(making, 3), "network": round(network, 3)},
        "megabytes": round(sum(part.megabytes for part in features or ()), 1),
        "options": plain(options),
        "jax": jax.__version__,
    }
    extras = [outcome.more for outcome in outcomes if outcome.more]
    return report | ({"each": extras} if extras else {}) | more


def spread(scores: Sequence[float]) -> Report:
    """Scores, their mean and the deviation of the sample (None for one score)."""
    several = len(scores) > 1
    return {
        "scores": [round(score, 2) for score in scores],
        "mean": round(statistics.mean(scores), 2),
        "deviation": round(statistics.stdev(scores), 2) if several else None,
    }


def model_name(options: FeatureOptions) -> str | None:
    """The last part of the name of the model or file that features come from."""
    if options.features in ("elmo", "characters"):
        return options.model.rstrip("/").rpartition("/")[2]
    return None if options.vectors is None else options.vectors.name


def plain(options: Any) -> dict[str, Any]:
    """Options without what is of one machine: of a path its last part."""
    kept = {}
    for name, value in asdict(options).items():
        if name not in ("out", "json"):
            kept[name] = value.name if isinstance(value, Path) else value
    return kept | ({"model": model_name(options)} if "model" in kept else {})


def mix_weights(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """softmax(s) of each mix, from the lowest layer, the mean of the seeds."""
    found: dict[str, list[jax.Array]] = {}
    for outcome in outcomes:
        for place, mix in mixes(outcome.fitted.params).items():
            found.setdefault(place, []).append(elmojax.mix_weights(mix["s"]))
    return {
        place: [round(float(w), 4) for w in sum(weights) / len(weights)]
        for place, weights in found.items()
    }


def write_json(path: Path, report: Report) -> None:
    """Writes a report, whole or not at all.

    Raises `InputError` where that cannot be.
    """
    write_text(path, json.dumps(report, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    with writing(path, "Name another file."):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")


def readable(report: Report) -> str:
    """A report as lines of name and value."""
    return "\n".join(
        f"{name:15} {value}" for name, value in report.items() if name != "options"
    )


def read_reports(paths: Sequence[Path]) -> list[Report]:
    """Reports of files; `InputError` for another file."""
    reports = []
    for path in paths:
        try:
            report = read_object(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(
                f"{path} is no report of a task: {why}; give what --out wrote."
            ) from error
        try:  # what tables and bars read
            table([report])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(
                f"{path} is no report of a task; give what --out wrote."
            ) from None
        reports.append(report)
    return reports


def label(report: Report) -> str:
    """What a report is of, beside its task."""
    parts = [report["features"]]
    if report.get("layer") is not None:
        parts.append(f"layer {report['layer']}")
    if report.get("variant"):
        parts.append(report["variant"])
    return ", ".join(parts)


def table(reports: Sequence[Report]) -> str:
    """Markdown: a row for each report."""
    head = ["task", "features", "score", "mean", "deviation", "mix", "ms", "MB"]
    rows = [head, ["---"] * len(head)]
    for report in reports:
        mix = "; ".join(
            f"{place} {' '.join(f'{w:.2f}' for w in weights)}"
            for place, weights in report["mix"].items()
            if len(weights) > 1
        )
        deviation, clock = report["deviation"], report["milliseconds"]
        rows.append(
            [
                *(report["task"], label(report), report["metric"]),
                f"{report['mean']:.2f}",
                "" if deviation is None else f"{deviation:.2f}",
                *(mix, f"{clock['features']:.2f} + {clock['network']:.2f}"),
                f"{report['megabytes']:.0f}",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def plot(reports: Sequence[Report], path: Path) -> None:
    """Bars of means with deviations, a panel for each task; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install matplotlib.") from error
    tasks: dict[str, list[Report]] = {}
    for report in reports:
        tasks.setdefault(report["task"], []).append(report)
    most = max(map(len, tasks.values()))
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    size = (4.2 * columns, (1.2 + 0.32 * most) * lines)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axis in grid:
        axis.set_visible(False)
    for axis, (task, of_task) in zip(figure.axes, tasks.items(), strict=False):
        axis.set_visible(True)
        means = [report["mean"] for report in of_task]
        errors = [report["deviation"] or 0.0 for report in of_task]
        colours = ["C0" if r["features"] == "elmo" else "C7" for r in of_task]
        names = [label(report) for report in of_task]
        bars = axis.barh(names, means, xerr=errors, capsize=3, color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        low, high = min(means), max(means)
        room = max(high - low, 1.0)
        axis.set_xlim(max(0.0, low - room), min(high + 0.6 * room, 110))
        axis.invert_yaxis()
        axis.set_title(task)
        axis.set_xlabel(f"{of_task[0]['metric']}, per cent")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format=path.suffix[1:])


@dataclass(frozen=True)
class Arguments:
    """Makes a table and a plot of the reports of tasks."""

    reports: Annotated[tuple[Path, ...], tyro.conf.Positional]
    table: Path | None = None
    """Where to write the table; none = standard output."""
    plot: Path | None = None
    """Where to draw the bars (.png, .svg, .pdf)."""
    overwrite: bool = False
    """Replace table and plot, if they are there already."""


def run(asked: Arguments) -> None:
    """Makes them; `InputError` for files that are no reports."""
    if not asked.reports:
        raise InputError("Say which reports: task_report.py REPORT [REPORT ...].")
    for path in (asked.table, asked.plot):
        check_place(path, asked.overwrite)
    if asked.plot is not None and asked.plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(
            f"--plot is {asked.plot}; give a name that ends in .png, .svg or .pdf."
        )
    reports = read_reports(asked.reports)
    if asked.plot is not None:
        os.makedirs(asked.plot.parent, exist_ok=True)
        plot(reports, asked.plot)
    if asked.table is not None:
        write_text(asked.table, table(reports))
    else:
        print(table(reports), end="")


def main(argv: Sequence[str] | None = None) -> None:
    run_command("task_report", Arguments, run, argv)


if __name__ == "__main__":
    main()

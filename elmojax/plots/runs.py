"""Losses and held-out perplexities of runs, by the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from elmojax.plots.pictures import drawing, new_figure, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines: TypeAlias = list[dict[str, Any]]
"""Of a metrics.jsonl, as `read_metrics` gives them."""


def draw_losses(runs: Mapping[str, Lines]) -> Figure:
    """Training and held-out losses of runs, by the step."""
    with drawing():
        figure = new_figure(7, 4.5)
        _losses(figure.subplots(), runs)
    return figure


def draw_runs(runs: Mapping[str, Lines]) -> Figure:
    """Losses of runs, and beside them the held-out perplexities if there are any."""
    if not any(_points(lines, PERPLEXITY)[0] for lines in runs.values()):
        return draw_losses(runs)
    with drawing():
        figure = new_figure(11, 4.5)
        left, right = figure.subplots(1, 2)
        _losses(left, runs)
        _perplexities(right, runs)
    return figure


PERPLEXITY = "heldout_geometric_perplexity"
TRAINING = {"loss": "training", "sampled_loss": "training (sampled loss)"}


def _points(lines: Lines, key: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[key]) for line in lines if line.get(key)]
    return [step for step, _ in found], [value for _, value in found]


def _losses(axes: Axes, runs: Mapping[str, Lines]) -> None:
    entries: dict[str, Any] = {}
    for number, (name, lines) in enumerate(runs.items()):
        style = style_of(number)
        before = f"{name}: " if len(runs) > 1 else ""
        for key, label in TRAINING.items():
            steps, losses = _points(lines, key)
            if not steps:
                continue
            smooth = _running_mean(losses)
            if len(steps) > len(smooth):
                faint = {"color": style["color"], "alpha": 0.25, "linewidth": 0.6}
                axes.plot(steps, losses, **faint)
            ends = steps[len(steps) - len(smooth) :]
            (line,) = axes.plot(ends, smooth, color=style["color"], linewidth=1.6)
            entries[before + label] = line
        steps, losses = _points(lines, "heldout_loss")
        if steps:
            (line,) = axes.plot(
                steps, losses, linestyle="--", linewidth=1, **style, **_EDGE
            )
            entries[f"{before}held out"] = line
    axes.set_xlabel("step")
    axes.set_ylabel("loss a token (nats)")
    axes.set_title("Loss" if len(runs) > 1 else f"Loss of {' '.join(runs)}")
    _finish(axes, entries)


_EDGE: dict[str, Any] = {"markeredgecolor": "white", "markersize": 7}


def _running_mean(values: Sequence[float]) -> np.ndarray:
    """Means of a fiftieth of the values, so that a curve is seen through its noise;
    the values themselves where they are few."""
    width = max(1, len(values) // 50)
    sums = np.cumsum([0.0, *values])
    return (sums[width:] - sums[:-width]) / width


def _perplexities(axes: Axes, runs: Mapping[str, Lines]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    entries: dict[str, Any] = {}
    top = 1.0
    for number, (name, lines) in enumerate(runs.items()):
        steps, values = _points(lines, PERPLEXITY)
        if steps:
            (line,) = axes.plot(steps, values, **style_of(number), **_EDGE)
            before = f"{name}: " if len(runs) > 1 else ""
            entries[f"{before}{values[-1]:,.1f} at step {steps[-1]:,}"] = line
            top = max(top, max(values) / min(values))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top > 4 else "all"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.5g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out perplexity (logarithmic)")
    axes.set_title("Held-out perplexity, geometric mean of both directions")
    _finish(axes, entries)


def _finish(axes: Axes, entries: Mapping[str, Any]) -> None:
    axes.grid(alpha=0.3)
    if entries:
        axes.legend(entries.values(), entries.keys())

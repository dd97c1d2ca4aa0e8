"""Weights of layers in the mixes of tasks: read from reports of tasks, and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elmojax.atomic import local, read_object
from elmojax.errors import InputError, one_line
from elmojax.plots.pictures import COLOURS, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_mixes(paths: Sequence[Path]) -> dict[str, list[float]]:
    """The weights of layers 0, 1, ... in each mix, by "task, place".

    A file is a JSON object {"task": name, "mix": {place: weights}}, as the commands of
    `experiments/tasks` write it; without a task, it is the name of the file. Several
    files of a task, such as its seeds, are averaged.

    Raises:
      InputError: if a file holds no mixes, weights do not sum to 1, or those of a task
        are of another number of layers from file to file.
    """
    found: dict[str, list[list[float]]] = {}
    for path in paths:
        for name, weights in _mixes_of(path).items():
            others = found.setdefault(name, [])
            if others and len(others[0]) != len(weights):
                raise InputError(
                    f"{path} has {len(weights)} layers for {name}, and a file before "
                    f"it {len(others[0])}; draw models of different depth separately."
                )
            others.append(weights)
    return {name: np.mean(each, axis=0).tolist() for name, each in found.items()}


def _mixes_of(path: Path) -> dict[str, list[float]]:
    try:
        report = read_object(local(path))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"{path} cannot be read: {why}; give the JSON report of a task."
        ) from error
    task, mixes = report.get("task", path.stem), report.get("mix")
    if not isinstance(task, str) or not isinstance(mixes, dict) or not mixes:
        raise InputError(
            f"{path} holds no mix of layers; give the JSON report of a task that ran "
            'with ELMo: {"task": NAME, "mix": {PLACE: WEIGHTS}}.'
        )
    if wrong := [place for place, mix in mixes.items() if not _are_weights(mix)]:
        raise InputError(
            f"The weights at {wrong[0]!r:.80} in {path} are not numbers of at least 0 "
            "that sum to 1; give them after the softmax."
        )
    return {f"{task}, {place}": list(map(float, mix)) for place, mix in mixes.items()}


def _are_weights(mix: Any) -> bool:
    """Whether they can be weights of a mix, rounded to a few digits as they may be."""
    if not isinstance(mix, list) or not mix:
        return False
    if not all(type(w) in (int, float) and 0 <= w <= 1 for w in mix):
        return False
    return abs(sum(mix) - 1) < 0.01


def draw_mixes(mixes: Mapping[str, Sequence[float]]) -> Figure:
    """Weights of layers as parts of a bar, a bar for each name; they sum to 1."""
    layers = max(map(len, mixes.values()))
    with drawing():
        figure = new_figure(8, 1.4 + 0.45 * len(mixes))
        axes = figure.subplots()
        handles = []
        for layer in range(layers):
            widths = [w[layer] if layer < len(w) else 0.0 for w in mixes.values()]
            starts = [sum(w[:layer]) for w in mixes.values()]
            colour = _LAYERS[layer] if layer < len(_LAYERS) else COLOURS[layer % 7]
            bars = axes.barh(
                range(len(mixes)),
                widths,
                left=starts,
                height=0.7,
                color=colour,
                edgecolor="white",
            )
            handles.append(bars[0])
            ink = "black" if _is_light(colour) else "white"
            for row, (start, width) in enumerate(zip(starts, widths, strict=True)):
                if width >= 0.06:
                    middle = start + width / 2
                    told: dict[str, Any] = {
                        "ha": "center",
                        "va": "center",
                        "color": ink,
                    }
                    axes.text(middle, row, f"{width:.2f}", fontsize=9, **told)
        axes.set_yticks(range(len(mixes)), mixes.keys())
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("weight of the layer in the mix (they sum to 1)")
        axes.tick_params(axis="y", length=0)
        names = [f"layer {n}" + (" (tokens)" if n == 0 else "") for n in range(layers)]
        figure.legend(handles, names, loc="outside upper center", ncols=min(layers, 5))
    return figure


_LAYERS = "#BBBBBB", "#0072B2", "#E69F00", "#009E73", "#CC79A7"
"""Layer 0 is grey: it has no context."""


def _is_light(colour: str) -> bool:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return math.sqrt(0.299 * red**2 + 0.587 * green**2 + 0.114 * blue**2) > 0.55

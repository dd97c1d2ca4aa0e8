"""Pictures, as PNG or SVG: losses of runs, uses of a word, weights of layers.

matplotlib, the extra `plots`, is imported here alone, and only to draw. Colours are
those of Okabe and Ito, which people with any colour vision tell apart; markers and
lines differ too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from elmojax.disk import check_out, local, read_object, replacing
from elmojax.errors import InputError, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
MARKERS = "osD^vPX"
FORMATS = (".png", ".svg")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_picture(path: Path, overwrite: bool) -> None:
    """`InputError` if no picture can be drawn, or not of this name."""
    if not can_draw():
        raise InputError(
            "Pictures need matplotlib: pip install 'elmojax[plots]', then give the "
            "same command again."
        )
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"{path} does not say what kind of picture it is; give an --out that ends "
            "in .png or .svg."
        )
    check_out(path, overwrite)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Text is text, never formulas; the same picture has the same bytes."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.hashsalt": "elmojax",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save(figure: Figure, path: Path) -> None:
    """Writes a picture, whose ending says its kind; `OSError` where that fails."""
    kind = path.suffix.lower().removeprefix(".")
    with replacing(path) as partial:
        partial.write_bytes(_picture(figure, kind))


def svg(figure: Figure) -> str:
    """The `<svg>` element of a picture, to stand in HTML."""
    text = _picture(figure, "svg").decode("utf-8")
    return text[text.index("<svg") :]


def _picture(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    with drawing():
        dated = {"Date": None} if kind == "svg" else {}
        figure.savefig(file, format=kind, dpi=150, metadata=dated)
    return file.getvalue()


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_of(number: int) -> dict[str, Any]:
    """Colour and marker of one of several things."""
    turn = number // len(COLOURS)  # other pairs, once all colours are used
    marker = MARKERS[(number + turn) % len(MARKERS)]
    return {"color": COLOURS[number % len(COLOURS)], "marker": marker}


# --- runs -----------------------------------------------------------------------------

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
            smooth, colour = _running_mean(losses), style["color"]
            if len(steps) > len(smooth):
                axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.6)
            ends = steps[len(steps) - len(smooth) :]
            (line,) = axes.plot(ends, smooth, color=colour, linewidth=1.6)
            entries[before + label] = line
        steps, losses = _points(lines, "heldout_loss")
        if steps:
            (line,) = axes.plot(
                steps, losses, linestyle="--", linewidth=1, **style, **_EDGE
            )
            entries[f"{before}held out"] = line
    title = "Loss" if len(runs) > 1 else f"Loss of {' '.join(runs)}"
    axes.set(title=title, xlabel="step", ylabel="loss a token (nats)")
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
    axes.set_title("Held-out perplexity, geometric mean of both directions")
    axes.set(xlabel="step", ylabel="held-out perplexity (logarithmic)")
    _finish(axes, entries)


def _finish(axes: Axes, entries: Mapping[str, Any]) -> None:
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)  # of steps there are no halves
    if entries:
        axes.legend(entries.values(), entries.keys())


# --- uses of a word ------------------------------------------------------------------

GREY = "#555555"


def draw_senses(
    word: str,
    labels: Sequence[str],
    texts: np.ndarray,
    names: Sequence[str],
    context: np.ndarray,
    axes: tuple[str, str],
    static: np.ndarray,
    near: Sequence[str],
    layer: str,
) -> Figure:
    """Uses of a word in context, labelled as far as there is room, against layer 0.

    Args:
      labels: of the n uses.
      texts: [n]: the number of the text of each use, which gives it its colour.
      names: of the texts.
      context: [n, 2]: the uses as points.
      axes: what the axes of these points are.
      static: [n + m, 2]: the same uses without context, then other words.
      near: those m words.
      layer: which layer the context is of, in words.
    """
    count = len(labels)
    with drawing():
        figure = new_figure(13, 6)
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        here = np.unique(texts)
        inks: Any = np.empty(count, object)
        handles, legend = [], []
        for number, text in enumerate(here.tolist()):
            these, style = texts == text, style_of(number)
            inks[these] = style["color"]
            points = left.scatter(
                *context[these].T, s=60, **style, **_RIM, linewidths=0.7
            )
            handles.append(points)
            legend.append(f"{names[text]} ({these.sum():,})")
            ring = 70 + 90 * (len(here) - 1 - number)  # as all are one point
            right.scatter(
                *static[:count][these].T, s=ring, color=style["color"], **_RIM
            )
        right.scatter(*static[count:].T, color=GREY, marker=".", s=30)
        for panel in (left, right):
            panel.margins(0.16)
            panel.grid(alpha=0.25)
        left.set(title=f"“{word}” in context: {layer}", xlabel=axes[0], ylabel=axes[1])
        right.set(title=f"“{word}” without context: layer 0", xticks=[], yticks=[])
        right.set_xlabel("grey: the words nearest to it")
        if len(here) > 1:
            columns = min(len(here), 4)
            figure.legend(handles, legend, loc="outside lower left", ncols=columns)
        figure.draw_without_rendering()  # now all but the labels has its place
        _label(left, context, labels, inks)
        told = [f"{word}, all {count:,} uses", *near]
        points = np.concatenate([static[:1], static[count:]])
        _label(right, points, told, ["black", *[GREY] * len(near)])
    return figure


_RIM: dict[str, Any] = {"edgecolors": "white", "zorder": 3}
MOST = 24
"""Labels of a panel."""


def _label(
    axes: Axes, points: np.ndarray, labels: Sequence[str], inks: Sequence[str]
) -> None:
    """Writes labels beside points, where they cover nothing; those far apart first."""
    from matplotlib.transforms import Bbox

    places = axes.transData.transform(points)
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    frame, first = axes.get_window_extent(), len(taken)
    for index in _far_apart(places):
        for offset, align in _SIDES.items():
            text = axes.annotate(
                labels[index],
                tuple(points[index]),
                offset,
                textcoords="offset points",
                fontsize=8,
                color=inks[index],
                **align,
            )
            text.set_in_layout(False)
            box = text.get_window_extent()
            inside = frame.x0 < box.x0 and box.x1 < frame.x1
            inside = inside and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
        if len(taken) - first == MOST:
            return


_SIDES: dict[tuple[int, int], dict[str, Any]] = {
    (7, 0): {"ha": "left", "va": "center"},
    (-7, 0): {"ha": "right", "va": "center"},
    (0, 7): {"ha": "center", "va": "bottom"},
    (0, -7): {"ha": "center", "va": "top"},
    (5, 5): {"ha": "left", "va": "bottom"},
    (-5, 5): {"ha": "right", "va": "bottom"},
    (5, -5): {"ha": "left", "va": "top"},
    (-5, -5): {"ha": "right", "va": "top"},
}
"""Where a label may stand, in points from its own."""


def _far_apart(places: np.ndarray) -> Iterator[int]:
    """Indices of [n, 2]: the first, then always the one farthest from all before."""
    distance = np.full(len(places), np.inf)
    index = 0
    for _ in range(len(places)):
        yield index
        away = np.linalg.norm(places - places[index], axis=1)
        distance = np.minimum(distance, away)
        distance[index] = -1
        index = int(distance.argmax())


# --- mixes of tasks -------------------------------------------------------------------


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
    if not isinstance(mix, list):
        return False
    good = all(type(w) in (int, float) and 0 <= w <= 1 for w in mix)
    return good and abs(sum(mix) - 1) < 0.01


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
            look: dict[str, Any] = {"color": colour, "edgecolor": "white"}
            bars = axes.barh(range(len(mixes)), widths, 0.7, starts, **look)
            handles.append(bars[0])
            told = [f"{width:.2f}" if width >= 0.06 else "" for width in widths]
            ink = "black" if _is_light(colour) else "white"
            axes.bar_label(bars, told, label_type="center", fontsize=9, color=ink)
        axes.set_yticks(range(len(mixes)), mixes.keys())
        axes.invert_yaxis()
        label = "weight of the layer in the mix (they sum to 1)"
        axes.set(xlim=(0, 1), xlabel=label)
        axes.tick_params(axis="y", length=0)
        names = [f"layer {n}" + (" (tokens)" if n == 0 else "") for n in range(layers)]
        figure.legend(handles, names, loc="outside upper center", ncols=min(layers, 5))
    return figure


_LAYERS = "#BBBBBB", "#0072B2", "#E69F00", "#009E73", "#CC79A7"
"""Layer 0 is grey: it has no context."""


def _is_light(colour: str) -> bool:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return math.sqrt(0.299 * red**2 + 0.587 * green**2 + 0.114 * blue**2) > 0.55

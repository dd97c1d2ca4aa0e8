"""Uses of a word as points of a plane: in context, and without it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from elmojax.errors import InputError
from elmojax.plots.pictures import drawing, new_figure, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#555555"


class Cloud(NamedTuple):
    """Points that belong together."""

    name: str
    points: np.ndarray
    """[n, 2]."""
    labels: Sequence[str]
    """Of each point."""


def draw_senses(
    word: str,
    context: Sequence[Cloud],
    axes: tuple[str, str],
    static: Sequence[Cloud],
    words: Cloud,
    layer: str,
) -> Figure:
    """Uses of a word in context, labelled as far as there is room, against layer 0.

    Args:
      context: the uses, a cloud a text.
      axes: what the axes of these points are.
      static: the same uses without context.
      words: other words there, for comparison.
      layer: which layer the context is of, in words.
    """
    with drawing():
        figure = new_figure(13, 6)
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        handles = [
            left.scatter(
                cloud.points[:, 0],
                cloud.points[:, 1],
                s=60,
                edgecolors="white",
                linewidths=0.7,
                zorder=3,
                label=cloud.name,
                **style_of(number),
            )
            for number, cloud in enumerate(context)
        ]
        names = [f"{one.name} ({len(one.points):,})" for one in context]
        for panel in (left, right):
            panel.margins(0.16)
            panel.grid(alpha=0.25)
        left.set_title(f"“{word}” in context: {layer}")
        left.set_xlabel(axes[0])
        left.set_ylabel(axes[1])
        if len(context) > 1:
            columns = min(len(context), 4)
            figure.legend(handles, names, loc="outside lower left", ncols=columns)
        _draw_static(right, word, static, words)
        figure.draw_without_rendering()  # now all but the labels has its place
        colours = [style_of(number)["color"] for number in range(len(context))]
        _label(left, context, colours)
        count = sum(len(cloud.points) for cloud in static)
        here = Cloud("", static[0].points[:1], [f"{word}, all {count:,} uses"])
        _label(right, [here, words], ["black", GREY])
    return figure


def _draw_static(axes: Axes, word: str, static: Sequence[Cloud], words: Cloud) -> None:
    for number, cloud in enumerate(static):  # rings, as all are one point
        axes.scatter(
            cloud.points[:, 0],
            cloud.points[:, 1],
            s=70 + 90 * (len(static) - 1 - number),
            color=style_of(number)["color"],
            edgecolors="white",
            zorder=3,
        )
    axes.scatter(words.points[:, 0], words.points[:, 1], color=GREY, marker=".", s=30)
    axes.set_title(f"“{word}” without context: layer 0")
    axes.set_xlabel(words.name)
    axes.set_xticks([])
    axes.set_yticks([])


MOST = 24
"""Labels of a panel."""


def _label(axes: Axes, clouds: Sequence[Cloud], colours: Sequence[str]) -> None:
    """Writes labels beside points, where they cover nothing; those far apart first."""
    from matplotlib.transforms import Bbox

    points = np.concatenate([cloud.points for cloud in clouds])
    labels = [label for cloud in clouds for label in cloud.labels]
    inks = [
        colour
        for cloud, colour in zip(clouds, colours, strict=True)
        for _ in cloud.labels
    ]
    places = axes.transData.transform(points)
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    frame, written = axes.get_window_extent(), 0
    for index in _far_apart(places):
        for (dx, dy), align in _SIDES.items():
            text = axes.annotate(
                labels[index],
                tuple(points[index]),
                (dx, dy),
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
                written += 1
                break
            text.remove()
        if written == MOST:
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


Method = Literal["pca", "tsne", "umap"]
PACKAGES = {"tsne": ("sklearn", "scikit-learn"), "umap": ("umap", "umap-learn")}
LEAST = 5
"""Vectors that neighbour embeddings need."""


class Points(NamedTuple):
    """Vectors in a plane."""

    points: np.ndarray
    """float64 [n, 2]."""
    axes: tuple[str, str]
    """What the two axes are."""


def require_method(method: Method) -> None:
    """`InputError` where the library of a method is not installed."""
    module, package = PACKAGES.get(method, ("numpy", "numpy"))
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"--method {method} needs {package}: pip install 'elmojax[{method}]'; "
            "--method pca needs nothing more."
        )


def project(vectors: np.ndarray, method: Method = "pca") -> Points:
    """[n, vector] in a plane, the same every time.

    Raises:
      InputError: if the library of a method is not installed, or the vectors are too
        few for it.
    """
    require_method(method)
    vectors = vectors.astype(np.float64)
    if method == "pca":
        return principal_components(vectors)
    if len(vectors) < LEAST:
        raise InputError(
            f"--method {method} needs at least {LEAST} uses, and there are "
            f"{len(vectors)}; take --method pca."
        )
    reducer: Any
    if method == "tsne":
        from sklearn.manifold import TSNE

        near = min(30.0, (len(vectors) - 1) / 3)
        reducer = TSNE(perplexity=near, init="pca", metric="cosine", random_state=0)
    else:
        from umap import UMAP

        near = min(15, len(vectors) - 1)
        reducer = UMAP(n_neighbors=near, init="pca", metric="cosine", random_state=0)
    name = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    points = np.asarray(reducer.fit_transform(vectors), np.float64)
    return Points(points, (f"{name} 1", f"{name} 2"))


def principal_components(vectors: np.ndarray) -> Points:
    """The two directions in which vectors differ most; the axes name their shares."""
    centred = vectors - vectors.mean(axis=0)
    rotated, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    for axis in range(min(2, len(sizes))):
        # The sign is free: what weighs most in a direction is positive.
        weights = directions[axis]
        sign = np.sign(weights[np.abs(weights).argmax()]) or 1.0
        points[:, axis] = sign * rotated[:, axis] * sizes[axis]
        shares[axis] = sizes[axis] ** 2 / max((sizes**2).sum(), 1e-300)
    one, other = (
        f"principal component {axis + 1} ({share:.0%} of the variance)"
        for axis, share in enumerate(shares)
    )
    return Points(points, (one, other))

"""What all pictures share: how they are written, and their colours.

Colours are those of Okabe and Ito, which people with any colour vision tell apart;
markers and lines differ too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elmojax.atomic import check_out, replaced
from elmojax.errors import InputError

if TYPE_CHECKING:
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
    with replaced(path) as partial:
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

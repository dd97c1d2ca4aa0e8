"""`elmojax plot`: of the uses of a word, of runs, of the mixes of tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional, arg

from elmojax.arguments import shown
from elmojax.cli import common
from elmojax.cli.similar import UsesArguments
from elmojax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 8
"""Words that are drawn beside the static vector."""
WIDTH = 32
"""Characters of the label of a use."""


@dataclass(frozen=True, kw_only=True)
class PictureArguments:
    """What every picture is asked."""

    out: Annotated[Path, arg(metavar="OUT.png|OUT.svg")]
    """Picture to write, PNG or SVG by its ending."""
    overwrite: common.Overwrite = False
    json: common.Json = False

    def check(self) -> None:
        """`InputError` where no picture can be drawn, or not there."""
        from elmojax.plots import check_picture

        check_picture(self.out, self.overwrite)

    def write(self, figure: Figure, report: dict[str, Any], what: str) -> None:
        """The picture, and what is told of it."""
        from elmojax.plots import save

        save(figure, self.out)
        common.show(self.json, {"out": self.out, **report}, f"{self.out}: {what}.")


@dataclass(frozen=True, kw_only=True)
class SensesArguments(PictureArguments, UsesArguments):
    """Draws the uses of a word as points, in context and without.

    Uses have the colour of their text, and as many are labelled as there is room for.
    Without context they are all one point; the words that are nearest to it stand
    beside it.
    """

    method: Literal["pca", "tsne", "umap"] = "pca"
    """How vectors in context become points: principal components, t-SNE (needs
    scikit-learn) or UMAP (needs umap-learn)."""


@dataclass(frozen=True, kw_only=True)
class RunArguments(PictureArguments):
    """Draws the losses and held-out perplexities of pretraining runs, by the step."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]")]]
    """Run directories of `elmojax pretrain`."""


@dataclass(frozen=True, kw_only=True)
class MixArguments(PictureArguments):
    """Draws the weights that tasks give to the layers of a model."""

    files: Positional[Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]")]]
    """JSON files, each an object {"task": NAME, "mix": {PLACE: [WEIGHT of layer 0, of
    layer 1, ...]}}, as the commands of experiments/tasks write. Files of the same task
    are averaged."""


def plot(argv: list[str]) -> None:
    """pictures: uses of a word, curves of runs, weights of layers by task"""
    if argv[:1] in (["-h"], ["--help"]):
        lines = [f"  {name:7} {draw.__doc__}" for name, draw in KINDS.items()]
        print("usage: elmojax plot KIND [OPTIONS]      (elmojax plot KIND --help)\n")
        print("\n".join(lines))
        return
    if not argv or argv[0] not in KINDS:
        what = f"There is no {shown(argv[0])} to plot" if argv else "Say what to plot"
        raise InputError(f"{what}: elmojax plot senses, run or mix.")
    KINDS[argv[0]](argv[1:])


def plot_senses(argv: list[str]) -> None:
    """the uses of a word in context, against its vector without context"""
    asked = common.parse(SensesArguments, "plot senses", argv)
    asked.check()

    from elmojax.embedding.neighbours import (
        nearest,
        project,
        require_method,
        use_vectors,
        word_vectors,
    )
    from elmojax.plots import draw_senses

    require_method(asked.method)
    found = asked.find()
    vectors = use_vectors(found.embedder, found.uses, asked.layer)
    near: list[str] = []
    static = vectors.static
    if found.others:
        of_words = word_vectors(found.embedder, found.others)
        close = [one.number for one in nearest(static[0], of_words, NEAR)]
        near = [found.others[index] for index in close]
        static = np.concatenate([static, of_words[close]])
    context = project(vectors.context, asked.method)
    figure = draw_senses(
        asked.word,
        [use.snippet(WIDTH) for use in found.uses],
        np.array([use.text for use in found.uses]),
        found.names,
        context.points,
        context.axes,
        project(static).points,
        near,
        found.layer(asked.layer),
    )
    count = len(found.uses)
    report = {"uses": count, "texts": found.paths, "method": asked.method}
    asked.write(figure, {**report, "remarks": found.remarks}, f"{count:,} uses")


def plot_run(argv: list[str]) -> None:
    """losses and held-out perplexities of one or several runs"""
    from elmojax.plots import draw_runs
    from elmojax.training.metrics import read_metrics
    from elmojax.training.record import read_record

    asked = common.parse(RunArguments, "plot run", argv)
    if not asked.runs:
        raise InputError("Say which runs to plot: elmojax plot run RUN [RUN ...].")
    asked.check()
    for run in asked.runs:
        read_record(run)
    each = [read_metrics(run / "metrics.jsonl") for run in asked.runs]
    for run, lines in zip(asked.runs, each, strict=True):
        if not lines:
            raise InputError(
                f"{run} has no numbers yet in metrics.jsonl; plot it when it has "
                "trained some steps."
            )
    figure = draw_runs(dict(zip(common.names_of(asked.runs), each, strict=True)))
    asked.write(figure, {"runs": asked.runs}, f"{len(each)} run(s)")


def plot_mix(argv: list[str]) -> None:
    """weights that tasks give to the layers"""
    from elmojax.plots import draw_mixes, read_mixes

    asked = common.parse(MixArguments, "plot mix", argv)
    if not asked.files:
        raise InputError("Say which mixes to plot: elmojax plot mix FILE [FILE ...].")
    asked.check()
    mixes = read_mixes(asked.files)
    asked.write(draw_mixes(mixes), {"mixes": mixes}, f"{len(mixes)} mix(es)")


KINDS: dict[str, Callable[[list[str]], None]] = {
    "senses": plot_senses,
    "run": plot_run,
    "mix": plot_mix,
}

"""`elmojax report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from elmojax.cli import common
from elmojax.disk import check_out, replacing
from elmojax.text.files import expand


@dataclass(frozen=True)
class ReportArguments:
    """Writes one HTML page about a pretraining run: how it stands, curves, held-out
    perplexities, where the time went, what its newest checkpoint makes of a few
    sentences, configuration, and its model card.

    The page holds all it needs and loads nothing. The run may still train. Only the
    model card is written where --out ends in .md.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Run directory of `elmojax pretrain`."""
    out: Path | None = None
    """Page to write; by default report.html in the run directory, which replaces the
    one before."""
    text: common.Files = ()
    """Held-out texts whose perplexity is measured for the model card: files or quoted
    globs, one tokenised sentence a line."""
    errors: common.BadBytes = "strict"
    overwrite: common.Overwrite = False
    json: common.Json = False


def report(argv: list[str]) -> None:
    """one HTML page about a pretraining run, which needs no network"""
    asked = common.parse(ReportArguments, "report", argv)
    paths = expand(sum(asked.text, ()))
    out = asked.out or asked.run / "report.html"
    if asked.out is not None:
        check_out(out, asked.overwrite)

    from elmojax.loading import evaluate_texts, open_model
    from elmojax.report import make_report
    from elmojax.training.card import model_card

    scores = {}
    if paths:
        texts = [[path] for path in paths]
        found = evaluate_texts(open_model(asked.run), texts, asked.errors)
        scores = dict(zip(common.names_of(paths), found, strict=True))
    make = model_card if out.suffix == ".md" else make_report
    page = make(asked.run, scores)
    with replacing(out) as partial:
        partial.write_text(page, encoding="utf-8")
    size = out.stat().st_size
    common.show(
        asked.json, {"out": out, "bytes": size}, f"{out}: {size / 1e3:,.0f} kB."
    )

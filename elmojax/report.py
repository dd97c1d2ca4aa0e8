"""A pretraining run on one page of HTML, which loads nothing from anywhere.

Made from the files of the run alone, so it works for a run that still trains, that
failed, or that has neither held-out text nor a checkpoint: what is not there is said.
"""

from __future__ import annotations

import base64
import contextlib
import html
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elmojax.config import to_json
from elmojax.errors import InputError
from elmojax.loading import open_model, score
from elmojax.plots import PERPLEXITY, Lines, can_draw, draw_runs, svg
from elmojax.text.corpus import Corpus
from elmojax.text.files import read_lines
from elmojax.text.uses import sense_files
from elmojax.text.vocabulary import SPECIALS
from elmojax.training.card import Evaluations, facts, model_card
from elmojax.training.metrics import read_metrics, readable
from elmojax.training.record import RunRecord, Status, read_record, results
from elmojax.training.score import Score

SENTENCES = 4
"""Samples."""
GUESSES = 3
"""Most probable words of each place."""
ROWS = 12
"""Evaluations that a table shows at the end, besides the first and the best."""


def make_report(run: Path, evaluations: Evaluations | None = None) -> str:
    """The page about a run directory.

    Args:
      run: the directory.
      evaluations: of more held-out texts, for the card.

    Raises:
      InputError: if it is no run directory, or its config.json cannot be read.
    """
    record, lines = read_record(run), read_metrics(run / "metrics.jsonl")
    about, told = results(run, lines), facts(record, lines, Status.read(run))
    contents = {
        "At a glance": _glance(record, about),
        "Curves": _curves(run, lines),
        "Held-out perplexity": _perplexities(lines),
        "Where the time went": _times(about["seconds"], lines),
        "Samples": _samples(run, record),
        "Model and training": _table(told.items()),
        "Configuration": f"<pre>{html.escape(to_json(record))}</pre>",
        "Model card": f"<pre>{html.escape(model_card(run, evaluations))}</pre>",
    }
    sections = (f"<h2>{title}</h2>\n{text}" for title, text in contents.items())
    name = html.escape(run.resolve().name)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return _PAGE.format(name=name, made=made, body="\n".join(sections))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>elmojax run {name}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }}
h1 {{ margin-bottom: 0; }}
h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #ccc; }}
table {{ border-collapse: collapse; margin: .6rem 0 1.2rem; }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top; }}
th {{ font-weight: 600; }}
tr + tr td, tr + tr th {{ border-top: 1px solid #eee; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
p.made {{ margin-top: 0; color: #555; }}
img {{ max-width: 100%; }}
pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto; white-space: pre-wrap; }}
</style>
</head>
<body>
<h1>Run {name}</h1>
<p class="made">Report made {made} by elmojax.</p>
{body}
</body>
</html>
"""


def _table(
    rows: Iterable[Sequence[str]], heading: Sequence[str] = (), numbers: str = ""
) -> str:
    """Rows of escaped cells; `numbers` has an n for each column of numbers."""

    def row(cells: Sequence[str], tag: str) -> str:
        marks = numbers.ljust(len(cells), "-")
        begin = {"-": f"<{tag}>", "n": f'<{tag} class="number">'}
        told = zip(marks, map(html.escape, cells), strict=True)
        return f"<tr>{''.join(f'{begin[m]}{cell}</{tag}>' for m, cell in told)}</tr>"

    head = [row(heading, "th")] if heading else []
    each = (row(cells, "td") for cells in rows)
    return "\n".join(["<table>", *head, *each, "</table>"])


def _said(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


# --- numbers of the run --------------------------------------------------------------


def _glance(record: RunRecord, about: Mapping[str, Any]) -> str:
    step, best = _number(about["step"], 0), _number(about["best"], 1)
    rows = [
        ("state", about["state"]),
        ("why", about["why"]),
        ("step", step + (f" of {about['steps']:,}" if about["steps"] else "")),
        ("tokens seen", f"{about['tokens']:,.0f}" if about["tokens"] else ""),
        ("newest checkpoint", _number(about["saved"], 0)),
        ("training loss", _number(about["loss"], 3)),
        ("held-out perplexity", _number(about["perplexity"], 1)),
        ("best", best and f"{best} (step {about['best_step']:,})"),
        ("tokens a second", _number(about["tokens_per_second"], 0)),
        ("made by", f"elmojax {record.elmojax}, jax {record.jax}"),
    ]
    return _table([(name, value) for name, value in rows if value])


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else readable(value, digits)


def _curves(run: Path, lines: Lines) -> str:
    if not lines:
        return _said("No step has been logged yet.")
    if not can_draw():
        return _said("Not drawn, as matplotlib is missing: pip install elmojax[plots].")
    picture = svg(draw_runs({run.resolve().name: lines})).encode("utf-8")
    data = base64.b64encode(picture).decode("ascii")
    what = "Training loss and held-out perplexity by the step"
    return f'<img alt="{what}" src="data:image/svg+xml;base64,{data}">'


MEASURES = {
    "forward": "heldout_forward_perplexity",
    "backward": "heldout_backward_perplexity",
    "geometric mean": PERPLEXITY,
    "bits a byte": "heldout_bits_per_byte",
}


def _perplexities(lines: Lines) -> str:
    found = [line for line in lines if line.get(PERPLEXITY) is not None]
    if not found:
        return _said("The run has not been evaluated on held-out text.")
    best = min(found, key=lambda line: line[PERPLEXITY])
    shown = [
        line
        for number, line in enumerate(found)
        if number == 0 or line is best or number >= len(found) - ROWS
    ]
    rows = [
        [
            f"{line['step']:,}" + (" (best)" if line is best else ""),
            *(_number(line.get(key), 2) for key in MEASURES.values()),
        ]
        for line in shown
    ]
    left = len(found) - len(shown)
    more = _said(f"{left} evaluations between them are left out.") if left else ""
    return _table(rows, ["step", *MEASURES], "nnnnn") + more


def _times(trained: float, lines: Lines) -> str:
    """From speeds and evaluations: what training itself has measured."""
    evaluated = sum(line.get("heldout_seconds") or 0.0 for line in lines)
    if not (total := trained + evaluated):
        return _said("No step has been timed yet.")
    rows = [
        [name, f"{seconds:,.1f} s", f"{seconds / total:.0%}"]
        for name, seconds in (("steps", trained), ("evaluation", evaluated))
    ]
    utilization = [line["mfu"] for line in lines if line.get("mfu")]
    told = "Compiling and saving checkpoints are not counted."
    if utilization:
        told += f" Model FLOPs utilisation: {statistics.median(utilization):.1%}."
    return _table(rows, numbers="-nn") + _said(told)


# --- what the model says -------------------------------------------------------------


def _samples(run: Path, record: RunRecord) -> str:
    sentences, where = _sentences(run, record)
    guesses = max(1, min(GUESSES, record.vocabulary - len(SPECIALS)))
    try:
        scores = score(open_model(run), sentences, top_k=guesses)
    except InputError as error:
        return _said(f"There is no model to ask yet. {error}")
    first = (
        f"The newest checkpoint reads {where}. Each word has the probability that the "
        "model gave it after the words before it (forward) and before the words after "
        "it (backward), and beside it are the words that the model found most probable "
        "there."
    )
    heading = ["", "forward", "most probable", "backward", "most probable"]
    tables = [_table(_rows(one), heading, "-n-n-") for one in scores]
    return "\n".join([_said(first), *tables])


def _rows(one: Score) -> Iterator[list[str]]:
    """Each word, and forward and backward its chance and the likeliest words there."""
    best = one.substitutes
    assert best is not None
    for place, word in enumerate(one.words):
        yield [
            word,
            _chance(one.forward[place]),
            " · ".join(best.forward.words[place]),
            _chance(one.backward[place]),
            " · ".join(best.backward.words[place]),
        ]


def _chance(log_prob: float) -> str:
    """In per cent, with two digits that mean something."""
    chance = math.exp(log_prob)
    return f"{100 * chance:.2g} %" if chance >= 0.001 else "< 0.1 %"


def _sentences(run: Path, record: RunRecord) -> tuple[list[list[str]], str]:
    """Some sentences of middling length, of the held-out text where it is there."""
    train, chosen = record.train, np.empty(0, int)
    own = None if train.data else run / "sample-heldout"
    if directory := train.heldout or own:
        with contextlib.suppress(InputError, OSError):
            corpus = Corpus.open(directory)
            sizes = np.diff(corpus.offsets)
            chosen = np.flatnonzero((sizes >= 6) & (sizes <= 16))
    if not len(chosen):
        firsts = [next(read_lines(path))[1] for path in sense_files()[:SENTENCES]]
        return firsts, "sentences that ship with elmojax"
    ends, spread = corpus.offsets, np.linspace(0, len(chosen) - 1, SENTENCES)
    texts = [corpus.words[ends[n] : ends[n + 1]] for n in chosen[spread.astype(int)]]
    found = [[corpus.types[word] for word in text] for text in texts]
    return found, "sentences of the held-out text"

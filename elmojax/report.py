"""A pretraining run on one page of HTML, which loads nothing from anywhere.

Made from the files of the run alone, so it works for a run that still trains, that
failed, or that has neither held-out text nor a checkpoint: what is not there is said.
"""

from __future__ import annotations

import base64
import html
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elmojax.config import to_json
from elmojax.embedding.functions import encode
from elmojax.embedding.likelihood import (
    LanguageModelParams,
    sentence_loss,
    target_ids,
)
from elmojax.errors import InputError
from elmojax.loading import Model, open_model
from elmojax.model.softmax import predict
from elmojax.plots.pictures import can_draw, svg
from elmojax.plots.runs import PERPLEXITY, Lines, draw_runs
from elmojax.text.characters import encoder_ids, padded_ids
from elmojax.text.corpus import Corpus
from elmojax.text.files import read_lines
from elmojax.text.uses import sense_files
from elmojax.text.vocabulary import UNKNOWN_ID
from elmojax.training.card import Evaluations, facts, model_card
from elmojax.training.metrics import read_metrics, readable, step_seconds
from elmojax.training.record import RunRecord, Status, read_record
from elmojax.training.runs import describe

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
    about = describe(run, lines)
    told = facts(record, lines, Status.read(run))
    try:
        model: Model | str = open_model(run)
    except InputError as error:
        model = str(error)
    sections = [
        ("At a glance", _glance(record, about, lines)),
        ("Curves", _curves(run, lines)),
        ("Held-out perplexity", _perplexities(lines)),
        ("Where the time went", _times(lines)),
        ("Samples", _samples(run, record, model)),
        ("Model and training", _table(told.items())),
        ("Configuration", f"<pre>{html.escape(to_json(record))}</pre>"),
        ("Model card", f"<pre>{html.escape(model_card(run, evaluations))}</pre>"),
    ]
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections)
    name = html.escape(run.resolve().name)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return _PAGE.format(name=name, made=made, body=body)


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
        marks = [' class="number"' if mark == "n" else "" for mark in numbers]
        marks += [""] * (len(cells) - len(marks))
        told = zip(marks, map(html.escape, cells), strict=True)
        return (
            f"<tr>{''.join(f'<{tag}{mark}>{cell}</{tag}>' for mark, cell in told)}</tr>"
        )

    head = [row(heading, "th")] if heading else []
    each = (row(cells, "td") for cells in rows)
    return "\n".join(["<table>", *head, *each, "</table>"])


def _said(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


# --- numbers of the run --------------------------------------------------------------


def _glance(record: RunRecord, about: Mapping[str, Any], lines: Lines) -> str:
    known = (line.get("tokens_per_second") for line in lines)
    rates = [rate for rate in known if rate]
    steps = about["steps"]
    tokens = max((line.get("tokens") or 0 for line in lines), default=0)
    rows = [
        ("state", str(about["state"])),
        ("why", about["why"] or ""),
        ("step", f"{about['step']:,}" + (f" of {steps:,}" if steps else "")),
        ("tokens seen", f"{int(tokens):,}" if tokens else ""),
        ("newest checkpoint", "" if about["saved"] is None else f"{about['saved']:,}"),
        ("training loss", _number(about["loss"], 3)),
        ("held-out perplexity", _number(about["perplexity"], 1)),
        ("best", _best(about)),
        ("tokens a second", readable(statistics.median(rates), 0) if rates else ""),
        ("made by", f"elmojax {record.elmojax}, jax {record.jax}"),
    ]
    return _table([row for row in rows if row[1]])


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else readable(value, digits)


def _best(about: Mapping[str, Any]) -> str:
    if about["best"] is None:
        return ""
    return f"{readable(about['best'], 1)} (step {about['best_step']:,})"


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


def _times(lines: Lines) -> str:
    """From speeds and evaluations: what training itself has measured."""
    trained = step_seconds(lines)
    evaluated = sum(line.get("heldout_seconds") or 0.0 for line in lines)
    total = trained + evaluated
    if not total:
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


class Sample(NamedTuple):
    """A sentence as a model reads it."""

    words: list[str]
    log_probs: np.ndarray
    """[two, words]: of each word after those before it, and before those after it."""
    guesses: tuple[list[list[str]], list[list[str]]]
    """Most probable words at each place, `<UNK>` left out, by the same two."""


def _samples(run: Path, record: RunRecord, model: Model | str) -> str:
    if isinstance(model, str):
        return _said(f"There is no model to ask yet. {model}")
    sentences, where = _sentences(run, record)
    try:
        samples = read_samples(model, sentences)
    except InputError as error:
        return _said(str(error))
    first = (
        f"The newest checkpoint reads {where}. Each word has the probability that the "
        "model gave it after the words before it (forward) and before the words after "
        "it (backward), and beside it are the words that the model found most probable "
        "there."
    )
    heading = ["", "forward", "most probable", "backward", "most probable"]
    tables = [_table(_rows(sample), heading, "-n-n-") for sample in samples]
    return "\n".join([_said(first), *tables])


def _rows(sample: Sample) -> list[list[str]]:
    chances = np.exp(sample.log_probs)
    return [
        [
            word,
            _chance(chances[0, place]),
            " · ".join(sample.guesses[0][place]),
            _chance(chances[1, place]),
            " · ".join(sample.guesses[1][place]),
        ]
        for place, word in enumerate(sample.words)
    ]


def _chance(chance: float) -> str:
    """In per cent, with two digits that mean something."""
    return f"{100 * chance:.2g} %" if chance >= 0.001 else "< 0.1 %"


def _sentences(run: Path, record: RunRecord) -> tuple[list[list[str]], str]:
    """Some sentences of middling length, of the held-out text where it is there."""
    train = record.train
    directory = train.heldout
    if directory is None and train.data is None:
        directory = run / "sample-heldout"
    if directory is not None:
        try:
            corpus = Corpus.open(directory)
        except (InputError, OSError):
            corpus = None
        if corpus is not None:
            sizes = np.diff(corpus.offsets)
            fit = np.flatnonzero((sizes >= 6) & (sizes <= 16))
            if len(fit):
                chosen = fit[np.linspace(0, len(fit) - 1, SENTENCES).astype(int)]
                ends = corpus.offsets
                texts = [corpus.words[ends[n] : ends[n + 1]] for n in chosen]
                found = [[corpus.types[word] for word in text] for text in texts]
                return found, "sentences of the held-out text"
    firsts = [next(read_lines(path))[1] for path in sense_files()[:SENTENCES]]
    return firsts, "sentences that ship with elmojax"


def read_samples(model: Model, sentences: Sequence[Sequence[str]]) -> list[Sample]:
    """What a model with a softmax says of sentences.

    Raises:
      InputError: if the model has no softmax or no vocabulary.
    """
    _, tree, vocabulary = model.language_model()
    params, lists = model.params, [list(words) for words in sentences]
    encoder = params.config.encoder
    tokens = padded_ids(lists, lambda words: encoder_ids(encoder, words, vocabulary))
    both = LanguageModelParams(params, tree["head"])
    losses = sentence_loss(both, tokens, target_ids(vocabulary, lists))
    encoded = encode(params, tokens, sentence_marks=True)
    top = encoded.layers[:, -1]
    half, most = top.shape[-1] // 2, min(GUESSES + 1, len(vocabulary))
    longest = top.shape[1] - 2
    places = [top[:, :longest, :half], top[:, 2:, half:]]  # of `<S> w1 .. wn </S>`
    ids = [
        np.asarray(predict(tree["head"], here.reshape(-1, half), most)[0])
        for here in places
    ]
    guessed = [each.reshape(len(lists), longest, most) for each in ids]
    samples = []
    for row, words in enumerate(lists):
        end = len(words)
        # The backward losses begin with that of the sentence's beginning.
        forward = -np.asarray(losses.forward)[row, :end]
        backward = -np.asarray(losses.backward)[row, 1 : end + 1]
        told = [
            [
                [vocabulary.words[word] for word in best if word != UNKNOWN_ID][
                    :GUESSES
                ]
                for best in each[row, :end]
            ]
            for each in guessed
        ]
        samples.append(Sample(words, np.stack([forward, backward]), (told[0], told[1])))
    return samples

"""`elmojax evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from elmojax.cli import common
from elmojax.errors import InputError
from elmojax.text.corpus import Corpus
from elmojax.text.files import Oddities
from elmojax.training.metrics import readable


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(common.TextArguments, common.ModelArguments):
    """Measures the exact perplexity of a model on held-out text, every token once.

    The devices of this machine share the work: the largest number that divides 64.
    """

    data: Path | None = None
    """Prepared corpus to evaluate on; it may be on gs:// or s3://."""
    json: common.Json = False


def evaluate(argv: list[str]) -> None:
    """exact perplexity of a model on held-out text"""
    from elmojax.loading import evaluate_corpora, evaluate_texts

    asked = common.parse(EvaluateArguments, "evaluate", argv, addresses=("data",))
    files = asked.paths()
    if (asked.data is None) == (not files):
        raise InputError("Give either --data DIRECTORY or --text FILE to evaluate on.")
    if asked.data is not None and asked.format != "text":
        raise InputError("--format is for --text FILE; leave it out with --data.")
    remarks: list[str] = []
    model = asked.open()
    with tqdm(unit="token", desc="evaluate", disable=None) as bar:

        def progress(total: int, tokens: int) -> None:
            bar.total = total
            bar.update(tokens)

        def say_odd(odd: Oddities) -> None:
            columns = model.params.config.max_characters
            remarks.extend(common.remark(odd, columns, asked.format))

        if asked.data is not None:
            corpus = Corpus.open(asked.data)
            (scores,) = evaluate_corpora(model, [corpus], progress)
        else:
            (scores,) = evaluate_texts(
                model, [files], asked.errors, asked.format, progress, say_odd
            )
    lines = []
    for name, value in scores.items():
        told = f"{value:,d}" if isinstance(value, int) else readable(value, 4)
        lines.append(f"{name:22} {told}")
    common.show(asked.json, {**scores, "remarks": remarks}, "\n".join(lines))

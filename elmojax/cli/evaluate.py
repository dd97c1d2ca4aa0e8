"""`elmojax evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from elmojax.cli.common import (
    BUNDLED,
    BadBytes,
    Json,
    Model,
    Precision,
    Step,
    TextFiles,
    TextFormat,
    parse,
    print_json,
    remark,
    say_which_model,
)
from elmojax.errors import InputError
from elmojax.text.corpus import Corpus
from elmojax.text.files import Oddities, expand
from elmojax.training.metrics import readable


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Exact perplexity of a model on held-out text, every token once.

    All devices of this machine share the work (the most that divide 64).
    """

    model: Model = BUNDLED
    data: Path | None = None
    """Prepared corpus to evaluate on; it may be on gs:// or s3://."""
    text: TextFiles = ()
    format: TextFormat = "text"
    errors: BadBytes = "strict"
    step: Step = None
    precision: Precision = "float32"
    json: Json = False


def evaluate(argv: list[str]) -> None:
    """exact perplexity of a model on held-out text"""
    from elmojax.loading import evaluate_corpus, evaluate_text, open_model

    asked = parse(EvaluateArguments, "evaluate", argv, addresses=("data",))
    files = expand(sum(asked.text, ()))
    if (asked.data is None) == (not files):
        raise InputError("Give either --data DIRECTORY or --text FILE to evaluate on.")
    if asked.data is not None and asked.format != "text":
        raise InputError("--format is for --text FILE; leave it out with --data.")
    remarks: list[str] = []
    say_which_model(asked.model, argv)
    model = open_model(asked.model, asked.step).cast(asked.precision)
    with tqdm(unit="token", desc="evaluate", disable=None) as bar:

        def progress(tokens: int, total: int) -> None:
            bar.total = total
            bar.update(tokens)

        def say_odd(odd: Oddities) -> None:
            columns = model.params.config.max_characters
            remarks.extend(remark(odd, columns, asked.format))

        if asked.data is not None:
            scores = evaluate_corpus(model, Corpus.open(asked.data), progress)
        else:
            scores = evaluate_text(
                model, files, asked.errors, asked.format, progress, say_odd
            )
    if asked.json:
        print_json({**scores, "remarks": remarks})
        return
    for name, value in scores.items():
        told = f"{value:,d}" if isinstance(value, int) else readable(value, 4)
        print(f"{name:22} {told}")

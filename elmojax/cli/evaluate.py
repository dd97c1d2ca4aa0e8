"""`elmojax evaluate`."""

from __future__ import annotations

import tempfile
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
    parse,
    print_json,
    remark,
)
from elmojax.errors import InputError
from elmojax.text import prepare as preparing
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
    """Prepared corpus to evaluate on."""
    text: TextFiles = ()
    errors: BadBytes = "strict"
    step: Step = None
    precision: Precision = "float32"
    json: Json = False


def evaluate(argv: list[str]) -> None:
    """exact perplexity of a model on held-out text"""
    from elmojax.embedding.engine import local_mesh
    from elmojax.loading import open_model
    from elmojax.training.evaluate import ROWS, Evaluator

    asked = parse(EvaluateArguments, "evaluate", argv)
    files = expand(sum(asked.text, ()))
    if (asked.data is None) == (not files):
        raise InputError("Give either --data DIRECTORY or --text FILE to evaluate on.")
    remarks = []
    with tempfile.TemporaryDirectory(prefix="elmojax-") as temporary:
        directory = asked.data
        model = open_model(asked.model, asked.step).cast(asked.precision)
        if directory is None:
            directory, columns = (
                Path(temporary) / "text",
                model.params.config.max_characters,
            )
            report = preparing.prepare(
                directory,
                patterns=files,
                errors=asked.errors,
                max_characters=columns or 50,
            )
            remarks = remark(Oddities(**report["odd"]), columns)
        text = Corpus.open(directory)
        lm, params, vocabulary = model.language_model(local_mesh(ROWS))
        evaluator = Evaluator(lm, text, vocabulary)
        total = len(text.words) + len(text.offsets) - 1
        with tqdm(total=total, unit="token", desc="evaluate", disable=None) as bar:
            scores = evaluator(params, bar.update)
    if asked.json:
        print_json({**scores, "remarks": remarks})
        return
    for name, value in scores.items():
        told = f"{value:,d}" if isinstance(value, int) else readable(value, 4)
        print(f"{name:22} {told}")

"""`elmojax evaluate` and `elmojax embed`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from elmojax.cli.common import (
    BadBytes,
    Files,
    Json,
    Model,
    Overwrite,
    Step,
    parse,
    print_json,
)
from elmojax.errors import InputError
from elmojax.text import corpus as corpora
from elmojax.text.files import read_lines


@dataclass(frozen=True)
class EvaluateArguments:
    """Exact perplexity of a model on held-out text, every token once."""

    model: Model
    data: Path | None = None
    """Prepared corpus."""
    text: Files = ()
    """Or text files: one tokenised sentence a line."""
    errors: BadBytes = "strict"
    step: Step = None
    json: Json = False


def evaluate(argv: list[str]) -> None:
    """exact perplexity of a model on held-out text"""
    from elmojax.loading import open_model
    from elmojax.training.evaluate import Evaluator

    asked = parse(EvaluateArguments, "evaluate", argv)
    files = sum(asked.text, ())
    if (asked.data is None) == (not files):
        raise InputError("Give either --data DIRECTORY or --text FILE to evaluate on.")
    with tempfile.TemporaryDirectory(prefix="elmojax-") as temporary:
        directory = asked.data
        if directory is None:
            directory = Path(temporary) / "text"
            corpora.prepare(directory, patterns=files, errors=asked.errors)
        text = corpora.Corpus.open(directory)
        model = open_model(asked.model, asked.step)
        lm, params, vocabulary = model.language_model()
        evaluator = Evaluator(lm, text, vocabulary)
        total = len(text.words) + len(text.offsets) - 1
        with tqdm(total=total, unit="token", desc="evaluate", disable=None) as bar:
            scores = evaluator(params, bar.update)
    if asked.json:
        print_json(scores)
        return
    for name, value in scores.items():
        digits = ",d" if isinstance(value, int) else ",.4f"
        print(f"{name:22} {value:{digits}}")


@dataclass(frozen=True)
class EmbedArguments:
    """Writes all layers of every line: HDF5, key = line number from 0,
    (layers + 1, words, 2 * projection); blank lines have no words."""

    model: Model
    text: Path
    """One tokenised sentence a line."""
    out: Path
    """HDF5 file to make."""
    step: Step = None
    batch_tokens: int = 2048
    """Positions a batch, padding included: bounds memory."""
    errors: BadBytes = "strict"
    overwrite: Overwrite = False
    json: Json = False


def embed(argv: list[str]) -> None:
    """vectors of every line of a text, as HDF5"""
    from elmojax.embedding.embedder import Embedder
    from elmojax.embedding.outputs import write_hdf5
    from elmojax.loading import open_model

    asked = parse(EmbedArguments, "embed", argv)
    started = time.perf_counter()
    model = open_model(asked.model, asked.step)
    embedder = Embedder(model.params, model.vocabulary, asked.batch_tokens)
    words = 0
    with tqdm(unit="line", desc="embed", disable=None) as bar:

        def lines() -> Iterator[list[str]]:
            nonlocal words
            for _, sentence in read_lines(asked.text, asked.errors):
                words += len(sentence)
                bar.update()
                yield sentence

        count = write_hdf5(asked.out, embedder.layers(lines()), asked.overwrite)
    seconds = time.perf_counter() - started
    report = {"out": asked.out, "lines": count, "words": words, "seconds": seconds}
    if asked.json:
        print_json(report)
    else:
        print(f"{asked.out}: {count:,} lines, {words:,} words, {seconds:.1f} s.")

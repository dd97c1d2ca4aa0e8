"""`elmojax score`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from elmojax.cli.common import (
    BUNDLED,
    BadBytes,
    Json,
    Model,
    Precision,
    Step,
    TextFiles,
    keep_compiled_programs,
    parse,
    remark,
    say_which_model,
)
from elmojax.errors import InputError
from elmojax.text.files import Oddities, expand, read_text

if TYPE_CHECKING:
    from elmojax.training.score import Score


PIECE = 65_536
"""Values of a line that are written at once."""


@dataclass(frozen=True, kw_only=True)
class ScoreArguments:
    """Log-probability of every word, given the words before and the words after it.

    Each line is scored for itself, from the model's initial state; natural logarithms.
    Columns, set apart by tabs: line (from 0), position (from 1), word, forward,
    backward. The row after a line's words is its end (forward) and its beginning
    (backward); the row `sum` adds the line up. Words outside the vocabulary are scored
    as <UNK> and marked with *. All devices of this machine share the work.
    """

    model: Model = BUNDLED
    text: TextFiles = ()
    errors: BadBytes = "strict"
    step: Step = None
    precision: Precision = "float32"
    json: Json = False


def score(argv: list[str]) -> None:
    """log-probability of every word of a text, forward and backward"""
    from elmojax.embedding.engine import local_mesh
    from elmojax.loading import open_model

    asked = parse(ScoreArguments, "score", argv)
    files = sum(asked.text, ())
    if not files:
        raise InputError("Give a text to score: --text FILE, one sentence a line.")
    paths = expand(files)
    keep_compiled_programs()
    say_which_model(asked.model, argv)
    model = open_model(asked.model, asked.step).cast(asked.precision)
    columns, odd = model.params.config.max_characters, Oddities()
    # All of it is read before the first line is printed, so what fails prints none.
    texts = [read_text(path, asked.errors, columns) for path in paths]
    scorer = model.scorer(local_mesh())
    for text in texts:
        odd.add(text.odd)
    remarks = remark(odd, columns)
    tokens = int(sum(text.sizes.sum() + len(text.sizes) for text in texts))

    def scores() -> Iterator[Score]:
        with tqdm(total=tokens, unit="token", desc="score", disable=None) as bar:
            for text in texts:
                yield from scorer(text.sentences(), bar.update)

    if asked.json:
        _print_json(scores(), remarks)
    else:
        _print_table(scores())


def _print_table(scores: Iterable[Score]) -> None:
    print("line\tposition\tword\tforward\tbackward")
    for line, one in enumerate(scores):
        marked = (word if known else f"{word}*" for word, known in _known(one))
        names = chain(marked, ["</S> <S>"])
        rows = zip(names, one.forward, one.backward, strict=True)
        for position, (word, forward, backward) in enumerate(rows, 1):
            print(f"{line}\t{position}\t{word}\t{forward:.5f}\t{backward:.5f}")
        print(f"{line}\tsum\t\t{one.forward_sum:.5f}\t{one.backward_sum:.5f}")


def _known(one: Score) -> Iterator[tuple[str, bool]]:
    return zip(one.words, one.known, strict=True)


def _print_json(scores: Iterable[Score], remarks: list[str]) -> None:
    """One object, written piece by piece: the text may be long, and so may a line."""
    total: dict[str, Any] = {"tokens": 0, "forward_sum": 0.0, "backward_sum": 0.0}
    print('{"unit": "nats", "sentences": [', end="")
    for line, one in enumerate(scores):
        print(", " if line else "", f'{{"line": {line}', sep="", end="")
        _print_list("tokens", one.words)
        unknown = np.flatnonzero(~one.known)
        _print_list("unknown", unknown, np.ndarray.tolist)
        _print_list("forward", one.forward[:-1], _rounded)
        _print_list("backward", one.backward[:-1], _rounded)
        ends = {
            "forward_end": _rounded(one.forward[-1:])[0],
            "backward_end": _rounded(one.backward[-1:])[0],
            "forward_sum": one.forward_sum,
            "backward_sum": one.backward_sum,
        }
        print(f", {json.dumps(ends)[1:]}", end="")
        total["tokens"] += len(one.forward)
        total["forward_sum"] += one.forward_sum
        total["backward_sum"] += one.backward_sum
    for way in ("forward", "backward"):
        mean = -total[f"{way}_sum"] / total["tokens"]
        total[f"{way}_perplexity"] = math.exp(min(mean, 700.0))
    print(f"], {json.dumps({**total, 'remarks': remarks})[1:]}")


def _print_list(
    name: str, values: Any, plain: Callable[[Any], list[Any]] = list
) -> None:
    """One field of an object, its values a few at a time, as `plain` makes them."""
    print(f', "{name}": [', end="")
    for start in range(0, len(values), PIECE):
        piece = json.dumps(plain(values[start : start + PIECE]))
        print(", " if start else "", piece[1:-1], sep="", end="")
    print("]", end="")


def _rounded(numbers: Any) -> list[float]:
    """As short as float32 goes."""
    return [float(str(number)) for number in numbers]

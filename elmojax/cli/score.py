"""`elmojax score`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from elmojax.cli import common
from elmojax.config import CountOrZero
from elmojax.errors import InputError
from elmojax.text.characters import BEGIN, END
from elmojax.text.vocabulary import SPECIALS, UNKNOWN_ID

if TYPE_CHECKING:
    from elmojax.training.score import Best, Score


@dataclass(frozen=True, kw_only=True)
class ScoreArguments(common.TextArguments, common.ModelArguments):
    """Gives the log-probability of every word after the words before it, and before the
    words after it.

    Each line is scored for itself, from the model's initial state. Columns, set apart
    by tabs: line (from 0), position (from 1), word, forward, backward. The row after a
    line's words is its end (forward) and its beginning (backward); the row `sum` adds
    the line up. Words outside the vocabulary are scored as <UNK> and marked with *. All
    devices of this machine share the work.
    """

    unit: Literal["nats", "bits"] | None = None
    """Unit of all numbers: natural logarithms (nats, the default) or logarithms to base
    2 (bits, the default of lm-zoo)."""
    direction: Literal["forward", "backward"] | None = None
    """Score in this direction only; by default in both, and forward for lm-zoo."""
    level: Literal["word", "sentence"] = "word"
    """Print one row a word, or one row a line with its sums."""
    entropy: common.Switch = False
    """Add the entropy of the distribution at each position, and the rank of the word
    that is there (1: the most probable one)."""
    top_k: CountOrZero = 0
    """Add so many substitutes of each word: the most probable words after those before
    it, before those after it, and by the product of both."""
    carry: common.Switch = False
    """Begin each line with the state that each direction ended the line before with, as
    in training; each file begins anew. The backward direction reads each line from its
    end, and knows of the lines before, not of those after. One device does the work."""
    output_format: Literal["table", "lm-zoo"] = "table"
    """Print the table described above, or lm-zoo's: sentence_id and token_id (from 1),
    token, surprisal (-log2 p); words outside the vocabulary are <UNK>, and the last row
    of a line is its end, </S> (backward: its beginning, <S>)."""
    json: common.Json = False

    @property
    def directions(self) -> tuple[str, ...]:
        if self.direction is None:
            lm_zoo = self.output_format == "lm-zoo"
            return ("forward",) if lm_zoo else ("forward", "backward")
        return (self.direction,)

    @property
    def scale(self) -> float:
        """What natural logarithms are multiplied by."""
        return 1 / math.log(2) if self.unit == "bits" else 1.0

    def check(self) -> None:
        """`InputError` for flags that do not go together."""
        by_sentence = self.level == "sentence"
        others = {
            "--json": self.json,
            "--level sentence": by_sentence,
            "--entropy": self.entropy,
            "--top-k": self.top_k,
            "--unit nats": self.unit == "nats",
        }
        found = [flag for flag, given in others.items() if given]
        if self.output_format == "lm-zoo" and found:
            raise InputError(
                "--output-format lm-zoo has one surprisal in bits a word and nothing "
                f"else; leave {found[0]} out."
            )
        if self.top_k and by_sentence:
            raise InputError(
                "--top-k gives substitutes of each word; leave --level sentence out."
            )


def score(argv: list[str]) -> None:
    """log-probability of every word of a text, forward and backward"""
    from elmojax.model.ops import local_mesh
    from elmojax.training.score import Measures

    asked = common.parse(ScoreArguments, "score", argv)
    asked.check()
    paths = asked.paths("Give a text to score: --text FILE, one sentence a line.")
    model = asked.open()
    columns = model.params.config.max_characters
    # All of it is read before the first line is printed, so what fails prints none.
    texts, odd = common.read_texts(paths, asked.errors, asked.format, columns)
    scorer = model.scorer(None if asked.carry else local_mesh())
    measures = Measures(asked.entropy, asked.top_k, asked.carry)
    scorer.check(measures)
    remarks = common.remark(odd, columns, asked.format)
    tokens = int(sum(text.sizes.sum() + len(text.sizes) for text in texts))

    def scores() -> Iterator[Score]:
        with tqdm(total=tokens, unit="token", desc="score", disable=None) as bar:
            for text in texts:
                yield from scorer(text.sentences(), bar.update, measures)

    if asked.json:
        _print_json(asked, scores(), remarks)
    elif asked.output_format == "lm-zoo":
        _print_lm_zoo(asked, scores())
    elif asked.level == "sentence":
        _print_sentences(asked, scores())
    else:
        _print_table(asked, scores())


def _names(asked: ScoreArguments) -> list[str]:
    """Names of the numbers of a position."""
    kinds = ("", "_entropy", "_rank") if asked.entropy else ("",)
    return [f"{way}{kind}" for kind in kinds for way in asked.directions]


def _tops(asked: ScoreArguments) -> list[str]:
    """By what substitutes are found."""
    if not asked.top_k:
        return []
    return [*asked.directions, *(["both"] if asked.direction is None else [])]


def _numbers(asked: ScoreArguments, one: Score, name: str) -> np.ndarray:
    """[words + 1], in the unit that was asked for."""
    of: np.ndarray = getattr(one, name)
    return of if name.endswith("_rank") else of * np.float32(asked.scale)


def _sum(asked: ScoreArguments, one: Score, name: str) -> float:
    of: np.ndarray = getattr(one, name)
    return float(of.sum(dtype=np.float64)) * asked.scale


def _end(asked: ScoreArguments) -> str:
    """What stands in the row after the words."""
    marks = {"forward": END, "backward": BEGIN}
    return " ".join(marks[way] for way in asked.directions)


def _print_table(asked: ScoreArguments, scores: Iterable[Score]) -> None:
    names, tops = _names(asked), _tops(asked)
    headings = ["line", "position", "word", *names, *(f"{top}_top" for top in tops)]
    print(*headings, sep="\t")
    for line, one in enumerate(scores):
        pairs = zip(one.words, one.known, strict=True)
        marked = (word if known else f"{word}*" for word, known in pairs)
        columns = [_numbers(asked, one, name) for name in names]
        for n, word in enumerate(chain(marked, [_end(asked)])):
            cells = [_plain(column[n]) for column in columns]
            if n < len(one.words):
                best = (_best(asked, one, top, n) for top in tops)
                cells += [
                    " ".join(f"{word}={of:.5f}" for word, of in each) for each in best
                ]
            print(line, n + 1, word, *cells, sep="\t")
        sums = [
            "" if name.endswith("_rank") else _plain(_sum(asked, one, name))
            for name in names
        ]
        print(line, "sum", "", *sums, sep="\t")


def _plain(number: Any) -> str:
    return f"{number:.5f}" if isinstance(number, (float, np.floating)) else f"{number}"


def _best(
    asked: ScoreArguments, one: Score, top: str, n: int
) -> list[tuple[str, float]]:
    """Substitutes and their log-probabilities, the most probable first."""
    best: Best = getattr(one.substitutes, top)
    log_probs = best.log_probs[n] * np.float32(asked.scale)
    return [*zip(best.words[n], _rounded(log_probs), strict=True)]


def _print_sentences(asked: ScoreArguments, scores: Iterable[Score]) -> None:
    names = [name for name in _names(asked) if not name.endswith("_rank")]
    print("line", "words", "unknown", *names, sep="\t")
    for line, one in enumerate(scores):
        sums = (f"{_sum(asked, one, name):.5f}" for name in names)
        print(line, len(one.words), int((~one.known).sum()), *sums, sep="\t")


def _print_lm_zoo(asked: ScoreArguments, scores: Iterable[Score]) -> None:
    """As its `get_surprisals` prints: tokens are entries of the vocabulary."""
    (way,) = asked.directions
    print("sentence_id", "token_id", "token", "surprisal", sep="\t")
    for line, one in enumerate(scores, 1):
        pairs = zip(one.words, one.known, strict=True)
        tokens = (word if known else SPECIALS[UNKNOWN_ID] for word, known in pairs)
        log_probs = getattr(one, way) / math.log(2)
        for n, token in enumerate(chain(tokens, [_end(asked)])):
            print(line, n + 1, token, f"{max(0.0, -log_probs[n]):.5f}", sep="\t")


def _print_json(
    asked: ScoreArguments, scores: Iterable[Score], remarks: list[str]
) -> None:
    """One object, written line by line: the text may be long."""
    summed = [name for name in _names(asked) if not name.endswith("_rank")]
    total = {"tokens": 0, **{f"{name}_sum": 0.0 for name in summed}}
    print(f'{{"unit": "{asked.unit or "nats"}", "sentences": [', end="")
    for line, one in enumerate(scores):
        sums = {f"{name}_sum": _sum(asked, one, name) for name in summed}
        entry = {"line": line, **_entry(asked, one), **sums}
        print(", " if line else "", json.dumps(entry), sep="", end="")
        total["tokens"] += len(one.forward)
        for name, number in sums.items():
            total[name] += number
    for way in asked.directions:
        mean = -total[f"{way}_sum"] / asked.scale / total["tokens"]
        total[f"{way}_perplexity"] = math.exp(min(mean, 700.0))
    print(f"], {json.dumps({**total, 'remarks': remarks})[1:]}")


def _entry(asked: ScoreArguments, one: Score) -> dict[str, Any]:
    """A line in JSON, but for its sums."""
    if asked.level == "sentence":
        return {"words": len(one.words), "unknown": int((~one.known).sum())}
    numbers = {name: _rounded(_numbers(asked, one, name)) for name in _names(asked)}
    places = range(len(one.words))
    return {
        "tokens": one.words,
        "unknown": np.flatnonzero(~one.known).tolist(),
        **{name: each[:-1] for name, each in numbers.items()},
        **{
            f"{top}_top": [_best(asked, one, top, n) for n in places]
            for top in _tops(asked)
        },
        **{f"{name}_end": each[-1] for name, each in numbers.items()},
    }


def _rounded(numbers: np.ndarray) -> list[float]:
    """As short as float32 goes; integers as they are."""
    if numbers.dtype.kind == "i":
        return list(numbers.tolist())
    return [float(str(number)) for number in numbers]

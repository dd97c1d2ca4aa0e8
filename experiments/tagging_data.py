"""Tagged sentences for tagging.py: files of columns, batches of few shapes, scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

import elmojax
from elmojax import InputError
from elmojax.embedding.words import WordIndex
from elmojax.text.files import split

PADDING, UNKNOWN = 0, 1
"""Ids of the task's own words; the others follow."""
SHORTEST = 16
"""Positions of the shortest batches; the others have 32, 64 ..."""


class Sentence(NamedTuple):
    """Words, and a tag for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class Batch(NamedTuple):
    """Arrays of one step; rows and positions past the end hold 0."""

    tokens: np.ndarray | None
    """Words as the biLM numbers them, int32 [batch, time]; None without ELMo."""
    words: np.ndarray
    """Words as the task numbers them, int32 [batch, time]."""
    tags: np.ndarray
    """int32 [batch, time]."""
    mask: np.ndarray
    """bool [batch, time]."""


def read_columns(path: Path, column: int) -> list[Sentence]:
    """Sentences of a CoNLL file: a word a line, blank lines between sentences.

    Args:
      path: UTF-8 text, columns parted by tabs or blanks; the first is the word.
      column: the tag's, from 0; -1 is the last.

    Raises:
      InputError: if the file cannot be read, or a line lacks the column.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"{path} cannot be read: {reason}.") from error
    sentences, words, tags = [], [], []
    for number, line in enumerate([*lines, ""], start=1):
        fields = line.split("\t") if "\t" in line else split(line)
        if any(fields):
            if not -len(fields) <= column < len(fields) or len(fields) < 2:
                raise InputError(
                    f"{path}, line {number} has {len(fields)} columns and no column "
                    f"{column}; the word is column 0, and --column names the tag's."
                )
            words.append(fields[0].strip(" "))
            tags.append(fields[column].strip(" "))
        elif words:
            sentences.append(Sentence(tuple(words), tuple(tags)))
            words, tags = [], []
    if not sentences:
        raise InputError(f"{path} holds no sentence.")
    return sentences


@dataclass(frozen=True)
class Numbering:
    """Words and tags of the training text as numbers, and the biLM's words."""

    words: dict[str, int]
    tags: list[str]
    elmo: WordIndex | None

    @classmethod
    def of(cls, train: Sequence[Sentence], elmo: WordIndex | None) -> Numbering:
        """Words that are read once stay unknown, so that the unknown is trained."""
        count = Counter(word for sentence in train for word in sentence.words)
        known = sorted(word for word, times in count.items() if times > 1)
        tags = sorted({tag for sentence in train for tag in sentence.tags})
        return cls({w: i for i, w in enumerate(known, UNKNOWN + 1)}, tags, elmo)

    def batch(self, sentences: Sequence[Sentence], rows: int) -> Batch:
        """Arrays for `sentences`, filled up to `rows` and to one of few lengths.

        A tag that the training text lacks becomes 0: only scores may read it.
        """
        time = max(padded_length(sentence) for sentence in sentences)
        words, tags, tokens = np.zeros((3, rows, time), np.int32)
        place = {tag: number for number, tag in enumerate(self.tags)}
        for row, (spelt, tagged) in enumerate(sentences):
            ids = [self.words.get(word, UNKNOWN) for word in spelt]
            words[row, : len(spelt)] = ids
            tags[row, : len(spelt)] = [place.get(tag, 0) for tag in tagged]
        if self.elmo is not None:
            ids = elmojax.word_ids(self.elmo, [s.words for s in sentences])
            tokens[: ids.shape[0], : ids.shape[1]] = ids
        given = None if self.elmo is None else tokens
        return Batch(given, words, tags, words != PADDING)


def padded_length(sentence: Sentence) -> int:
    """Positions of the batches that a sentence is in: a power of two."""
    return max(SHORTEST, 1 << (len(sentence.words) - 1).bit_length())


def plan(
    sentences: Sequence[Sentence], rows: int, random: np.random.Generator | None = None
) -> list[list[Sentence]]:
    """Groups of at most `rows` sentences of about one length: few shapes to compile.

    With `random`, sentences and groups come in random order.
    """
    order = np.arange(len(sentences))
    if random is not None:
        random.shuffle(order)
    buckets: dict[int, list[Sentence]] = {}
    for number in order:
        sentence = sentences[number]
        buckets.setdefault(padded_length(sentence), []).append(sentence)
    groups = [
        bucket[at : at + rows]
        for bucket in buckets.values()
        for at in range(0, len(bucket), rows)
    ]
    if random is not None:
        random.shuffle(groups)
    return groups


def numpy_batches(
    groups: Sequence[list[Sentence]], make: Callable[[list[Sentence]], Batch]
) -> Iterator[Batch]:
    """Each batch as it is asked for."""
    return map(make, groups)


def grain_batches(
    groups: Sequence[list[Sentence]], make: Callable[[list[Sentence]], Batch]
) -> Iterator[Batch]:
    """The same batches, made ahead by two threads of Grain.

    Raises:
      InputError: if Grain is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise InputError("--loader grain needs Grain: pip install grain.") from error
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.source(groups).map(make).to_iter_dataset(ahead))


def score(
    gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]], chunks: bool
) -> float:
    """Per cent: F1 of chunks as conlleval counts it, or of tags that are right."""
    if not chunks:
        pairs = zip(chain(*gold), chain(*found), strict=True)
        return 100 * float(np.mean([wanted == got for wanted, got in pairs]))
    wanted, got = (
        {(row, *span) for row, tags in enumerate(side) for span in spans(tags)}
        for side in (gold, found)
    )
    return 200 * len(wanted & got) / max(len(wanted) + len(got), 1)


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first, end) of the chunks in IOB tags.

    A chunk begins at B-, and at I- after another kind or outside (conlleval).
    """
    chunks, kind, first = set(), "", 0
    for at, tag in enumerate([*tags, "O"]):
        mark, _, here = tag.partition("-")
        if kind and (mark != "I" or here != kind):
            chunks.add((kind, first, at))
            kind = ""
        if mark in ("B", "I") and not kind:
            kind, first = here, at
    return chunks

"""Vocabularies: the words that the softmax knows, in the file format of bilm-tf.

A vocabulary file is UTF-8 with one word a line: `<S>`, `</S>`, `<UNK>`, then the words
by falling count. The line number, from 0, is the id; a line `!!!MAXTERMID`, which
bilm-tf passes over, is none. gzip may have packed it.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from elmojax.arguments import require
from elmojax.config import Count, VocabularySize
from elmojax.disk import replacing
from elmojax.errors import InputError

SPECIALS = ("<S>", "</S>", "<UNK>")
BEGIN_ID, END_ID, UNKNOWN_ID = 0, 1, 2
NO_WORD = "!!!MAXTERMID"
LARGEST = 1 << 30
"""Bytes of a vocabulary file, unpacked."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a softmax; a word's id is its place. Compares by its words.

    Raises `InputError` unless `<S>`, `</S>`, `<UNK>` come first, every word is there
    once, and none is empty or holds a space, a tab or an end of line.
    """

    words: tuple[str, ...]
    source: str | None = field(default=None, compare=False)
    """The file it was read from, for error messages."""
    trained: bool = field(default=False, compare=False)
    """Whether a softmax has its words in this order already: then all of them keep
    their places, whatever they are, and of equal ones the last is meant."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        _check_specials(self.words, self._name)
        if not self.trained:
            _check_words(self.words, self._name)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def _name(self) -> str:
        return self.source or "the vocabulary"

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """The id of each word: int32 [words]; 2 (`<UNK>`) for one that is not here."""
        get = self._ids.get
        return np.fromiter((get(w, UNKNOWN_ID) for w in words), np.int32, len(words))

    @classmethod
    def from_counts(
        cls,
        words: Sequence[str],
        counts: Sequence[int] | np.ndarray,
        max_size: int | None = None,
        min_count: int = 1,
    ) -> Vocabulary:
        """The most frequent words: by falling count, equal counts by code point.

        `max_size` counts the three special words in. Words that occur fewer than
        `min_count` times are left out, and so are those that hold a space.
        `InputError` if that leaves no word at all.
        """
        check_limits(max_size, min_count)
        ranked = frequent_words(words, counts, min_count)
        ranked = [word for word in ranked if word not in (*SPECIALS, NO_WORD)]
        if not ranked:
            raise InputError(
                f"The vocabulary would be empty: no word occurs {min_count} times or "
                "more. Lower min_count (--min-count) or give more text."
            )
        kept = ranked if max_size is None else ranked[: max_size - len(SPECIALS)]
        return cls((*SPECIALS, *kept))

    @classmethod
    def read(cls, path: str | os.PathLike[str], trained: bool = False) -> Vocabulary:
        """Reads a vocabulary file. `InputError` names the file and the line at fault.

        Lines end with a line feed, or a carriage return and a line feed, only
        (bilm-tf's published files hold words with odd characters); a byte-order mark
        at the start is dropped.
        """
        return cls(tuple(listed_words(path)), str(path), trained)

    @classmethod
    def read_trained(
        cls, path: str | os.PathLike[str]
    ) -> tuple[Vocabulary, np.ndarray | None]:
        """Reads the vocabulary file of a trained softmax, whatever its order.

        bilm-tf finds the special words wherever they stand; here they come first.

        Returns the vocabulary and, where it is another order than that of the file,
        the place of each of its words there: int64 [words]. `InputError` for a file
        that lacks a special word, and as `read`.
        """
        listed = listed_words(path)
        row_of = {word: number for number, word in enumerate(listed)}
        if listed[: len(SPECIALS)] == [*SPECIALS] or not row_of.keys() >= {*SPECIALS}:
            return cls(tuple(listed), str(path), trained=True), None
        first = [row_of[word] for word in SPECIALS]
        order = np.array([*first, *sorted(set(range(len(listed))) - set(first))])
        words = tuple(listed[number] for number in order)
        return cls(words, str(path), trained=True), order

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary file; a reader sees the old one or the whole new one.

        `InputError` if the place cannot be written.
        """
        path = Path(path)
        try:
            with replacing(path) as partial:
                partial.write_bytes(write_words(self.words))
        except OSError as error:
            raise InputError(
                f"The vocabulary cannot be written to {path}: {error.strerror}."
            ) from error

    def check_sorted(self, counts: Sequence[int] | np.ndarray) -> None:
        """Refuses an order that is not by falling count; counts[i] is word i's.

        The adaptive softmax takes the rank of a word for its frequency. The three
        special words may stand first whatever their counts.
        """
        counts = np.asarray(counts, np.int64)
        if counts.shape != (len(self),):
            raise InputError(
                f"check_sorted needs one count a word: {len(self)} for {self._name}, "
                f"not an array of shape {counts.shape}."
            )
        rises = np.flatnonzero(np.diff(counts[len(SPECIALS) :]) > 0)
        if len(rises):
            i = int(rises[0]) + len(SPECIALS) + 1
            raise InputError(
                f"Line {i + 1} of {self._name}: {self.words[i]!r} occurs {counts[i]} "
                f"times in the text but {self.words[i - 1]!r} before it only "
                f"{counts[i - 1]} times. The softmax needs words by falling count: "
                "let `elmojax prepare` build the vocabulary, or, to keep that of a "
                "trained model, take --head.kind full."
            )


def check_limits(max_size: int | None, min_count: int) -> tuple[int | None, int]:
    """Limits of `from_counts` as Python's numbers; `InputError` if out of range."""
    size = "the vocabulary size (--max-vocabulary)"
    max_size = require(size, max_size, VocabularySize | None)
    return max_size, require("min_count (--min-count)", min_count, Count)


def frequent_words(
    words: Sequence[str],
    counts: Sequence[int] | np.ndarray,
    min_count: int = 1,
    most: int | None = None,
) -> list[str]:
    """The words that occur so often or more, at most so many of them, by falling count,
    equal counts by code point. Words that hold a space are left out: files of words
    have no place for them."""
    counts = np.asarray(counts, np.int64)
    order = order_by_count(words, counts)
    ranked = [words[i] for i in order[counts[order] >= min_count]]
    return [word for word in ranked if " " not in word][:most]


def order_by_count(
    words: Sequence[str], counts: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Indices of the words by falling count, equal counts by code point: int64."""
    by_word = np.array(sorted(range(len(words)), key=words.__getitem__), np.int64)
    falling = -np.asarray(counts, np.int64)[by_word]
    return by_word[np.argsort(falling, kind="stable")]


def read_words(data: bytes, where: object) -> list[str]:
    """The lines of a word file; `where` names it in the `InputError` for bad UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"Line {line} of {where} is not UTF-8 ({error.reason}); convert the file, "
            "for example with `iconv -t UTF-8`."
        ) from error
    if not text:
        raise InputError(f"{where} is empty; was it copied or downloaded whole?")
    lines = text.removeprefix("\ufeff").removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if "\r" in text else lines


def listed_words(path: str | os.PathLike[str]) -> list[str]:
    """The words of a file in bilm-tf's format: its lines without `!!!MAXTERMID`.

    `InputError` for a file that cannot be read, or holds more than `LARGEST` bytes.
    """
    try:
        with open(path, "rb") as file:
            opened: Any = gzip.open if file.read(2) == b"\x1f\x8b" else open
        with opened(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"The vocabulary {path} cannot be read: {why}.") from error
    if len(data) > LARGEST:
        raise InputError(f"The vocabulary {path} holds over {LARGEST:,} bytes.")
    return [word for word in read_words(data, path) if word != NO_WORD]


def write_words(words: Sequence[str]) -> bytes:
    """The bytes of a word file: UTF-8, one word a line."""
    return "".join(f"{word}\n" for word in words).encode("utf-8")


_BLANK = re.compile("[ \t\r]")


def _check_specials(words: tuple[str, ...], where: str) -> None:
    if words[: len(SPECIALS)] != SPECIALS:
        raise InputError(
            f"The first three lines of {where} must be {', '.join(SPECIALS)}, not "
            f"{', '.join(words[: len(SPECIALS)])}. Let `elmojax prepare` build the "
            "vocabulary; that of a trained model must have these words somewhere."
        )


def _check_words(words: tuple[str, ...], where: str) -> None:
    # At once first: there may be a million words.
    lines = "\n".join(words)
    if "" in words or lines.count("\n") >= len(words) or _BLANK.search(lines):
        bad = ("\n" in word or not word or _BLANK.search(word) for word in words)
        i = next(i for i, wrong in enumerate(bad) if wrong)
        what = f"{words[i]!r} holds white space" if words[i] else "no word"
        raise InputError(
            f"Line {i + 1} of {where}: {what}. A vocabulary has one word a line."
        )
    if len(set(words)) != len(words):
        seen: dict[str, int] = {}
        for i, word in enumerate(words):
            if seen.setdefault(word, i) != i:
                raise InputError(
                    f"{word!r} is in {where} twice, on lines {seen[word] + 1} and "
                    f"{i + 1}, and a word has one id. Let `elmojax prepare` build the "
                    "vocabulary of a new model."
                )

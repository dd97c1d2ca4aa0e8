"""The uses of words: every place of texts where they stand, with the sentences.

`find_uses` is for one word and keeps its sentences; `occurrences_of` is for a list of
words and texts of any length, and keeps their places alone.

Short sentences about six words that mean two things each lie inside the package
(`sense_files`), a file a sense, as many of each.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elmojax.errors import InputError
from elmojax.text.files import Text


class Use(NamedTuple):
    """A word in its sentence."""

    words: list[str]
    """The sentence."""
    position: int
    """Place of the word in it, from 0."""
    text: int = 0
    """Number of the text that the sentence is from, from 0."""
    line: int = 0
    """Its line there, from 0."""

    @property
    def word(self) -> str:
        """The word itself."""
        return self.words[self.position]

    def snippet(self, width: int, mark: str = "{}") -> str:
        """The words around this one, in about `width` characters.

        `mark` is how the word itself is written, as "[{}]"; "..." stands for what is
        left out.
        """
        begin, end = self.position, self.position + 1
        size = len(self.word)
        while begin > 0 or end < len(self.words):
            # The side that has shown fewer words goes first.
            before = self.position - begin < end - self.position
            before = begin > 0 and (before or end == len(self.words))
            size += 1 + len(self.words[begin - 1 if before else end])
            if size > width:
                break
            begin, end = (begin - 1, end) if before else (begin, end + 1)
        shown = [*self.words[begin:end]]
        shown[self.position - begin] = mark.format(self.word)
        left = ["..."] if begin else []
        right = ["..."] if end < len(self.words) else []
        return " ".join([*left, *shown, *right])


def use_in(words: Sequence[str], word: str, occurrence: int | None = None) -> Use:
    """The use of a word in one sentence.

    Args:
      words: the sentence.
      word: one of its words, in its spelling.
      occurrence: which, from 1, where the word stands there more than once.

    Raises:
      InputError: if the word is not there, or it is not said which is meant.
    """
    positions = [n for n, one in enumerate(words) if one == word]
    if not positions:
        listed = " ".join(words) or "none"
        listed = listed if len(listed) <= 200 else f"{listed[:200]}..."
        raise InputError(
            f"The sentence has no word {word!r:.80}: its words are what spaces set "
            f"apart ({listed}). Give one of them with --word."
        )
    if occurrence is None and len(positions) > 1:
        raise InputError(
            f"{word!r:.80} stands {len(positions)} times in the sentence; say which is "
            f"meant, --occurrence 1 to {len(positions)}."
        )
    if (occurrence or 1) > len(positions):
        count = "once" if len(positions) == 1 else f"{len(positions)} times"
        raise InputError(
            f"--occurrence is {occurrence}, and {word!r:.80} stands {count} in the "
            "sentence; give a smaller one."
        )
    return Use(list(words), positions[(occurrence or 1) - 1])


def find_uses(word: str, texts: Sequence[Text]) -> tuple[list[Use], list[str]]:
    """All uses of a word, in this spelling, and all distinct words of the texts.

    Keeps the sentences that hold the word, and each distinct word once.

    Raises:
      InputError: if no text has the word.
    """
    uses: list[Use] = []
    seen: Counter[str] = Counter()
    for number, text in enumerate(texts):
        for line, words in enumerate(text.sentences()):
            seen.update(words)
            uses += (
                Use(words, position, number, line)
                for position, one in enumerate(words)
                if one == word
            )
    if not uses:
        raise _not_there(word, seen, [text.path for text in texts])
    return uses, list(seen)


@dataclass(frozen=True, eq=False, kw_only=True)
class Occurrences(Text):
    """A text of which only some words are kept, and only the lines that hold any.

    `sizes` counts those words; `sentences` has all words of those lines.
    """

    whole: Text
    lines: np.ndarray
    positions: np.ndarray
    found: Counter[str]
    """How often each word is there."""

    def sentences(self, start: int = 0) -> Iterator[list[str]]:
        left = iter(self.lines[start:].tolist())
        wanted = next(left, None)
        for number, words in enumerate(self.whole.sentences()):
            if number == wanted:
                yield words
                wanted = next(left, None)

    def positions_in(self, line: int) -> np.ndarray:
        return self.positions[self._starts[line] : self._starts[line + 1]]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.append(0, np.cumsum(self.sizes, dtype=np.int64))


def occurrences_of(words: frozenset[str], text: Text) -> Occurrences:
    """Where some words stand in a text, in this spelling; it is read once more.

    Keeps four bytes an occurrence, and twelve a line that has one.
    """
    lines, sizes, positions = array("q"), array("i"), array("i")
    found, size = Counter[str](), 0
    for number, sentence in enumerate(text.sentences()):
        here = [n for n, word in enumerate(sentence) if word in words]
        if here:
            lines.append(number)
            sizes.append(len(here))
            positions.extend(here)
            found.update(sentence[n] for n in here)
            size += len(" ".join(sentence).encode("utf-8")) + 1
    names = None if text.names is None else [text.names[number] for number in lines]
    kept = {
        "sizes": np.array(sizes, np.int32),
        "bytes": size,
        "names": names,
        "lines": np.array(lines, np.int64),
        "positions": np.array(positions, np.int32),
    }
    return Occurrences(**{**vars(text), **kept}, whole=text, found=found)


def _not_there(word: str, seen: Counter[str], paths: Sequence[Path]) -> InputError:
    where = str(paths[0]) if len(paths) == 1 else f"None of {len(paths)} texts"
    has = "has no word" if len(paths) == 1 else "has the word"
    others = [one for one in seen if one.casefold() == word.casefold()][:3]
    if others:
        counted = ", ".join(f"{one} ({seen[one]:,})" for one in others)
        return InputError(
            f"{where} {has} {word!r:.80} in this spelling, only {counted}; a word and "
            "its uses must be spelled alike."
        )
    return InputError(
        f"{where} {has} {word!r:.80}; give --among texts in which it occurs as a word "
        "by itself, set apart by spaces."
    )


def sense_files() -> list[Path]:
    """The sentences that ship in the package, by name: `bank-money.txt`, ..."""
    folder = Path(str(resources.files("elmojax") / "sample" / "senses"))
    return sorted(folder.glob("*.txt"))


def sense_words(paths: Iterable[Path]) -> list[str]:
    """The words that these files are about."""
    return sorted({path.stem.partition("-")[0] for path in paths})

"""Questions in the format of SQuAD: files, words with their places, EM and F1.

Versions 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): JSON with `data`, `paragraphs`,
`qas`, `answers`; an answer is a text and where it begins in the paragraph.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from elmojax import InputError
from elmojax.disk import read_object

WORDS = re.compile(
    r"\w+(?=n['’]t\b)"  # do of don't
    r"|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b"
    r"|\d+(?:[.,:]\d+)+"  # 1,000.5
    r"|\w+|[^\w\s]"
)


class Word(NamedTuple):
    """A word of a context, and where it is there."""

    text: str
    start: int
    end: int


def words_of(text: str) -> tuple[Word, ...]:
    """The words of a text, marks apart, each with the places of its characters."""
    return tuple(Word(m.group(), *m.span()) for m in WORDS.finditer(text))


@dataclass(frozen=True)
class Context:
    """A paragraph."""

    text: str

    @cached_property
    def found(self) -> tuple[Word, ...]:
        return words_of(self.text)

    @cached_property
    def words(self) -> tuple[str, ...]:
        return tuple(word.text for word in self.found)

    def cut(self, first: int, last: int) -> str:
        """The text from word `first` to the end of word `last`."""
        return self.text[self.found[first].start : self.found[last].end]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """First and last of the words that share characters with [start, end)."""
        inside = [
            number
            for number, word in enumerate(self.found)
            if word.start < end and word.end > start
        ]
        return inside[0], inside[-1]


class Question(NamedTuple):
    """A question on a paragraph."""

    name: str
    words: tuple[str, ...]
    context: Context
    answers: tuple[str, ...]
    """All that count as right; none where the paragraph does not answer it."""
    span: tuple[int, int] | None
    """First and last word of the first answer."""


def read_squad(path: Path) -> list[Question]:
    """Questions of a file in the format of SQuAD 1.1 or 2.0.

    Raises:
      InputError: for a file that cannot be read or has another format, a question or
        context without words, an answer that is not where it is said to be, and a file
        without questions. The message says at which place.
    """
    try:
        read = read_object(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; give a JSON file of SQuAD."
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} holds no JSON object: {error}; give one of SQuAD."
        ) from error
    questions: list[Question] = []
    for a, article in enumerate(_list(path, read, "data", "")):
        place = f"data[{a}]"
        for p, paragraph in enumerate(_list(path, article, "paragraphs", place)):
            here = f"{place}.paragraphs[{p}]"
            context = Context(_field(path, paragraph, "context", here, str))
            if not context.words:
                raise InputError(f"{path}: {here}.context has no words.")
            for q, qa in enumerate(_list(path, paragraph, "qas", here)):
                questions.append(_question(path, qa, context, f"{here}.qas[{q}]"))
    if not questions:
        raise InputError(f"{path} holds no questions.")
    return questions


def _question(path: Path, qa: Any, context: Context, place: str) -> Question:
    words = tuple(w.text for w in words_of(_field(path, qa, "question", place, str)))
    if not words:
        raise InputError(f"{path}: {place}.question has no words.")
    impossible = bool(qa.get("is_impossible", False))
    given = [] if impossible else _list(path, qa, "answers", place)
    if not impossible and not given:
        raise InputError(
            f"{path}: {place} has no answers; one that the context does not answer "
            'must have "is_impossible": true.'
        )
    answers, span = [], None
    for number, answer in enumerate(given):
        at = f"{place}.answers[{number}]"
        text = _field(path, answer, "text", at, str)
        start = _field(path, answer, "answer_start", at, int)
        if not words_of(text) or start < 0 or not context.text.startswith(text, start):
            raise InputError(
                f"{path}: {at} is {text[:40]!r}, which does not stand at character "
                f"{start} of its context; correct text or answer_start."
            )
        answers.append(text)
        span = span or context.span(start, start + len(text))
    return Question(str(qa.get("id", place)), words, context, tuple(answers), span)


def _field(path: Path, owner: Any, name: str, place: str, kind: type) -> Any:
    value = owner.get(name) if isinstance(owner, dict) else None
    if not isinstance(value, kind):
        what = {str: "a text", int: "a whole number", list: "a list"}[kind]
        where = f"{place}.{name}".lstrip(".")
        raise InputError(
            f"{path} is not in the format of SQuAD: {where} is not {what}."
        )
    return value


def _list(path: Path, owner: Any, name: str, place: str) -> list[Any]:
    return _field(path, owner, name, place, list)


def normalized(answer: str) -> list[str]:
    """The words of an answer that count: lower case, no ASCII marks, no articles."""
    letters = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", letters).split()


def exact_match(found: str, answer: str) -> float:
    """1 if both are the same when normalised, else 0."""
    return float(normalized(found) == normalized(answer))


def token_f1(found: str, answer: str) -> float:
    """Harmonic mean of the shares of words of each that are in the other.

    If one has no words that count, as where there is no answer: 1 if the other has none
    either, else 0.
    """
    got, wanted = normalized(found), normalized(answer)
    if not got or not wanted:
        return float(got == wanted)
    common = (Counter(got) & Counter(wanted)).total()
    return 2 * common / (len(got) + len(wanted))


def squad_scores(
    found: Sequence[str], questions: Sequence[Question]
) -> dict[str, float]:
    """F1 and EM in per cent, as the script of SQuAD 2.0 counts them.

    For each question the best of all its answers counts; right for a question that has
    none is the empty text.

    Args:
      found: an answer for each question, "" for none.
      questions: with what is right.
    """
    totals = {"F1": 0.0, "EM": 0.0}
    for text, question in zip(found, questions, strict=True):
        right = [a for a in question.answers if normalized(a)] or [""]
        totals["F1"] += max(token_f1(text, answer) for answer in right)
        totals["EM"] += max(exact_match(text, answer) for answer in right)
    return {name: 100 * total / len(questions) for name, total in totals.items()}

"""The files of tasks: words in columns, and uses of words with their senses.

All are UTF-8 text. A file of another format ends in an `InputError` that names the
line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from elmojax import InputError
from elmojax.text.formats import split


class Sentence(NamedTuple):
    """Words, and a tag for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class Use(NamedTuple):
    """A word in a sentence, and which of its senses it has there."""

    word: str
    sense: str
    place: int
    """Of the word in the sentence, from 0."""
    words: tuple[str, ...]


def read_lines(path: Path) -> list[str]:
    """The lines of a text, without their ends.

    Raises `InputError` for a file that cannot be read or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"{path} cannot be read: {reason}; give a text file in UTF-8."
        ) from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_columns(path: Path, column: int) -> list[Sentence]:
    """Sentences of a file with a word a line and blank lines between sentences.

    CoNLL-U is read too: its words are those with a whole number in column ID, and they
    have the columns FORM, UPOS, XPOS.

    Args:
      path: columns parted by tabs or blanks; the first is the word.
      column: the tag's, from 0; -1 is the last.

    Raises:
      InputError: if the file cannot be read, a line lacks the column, or there is no
        sentence.
    """
    sentences, words, tags = [], [], []
    for number, fields in _rows(path):
        if not fields:
            if words:
                sentences.append(Sentence(tuple(words), tuple(tags)))
                words, tags = [], []
            continue
        if not -len(fields) <= column < len(fields) or len(fields) < 2:
            raise InputError(
                f"{path}, line {number} has {len(fields)} columns and no column "
                f"{column}; the word is column 0, and --column names the tag's."
            )
        words.append(fields[0].strip(" "))
        tags.append(fields[column].strip(" "))
        if not words[-1] or not tags[-1]:
            raise InputError(f"{path}, line {number} has an empty word or tag.")
    if not sentences:
        raise InputError(f"{path} holds no sentence.")
    return sentences


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and columns, none for a blank line; a blank line is the last."""
    lines = [*read_lines(path), ""]
    conllu = any(_is_conllu(line) for line in lines[:100])
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t") if "\t" in line else split(line)
        if conllu and line.startswith("#"):
            continue
        if conllu and any(fields):
            if len(fields) != 10:
                raise InputError(
                    f"{path}, line {number} has {len(fields)} columns; a line of "
                    "CoNLL-U has 10, parted by tabs."
                )
            if not fields[0].isdecimal():  # 1-2: several words in one; 1.1: none there
                continue
            fields = [fields[1], fields[3], fields[4]]
        yield number, fields if any(fields) else []


def _is_conllu(line: str) -> bool:
    fields = line.split("\t")
    return len(fields) == 10 and fields[0][:1].isdecimal()


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, list[str]]]:
    """Line numbers and fields of a file of tabs whose first line names `columns`.

    Raises:
      InputError: for a file that cannot be read, another first line, a line with
        another number of fields or an empty one, and a file without rows.
    """
    head, *lines = read_lines(path)
    if head.split("\t") != list(columns):
        raise InputError(
            f"{path} begins with {head[:60]!r}; its first line must name the columns "
            f"{', '.join(columns)}, parted by tabs."
        )
    return split_fields(path, lines, columns, first=2)


def split_fields(
    path: Path, lines: list[str], columns: tuple[str, ...], first: int = 1
) -> list[tuple[int, list[str]]]:
    """Line numbers and fields of lines whose fields are parted by tabs.

    Raises:
      InputError: for a line with another number of fields, an empty field, no lines.
    """
    rows = []
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        fields = [field.strip(" ") for field in line.split("\t")]
        if len(fields) != len(columns):
            raise InputError(
                f"{path}, line {number} has {len(fields)} columns; it must have "
                f"{', '.join(columns)}, parted by tabs."
            )
        for name, field in zip(columns, fields, strict=True):
            if not field:
                raise InputError(f"{path}, line {number} has an empty {name}.")
        rows.append((number, fields))
    if not rows:
        raise InputError(f"{path} holds no rows.")
    return rows


def read_senses(path: Path) -> list[Use]:
    """Uses of words: a file of tabs with word, sense, target_index and sentence.

    Raises:
      InputError: as `read_table` does, and for a target_index that is no word's.
    """
    uses = []
    columns = ("word", "sense", "target_index", "sentence")
    for number, (word, sense, place, sentence) in read_table(path, columns):
        words = tuple(split(sentence))
        if not place.isdecimal() or int(place) >= len(words):
            raise InputError(
                f"{path}, line {number} has the target_index {place!r} in a sentence "
                f"of {len(words)} words; it must be a whole number from 0."
            )
        uses.append(Use(word, sense, int(place), words))
    return uses

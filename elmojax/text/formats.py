"""Formats of text files: what is a sentence in them, and what a word.

    text    a sentence a line; spaces and tabs set words apart
    conllu  CoNLL-U (universaldependencies.org/format.html): a word a row, column FORM;
            rows of ranges (1-2) and of empty nodes (1.1) and comments are left out
    jsonl   a sentence a line, a JSON list of its words; a blank line has none
    fasta   a protein a record, its residues the words, in upper case, as SeqVec
            (Heinzinger et al. 2019) reads them; a stop (*) at its end is left out

A word of CoNLL-U or JSON may hold spaces. The readers here turn blocks of lines of a
file into blocks of sentences, each a line in which tabs, and tabs alone, set words
apart; they keep no more of a file than the sentence that is not whole yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from elmojax.disk import parse_json
from elmojax.errors import InputError
from elmojax.text.characters import BEGIN, END

Format = Literal["text", "conllu", "jsonl", "fasta"]
LONGEST = 64 << 20
"""Bytes of a line, and letters of a protein."""


class TextBlock(NamedTuple):
    """Some successive lines of a text."""

    first_line: int
    """Number of the first line, from 1."""
    lines: list[str]
    replaced: int
    """Lines with undecodable bytes, which became U+FFFD."""
    position: int
    """How far reading has come: bytes of the file as it lies on disk."""
    tabs: bool = False
    """Whether tabs alone set words apart, as where lines are made of other formats."""
    names: list[str] | None = None
    """The ids of the lines, in FASTA."""

    def sentences(self) -> Iterator[list[str]]:
        """The words of each line."""
        return (words_of(line, self.tabs) for line in self.lines)


def words_of(line: str, tabs: bool = False) -> list[str]:
    """The words of a line: what spaces and tabs set apart, or `tabs` alone.

    `<S>` at its beginning and `</S>` at its end are left out: elmojax puts them around
    every sentence by itself, and twice they would change all numbers.
    """
    words = split(line) if not tabs else line.split("\t") if line else []
    if words and words[0] == BEGIN:
        del words[0]
    if words and words[-1] == END:
        del words[-1]
    return words


def split(line: str) -> list[str]:
    """What spaces and tabs set apart in a line."""
    parts = line.replace("\t", " ").split(" ")
    return parts if "" not in parts else [part for part in parts if part]


Reader: TypeAlias = Callable[[Iterator[TextBlock], object], Iterator[TextBlock]]


def conllu(blocks: Iterator[TextBlock], path: object) -> Iterator[TextBlock]:
    """The sentences of CoNLL-U. `InputError` names the file and the line at fault."""
    words: list[str] = []
    for block in blocks:
        whole = []
        for number, line in enumerate(block.lines, block.first_line):
            if line[:1] == "#":
                continue
            if line.strip(" \t"):
                word = _form(line, len(words) + 1, f"Line {number} of {path}")
                words += [] if word is None else [word]
            elif words:
                whole.append("\t".join(words))
                words = []
        yield block._replace(lines=whole, tabs=True)
    if words:
        yield block._replace(lines=["\t".join(words)], replaced=0, tabs=True)


def _form(row: str, number: int, where: str) -> str | None:
    """The word of a row, which must be that of its number (from 1) in the sentence;
    None for a range and for an empty node."""
    columns = row.split("\t")
    if len(columns) != 10:
        raise InputError(
            f"{where} has {len(columns)} columns, and CoNLL-U has ten, set apart by "
            "tabs, and blank lines between sentences; mend it, or name another format."
        )
    name, form = columns[:2]
    if re.fullmatch(r"[0-9]+[-.][0-9]+", name):
        return None
    if name != str(number):
        raise InputError(
            f"{where} is word {name!r:.40}, and the next of its sentence is word "
            f"{number}; number words from 1, and end each sentence by a blank line."
        )
    if not form.strip(" ") or "\0" in form:
        raise InputError(f"{where} has no word in its column 2 (FORM); write one.")
    return form


def jsonl(blocks: Iterator[TextBlock], path: object) -> Iterator[TextBlock]:
    """The sentences of JSON lines. `InputError` names file and line at fault."""
    for block in blocks:
        numbered = enumerate(block.lines, block.first_line)
        lines = [_listed(line, f"Line {number} of {path}") for number, line in numbered]
        yield block._replace(lines=lines, tabs=True)


_NO_LETTERS = re.compile("[\0\t\n\r\ud800-\udfff]")


def _listed(line: str, where: str) -> str:
    if not line.strip(" \t"):
        return ""
    try:
        words = parse_json(line)
    except ValueError as error:
        raise InputError(
            f'{where} is no JSON ({error}); write each sentence as ["The", "bank"].'
        ) from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(
            f"{where} is no list of words but {line:.40}; write each sentence as "
            '["The", "bank"], a list of strings and nothing around it.'
        )
    for number, word in enumerate(words, 1):
        if not word.strip(" ") or _NO_LETTERS.search(word):
            what = "holds a tab, an end of line, a NUL or half a character"
            raise InputError(
                f"{where}: word {number}, {word!r:.40}, "
                f"{what if word.strip(' ') else 'is empty'}; mend it or leave it out."
            )
    return "\t".join(words)


def fasta(blocks: Iterator[TextBlock], path: object) -> Iterator[TextBlock]:
    """The proteins of FASTA and their ids. `InputError` names the file and the line."""
    seen: dict[str, int] = {}
    name, parts, size = "", list[str](), 0

    def protein() -> str:
        residues = "".join(parts).removesuffix("*")
        if not residues:
            raise InputError(
                f"Line {seen[name]} of {path}: {name!r:.60} has no residues; add its "
                "sequence, or remove the line."
            )
        return "\t".join(residues)

    for block in blocks:
        proteins, names = [], []
        for number, line in enumerate(block.lines, block.first_line):
            where = f"Line {number} of {path}"
            if line[:1] == ">":
                if name:
                    proteins.append(protein())
                    names.append(name)
                name, parts, size = _identifier(line, where, seen), [], 0
                seen[name] = number
            elif residues := line.replace("\t", " ").replace(" ", ""):
                _check_residues(residues, bool(name), parts, where)
                size += len(residues)
                if size > LONGEST:
                    raise InputError(
                        f"{where}: {name!r:.60} has more than {LONGEST:,} letters, as "
                        "no protein has; this is a file of something else."
                    )
                parts.append(residues.upper())
        yield block._replace(lines=proteins, names=names, tabs=True)
    if name:
        last = [protein()]
        yield block._replace(lines=last, names=[name], replaced=0, tabs=True)


def _identifier(header: str, where: str, seen: dict[str, int]) -> str:
    """The id in a header: its first word, of UniProt's sp|P12345|NAME the accession."""
    first = header[1:].replace("\t", " ").split(" ")
    name = next((word for word in first if word), "")
    if re.match(r"(sp|tr)\|[^|]+", name):
        name = name.split("|")[1]
    if not name:
        raise InputError(f"{where} has no id after '>'; write one, another for each.")
    if name in seen:
        raise InputError(
            f"{where} has the id {name!r:.60}, which line {seen[name]} has already; "
            "give each protein an id of its own, without spaces."
        )
    return name


_RESIDUES = re.compile(r"[A-Za-z]*\*?", re.ASCII)


def _check_residues(line: str, named: bool, before: list[str], where: str) -> None:
    if not named:
        raise InputError(
            f"{where} comes before any header, which begins with '>'; is it FASTA?"
        )
    ended = bool(before) and before[-1].endswith("*")
    fits = 0 if ended else _RESIDUES.match(line).end()  # type: ignore[union-attr]
    if fits < len(line):
        wrong = "*" if ended or line[fits - 1 : fits] == "*" else line[fits]
        advice = {
            "*": "a stop stands at the end of a sequence only",
            "-": "take the gaps of an alignment out",
            ".": "take the gaps of an alignment out",
        }
        raise InputError(
            f"{where} holds {wrong!r}, which is no letter of a residue; "
            f"{advice.get(wrong, 'mend or remove it')}."
        )


READERS: dict[Format, Reader] = {"conllu": conllu, "jsonl": jsonl, "fasta": fasta}
"""Of all formats but plain text, whose lines are sentences already."""

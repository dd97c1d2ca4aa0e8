"""Word vectors of other programs: word2vec (text and binary) and GloVe (text).

    word2vec text    a header `count dim`, then lines `word value ... value`
    word2vec binary  the same header line, then word, space, dim little-endian float32,
                     and perhaps a newline, count times
    GloVe text       lines as in word2vec text, no header; a word may contain spaces

The formats are those that the programs of Mikolov et al. (2013) and of Pennington et
al. (2014) write. What a file is, and whether gzip, xz or bzip2 packed it, is read from
its first bytes, never from its name.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import itertools
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from elmojax.errors import InputError

LONGEST = 1 << 22
"""Bytes of a line, or of a word and vector; more means that it is something else."""
CHUNK = 1 << 20
"""Bytes read at a time."""
WIDEST = 1 << 16
"""Values of a vector."""
GIVE = "give a word2vec (text or binary) or GloVe file"

PACKERS: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"\xfd7zXZ\x00", lzma.open),
    (b"BZh", bz2.open),
)

Row: TypeAlias = tuple[int, bytes, bytes]
"""Number (line of a text, vector of a binary; both from 1), word, values as stored."""
Parse: TypeAlias = Callable[[bytes, int], np.ndarray]
"""From the values as stored and the row's number to float32 [dim]."""


def read_word_vectors(
    path: str | os.PathLike[str], words: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of `words` in a word2vec or GloVe file, and which were found.

    Returns float32 [words, dim] and bool [words].

    Words match exactly (case and all) and the first vector of a word counts; rows of
    words that were not found are zero. The file is streamed: memory holds the result
    and a few megabytes, whatever the size of the file. Every row is counted and
    measured, but only those of `words` are read as numbers.

    Raises `InputError`, naming file and line (of a binary: vector), for a file that is
    missing, empty, damaged, neither format or not UTF-8; a row with another number of
    values, or a value that is no finite number; a header that promises more or fewer
    rows than there are; and a file that has none of `words`. Entries of a binary whose
    word is not UTF-8 are no error: they match nothing.
    """
    wanted: dict[bytes, list[int]] = {}
    for index, word in enumerate(words):
        wanted.setdefault(word.encode("utf-8", "surrogatepass"), []).append(index)
    found = np.zeros(len(words), bool)
    try:
        with open(path, "rb") as packed, _unpack(packed) as stream:
            rows, dim, parse = _open_rows(stream, path)
            vectors = np.zeros((len(words), dim), np.float32)
            for number, entry, values in rows:
                indices = wanted.pop(entry, None)
                if indices is not None:
                    vectors[indices] = parse(values, number)
                    found[indices] = True
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"The word vectors {path} cannot be read: {error}. Check the path, and "
            "get the file again if it was cut short."
        ) from error
    if len(words) and not found.any():
        raise InputError(
            f"{path} has none of the {len(words)} words asked for. Use vectors of the "
            "same language, with the same tokenisation and case."
        )
    return vectors, found


def _unpack(file: io.BufferedReader) -> io.BufferedReader:
    """`file` itself, or what gzip, xz or bzip2 packed into it."""
    start = file.read(6)
    file.seek(0)
    for magic, unpack in PACKERS:
        if start.startswith(magic):
            return io.BufferedReader(unpack(file), CHUNK)
    return file


def _open_rows(
    stream: io.BufferedReader, path: object
) -> tuple[Iterator[Row], int, Parse]:
    """Tell the formats apart: the rows, their width, and how to read their values."""

    def parse_text(values: bytes, line: int) -> np.ndarray:
        return _parse_text(values, f"{path} line {line}")

    def parse_binary(values: bytes, row: int) -> np.ndarray:
        return _finite(np.frombuffer(values, "<f4"), f"{path} vector {row}")

    first = stream.readline(LONGEST)
    header = re.fullmatch(rb"(\d{1,18}) (\d{1,9})\s*", first)
    if header is None:
        stream.seek(0)
        dim = _trailing_numbers(first)
        if dim == 0:
            what = "line 1 is neither `count dim` nor a word and its values"
            raise InputError(f"{path} {what if first else 'is empty'}; {GIVE}.")
        return _text_rows(stream, 1, dim, None, path), dim, parse_text
    count, dim, after = int(header[1]), int(header[2]), stream.tell()
    if not 0 < dim <= WIDEST:
        raise InputError(f"{path} line 1 promises vectors of {dim} values; {GIVE}.")
    binary = _is_binary(stream.read(CHUNK), dim)
    stream.seek(after)
    if binary:
        return _binary_rows(stream, count, dim, path), dim, parse_binary
    return _text_rows(stream, 2, dim, count, path), dim, parse_text


def _trailing_numbers(line: bytes) -> int:
    """How many fields at the end of a line are numbers, its first one aside."""
    numbers = 0
    for field in reversed(line.split()[1:]):
        if not _is_number(field):
            break
        numbers += 1
    return numbers


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _is_binary(start: bytes, dim: int) -> bool:
    """Whether what follows the header is float32 and not written-out numbers."""
    line = start.partition(b"\n")[0]
    if _trailing_numbers(line) >= dim:
        return False
    if re.search(rb"[\x00-\x08\x0e-\x1f]", start):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return True
    return False


def _text_rows(
    stream: io.BufferedReader, first: int, dim: int, count: int | None, path: object
) -> Iterator[Row]:
    """The rows of a text from line `first` on; `count` is the header's promise."""
    rows = 0
    for number in itertools.count(first):
        line = stream.readline(LONGEST)
        if not line:
            break
        where = f"{path} line {number}"
        if len(line) == LONGEST:
            raise InputError(f"{where} is over {LONGEST:,} bytes long; {GIVE}.")
        line = line.rstrip(b" \t\r\n")
        if not line:
            continue
        rows += 1
        if line.count(b" ") == dim:
            word, _, values = line.partition(b" ")
        else:
            word, values = _split_row(line, dim, where)
        if not word.isascii():
            try:
                word.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{where} is not UTF-8; convert the file to UTF-8."
                ) from error
        yield number, word, values
    _check_count(rows, count, path)


def _split_row(line: bytes, dim: int, where: str) -> tuple[bytes, bytes]:
    """Word and values of a row whose word has spaces, or whose separators are others.

    A number with a decimal point is a value too many, not a part of the word.
    """
    fields = line.split()
    values = len(fields) - 1
    if values >= dim:
        last = fields[-dim - 1]
        if values == dim or not (b"." in last and _is_number(last)):
            return b" ".join(fields[:-dim]), b" ".join(fields[-dim:])
        values = _trailing_numbers(line)
    raise InputError(
        f"{where} has {values} values where {dim} are due; mend or remove that line."
    )


def _parse_text(values: bytes, where: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(v) for v in values.split(b" ")], np.float32)
    except ValueError as error:
        raise InputError(
            f"{where} has a value that is no number ({error}); mend or remove it."
        ) from error
    return _finite(vector, where)


def _binary_rows(
    stream: io.BufferedReader, count: int, dim: int, path: object
) -> Iterator[Row]:
    """The `count` rows of a word2vec binary after its header."""
    buffer, at, again = b"", 0, "get the file again"
    for row in range(1, count + 1):
        space = buffer.find(b" ", at)
        while space < 0 or space + 4 * dim >= len(buffer):
            more = stream.read(CHUNK)
            if not more:
                raise InputError(f"{path} ends in vector {row} of {count}; {again}.")
            buffer, at = buffer[at:] + more, 0
            space = buffer.find(b" ")
            if space < 0 and len(buffer) > LONGEST:
                raise InputError(f"{path} vector {row} has no end of a word; {GIVE}.")
        end = space + 1 + 4 * dim
        yield row, buffer[at:space].lstrip(b"\n"), buffer[space + 1 : end]
        at = end
    if (buffer[at:] + stream.read(CHUNK)).strip():
        raise InputError(
            f"{path} goes on after the {count} vectors that line 1 promises; {again}."
        )


def _finite(vector: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(vector).all():
        raise InputError(
            f"{where} has a value that is infinite or not a number (NaN) in float32; "
            "remove that word from the file."
        )
    return vector


def _check_count(rows: int, count: int | None, path: object) -> None:
    if count is not None and rows != count:
        raise InputError(
            f"{path} has {rows} rows but its line 1 promises {count}; get the file "
            "again, or write the right number."
        )

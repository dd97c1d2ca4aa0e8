"""Word vectors of other programs: word2vec (text and binary) and GloVe (text).

    word2vec text    a header `count dim`, then lines `word value ... value`
    word2vec binary  the same header line, then word, space, dim little-endian float32,
                     and perhaps a newline, count times
    GloVe text       lines as in word2vec text, no header; a word may contain spaces

The formats are those that the programs of Mikolov et al. (2013) and of Pennington et
al. (2014) write; blanks may be tabs. What a file is, and whether gzip, xz or bzip2
packed it, is read from its first bytes, never from its name.
"""

from __future__ import annotations

import codecs
import io
import itertools
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from elmojax.disk import replacing
from elmojax.errors import InputError, writing
from elmojax.text.packed import open_content

LONGEST = 1 << 22
"""Bytes of a line, or of a word and vector; more means that it is something else."""
CHUNK = 1 << 20
"""Bytes read at a time."""
WIDEST = 1 << 16
"""Values of a vector."""
GIVE = "give a word2vec (text or binary) or GloVe file"

WORD = 1 << 16
"""Bytes of a word in a binary."""
SMALLEST, LARGEST = 1e-15, 1e6
"""Sizes of values in a binary, but 0: others are of bytes that were something else."""
UNSOUND = (
    f"a value that is infinite or not a number (NaN), or above {LARGEST:,.0f}, as no "
    "vector has"
)
FASTTEXT = b"\xba\x16\x4f\x2f"
"""How a model of fastText begins."""

Row: TypeAlias = tuple[int, bytes, bytes]
"""Number (line of a text, vector of a binary; both from 1), word, values as stored."""
Remark: TypeAlias = Callable[[str], object]


def read_word_vectors(
    path: str | os.PathLike[str],
    words: Sequence[str],
    remark: Remark = lambda sentence: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of `words` in a word2vec or GloVe file, and which were found.

    Returns float32 [words, dim] and bool [words]. `remark` is told, in sentences, of
    rows whose word is a blank, which are left out, and of a header that promises
    another number of rows than there are.

    Words match exactly (case and all) and the first vector of a word counts; rows of
    words that were not found are zero. The file is streamed: memory holds the result
    and a few megabytes, whatever the size of the file. Every row is counted and
    measured, but only those of `words` are read as numbers.

    Raises `InputError`, naming file and line (of a binary: vector), for a file that is
    missing, empty, damaged, an archive, neither format or not UTF-8; a row with another
    number of values, or a value that is no finite number (in a binary: or is above a
    million, as the bytes of words are); and a file that has none of `words`. Entries
    of a binary whose word is not UTF-8 are no error: they match nothing.
    """
    wanted: dict[bytes, list[int]] = {}
    for index, word in enumerate(words):
        wanted.setdefault(word.encode("utf-8", "surrogatepass"), []).append(index)
    found = np.zeros(len(words), bool)
    try:
        with open_content(path) as (_, stream):
            rows, dim, binary, count = _open_rows(stream, path)
            parse, row = (_binary, "vector") if binary else (_text, "line")
            vectors = np.zeros((len(words), dim), np.float32)
            total = blank = 0
            for number, entry, values in rows:
                total, blank = total + 1, blank + (not entry)
                indices = wanted.pop(entry, None) if entry else None
                if indices is not None:
                    vectors[indices] = parse(values, f"{path} {row} {number}")
                    found[indices] = True
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"The word vectors {path} cannot be read: {why}. Check the path, and "
            "get the file again if it was cut short."
        ) from error
    if count is not None and total != count:
        remark(
            f"{path} has {total:,} rows and its line 1 promises {count:,}; get it "
            "again if it may be cut short."
        )
    if blank:
        remark(f"Rows of {path} without a word but a blank, left out: {blank:,}.")
    if len(words) and not found.any():
        raise InputError(
            f"{path} has none of the {len(words)} words asked for. Use vectors of the "
            "same language, with the same tokenisation and case."
        )
    return vectors, found


def _open_rows(
    stream: io.BufferedReader, path: object
) -> tuple[Iterator[Row], int, bool, int | None]:
    """Tell the formats apart: the rows, their width, whether they are binary, and how
    many of them a header promises."""
    if stream.peek().startswith(FASTTEXT):
        raise InputError(
            f"{path} is a model in fastText's own format (.bin); give its vectors as "
            "text, the .vec file beside it."
        )
    first = stream.readline(LONGEST)
    header = re.fullmatch(rb"(\d{1,18})[ \t]+(\d{1,9})\s*", first)
    if header is None:
        dim = _trailing_numbers(first)
        if dim == 0:
            what = "line 1 is neither `count dim` nor a word and its values"
            raise InputError(f"{path} {what if first else 'is empty'}; {GIVE}.")
        lines = itertools.chain([first], _lines(stream))
        return _text_rows(lines, 1, dim, path), dim, False, None
    count, dim = int(header[1]), int(header[2])
    if not 0 < dim <= WIDEST:
        raise InputError(f"{path} line 1 promises vectors of {dim} values; {GIVE}.")
    if _is_binary(stream.peek(), dim):
        return _binary_rows(stream, dim, path), dim, True, count
    return _text_rows(_lines(stream), 2, dim, path), dim, False, count


def _lines(stream: io.BufferedReader) -> Iterator[bytes]:
    return iter(lambda: stream.readline(LONGEST), b"")


def _trailing_numbers(line: bytes) -> int:
    """How many fields at the end of a line are numbers, its first one aside."""
    numbers = 0
    for field in reversed(BLANKS.split(line.strip())[1:]):
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
    lines: Iterable[bytes], first: int, dim: int, path: object
) -> Iterator[Row]:
    """The rows of a text from line `first` on."""
    for number, line in enumerate(lines, first):
        where = f"{path} line {number}"
        if len(line) == LONGEST:
            raise InputError(f"{where} is over {LONGEST:,} bytes long; {GIVE}.")
        line = line.rstrip(b" \t\r\n")
        if not line:
            continue
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


BLANKS = re.compile(rb"[ \t]+")


def _split_row(line: bytes, dim: int, where: str) -> tuple[bytes, bytes]:
    """Word and values of a row whose word has spaces, or whose separators are others.

    A number with a decimal point is a value too many, not a part of the word. Before
    the first blank there may be nothing: the word is a blank.
    """
    fields = BLANKS.split(line)
    values = len(fields) - 1
    if values >= dim:
        last = fields[-dim - 1]
        if values == dim or not (b"." in last and _is_number(last)):
            return b" ".join(fields[:-dim]).strip(), b" ".join(fields[-dim:])
        values = _trailing_numbers(line)
    raise InputError(
        f"{where} has {values} values where {dim} are due; mend or remove that line."
    )


def _text(values: bytes, where: str) -> np.ndarray:
    """float32 [dim] of the values as stored."""
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(v) for v in values.split(b" ")], np.float32)
    except ValueError as error:
        raise InputError(
            f"{where} has a value that is no number ({error}); mend or remove it."
        ) from error
    if not np.isfinite(vector).all():
        raise InputError(
            f"{where} has a value that is infinite or not a number (NaN) in float32; "
            "remove that word from the file."
        )
    return vector


def _binary(values: bytes, where: str) -> np.ndarray:
    """`_text` of a binary."""
    vector = np.frombuffer(values, "<f4")
    if not (np.abs(vector) <= LARGEST).all():
        raise InputError(f"{where} has {UNSOUND}; get the file again.")
    return vector


def _binary_rows(stream: io.BufferedReader, dim: int, path: object) -> Iterator[Row]:
    """The rows of a word2vec binary after its header; words may have spaces."""
    buffer, at, fed, size = b"", 0, False, 4 * dim
    for row in itertools.count(1):
        while len(buffer) - at <= WORD + size and (more := stream.read(CHUNK)):
            buffer, at = buffer[at:] + more, 0
        if len(buffer) - at < size and not buffer[at:].strip():
            return
        space = _end_of_word(buffer, at, size, fed)
        if space is None:
            first = buffer.find(b" ", at, at + WORD)
            if first < 0 and len(buffer) - at > WORD:
                raise InputError(f"{path} vector {row} has no end of a word; {GIVE}.")
            if first < 0 or first + size >= len(buffer):
                raise InputError(f"{path} ends in vector {row}; get the file again.")
            raise InputError(f"{path} vector {row} has {UNSOUND}; get the file again.")
        end = space + 1 + size
        fed = fed or (row == 1 and buffer[end : end + 1] == b"\n")
        yield row, buffer[at:space].strip(b" \n"), buffer[space + 1 : end]
        at = end + fed


def _end_of_word(buffer: bytes, at: int, size: int, fed: bool) -> int | None:
    """Which space ends the word that begins at `at`; None where none can.

    After its vector comes a line feed, where all vectors have one (`fed`). Otherwise
    the vector has values like those of vectors, and what comes next is like a word;
    unless there is no such space: a few files have words that were cut.
    """
    best, last, space = None, at, at - 1
    while (space := buffer.find(b" ", space + 1, at + WORD)) >= 0:
        end = space + 1 + size
        if end > len(buffer) or (last > at and not _like_word(buffer[last:space])):
            break
        last = space + 1
        feed = buffer[end : end + 1] in (b"\n", b"")
        if fed:
            if feed:
                return space
            continue
        values = np.abs(np.frombuffer(buffer, "<f4", size // 4, space + 1))
        if ((values <= LARGEST) & ((values >= SMALLEST) | (values == 0))).all():
            if feed or _like_word(buffer[end : end + 64].partition(b" ")[0]):
                return space
            best = space if best is None else best
    return best


def _like_word(word: bytes) -> bool:
    try:  # its last character may be cut
        text = codecs.getincrementaldecoder("utf-8")().decode(word)
    except UnicodeDecodeError:
        return False
    return min(text, default=" ") >= " "


def write_word_vectors(
    path: Path, words: Sequence[str], vectors: np.ndarray, binary: bool
) -> None:
    """Writes word2vec's text or binary format, whole or not at all.

    Args:
      path: where; a file that is there is replaced.
      words: without spaces.
      vectors: numbers [words, dim], which become float32; nine digits in a text, which
        are all that it has.

    Raises:
      InputError: if it cannot be written.
    """
    form = " ".join(["%.9g"] * vectors.shape[1]) + "\n"
    with (
        writing(path, "Make room, or name another file."),
        replacing(path) as partial,
        open(partial, "xb") as file,
    ):
        file.write(f"{len(words)} {vectors.shape[1]}\n".encode())
        for word, row in zip(words, vectors, strict=True):
            values = row.astype("<f4")
            data = values.tobytes() + b"\n"
            if not binary:
                data = (form % tuple(values.tolist())).encode()
            file.write(word.encode() + b" " + data)

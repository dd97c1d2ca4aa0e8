"""Text files, read as a stream of lines of words.

Text is UTF-8, one sentence a line, words set apart by white space; plain or packed
with gzip, xz or bzip2 (by the ending of the name). Lines end with a line feed. `Text`
is a file whose lines are counted, for outputs that must know their size beforehand.
"""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import hashlib
import io
import lzma
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from elmojax.arguments import checked, require
from elmojax.errors import InputError

Errors = Literal["strict", "replace"]

_BLOCK = 1 << 20
_LONGEST_LINE = 64 << 20


class TextBlock(NamedTuple):
    """Some successive lines of a text."""

    first_line: int
    """Number of the first line, from 1."""
    lines: list[str]
    replaced: int
    """Lines with undecodable bytes, which became U+FFFD."""
    position: int
    """How far reading has come: bytes of the file as it lies on disk."""


Patterns: TypeAlias = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]


@checked
def expand(patterns: Patterns) -> list[Path]:
    """The text files that names and globs (`*`, `?`, `[...]`, `**`) stand for, one or
    several.

    In the order given, each glob sorted, every file once. Raises `InputError` for a
    name or glob that matches no file, and for a directory.
    """
    found: dict[str, Path] = {}
    for given in [patterns] if isinstance(patterns, (str, os.PathLike)) else patterns:
        require("A name in patterns", given, str | os.PathLike)
        pattern = os.path.expanduser(os.fspath(given))
        names = [pattern]
        if not os.path.exists(pattern) and glob.has_magic(pattern):
            names = sorted(glob.glob(pattern, recursive=True))
            names = [name for name in names if not os.path.isdir(name)]
        if not names or not os.path.exists(names[0]):
            raise InputError(
                f"No text file matches {pattern!r} (seen from {os.getcwd()}). Check "
                "the name, and quote a glob so that the shell leaves it alone."
            )
        if os.path.isdir(names[0]):
            raise InputError(
                f"{pattern} is a directory; name its files, for example "
                f"'{os.path.join(pattern, '*.txt')}'."
            )
        for name in names:
            found.setdefault(os.path.realpath(name), Path(name))
    return list(found.values())


def read_lines(
    path: str | os.PathLike[str], errors: Errors = "strict"
) -> Iterator[tuple[int, list[str]]]:
    """Streams (line number from 1, words of the line); a blank line has no words.

    Raises `InputError` as `read_blocks` does.
    """
    for block in read_blocks(path, errors):
        for number, line in enumerate(block.lines, block.first_line):
            yield number, line.split()


def read_blocks(
    path: str | os.PathLike[str], errors: Errors = "strict"
) -> Iterator[TextBlock]:
    """Streams the lines of a text file, about a mebibyte at a time.

    A byte-order mark at the start is dropped. Raises `InputError`, with file and line,
    for bytes that are not UTF-8 (unless errors="replace"), a file that cannot be
    read, a packed file that is cut short or damaged, and a line above 64 MiB.
    """
    number, rest, start = 1, b"", True
    with contextlib.ExitStack() as stack:
        with _named(path):
            raw = stack.enter_context(open(path, "rb"))
            stream = stack.enter_context(_unpack(raw, os.fspath(path)))
        while True:
            with _named(path):
                data = stream.read(_BLOCK)
                position = raw.tell() if raw.seekable() else 0
            if start:
                data, start = data.removeprefix(b"\xef\xbb\xbf"), False
            # Only what follows the last line feed is carried into the next block.
            whole, feed, tail = data.rpartition(b"\n")
            whole, rest = (rest + whole, tail) if feed else (b"", rest + tail)
            if feed or (not data and rest):
                text = whole if feed else rest
                lines, replaced = decode_lines(text, errors, path, number)
                yield TextBlock(number, lines, replaced, position)
                number += len(lines)
            if not data:
                return
            if len(rest) > _LONGEST_LINE:
                raise InputError(
                    f"Line {number} of {path} is longer than {_LONGEST_LINE >> 20} "
                    "MiB. The text must have one sentence a line."
                )


def decode_lines(
    data: bytes, errors: Errors, where: object, number: int
) -> tuple[list[str], int]:
    """The lines of `data` and how many held undecodable bytes.

    `InputError` names `where` and the line, the first of `data` having this number.
    """
    try:
        return data.decode("utf-8").split("\n"), 0
    except UnicodeDecodeError as error:
        if errors == "strict":
            line = number + data.count(b"\n", 0, error.start)
            raise InputError(
                f"Line {line} of {where} is not UTF-8: byte "
                f"0x{data[error.start]:02x} ({error.reason}). Convert the text, or "
                "take --errors replace to read such bytes as U+FFFD."
            ) from error
    clean = data.decode("utf-8", "replace").split("\n")
    pairs = zip(clean, data.split(b"\n"), strict=True)
    return clean, sum(line.encode("utf-8") != original for line, original in pairs)


def _unpack(raw: io.BufferedReader, name: str) -> io.BufferedIOBase:
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".bz2":
        return bz2.BZ2File(raw)
    return raw


@contextlib.contextmanager
def _named(path: object) -> Iterator[None]:
    """Turns what reading can raise into an `InputError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check its name.") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is cut short or is not what its ending says ({error}). Was it "
            "downloaded whole?"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}."
        ) from error


@dataclass(frozen=True, eq=False)
class Text:
    """A text file that was read through once; `read_text` makes it."""

    path: Path
    errors: Errors
    sizes: np.ndarray
    """int32 [lines]: words of each line, 0 for a blank one."""
    digest: str
    """SHA-256 of the lines, their words set apart by one space."""
    bytes: int
    """Of those lines in UTF-8, line feeds counted."""

    def sentences(self, start: int = 0) -> Iterator[list[str]]:
        """Streams the words of each line, from line `start` (from 0).

        Raises `InputError` once the file turns out to be another than the one that
        was read, at the end at the latest, and what `read_text` raises.
        """
        digest, count = hashlib.sha256(), 0
        for count, (_, words) in enumerate(read_lines(self.path, self.errors), 1):
            if count > len(self.sizes) or len(words) != self.sizes[count - 1]:
                raise self.changed()
            digest.update(_line(words))
            if count > start:
                yield words
        if count < len(self.sizes) or digest.hexdigest() != self.digest:
            raise self.changed()

    def changed(self) -> InputError:
        """The error for a file that is no longer what it was."""
        return InputError(
            f"{self.path} changed while it was being read. Run the command again, "
            "with --overwrite, when the text stays as it is."
        )


def read_text(path: Path, errors: Errors = "strict") -> Text:
    """Reads a text file through, keeping four bytes a line.

    Raises:
      InputError: for a text without lines, for one that can be read only once (a
        pipe), and as `elmojax.text.files.read_blocks` does: bytes that are not UTF-8,
        a packed file that is cut short.
    """
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path} is not a plain file; the text is read more than once. Write it "
            "to a file first."
        )
    sizes, digest, length = array("i"), hashlib.sha256(), 0
    for _, words in read_lines(path, errors):
        sizes.append(len(words))
        line = _line(words)
        digest.update(line)
        length += len(line)
    if not sizes:
        raise InputError(
            f"{path} has no lines at all, so there is nothing to do. Was it "
            "downloaded or written whole?"
        )
    counts = np.frombuffer(sizes, np.int32)
    return Text(path, errors, counts, digest.hexdigest(), length)


def _line(words: list[str]) -> bytes:
    return (" ".join(words) + "\n").encode("utf-8")

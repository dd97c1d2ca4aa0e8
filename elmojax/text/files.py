"""Text files, read as a stream of lines of words.

Text is UTF-8, one sentence a line; a line ends with a line feed, or a carriage return
and a line feed. Words are set apart by spaces and tabs, and by nothing else: whatever
else Unicode calls a blank is part of its word, as in a list of words. Of other formats
(`elmojax.text.formats`) a sentence counts as a line. Files are plain or packed
(`elmojax.text.packed`), and what is odd about the text in them is counted (`Oddities`).
`Text` is a file whose lines are counted, for outputs that must know their size
beforehand.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import lzma
import os
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from elmojax.arguments import checked, require
from elmojax.disk import local
from elmojax.errors import InputError
from elmojax.text.characters import byte_limit
from elmojax.text.formats import LONGEST, READERS, Format, TextBlock
from elmojax.text.packed import open_content

Errors = Literal["strict", "replace"]

_BLOCK = 1 << 20


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
        local(pattern)
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
        yield from enumerate(block.sentences(), block.first_line)


def read_blocks(
    path: str | os.PathLike[str], errors: Errors = "strict", format: Format = "text"
) -> Iterator[TextBlock]:
    """Streams the lines of a text file, or its sentences in another format, about a
    mebibyte at a time.

    A byte-order mark at the start is dropped. Raises `InputError`, with file and line,
    for bytes that are not UTF-8 (unless errors="replace") or no text at all, what is
    not of the format, a file that cannot be read, an archive, a packed file that is
    cut short or damaged anywhere, and a line above 64 MiB.
    """
    blocks = _read_blocks(path, errors, format)
    return READERS[format](blocks, path) if format in READERS else blocks


def _read_blocks(
    path: str | os.PathLike[str], errors: Errors, format: Format
) -> Iterator[TextBlock]:
    number, rest = 1, b""
    with contextlib.ExitStack() as stack:
        with _reading_text(path):
            raw, stream = stack.enter_context(open_content(path))
            if format == "text":
                _refuse_columns(stream.peek(), path)
        while True:
            with _reading_text(path):
                data = stream.read(_BLOCK)
                position = raw.tell() if raw.seekable() else 0
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
            if len(rest) > LONGEST:
                _refuse_controls(rest, path, number)
                raise InputError(
                    f"Line {number} of {path} is longer than {LONGEST >> 20} "
                    "MiB. The text must have one sentence a line."
                )


def decode_lines(
    data: bytes, errors: Errors, where: object, number: int
) -> tuple[list[str], int]:
    """The lines of `data` and how many held undecodable bytes.

    `InputError` names `where` and the line, the first of `data` having this number.
    """
    _refuse_controls(data, where, number)
    try:
        lines, replaced = data.decode("utf-8").split("\n"), 0
    except UnicodeDecodeError as error:
        if errors == "strict":
            line = number + data.count(b"\n", 0, error.start)
            raise InputError(
                f"Line {line} of {where} is not UTF-8: byte "
                f"0x{data[error.start]:02x} ({error.reason}). Convert the text, or "
                "take --errors replace to read such bytes as U+FFFD."
            ) from error
        text = data.decode("utf-8", "replace")
        if 3 * text.count("\ufffd") > max(len(text), 50):
            raise InputError(
                f"Line {number} of {where} and what follows are no UTF-8: a third of "
                "the characters cannot be read. Unpack or convert the file, for "
                "example with `iconv -f CP1251 -t UTF-8`."
            ) from error
        lines = text.split("\n")
        pairs = zip(lines, data.split(b"\n"), strict=True)
        replaced = sum(line.encode("utf-8") != original for line, original in pairs)
    if b"\r" in data:
        lines = [line.rstrip("\r") for line in lines]
    return lines, replaced


def _refuse_controls(data: bytes, where: object, number: int) -> None:
    """`InputError` for a NUL, and for a carriage return that ends no line.

    With the first it is no text. The second is the end of a line to other programs,
    so that lines would have other numbers there.
    """
    found = None
    if b"\0" in data or data.count(b"\r") > data.count(b"\r\n"):
        found = re.search(rb"\0|\r(?![\r\n]|\Z)", data)
    if found is None:
        return
    what = (
        "a NUL byte, so it is no text in UTF-8 or it is damaged. Convert it (iconv -t "
        "UTF-8), or remove such bytes (tr -d '\\000')"
        if found[0] == b"\0"
        else "a carriage return without a line feed. Put line feeds in their places "
        "(tr '\\r' '\\n') if they end lines, or remove them"
    )
    line = number + data.count(b"\n", 0, found.start())
    raise InputError(f"Line {line} of {where} holds {what}.")


_ROW = re.compile(rb"\d+(-\d+|\.\d+)?(\t[^\t]+){9}")


def _refuse_columns(head: bytes, path: object) -> None:
    """`InputError` for CoNLL-U: ten columns, the first of them numbers."""
    whole, feed, rest = head.rpartition(b"\n")  # what is left may be cut
    lines = (whole if feed else rest).splitlines()
    rows = [line for line in lines if line.strip() and line[:1] != b"#"]
    named = any(re.search(rb"^[^\t]*\t[^\t]*[^\W\d_]", row) for row in rows)
    if named and all(map(_ROW.fullmatch, rows)):
        raise InputError(
            f"{path} is CoNLL-U (ten columns), not running text; where a command has "
            "--format, give --format conllu."
        )


@contextlib.contextmanager
def _reading_text(path: object) -> Iterator[None]:
    """Turns what reading can raise into an `InputError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check its name.") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is cut short or damaged ({error}). Was it downloaded whole?"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}."
        ) from error


@dataclass
class Oddities:
    """What in a text is often a mistake, counted."""

    lines: int = 0
    """Lines with words."""
    words: int = 0
    truncated_words: int = 0
    """Words of more bytes than the model reads."""
    unsegmented_lines: int = 0
    """Lines of 20 characters and more for each word."""
    long_lines: int = 0
    """Lines of more than 1,000 words."""
    listed_lines: int = 0
    """Lines that are JSON lists of strings, as JSON lines have them."""
    spaced_words: int = 0
    """Words that hold a space, as those of CoNLL-U and JSON may."""
    spellings: Counter[str] = field(default_factory=Counter)
    """Sentence marks, and other spellings of `<UNK>`, `<S>` and `</S>`."""

    def __post_init__(self) -> None:
        self.spellings = Counter(self.spellings)

    def look(
        self, lines: Sequence[str], max_characters: int | None, tabs: bool = False
    ) -> None:
        """Counts some more lines. `max_characters` is the columns of a word in the
        model, None in one that does not read characters; with `tabs` they alone set
        words apart."""
        if tabs:
            words_in = "\t".join(lines).split("\t")
            self.spaced_words += sum(" " in word for word in words_in)
            lines = [line.replace(" ", "_") for line in lines]
        self.listed_lines += sum(
            line[:2] == '["' and line[-2:] == '"]' for line in lines
        )
        text = "\n".join(["", *lines, ""]).encode("utf-8", "replace")
        letters = np.frombuffer(text.replace(b"\t", b" "), np.uint8)
        gaps = np.flatnonzero((letters == ord(" ")) | (letters == ord("\n")))
        starts, sizes = gaps[:-1] + 1, np.diff(gaps) - 1
        ends = np.flatnonzero(letters[gaps] == ord("\n"))  # of lines, among the gaps
        words = np.diff(np.append(0, np.cumsum(sizes > 0))[ends])
        letters_of = np.fromiter(map(len, lines), np.int64, len(lines))
        self.lines += int((words > 0).sum())
        self.words += int(words.sum())
        self.unsegmented_lines += int((letters_of >= 20 * np.diff(ends)).sum())
        self.long_lines += int((words > 1000).sum())
        if max_characters is not None:
            long = sizes > byte_limit(max_characters)
            self.truncated_words += int(long.sum())
        first = letters[starts]
        longest = np.where((first | 32) == ord("u"), 3, 15)  # of bare words only "unk"
        doubtful = (sizes > 2) & (sizes <= longest) & _OPENS[first]
        for start, size in zip(starts[doubtful], sizes[doubtful], strict=True):
            word = text[start : start + size]
            if word != b"<UNK>" and _SPELLING.fullmatch(word):
                self.spellings[word.decode("ascii")] += 1

    def add(self, other: Oddities) -> None:
        """Counts another text, too."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


_SPELLING = re.compile(
    rb"</?s>|[<\[{]/?(bos|eos|cls|sep)[>\]}]|<\|endoftext\|>"
    rb"|[<\[{@_*#|-]+(unk|unknown|oov)[>\]}@_*#|-]+|UNK|unk",
    re.IGNORECASE,
)
_OPENS = np.zeros(256, bool)
_OPENS[list(b"<[{@_*#|-Uu")] = True


@dataclass(frozen=True, eq=False)
class Text:
    """A text file that was read through once; `read_text` makes it."""

    path: Path
    errors: Errors
    sizes: np.ndarray
    """int32 [lines]: words of each line, 0 for a blank one."""
    digest: str
    """SHA-256 of the lines, their words set apart by one space (or tab, see
    `TextBlock.tabs`), and of their ids."""
    bytes: int
    """Of those lines in UTF-8, line feeds counted."""
    odd: Oddities
    format: Format = "text"
    names: Sequence[str] | None = None
    """The id of each line, where the format has any."""
    lines: np.ndarray | None = None
    """int64 [lines]: the number of each in the file, from 0, if some are left out."""
    positions: np.ndarray | None = None
    """int32 [words]: the place of each in its line, from 0, if some are left out."""

    def sentences(self, start: int = 0) -> Iterator[list[str]]:
        """Streams the words of each line, from line `start` (from 0).

        Raises `InputError` once the file turns out to be another than the one that
        was read, at the end at the latest, and what `read_text` raises.
        """
        digest, count = hashlib.sha256(), 0
        for block in read_blocks(self.path, self.errors, self.format):
            for words in block.sentences():
                count += 1
                if count > len(self.sizes) or len(words) != self.sizes[count - 1]:
                    raise self.changed()
                digest.update(_line(words, block))
                if count > start:
                    yield words
            digest.update(_names(block))
        if count < len(self.sizes) or digest.hexdigest() != self.digest:
            raise self.changed()

    def key(self, line: int) -> str:
        """The id of a line, or its number."""
        return str(self.number(line)) if self.names is None else self.names[line]

    def number(self, line: int) -> int:
        """The number of a line in the file, from 0."""
        return line if self.lines is None else int(self.lines[line])

    def positions_in(self, line: int) -> np.ndarray | None:
        """Of one line, where some are left out, the positions."""
        return None

    def kept(self, line: int, words: list[str]) -> list[str]:
        """Those of the words of a line that are not left out."""
        positions = self.positions_in(line)
        return words if positions is None else [words[at] for at in positions]

    def changed(self) -> InputError:
        """The error for a file that is no longer what it was."""
        return InputError(
            f"{self.path} changed while it was being read. Run the command again, "
            "with --overwrite, when the text stays as it is."
        )


def read_text(
    path: Path,
    errors: Errors = "strict",
    max_characters: int | None = None,
    format: Format = "text",
) -> Text:
    """Reads a text file through, keeping four bytes a line, and ids where it has any.

    Args:
      max_characters: see `Oddities.look`.

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
    sizes, digest, length, odd = array("i"), hashlib.sha256(), 0, Oddities()
    names: list[str] = []
    for block in read_blocks(path, errors, format):
        odd.look(block.lines, max_characters, block.tabs)
        for words in block.sentences():
            sizes.append(len(words))
            line = _line(words, block)
            digest.update(line)
            length += len(line)
        digest.update(_names(block))
        names += block.names or ()
    if not sizes:
        raise InputError(
            f"{path} has no lines at all, so there is nothing to do. Was it "
            "downloaded or written whole?"
        )
    counts, sha256 = np.frombuffer(sizes, np.int32), digest.hexdigest()
    return Text(path, errors, counts, sha256, length, odd, format, names or None)


def _line(words: list[str], block: TextBlock) -> bytes:
    return (("\t" if block.tabs else " ").join(words) + "\n").encode("utf-8")


def _names(block: TextBlock) -> bytes:
    return "".join(f"{name}\n" for name in block.names or ()).encode("utf-8")

"""A text as an output needs it: the size of every line known before any vector."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elmojax.errors import InputError
from elmojax.text.files import Errors, read_lines


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

"""From blocks of vectors to places in a file: what all formats have in common.

`Form` is what is written of each word or sentence, whatever the format of the file.
"""

from __future__ import annotations

import abc
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import google_crc32c as crc32c
import ml_dtypes
import numpy as np

from elmojax.embedding.engine import VectorDtype
from elmojax.embedding.pooling import Block, Pooler, Pooling
from elmojax.errors import InputError
from elmojax.text.files import Text
from elmojax.vectors.unfinished import (
    TextProgress,
    Unfinished,
    allocated,
    require_space,
    writing_output,
)


@dataclass(frozen=True)
class Form:
    """The vectors of an output. Raises `InputError` for an unknown dtype or pooling."""

    shape: tuple[int, ...]
    """Of what blocks hold of a word: (layers + 1, vector), or (vector,) for one mix
    or the top layer."""
    dtype: VectorDtype = "float32"
    pool: Pooling | None = None
    """One vector a sentence instead of one a word."""
    compression: str | None = None
    """`NAME` or `NAME:LEVEL`; which there are depends on the format."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the numbers, for JSON: the model's hash, layers, gammas,
    positions a batch. Without paths and times, so that equal runs make equal bytes."""

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, get_args(VectorDtype))
        if self.pool is not None:
            _one_of("pooling", self.pool, get_args(Pooling))

    @property
    def numpy(self) -> np.dtype:
        """The dtype of vectors in memory."""
        return np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one word, or of one sentence if they are pooled."""
        return math.prod(self.shape) * self.numpy.itemsize

    @property
    def axes(self) -> str:
        """Names of the axes of one line's vectors."""
        names = ["layer"] * (len(self.shape) - 1) + ["word", "vector"]
        return ", ".join(n for n in names if n != "word" or self.pool is None)

    def rows(self, text: Text) -> np.ndarray:
        """How many vectors each line of a text has: its words, or one."""
        return text.sizes if self.pool is None else np.ones_like(text.sizes)

    def request(self) -> dict[str, Any]:
        """All of it for JSON. Two outputs of one text and one request are equal."""
        return {
            **self.settings,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "pool": self.pool,
            "compression": self.compression,
        }

    def packing(self, levels: Mapping[str, range]) -> tuple[str, int | None] | None:
        """Name and level of the compression, if there is one.

        Args:
          levels: the levels of each compression that the format has; an empty range
            for one without.

        Raises:
          InputError: for another name or level.
        """
        if self.compression is None:
            return None
        name, colon, level = self.compression.partition(":")
        if not levels:
            raise InputError(
                f"--compression {self.compression} is not for this format; leave it "
                "out, or write HDF5 (.hdf5) or Parquet (.parquet)."
            )
        _one_of("compression", name, tuple(levels))
        if not colon:
            return name, None
        if not level.isascii() or not level.isdigit() or int(level) not in levels[name]:
            allowed = levels[name]
            span = f"a level from {min(allowed)} to {max(allowed)}" if allowed else ""
            raise InputError(
                f"--compression {self.compression}: {name} takes {span or 'no level'}."
            )
        return name, int(level)


def _one_of(what: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise InputError(
            f"There is no {what} {name!r} here; choose one of {', '.join(allowed)}."
        )


class Writer(abc.ABC):
    """Takes the blocks of one text, in order. Leaving it as a context closes it.

    `done` sentences were on the disk when it was opened: blocks begin after them.
    """

    text: Text
    done: int

    def __init__(
        self, text: Text, form: Form, out: Path, done: int, every: float
    ) -> None:
        self.text, self.form, self.done = text, form, done
        self._out, self._every = out, every
        self._sentence, self._word = done, 0  # where the next block begins
        self._whole = self._kept = done
        self._last = time.monotonic()
        self._pooler = Pooler(form.pool) if form.pool else None

    def fill(self, blocks: Callable[[Text, int], Iterable[Block]]) -> None:
        """Writes the whole text; `blocks` and errors as for `Output.fill`."""
        with self:
            if self.done < len(self.text.sizes):
                for block in blocks(self.text, self.done):
                    self.write(block)
            self.finish()

    def write(self, block: Block) -> None:
        """Writes a block; every so many seconds also `commit`s.

        Raises:
          InputError: if the file cannot be written, a number of the block is not
            finite, or the block does not fit the text, which has then changed.
        """
        sentence, word = self._sentence, self._word
        self._advance(block)
        if self._pooler is not None:
            block, word = self._pooler.push(block), 0
        with np.errstate(over="ignore"):
            vectors = block.vectors.astype(self.form.numpy, copy=False)
        sizes = block.sizes if self._pooler is None else (1,) * len(vectors)
        if not np.isfinite(vectors).all():
            raise self._not_finite(sentence, sizes, vectors)
        with writing_output(self._out):
            self._put(sentence, word, sizes, vectors)
            if self._word == 0:
                self._whole = self._sentence
                self._boundary()

    def _not_finite(
        self, sentence: int, sizes: Sequence[int], vectors: np.ndarray
    ) -> InputError:
        """For the first line that has such a number."""
        wrong = ~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1)
        ends = np.cumsum(sizes)
        line = sentence + int(np.searchsorted(ends, wrong.argmax(), side="right")) + 1
        as_dtype, remedy = "", "look at the gammas and, by `elmojax verify`, the model"
        if self.form.dtype == "float16":
            as_dtype, remedy = " as float16", "choose --dtype bfloat16 or float32"
        return InputError(
            f"Line {line} of {self.text.path} has vectors that are not finite "
            f"numbers{as_dtype}; {remedy}."
        )

    def commit(self) -> None:
        """Brings the sentences so far to the disk; a later run goes on after them."""
        if self._whole > self._kept:
            with writing_output(self._out):
                self._keep(self._whole)
            self._kept = self._whole
        self._last = time.monotonic()

    def finish(self) -> None:
        """Ends the file. `InputError` if sentences of the text are missing."""
        if self._whole != len(self.text.sizes):
            raise self.text.changed()
        self.commit()
        with writing_output(self._out):
            self._complete()

    def close(self) -> None:
        """Lets go of the file; what was written before stays for a later run."""
        with contextlib.suppress(InputError):
            self.commit()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _advance(self, block: Block) -> None:
        """Where the next block begins; sizes must be those of the text."""
        sizes = np.asarray(block.sizes, np.int64)
        count, start = len(sizes), self._word
        assert count, "a block without sentences"
        assert block.vectors.shape == (sizes.sum(), *self.form.shape)
        left = self.text.sizes[self._sentence : self._sentence + count].astype(np.int64)
        if len(left) < count:
            raise self.text.changed()
        left[0] -= start
        left -= sizes
        if left[:-1].any() or (left[-1] > 0) != block.more or left[-1] < 0:
            raise self.text.changed()
        if block.more:
            self._sentence += count - 1
            self._word = int(sizes[-1]) + (start if count == 1 else 0)
        else:
            self._sentence, self._word = self._sentence + count, 0

    def _boundary(self) -> None:
        """Called wherever a later run could go on."""
        if time.monotonic() - self._last >= self._every:
            self.commit()

    @abc.abstractmethod
    def _put(
        self, sentence: int, word: int, sizes: Sequence[int], vectors: np.ndarray
    ) -> None:
        """Writes vectors of sentences from `sentence`, from its word `word`.

        Args:
          sizes: how many of the vectors each sentence has: 1 if they are pooled.
          vectors: of `form.dtype`, [sum of sizes, *form.shape].
        """

    @abc.abstractmethod
    def _keep(self, done: int) -> None:
        """Brings what was put to the disk and keeps `done` in mind."""

    @abc.abstractmethod
    def _complete(self) -> None:
        """All has been put and kept."""


class PlacedWriter(Writer):
    """One file in which every vector has its place before any is written.

    The vectors that are committed are summed (CRC-32C), and so is all of the file but
    vectors. A later run goes on where both are as the last commit left them; where they
    are not, or the file is gone, it starts again.
    """

    def __init__(
        self,
        output: Unfinished,
        path: Path,
        text: Text,
        form: Form,
        every: float,
        more: int,
    ) -> None:
        """Makes the file at `path`, or takes it up.

        Raises `InputError` if it cannot be written, or there is no room for it: for the
        vectors, and `more` bytes.
        """
        self.text, self.form, self._rows = text, form, form.rows(text)
        needed = int(self._rows.sum(dtype=np.int64)) * form.row_bytes + more
        require_space(output.out, needed - allocated(path), output.directory)
        self._unfinished, self._path, self._handle = output, path, -1
        with writing_output(output.out):
            # That the text is another one, the request has told.
            self._progress = TextProgress.begin(output.directory, 0, text, True)
            if not self._is_whole():
                self._make()
                self._offsets = self._read_offsets()
                self._progress.done, self._progress.parts = 0, [self._frame(), [0]]
                self._progress.write(output.directory, 0)
            self._handle = os.open(path, os.O_WRONLY)
        super().__init__(text, form, output.out, self._progress.done, every)

    @abc.abstractmethod
    def _make(self) -> None:
        """Brings the file to the disk, whole but for the vectors."""

    @abc.abstractmethod
    def _read_offsets(self) -> np.ndarray:
        """int64 [lines]: the byte at which the vectors of each line begin.

        Raises `OSError` or `ValueError` where the files do not tell.
        """

    def _is_whole(self) -> bool:
        """Whether the file is still what the last commit left."""
        done = self._progress.done
        if not (self._progress.parts and 0 <= done <= len(self._rows)):
            return False
        try:
            self._offsets = self._read_offsets()
            vectors = self._sum(self._spans(0, done))
            return self._progress.parts == [self._frame(), [vectors]]
        except (OSError, ValueError):
            return False

    def _spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """Bytes, from and to, of the vectors of some lines, in their order."""
        begin = self._offsets[first:last]
        end = begin + self._rows[first:last].astype(np.int64) * self.form.row_bytes
        begin, end = begin[end > begin], end[end > begin]
        if len(begin):  # those that follow on each other are one
            apart = begin[1:] != end[:-1]
            begin, end = begin[np.insert(apart, 0, True)], end[np.append(apart, True)]
        return list(zip(begin.tolist(), end.tolist(), strict=True))

    def _frame(self) -> list[int]:
        """Size of the file, and the sum of the places and of all but the vectors."""
        spans = sorted(self._spans(0, len(self._rows)))
        size = self._path.stat().st_size
        ends, begins = zip((0, 0), *spans, (size, size), strict=True)
        between = zip(begins, ends[1:], strict=False)
        return [size, self._sum(between, crc32c.value(self._offsets.astype("<i8")))]

    def _sum(self, spans: Iterable[tuple[int, int]], before: int = 0) -> int:
        """CRC-32C of some bytes of the file, after others."""
        content = np.asarray(np.memmap(self._path, np.uint8, "r"))
        for begin, end in spans:
            before = crc32c.extend(before, content[begin:end])
        return int(before)

    def _keep(self, done: int) -> None:
        os.fsync(self._handle)
        frame, (before,) = self._progress.parts
        vectors = self._sum(self._spans(self._kept, done), before)
        self._progress.done, self._progress.parts = done, [frame, [vectors]]
        self._progress.write(self._unfinished.directory, 0)

    def _complete(self) -> None:
        self.close()

    def close(self) -> None:
        if self._handle >= 0:
            super().close()
            os.close(self._handle)
            self._handle = -1

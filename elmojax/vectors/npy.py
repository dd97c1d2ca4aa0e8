"""Vectors of all lines one after the other, to be mapped into memory.

    vectors.npy    [words, layers + 1, vector] or [words, vector]; pooled, [lines, ...]
    offsets.npy    int64 [lines + 1]: the words of line i are offsets[i]:offsets[i + 1]
                   (not there if pooled)
    sentences.txt  the text, its words set apart by one space
    info.json      what was asked for

numpy has no bfloat16: such vectors are stored as uint16, their upper 16 bits as
float32 (`"bits": "bfloat16"` in info.json). `read_vectors` gives them their type.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from elmojax.arguments import checked
from elmojax.atomic import sync
from elmojax.errors import InputError
from elmojax.text.files import Text
from elmojax.vectors.partial import (
    Partial,
    allocated,
    require_space,
    write_at,
    write_json,
    writing,
)
from elmojax.vectors.writer import Form, PlacedWriter

INFO, VECTORS, OFFSETS = "info.json", "vectors.npy", "offsets.npy"
SENTENCES = "sentences.txt"


class RaggedWriter(PlacedWriter):
    """All but the vectors is written first; they are then put in their places."""

    def __init__(
        self,
        partial: Partial,
        text: Text,
        form: Form,
        every: float = 10.0,
        directory: Path | None = None,
    ) -> None:
        """`directory` is the partial output's result unless given.

        Raises `InputError` if there is no room or the files cannot be written.
        """
        self._directory = directory or partial.result
        rows = form.rows(text)
        needed = (
            int(rows.sum(dtype=np.int64)) * form.row_bytes + 8 * len(rows) + text.bytes
        )
        needed -= allocated(self._directory)
        require_space(partial.out, needed, partial.directory)
        with writing(partial.out):
            done = partial.done() if self._directory.is_dir() else None
            if done is None:
                _write_frame(self._directory, text, form)
                partial.commit(done := 0)
            path = self._directory / VECTORS
            self._header = (
                path.stat().st_size - int(rows.sum(dtype=np.int64)) * form.row_bytes
            )
            self._handle = os.open(path, os.O_WRONLY)
        super().__init__(text, form, partial.out, done, every)
        self._partial = partial
        self._next = int(rows[:done].sum(dtype=np.int64))

    def load(self) -> np.ndarray:
        """The vectors written, mapped into memory; bfloat16 as uint16."""
        return np.load(self._directory / VECTORS, mmap_mode="r")

    def _put(
        self, sentence: int, word: int, sizes: Sequence[int], vectors: np.ndarray
    ) -> None:
        place = self._header + self._next * self.form.row_bytes
        write_at(self._handle, vectors, place)
        self._next += len(vectors)


def _write_frame(directory: Path, text: Text, form: Form) -> None:
    """All files whole but for the vectors, which have their place."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    rows = form.rows(text)
    info = {"format": "elmojax vectors", **form.request(), "axes": form.axes}
    if form.dtype == "bfloat16":
        info["bits"] = "bfloat16"
    info |= {"lines": len(text.sizes), "words": int(text.sizes.sum(dtype=np.int64))}
    write_json(directory / INFO, info)
    with open(directory / SENTENCES, "w", encoding="utf-8", newline="\n") as file:
        for words in text.sentences():
            file.write(" ".join(words) + "\n")
    if form.pool is None:
        ends = np.cumsum(rows, dtype=np.int64)
        np.save(directory / OFFSETS, np.concatenate([[0], ends]))
    with open(directory / VECTORS, "wb") as vectors:
        kind = "<u2" if form.dtype == "bfloat16" else form.numpy.newbyteorder("<").str
        shape = (int(rows.sum(dtype=np.int64)), *form.shape)
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(vectors, header)
        vectors.truncate(vectors.tell() + shape[0] * form.row_bytes)
    for path in directory.iterdir():
        sync(path)
    sync(directory)


class Vectors(Sequence[np.ndarray]):
    """The vectors of a text by line, mapped into memory; `read_vectors` opens it.

    Line i is [layers + 1, words, vector], or [words, vector] for one mix or the top
    layer; pooled, [layers + 1, vector] or [vector]. Read-only.
    """

    def __init__(
        self, directory: Path, vectors: np.ndarray, offsets: np.ndarray | None
    ) -> None:
        self.directory = directory
        self.vectors = vectors
        """Of all words, [words, layers + 1, vector]; or as in vectors.npy."""
        self.offsets = offsets
        """int64 [lines + 1]; None if the vectors are pooled."""

    def __len__(self) -> int:
        return len(self.vectors if self.offsets is None else self.offsets[1:])

    def __getitem__(self, line):  # type: ignore[no-untyped-def]
        if isinstance(line, slice):
            return [self[i] for i in range(*line.indices(len(self)))]
        if self.offsets is None:
            return self.vectors[line]
        if not -len(self) <= line < len(self):
            raise IndexError(f"there is no line {line} of {len(self)}")
        line %= len(self)
        words = self.vectors[self.offsets[line] : self.offsets[line + 1]]
        return words.swapaxes(0, 1) if words.ndim == 3 else words

    def sentences(self) -> list[list[str]]:
        """The words of each line."""
        text = (self.directory / SENTENCES).read_text(encoding="utf-8")
        return [line.split() for line in text.split("\n")[:-1]]


@checked
def read_vectors(directory: str | os.PathLike[str]) -> Vectors:
    """Opens a directory that `elmojax embed` wrote.

    bfloat16 has the dtype of ml_dtypes, which is that of JAX.

    Raises:
      InputError: if it is not such a directory, or is cut short.
    """
    path = Path(directory)
    try:
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
        vectors = np.load(path / VECTORS, mmap_mode="r")
        offsets = None if info["pool"] else np.load(path / OFFSETS)
        rows = info["lines"] if info["pool"] else info["words"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no directory of vectors of elmojax, or is cut short ({error}). "
            "Name one that `elmojax embed` wrote, whole."
        ) from error
    ends = (0, rows) if offsets is None else (offsets[0], offsets[-1])
    lines = rows if offsets is None else len(offsets) - 1
    if len(vectors) != rows or ends != (0, rows) or lines != info["lines"]:
        raise InputError(
            f"{path} does not fit together: {VECTORS} has {len(vectors)} vectors and "
            f"{INFO} tells of {rows}. Get it again, whole."
        )
    if info.get("bits") == "bfloat16":
        vectors = vectors.view(ml_dtypes.bfloat16)
    return Vectors(path, vectors, offsets)

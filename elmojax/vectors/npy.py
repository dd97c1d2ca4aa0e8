"""Vectors of all lines one after the other, to be mapped into memory.

    vectors.npy    [words, layers + 1, vector] or [words, vector]; pooled, [lines, ...]
    offsets.npy    int64 [lines + 1]: the words of line i are offsets[i]:offsets[i + 1]
                   (not there if pooled)
    sentences.txt  the text, its words set apart by one space; of other formats than
                   plain text sentences.jsonl, each line the JSON list of its words
    ids.txt        the id of each protein, one a line, if they are from FASTA
    lines.npy      int64 [lines], the number of each line in the file, and
    positions.npy  int32 [words], the place of each word in its line, both from 0: with
                   --only, which leaves all other lines and words out
    info.json      what was asked for

numpy has no bfloat16: such vectors are stored as uint16, their upper 16 bits as
float32 (`"bits": "bfloat16"` in info.json). `read_vectors` gives them their type.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from elmojax.arguments import checked
from elmojax.disk import local, map_array, parse_json, read_object, sync
from elmojax.errors import InputError
from elmojax.text.files import Text
from elmojax.text.formats import split
from elmojax.vectors.unfinished import Unfinished, write_at, write_json, writing_output
from elmojax.vectors.writer import Form, PlacedWriter

INFO, VECTORS, OFFSETS = "info.json", "vectors.npy", "offsets.npy"
SENTENCES, LISTS, IDS = "sentences.txt", "sentences.jsonl", "ids.txt"
LINES, POSITIONS = "lines.npy", "positions.npy"


class RaggedWriter(PlacedWriter):
    """All but the vectors is written first; they are then put in their places."""

    def __init__(
        self,
        output: Unfinished,
        text: Text,
        form: Form,
        every: float = 10.0,
        directory: Path | None = None,
    ) -> None:
        """`directory` is the unfinished output's result unless given.

        Raises `InputError` if there is no room or the files cannot be written.
        """
        self._directory = directory or output.result
        path, more = self._directory / VECTORS, 8 * len(text.sizes) + text.bytes
        super().__init__(output, path, text, form, every, more)
        with writing_output(output.out):  # what is quickly made is not taken up
            _write_text(self._directory, text, form)

    def _make(self) -> None:
        _write_room(self._directory, int(self._rows.sum(dtype=np.int64)), self.form)

    def _read_offsets(self) -> np.ndarray:
        sizes = self._rows.astype(np.int64) * self.form.row_bytes
        header = self._path.stat().st_size - int(sizes.sum())
        return header + np.cumsum(sizes) - sizes

    def load(self) -> np.ndarray:
        """The vectors written, mapped into memory; bfloat16 as uint16."""
        return np.load(self._directory / VECTORS, mmap_mode="r")

    def _put(
        self, sentence: int, word: int, sizes: Sequence[int], vectors: np.ndarray
    ) -> None:
        offset = int(self._offsets[sentence]) + word * self.form.row_bytes
        write_at(self._handle, vectors, offset)


def _write_room(directory: Path, rows: int, form: Form) -> None:
    """The file of the vectors, in which they have their place."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    with open(directory / VECTORS, "wb") as vectors:
        kind = "<u2" if form.dtype == "bfloat16" else form.numpy.newbyteorder("<").str
        header = {"descr": kind, "fortran_order": False, "shape": (rows, *form.shape)}
        np.lib.format.write_array_header_1_0(vectors, header)
        vectors.truncate(vectors.tell() + rows * form.row_bytes)
    sync(directory / VECTORS)
    sync(directory)


def _write_text(directory: Path, text: Text, form: Form) -> None:
    """All files but that of the vectors."""
    info = {"format": "elmojax vectors", **form.request(), "axes": form.axes}
    if form.dtype == "bfloat16":
        info["bits"] = "bfloat16"
    info |= {"lines": len(text.sizes), "words": int(text.sizes.sum(dtype=np.int64))}
    write_json(directory / INFO, info)
    lines = (text.kept(*numbered) for numbered in enumerate(text.sentences()))
    if text.format == "text":
        _write_lines(directory / SENTENCES, map(" ".join, lines))
    else:
        listed = (json.dumps(words, ensure_ascii=False) for words in lines)
        _write_lines(directory / LISTS, listed)
    if text.names is not None:
        _write_lines(directory / IDS, text.names)
    if text.lines is not None and text.positions is not None:
        np.save(directory / LINES, text.lines)
        np.save(directory / POSITIONS, text.positions)
    if form.pool is None:
        ends = np.cumsum(text.sizes, dtype=np.int64)
        np.save(directory / OFFSETS, np.concatenate([[0], ends]))
    for path in directory.iterdir():
        sync(path)
    sync(directory)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


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
        """The words of each line. `InputError` if the text is not there or damaged."""
        path = self.directory / LISTS
        plain = not path.exists()
        path = self.directory / SENTENCES if plain else path
        try:
            lines = path.read_bytes().decode("utf-8").split("\n")[:-1]
            found = [split(line) if plain else parse_json(line) for line in lines]
        except (OSError, ValueError) as error:
            raise _not_whole(self.directory, f"{path.name}: {error}") from error
        if len(lines) != len(self):
            what = f"{path.name} has {len(lines)} lines, and {len(self)} have vectors"
            raise _not_whole(self.directory, what)
        return found


@checked
def read_vectors(directory: str | os.PathLike[str]) -> Vectors:
    """Opens a directory that `elmojax embed` wrote.

    bfloat16 has the dtype of ml_dtypes, which is that of JAX.

    Raises:
      InputError: if it is not such a directory, or its files are damaged, cut short
        or do not fit together.
    """
    path = local(directory)
    try:
        info = read_object(path / INFO)
        vectors = map_array(path / VECTORS)
        pooled, half = info["pool"] is not None, info.get("bits") == "bfloat16"
        offsets = None if pooled else np.array(map_array(path / OFFSETS))
        kind = np.uint16 if half else np.dtype(info["dtype"])
        shape = (info["lines" if pooled else "words"], *info["shape"])
        fits = offsets is None or (
            offsets.dtype == np.int64
            and offsets.shape == (info["lines"] + 1,)
            and (offsets[0], offsets[-1]) == (0, len(vectors))
            and (np.diff(offsets) >= 0).all()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_whole(path, str(error)) from error
    if vectors.shape != shape or vectors.dtype != kind:
        has = f"{vectors.dtype} {vectors.shape} and {INFO} tells of {kind} {shape}"
        raise _not_whole(path, f"{VECTORS} holds {has}")
    if not fits:
        raise _not_whole(path, f"{OFFSETS} does not fit {VECTORS} and {INFO}")
    return Vectors(path, vectors.view(ml_dtypes.bfloat16) if half else vectors, offsets)


def _not_whole(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is no directory of vectors that `elmojax embed` wrote, or is damaged "
        f"({why}). Name another one, or make it again."
    )

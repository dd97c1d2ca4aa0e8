"""HDF5 in bilm-tf's layout: one data set a line, its name the line's number from 0,
or the id of a protein.

A data set is (layers + 1, words, vector), or (words, vector) for one mix or the top
layer; pooled, (layers + 1, vector) or (vector,). A blank line's has no words. The
attribute `sentence` is the text of the line. Where only some words have vectors, the
attributes `positions`, from 0, and `words` say which. The attributes of the file are
`axes`, the names of the axes, and `elmojax`, what was asked for, as JSON.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t, h5z

from elmojax.disk import map_array, sync, unfailing
from elmojax.text.files import Text
from elmojax.vectors.npy import RaggedWriter
from elmojax.vectors.unfinished import Unfinished, write_at
from elmojax.vectors.writer import Form, PlacedWriter

MOST_KEPT = 4000
"""Words of one line that its attributes have room for, where they say which are kept:
HDF5 gives an attribute 64 KiB, and a word takes 16 bytes."""
COMPRESSIONS = {"gzip": range(10), "lzf": range(0)}
"""Names, and their levels."""

_OFFSETS = "places.npy"
_CHUNK = 256
"""Words of one layer that are compressed together."""
_SLICE = 4096
"""Words of one line that are in memory while it is compressed."""
_HEADERS = 512
"""Bytes that HDF5 keeps of a data set, at most (measured: about 400)."""


class Hdf5Writer(PlacedWriter):
    """Uncompressed. All of the file but the vectors is written first; they are then
    put in their places without the HDF5 library.

    So the file is readable as HDF5 at every moment, and a second run that puts the
    same vectors in the same places makes the same bytes.

    h5py would put them there, too, for more: CPU seconds (user + system, median of
    three turns, two cores of an AMD EPYC, 2026-11-27) of 20,000 lines of 20 words,
    [3, words, 64] and [3, words, 1024]: 2.2 and 6.4 by hand; 5.0 and 11.7 where h5py
    writes to these places; 3.6 and 14.6 gathered in .npy and written by
    `create_dataset` at the end. `create_dataset` alone, after which nothing could go
    on, takes 3.4 and 6.6.
    """

    def __init__(
        self, output: Unfinished, text: Text, form: Form, every: float = 10.0
    ) -> None:
        """Raises `InputError` if there is no room or the file cannot be written."""
        more = len(text.sizes) * _HEADERS + 2 * text.bytes
        super().__init__(output, output.result, text, form, every, more)

    def _make(self) -> None:
        _write_skeleton(
            self._path, self._path.with_name(_OFFSETS), self.text, self.form
        )

    def _read_offsets(self) -> np.ndarray:
        offsets = map_array(self._path.with_name(_OFFSETS))
        if offsets.dtype != np.int64 or offsets.shape != self._rows.shape:
            raise ValueError("offsets of other lines")
        return np.asarray(offsets)

    def _put(
        self, sentence: int, word: int, sizes: Sequence[int], vectors: np.ndarray
    ) -> None:
        at = 0
        for number, size in enumerate(sizes, sentence):
            part = vectors[at : at + size]
            offset, rows = int(self._offsets[number]), int(self._rows[number])
            if not size:
                pass
            elif size == rows or vectors.ndim == 2:
                rest = part.swapaxes(0, 1) if vectors.ndim == 3 else part
                write_at(self._handle, rest, offset + word * self.form.row_bytes)
            else:
                stride = self.form.row_bytes // self.form.shape[0]
                for layer in range(self.form.shape[0]):
                    first = offset + (layer * rows + word) * stride
                    write_at(self._handle, part[:, layer], first)
            at, word = at + size, 0


class PackedHdf5Writer(RaggedWriter):
    """Compressed: what is packed has no place before its turn, so the vectors are
    gathered beside the file, which takes their bytes once more, and packed at the end.

    If that is cut short, only the packing is done again.
    """

    def __init__(
        self, output: Unfinished, text: Text, form: Form, every: float = 10.0
    ) -> None:
        form.packing(COMPRESSIONS)
        super().__init__(output, text, form, every, output.directory / "gathered")

    def _complete(self) -> None:
        super()._complete()
        vectors = self.load()
        rows, at = self.form.rows(self.text), 0
        with _new_file(self._unfinished.result, self.form) as (file, check):
            for number, words in enumerate(self.text.sentences()):
                check()
                data = _create(file, self.text, number, words, self.form, packed=True)
                _fill(data, vectors[at : at + rows[number]], self.form)
                at += int(rows[number])


def _write_skeleton(path: Path, offsets: Path, text: Text, form: Form) -> None:
    """A whole file but for the vectors; where each data set's are, in bytes."""
    found = np.zeros(len(text.sizes), np.int64)
    with _new_file(path, form) as (file, check):
        for number, words in enumerate(text.sentences()):
            check()
            data = _create(file, text, number, words, form, packed=False)
            found[number] = data.get_offset() or 0  # None without words
    np.save(offsets, found)
    sync(path)
    sync(offsets)


@contextlib.contextmanager
def _new_file(path: Path, form: Form) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """A file, and what raises the `OSError` of a write that failed."""
    with unfailing(path) as (plain, check):
        with h5py.File(plain, "w", libver="earliest") as file:
            file.attrs["axes"] = form.axes
            file.attrs["elmojax"] = json.dumps(form.request())
            yield file, check


def _create(
    file: h5py.File,
    text: Text,
    number: int,
    words: list[str],
    form: Form,
    packed: bool,
) -> Any:
    """The data set of a line, without its vectors."""
    rows = int(text.sizes[number]) if form.pool is None else 1
    shape = form.shape
    if form.pool is None:
        shape = (*form.shape[:-1], rows, form.shape[-1])
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)
    layout.set_fill_time(h5d.FILL_TIME_NEVER)
    packing = form.packing(COMPRESSIONS) if packed and rows else None
    if packing is None:
        layout.set_layout(h5d.CONTIGUOUS)
        layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    else:
        name, level = packing
        chunk = (*[1] * (len(shape) - 2), min(rows, _CHUNK), shape[-1])
        layout.set_chunk(shape if form.pool is not None else chunk)
        layout.set_shuffle()
        if name == "gzip":
            layout.set_deflate(4 if level is None else level)
        else:
            layout.set_filter(h5z.FILTER_LZF, h5z.FLAG_OPTIONAL)
    space = h5s.create_simple(shape)
    folder, _, name = text.key(number).rpartition("/")
    group = file.require_group(folder) if folder else file
    data = h5d.create(group.id, name.encode(), _type(form), space, layout)
    kind = h5t.py_create(h5py.string_dtype(), logical=True)
    attribute = h5a.create(data, b"sentence", kind, h5s.create(h5s.SCALAR))
    attribute.write(np.array(" ".join(words), h5py.string_dtype()))
    positions = text.positions_in(number)
    if positions is not None:
        attributes = h5py.Dataset(data).attrs
        attributes["positions"] = positions
        kept = text.kept(number, words)
        attributes["words"] = np.array(kept, h5py.string_dtype())
    return data


def _fill(data: Any, vectors: np.ndarray, form: Form) -> None:
    """Writes the vectors of one line, [rows, *form.shape], to its data set."""
    if form.pool is not None:
        data.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(vectors[0]), _type(form))
        return
    for start in range(0, len(vectors), _SLICE):
        part = vectors[start : start + _SLICE]
        part = np.ascontiguousarray(part.swapaxes(0, 1) if part.ndim == 3 else part)
        space = data.get_space()
        corner = (0,) * (part.ndim - 2) + (start, 0)
        space.select_hyperslab(corner, part.shape)
        data.write(h5s.create_simple(part.shape), space, part, _type(form))


def _type(form: Form) -> Any:
    """The type of the numbers in the file. bfloat16 is described bit by bit: 1 sign,
    8 exponent, 7 mantissa, bias 127; h5py reads it as float32."""
    if form.dtype == "float16":
        return h5t.IEEE_F16LE
    kind = h5t.IEEE_F32LE.copy()
    if form.dtype == "bfloat16":
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_ebias(127)
        kind.set_size(2)
    return kind

"""Parquet: a directory of part files, for one or many text files.

    00003-00001.parquet   some successive lines of text file 3 (from 0), part 1
    _info.json            what was asked for; rows and parts of each text

A row is a line: `file`, the name of its text; `line`, its number from 0; `start`, 0,
but a line that is very long is in several rows, each from its word `start`; `words`;
`id`, if the text is FASTA; `positions` of the words, from 0, if only some have vectors.
Vectors are in `vectors` for one mix or the top layer, else in `layer_0`, `layer_1`,
...: a list of one fixed-size list a word, or one fixed-size list if they are pooled.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from elmojax.disk import sync
from elmojax.errors import InputError
from elmojax.text.files import Text
from elmojax.vectors.unfinished import (
    TextProgress,
    finished_texts,
    forget_progress,
    require_space,
    sum_of,
    write_json,
    writing_output,
)
from elmojax.vectors.writer import Form, Writer

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise InputError(
        "Parquet needs pyarrow, which is not installed: pip install 'elmojax[parquet]'."
    ) from error

COMPRESSIONS = {
    "gzip": range(1, 10),
    "lz4": range(0),
    "snappy": range(0),
    "zstd": range(1, 23),
}
"""Names, and their levels."""
INFO = "_info.json"

_PART = 65_536
"""Vectors and lines after which a part ends, where a later run can go on."""
_GROUP = 8192
"""Vectors and lines that are in memory, at least, and make a row group."""


class ParquetWriter(Writer):
    """The parts of one text. A part has its name once it is whole, and a later run
    goes on after the last one.

    Any process may write any text of an output, each one at a time.
    """

    def __init__(
        self,
        directory: Path,
        number: int,
        text: Text,
        form: Form,
        overwrite: bool = False,
    ) -> None:
        """The writer of text file `number` (from 0).

        Args:
          directory: `Output.directory`.
          overwrite: start again if there are parts of another text of this number.

        Raises:
          InputError: for a form that Parquet does not have, parts of another text,
            no room, or a directory that cannot be written.
        """
        check_form(form)
        self._home, self._directory = directory, directory / "result"
        self._number = number
        out = directory.with_name(directory.name.removesuffix(".partial"))
        with writing_output(out):
            self._directory.mkdir(exist_ok=True)
            done = self._begin(directory, text, overwrite).done
        rows = form.rows(text)
        needed = int(rows[done:].sum(dtype=np.int64)) * form.row_bytes
        # What packing saves is not known before; at least half remains.
        needed = needed // 2 if form.compression else needed
        require_space(out, needed, directory)
        super().__init__(text, form, out, done, 0.0)
        self._schema = _schema(form, text)
        self._sentences = text.sentences(done)
        self._current: list[str] = []
        self._file: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._vectors: list[np.ndarray] = []
        self._held = self._weight = 0  # in memory; in this part

    def _begin(self, directory: Path, text: Text, overwrite: bool) -> TextProgress:
        """How far an earlier run came; what does not count is removed."""
        progress = TextProgress.begin(directory, self._number, text, overwrite)
        self._progress = progress
        if not all(self._is_whole(*part) for part in enumerate(progress.parts)):
            progress.done, progress.parts, progress.rows = 0, [], 0
        if not progress.done:
            forget_progress(directory, self._number)
            name = f"{self._number:05d}-*.parquet"
            for pattern in (name, f"_{name}.new"):
                for path in self._directory.glob(pattern):
                    path.unlink()
        return progress

    def _part(self, part: int) -> Path:
        return self._directory / f"{self._number:05d}-{part:05d}.parquet"

    def _is_whole(self, part: int, kept: list[int]) -> bool:
        """Whether a part is still as it was when it got its name."""
        try:
            return sum_of(self._part(part)) == kept
        except (OSError, ValueError):
            return False

    def _new(self) -> Path:
        path = self._part(len(self._progress.parts))
        return path.with_name(f"_{path.name}.new")

    def _put(
        self, sentence: int, word: int, sizes: Sequence[int], vectors: np.ndarray
    ) -> None:
        for line, size in enumerate(sizes, sentence):
            if word == 0:
                self._current = self.text.kept(line, next(self._sentences))
            end = word + size if self.form.pool is None else None
            row = {"file": self._progress.file, "line": self.text.number(line)}
            row |= {"start": word, "words": self._current[word:end]}
            if self.text.names is not None:
                row["id"] = self.text.names[line]
            positions = self.text.positions_in(line)
            if positions is not None:
                row["positions"] = positions[word:end]
            self._rows.append(row)
            word = 0
        self._vectors.append(vectors)
        self._held += len(vectors) + len(sizes)
        self._weight += len(vectors) + len(sizes)
        if self._held >= _GROUP:
            self._flush()

    def _boundary(self) -> None:
        if self._weight >= _PART:
            self.commit()

    def _flush(self) -> None:
        """Writes what is in memory as one row group."""
        if self._file is None:
            packing = self.form.packing(COMPRESSIONS) or ("none", None)
            self._file = pq.ParquetWriter(
                self._new(),
                self._schema,
                compression=packing[0],
                compression_level=packing[1],
                use_dictionary=["file", "words.list.element"],
                write_statistics=["file", "line", "start"],
            )
        ends = np.cumsum(
            [0, *(len(row["words"]) for row in self._rows)], dtype=np.int32
        )
        columns = [
            pa.array([row[name] for row in self._rows], self._schema.field(name).type)
            for name in self._rows[0]
        ]
        columns += self._vector_columns(np.concatenate(self._vectors), ends)
        group = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._file.write_batch(group, row_group_size=len(self._rows))
        self._progress.rows += len(self._rows)
        self._rows, self._vectors, self._held = [], [], 0

    def _vector_columns(self, vectors: np.ndarray, ends: np.ndarray) -> list[pa.Array]:
        columns = []
        for layer in range(vectors.shape[1]) if vectors.ndim == 3 else [None]:
            part = vectors if layer is None else vectors[:, layer]
            flat = pa.array(np.ascontiguousarray(part).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, part.shape[-1])
            if self.form.pool is None:
                column = pa.ListArray.from_arrays(ends, column)
            columns.append(column)
        return columns

    def _keep(self, done: int) -> None:
        if self._rows:
            self._flush()
        assert self._file is not None
        self._file.close()
        self._file = None
        new = self._new()
        sync(new)
        part = self._part(len(self._progress.parts))
        os.replace(new, part)
        sync(self._directory)
        self._progress.parts.append(sum_of(part))
        self._progress.done, self._weight = done, 0
        self._progress.write(self._home, self._number)

    def _complete(self) -> None:
        for _ in self._sentences:  # The end of the text shows whether it changed.
            raise self.text.changed()

    def close(self) -> None:
        """Lets go of the file; a part that is not whole is dropped."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            self._new().unlink(missing_ok=True)


def complete(directory: Path, names: Sequence[str], form: Form) -> None:
    """Ends an output. `InputError` unless all texts have been written whole."""
    texts = [asdict(text) for text in finished_texts(directory, names)]
    texts = [text | {"parts": len(text["parts"])} for text in texts]
    info = {"format": "elmojax vectors", **form.request(), "texts": texts}
    write_json(directory / "result" / INFO, info)


def check_form(form: Form) -> None:
    """`InputError` for vectors that Parquet has no type for."""
    form.packing(COMPRESSIONS)
    if form.dtype == "bfloat16":
        raise InputError(
            "Parquet has no bfloat16; take --dtype float16 or float32, or write HDF5 "
            "or .npy."
        )


def _schema(form: Form, text: Text) -> pa.Schema:
    column = pa.list_(pa.from_numpy_dtype(form.numpy), form.shape[-1])
    if form.pool is None:
        column = pa.list_(column)
    names = ["vectors"]
    if len(form.shape) == 2:
        names = [f"layer_{layer}" for layer in range(form.shape[0])]
    fields = [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("start", pa.int32()),
        ("words", pa.list_(pa.string())),
        *([("id", pa.string())] if text.names is not None else []),
        *([("positions", pa.list_(pa.int32()))] if text.positions is not None else []),
        *((name, column) for name in names),
    ]
    return pa.schema(fields, metadata={"elmojax": json.dumps(form.request())})

"""TensorFlow's checkpoint format ("V2", tensor bundle), read with NumPy.

    PREFIX.index                 a sorted table: name -> dtype, shape, place, checksum
    PREFIX.data-00000-of-00002   the values, side by side, row-major, little-endian

The values of the table are the messages BundleHeaderProto (under the empty name) and
BundleEntryProto of tensorflow/core/protobuf/tensor_bundle.proto, in protobuf's wire
format. A partitioned variable is one entry without values that lists its slices, and
one entry a slice under a name that encodes the slice. Every checksum is verified.

The table itself has LevelDB's file format (LevelDB, doc/table_format.md), without
compression:

    table   block, ..., block, index block, footer
    block   entries, where names are written in full, how often that is; TRAILER
    entry   bytes shared with the name before, fresh ones, bytes of the value (varints);
            the fresh bytes of the name; the value
    index   a name at or behind a block's last -> varints offset, size of the block
    footer  offset, size of a block of statistics, of the index block; zeros; MAGIC
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from elmojax.errors import InputError

MAGIC = 0xDB4775248B80FB57
"""The last eight bytes of a LevelDB table."""
FOOTER = 48
TRAILER = 5
"""After each block: how it is compressed (one byte), masked CRC-32C (four)."""

COPY = "copy the checkpoint again, all of its files"


def read_table(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """All (name, value) of a LevelDB table, in the order of names."""
    try:
        table = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if len(table) < FOOTER or struct.unpack("<Q", table[-8:])[0] != MAGIC:
        raise InputError(
            f"{path} is no index of a TensorFlow checkpoint, or was cut short (its "
            f"last bytes are not the format's mark); {COPY}."
        )
    try:
        _, at = _handle(table, len(table) - FOOTER)  # of statistics; there are none
        index, _ = _handle(table, at)
        for _, value in _read_block(path, table, *index):
            block, _ = _handle(value, 0)
            yield from _read_block(path, table, *block)
    except InputError:
        raise
    except (ValueError, struct.error) as error:
        raise damaged(path, str(error)) from error


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """(offset, size) of a block, and where in `data` reading goes on."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _read_block(
    path: Path, table: bytes, offset: int, size: int
) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block; a name keeps the first `shared` bytes of the last."""
    end = offset + size
    if end + TRAILER > len(table) - FOOTER or size < 4:
        raise damaged(path, f"a block of {size} bytes at {offset} is not inside it")
    compression, checksum = struct.unpack_from("<BI", table, end)
    covered = np.frombuffer(table, np.uint8, size + 1, offset)
    if masked_crc32c(covered) != checksum:
        raise damaged(path, f"the checksum of its block at byte {offset} is wrong")
    if compression:
        raise InputError(
            f"{path} is compressed (kind {compression}), which TensorFlow's saver "
            "never does; save the checkpoint again with tf.train.Saver."
        )
    block = table[offset:end]
    restarts = struct.unpack_from("<I", block, size - 4)[0]
    at, stop, name = 0, size - 4 - 4 * restarts, b""
    while at < stop:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        name = name[:shared] + block[at : at + fresh]
        at += fresh + length
        yield name, block[at - length : at]


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at]
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return number, at
    raise ValueError("a number is too long")


def unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be read ({error.strerror}); a checkpoint is an .index file and "
        "all of its .data files in one directory, so check the path or copy the rest."
    )


def damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path} is damaged: {what}; {COPY}.")


def masked_crc32c(data: np.ndarray) -> int:
    """CRC-32C of uint8 [bytes], rotated and shifted as LevelDB stores it."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


DTYPES: dict[int, Any] = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    8: np.complex64,
    9: np.int64,
    10: np.bool_,
    14: jnp.bfloat16,
    17: np.uint16,
    18: np.complex128,
    19: np.float16,
    22: np.uint32,
    23: np.uint64,
}
"""The numbers of tensorflow/core/framework/types.proto."""

Slice = tuple[tuple[int, int], ...]
"""(start, length) along each axis; length -1 is all of it, from 0."""


class TensorEntry(NamedTuple):
    """What the index says of one variable, or of one slice of one."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: tuple[Slice, ...]


class Bundle:
    """A bundle: its index in memory, its data files mapped as they are needed."""

    def __init__(self, prefix: Path) -> None:
        """Reads the index.

        Raises `InputError` for one that is missing, cut short, damaged, no index of a
        bundle, compressed or big-endian (TensorFlow compresses none, and no machine of
        today is big-endian).
        """
        self.prefix = prefix
        self.index = Path(f"{prefix}.index")
        records = dict(read_table(self.index))
        try:
            header = dict(_fields(records.pop(b"", b"")))
            self.shards: int = header.get(1, 0)
            entries = {name: _entry(value) for name, value in records.items()}
        except (ValueError, struct.error) as error:
            raise damaged(self.index, str(error)) from error
        if not self.shards or header.get(2, 0):
            what = "is of a big-endian machine" if self.shards else "has no header"
            raise InputError(
                f"{self.index} {what}, which is not supported; save the checkpoint "
                "again with TensorFlow 1.15 or 2 on a usual machine."
            )
        self.variables: dict[str, TensorEntry] = {}
        self._slices: dict[bytes, TensorEntry] = {}
        for key, entry in entries.items():
            if key.startswith(b"\0"):
                self._slices[key] = entry
            else:
                self.variables[key.decode("utf-8", "replace")] = entry
        self._maps: dict[int, np.ndarray] = {}

    def read(self, keep: Callable[[str], bool]) -> dict[str, np.ndarray]:
        """The variables whose names `keep` accepts, in the order of names.

        The arrays are read-only views of the memory-mapped data files (partitioned
        variables are put together in memory), of the dtype that was stored; bfloat16
        is `jnp.bfloat16`. Verifying checksums reads every byte once, at half a
        gigabyte a second and more.

        Raises `InputError` for a data file that is missing, cut short or damaged, and
        for variables that are no arrays of numbers.
        """
        return {
            name: (self._assemble if entry.slices else self._values)(name, entry)
            for name, entry in self.variables.items()
            if keep(name)
        }

    def _dtype(self, name: str, entry: TensorEntry) -> np.dtype:
        if entry.dtype in DTYPES:
            return np.dtype(DTYPES[entry.dtype])
        raise InputError(
            f"{self.index}: variable {name!r} has TensorFlow's dtype number "
            f"{entry.dtype}, which is no array of numbers; leave it out "
            "(`keep`), or save the checkpoint without it."
        )

    def _values(self, name: str, entry: TensorEntry) -> np.ndarray:
        """One entry's values, checked against its size and checksum."""
        dtype = self._dtype(name, entry)
        if min(entry.shape, default=0) < 0 or entry.offset < 0:
            raise damaged(self.index, f"{name!r} has a shape or place below 0")
        wanted = math.prod(entry.shape) * dtype.itemsize
        if entry.size != wanted:
            what = f"{name!r} of shape {entry.shape} has {entry.size} bytes, not"
            raise damaged(self.index, f"{what} {wanted}")
        path, data = self._shard(entry.shard)
        values = data[entry.offset : entry.offset + entry.size]
        if len(values) < entry.size:
            raise InputError(
                f"{path} has {len(data)} bytes, but variable {name!r} ends at byte "
                f"{entry.offset + entry.size}: it was cut short; {COPY}."
            )
        if masked_crc32c(values) != entry.checksum:
            raise damaged(path, f"the checksum of variable {name!r} is wrong")
        return values.view(dtype).reshape(entry.shape)

    def _assemble(self, name: str, entry: TensorEntry) -> np.ndarray:
        """A partitioned variable in one piece."""
        whole = np.empty(entry.shape, self._dtype(name, entry))
        filled = 0
        for piece in entry.slices:
            part = self._slices.get(_slice_key(name, piece))
            places = tuple(
                slice(start, size if length < 0 else start + length)
                for (start, length), size in zip(piece, entry.shape, strict=False)
            )
            if part is None or part.shape != whole[places].shape:
                raise damaged(self.index, f"slice {piece} of {name!r} is not there")
            whole[places] = self._values(f"{name} slice {piece}", part)
            filled += whole[places].size
        if filled != whole.size:
            raise damaged(self.index, f"slices of {name!r} do not make up its shape")
        return whole

    def _shard(self, number: int) -> tuple[Path, np.ndarray]:
        """A data file and its bytes, uint8."""
        path = Path(f"{self.prefix}.data-{number:05d}-of-{self.shards:05d}")
        if number not in self._maps:
            try:
                size = path.stat().st_size  # an empty file cannot be mapped
                data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
            except OSError as error:
                raise unreadable(path, error) from error
            self._maps[number] = np.asarray(data)
        return path, self._maps[number]


def checkpoint_prefix(path: str | os.PathLike[str]) -> Path:
    """The prefix of a checkpoint's files, from it, one of them or their directory.

    Raises `InputError` for a directory without a file `checkpoint` or with one that
    names files which are not there.
    """
    path = Path(path)
    if not path.is_dir():
        suffix = r"\.(index|meta|data-\d{5}-of-\d{5})$"
        return path.with_name(re.sub(suffix, "", path.name))
    try:
        text = (path / "checkpoint").read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = sorted(file.stem for file in path.glob("*.index"))
        instead = f"name one of its checkpoints ({', '.join(found)})" if found else ""
        raise InputError(
            f"{path} has no file `checkpoint` that says which one is the newest; "
            f"{instead or 'it holds no checkpoint at all, so give another directory'}."
        ) from error
    match = re.search(r'^model_checkpoint_path: "(.*)"$', text, re.MULTILINE)
    if match is None:
        raise InputError(
            f"{path / 'checkpoint'} names no newest checkpoint; give the prefix of one "
            "(such as model.ckpt-1000) instead of the directory."
        )
    newest = re.split(r"[/\\]", match[1])[-1]
    # First beside the file: a directory that was copied still names its old place.
    for prefix in (path / newest, path / match[1]):
        if Path(f"{prefix}.index").is_file():
            return prefix
    raise InputError(
        f"{path / 'checkpoint'} names {match[1]!r} as the newest, but {newest}.index "
        "is not there; copy that checkpoint too, or give the prefix of another one."
    )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, int or bytes) of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(message, at)
            yield tag >> 3, value - (1 << 64) if value >> 63 else value
        elif kind == 2:
            length, at = varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind in (1, 5):
            form, length = ("<Q", 8) if kind == 1 else ("<I", 4)
            yield tag >> 3, struct.unpack_from(form, message, at)[0]
            at += length
        else:
            raise ValueError(f"a message has a field of kind {kind}")


def _entry(message: bytes) -> TensorEntry:
    """A BundleEntryProto."""
    one: dict[int, Any] = {1: 0, 2: b"", 3: 0, 4: 0, 5: 0, 6: 0}
    slices = []
    for number, value in _fields(message):
        if number == 7:
            extents = [dict(_fields(e)) for n, e in _fields(value) if n == 1]
            slices.append(tuple((e.get(1, 0), e.get(2, -1)) for e in extents))
        else:
            one[number] = value
    shape = tuple(dict(_fields(d)).get(1, 0) for n, d in _fields(one[2]) if n == 2)
    return TensorEntry(one[1], shape, one[3], one[4], one[5], one[6], tuple(slices))


def _slice_key(name: str, piece: Slice) -> bytes:
    """The name of a slice: 0, the variable's name, rank, start and length of each axis.

    All in an encoding that sorts as the values do (tensorflow/core/lib/strings/
    ordered_code.h): a name ends with 00 01; a count is its length in bytes, then its
    bytes, highest first; a start or length see below.
    """
    extents = b"".join(_ordered(start) + _ordered(size) for start, size in piece)
    return b"\0" + name.encode() + b"\0\1" + bytes([1, len(piece)]) + extents


def _ordered(number: int) -> bytes:
    """A number in n bytes, after n bits that are 1 and one that is 0; with all bits of
    ~number inverted if it is negative."""
    magnitude = ~number if number < 0 else number
    length = magnitude.bit_length() // 7 + 1
    code = ((1 << length) - 1) << 7 * length | magnitude
    if number < 0:
        code ^= (1 << 8 * length) - 1
    return code.to_bytes(length, "big")

"""LevelDB's table format as TensorFlow uses it: sorted names, values, checksums.

    table   block, ..., block, index block, footer
    block   entries, where names are written in full, how often that is; TRAILER
    entry   bytes shared with the name before, fresh ones, bytes of the value (varints);
            the fresh bytes of the name; the value
    index   a name at or behind a block's last -> varints offset, size of the block
    footer  offset, size of a block of statistics, of the index block; zeros; MAGIC

Source: LevelDB, doc/table_format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

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

"""Files and directories that are whole or not there, and arrays written as a stream."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from elmojax.errors import InputError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name in the same directory to write to, which `path` has after the block.

    Where the block fails, what it wrote is removed and `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Unfailing(io.FileIO):
    """Takes whatever is written, and remembers what the system refused first."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size


@contextmanager
def unfailing(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """A new file for a library that crashes when it cannot write, as HDF5 does.

    Yields the file, and a function that raises the `OSError` of a write that failed;
    the end of the block raises it too, and leaves no file.
    """
    with _Unfailing(path, "w+") as file:

        def check() -> None:
            if file.error is not None:
                raise file.error

        try:
            yield cast(IO[bytes], file), check
        finally:
            if file.error is not None:
                path.unlink(missing_ok=True)
            check()


_CHUNK = 1 << 22

Record = dict[str, int | str]
"""A file as corpus.json lists it: `bytes`, and `sha256` in hexadecimal."""


class _HashedFile:
    """Passes on what is written, and knows its size and SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += memoryview(data).nbytes

    def finish(self) -> Record:
        """Brings the file to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A hidden directory beside `out` to build it in; removed however the block ends.

    `install` makes it `out`. A file system that refuses (no space, no permission, a
    file in the way) raises `InputError`; `out` is then as it was before.
    """
    partial = _hidden(out, "partial")
    try:
        for parent in out.parents:
            if parent.exists() and not parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{parent} is no directory")
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        partial.mkdir()
        yield partial
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}. Choose another "
            "place, or make room there; nothing was left behind."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def install(partial: Path, out: Path, replaces: bool) -> None:
    """Renames a whole directory to `out`; if it replaces another, that goes last.

    Unless it replaces, `OSError` for an `out` that has meanwhile been filled.
    """
    sync(partial)
    old = _hidden(out, "replaced")
    if replaces:
        os.rename(out, old)
    try:
        os.rename(partial, out)
    except BaseException:
        if replaces:
            os.rename(old, out)
        raise
    sync(out.parent)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


def _hidden(out: Path, kind: str) -> Path:
    return out.with_name(f".{out.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def _sweep(out: Path) -> None:
    """Clears away what killed runs of this machine left beside `out`."""
    host = re.escape(socket.gethostname())
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(partial|replaced)-{host}-(\d+)")
    for path in list(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or _alive(int(match[2])):
            continue
        if match[1] == "replaced" and not out.exists():
            os.rename(path, out)  # Killed between the two renames of `install`.
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    # In containers a new run often has the number of the one that was killed.
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Brings a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> Record:
    """Writes a new file in one piece."""
    with open(path, "xb") as handle:
        file = _HashedFile(handle)
        file.write(data)
        return file.finish()


def write_array(
    path: Path, dtype: str, length: int, chunks: Iterable[np.ndarray]
) -> Record:
    """Writes chunks that make up `length` numbers as one .npy file, in a stream."""
    header = {"descr": dtype, "fortran_order": False, "shape": (length,)}
    with open(path, "xb") as handle:
        file = _HashedFile(handle)
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype).data)
            length -= len(chunk)
        assert length == 0, f"{path}: chunks and length differ by {length}"
        return file.finish()


def read_chunks(path: Path, dtype: str) -> Iterator[np.ndarray]:
    """Streams the numbers of a file that holds nothing else."""
    with open(path, "rb") as file:
        while len(chunk := np.fromfile(file, dtype, _CHUNK)):
            yield chunk

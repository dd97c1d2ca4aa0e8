"""The disk of this machine: files are written whole or not at all, by one process.

Files and directories that are whole or not there (`replacing`, `new_directory`), locks
(`Lock`), paths of this machine alone (`local`), and arrays written as a stream.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from elmojax.errors import InputError, Remark, writing

MOUNTED = (
    "this must be on this machine. Give a path: where that place is mounted, or "
    "another one."
)


def local(path: str | os.PathLike[str], advice: str = MOUNTED) -> Path:
    """A path of this machine. `InputError`, with the advice, for an address, such as
    gs://bucket/run."""
    name = os.fspath(path)  # a Path has made gs:/ of gs://
    if isinstance(name, str) and (
        match := re.match(r"([a-z][a-z0-9+.-]+):(/+|$)", name, re.IGNORECASE)
    ):
        rest = re.sub(r"^[^/]*@", "", name[match.end() :].partition("?")[0])
        raise InputError(f"{match[1]}://{rest} is an address, and {advice}")
    return Path(path)


def symlink_error(path: Path) -> InputError:
    """The refusal to write where a symbolic link stands."""
    return InputError(
        f"{path} is a symbolic link, and nothing is written through it. Put what it "
        "names in its place, or remove it."
    )


def check_out(out: Path, overwrite: bool = False) -> None:
    """`InputError` if a file `out` cannot be made there, or would replace another."""
    if local(out).exists() and not (overwrite and out.is_file()):
        raise InputError(
            f"{out} is there already; give another --out, or --overwrite to replace "
            "it (a file only)."
        )
    check_parent(out)


def check_parent(out: Path) -> None:
    """`InputError` unless there is a directory to make `out` in."""
    if not out.parent.is_dir():
        raise InputError(
            f"{out} cannot be written: there is no directory {out.parent}. Make it, or "
            "choose another --out."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same directory to write to, which `path` has after the block.

    Where the block fails, what it wrote is removed and `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)  # a link may stand there, which leads elsewhere
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
    partial = _hidden(local(out), "partial")
    advice = "Choose another place, or make room there; nothing was left behind."
    try:
        with writing(out, advice):
            for parent in out.parents:
                if parent.exists() and not parent.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, f"{parent} is no directory")
            out.parent.mkdir(parents=True, exist_ok=True)
            _sweep(out)
            partial.mkdir()
            yield partial
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
    if not out.name:
        raise InputError(f"{out} cannot be replaced; name a directory inside it.")
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
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


class Taken(Exception):
    """Another process has the lock; the message names it."""


class Lock:
    """Held on a file until `release`, or until the process ends, however it ends.

    The file stays. It names who had the lock last, which means nothing by itself.
    """

    def __init__(self, path: Path, patience: float = 0.0) -> None:
        """Makes the file, and its directory, if need be.

        Where the file system has no locks, that is a `Remark`, and it goes on without.

        Args:
          patience: seconds to wait for another process; `math.inf` for as long as it
            takes.

        Raises:
          Taken: if another process has it.
          InputError: if a symbolic link stands there.
          OSError: if the file cannot be made.
        """
        self._file = -1
        # One that only looks (`is_locked`) has it for less than a moment.
        end = time.monotonic() + max(patience, 0.1)
        while (owner := self._take(local(path))) is not None:
            if time.monotonic() > end:
                raise Taken(owner or "unnamed")
            time.sleep(0.05)

    def _take(self, path: Path) -> str | None:
        """None once it is ours, else what the file says of who has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise symlink_error(path)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            return ""  # another process has just removed the directory
        try:
            if not _try_lock(file, path):
                return os.read(file, 100).decode("utf-8", "replace").strip()
            # It may be a file that another process has removed meanwhile.
            if not os.fstat(file).st_nlink:
                return ""
            self._file, file = file, -1
        finally:
            if file >= 0:
                os.close(file)
        with contextlib.suppress(OSError):  # a full disk must not cost the lock
            os.ftruncate(self._file, 0)
            owner = f"process {os.getpid()} on {socket.gethostname()}"
            os.pwrite(self._file, owner.encode(), 0)
        return None

    @property
    def held(self) -> bool:
        """Whether it is not released yet."""
        return self._file >= 0

    def release(self) -> None:
        """Lets others in. Safe to call again."""
        if self.held:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _try_lock(file: int, path: Path) -> bool:
    """Whether no other process has the lock of an open file; never waits."""
    try:
        import filelock

        return filelock.lock_descriptor(file, blocking=False)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be locked ({error.strerror or error}): where the file "
            "system has no locks, nothing keeps a second process out. See to it that "
            "only one runs there.",
            Remark,
            stacklevel=2,
        )
        return True


def is_locked(path: Path) -> bool | None:
    """Whether a process has the `Lock` of a file; None where nobody can know."""
    try:  # network file systems lock only what is open for writing
        mode = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
        file = os.open(path, mode | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        import filelock

        return not filelock.lock_descriptor(file, blocking=False)
    except OSError:
        return None
    finally:
        os.close(file)


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


def map_array(path: Path) -> np.ndarray:
    """The numbers of a .npy file, read-only and mapped into memory.

    Raises `ValueError` if the file is damaged, and `OSError` if it cannot be read.
    """
    try:
        # Never `np.load`, which takes archives and pickles, too.
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever a damaged header makes NumPy raise
        raise ValueError(f"{type(error).__name__}: {error}") from error


def parse_json(text: str | bytes, parse: Callable[[Any], Any] | None = None) -> Any:
    """What JSON (or what `parse` reads) says.

    Raises `ValueError` for anything else, brackets without an end and numbers of more
    than 20 digits among it.
    """
    try:
        return parse(text) if parse else json.loads(text, parse_int=_parse_int)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parse_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises `ValueError` if the file holds anything else, and `OSError` if it cannot be
    read.
    """
    found = parse_json(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"it holds no JSON object but a {type(found).__name__}")
    return found


def read_utf8(path: Path, what: object, advice: str = "") -> str:
    """The text of a file; `InputError`, with the advice, that `what` cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} cannot be read ({error}){advice}.") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_chunks(path: Path, dtype: str) -> Iterator[np.ndarray]:
    """Streams the numbers of a file that holds nothing else."""
    with open(path, "rb") as file:
        while len(chunk := np.fromfile(file, dtype, _CHUNK)):
            yield chunk

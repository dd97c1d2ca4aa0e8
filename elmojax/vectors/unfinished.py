"""An output on its way: where it is made, who makes it, and how far it has come.

Of an output of many texts each has a small file that says how far it has come, so that
any process can write any of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import google_crc32c as crc32c
import numpy as np

from elmojax.disk import Lock, Taken, read_object, symlink_error, sync
from elmojax.errors import InputError, writing
from elmojax.text.files import Text

_LOCK, _REQUEST = "_lock", "_request.json"


class Unfinished:
    """`OUT.partial`, a directory in which one process at a time makes OUT.

        _lock           held by that process
        _request.json   what is being made; an other request does not go on with it
        _00000.json     how far each text has come, see `TextProgress`
        result          the output, renamed to OUT once it is whole

    Other entries are the format's own. Killed at any moment, it is either taken up
    again or OUT is whole.
    """

    def __init__(self, out: Path, request: dict[str, Any], overwrite: bool) -> None:
        """Takes up what an equal request left, or starts.

        Raises:
          InputError: if another process is writing `out`; what is there is of another
            request and `overwrite` is not given; the directory is of another kind or
            cannot be written.
        """
        self.out = out
        self.directory = out.with_name(f"{out.name}.partial")
        self.result = self.directory / "result"
        self._replaced = self.directory / "replaced"
        with writing_output(out):
            self._lock = self._take()
            there = (self.directory / _REQUEST).exists()
            try:
                self._begin(json.loads(json.dumps(request)), overwrite)
            except BaseException:
                self.release(keep=there)
                raise

    def install(self) -> None:
        """Brings the result to the disk and makes it `out`; ends this object."""
        sync(self.result)
        if self.out.is_dir() and self.result.is_dir():
            # Killed in between, the next run puts it back.
            if self._replaced.exists():
                shutil.rmtree(self._replaced)
            os.rename(self.out, self._replaced)
        try:
            os.replace(self.result, self.out)
        except BaseException:
            self._restore()
            raise
        sync(self.out.parent)
        self.release(keep=False)

    def release(self, keep: bool) -> None:
        """Lets go of the directory; removes it unless it is to be taken up again."""
        if not self._lock.held:
            return
        if not keep:
            self._clear()
            for name in (_REQUEST, _LOCK):
                (self.directory / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.directory.rmdir()
        self._lock.release()

    def _restore(self) -> None:
        """Gives back its name to what was to be replaced, if nothing has it."""
        if self._replaced.exists() and not self.out.exists():
            os.rename(self._replaced, self.out)

    def _take(self) -> Lock:
        ours = {_LOCK, _REQUEST, f"{_REQUEST}.new"}
        if self.directory.is_symlink():
            raise symlink_error(self.directory)
        if self.directory.is_dir():
            names = set(os.listdir(self.directory))
            if _REQUEST not in names and names - ours:
                raise InputError(
                    f"{self.directory} is in the way: it is no unfinished output of "
                    "elmojax. Move it, or choose another --out."
                )
        try:
            lock = Lock(self.directory / _LOCK)
        except Taken as owner:
            raise InputError(
                f"Another process is writing {self.out} ({owner}). Wait for it, end "
                "it, or choose another --out."
            ) from owner
        for path in self.directory.rglob("*"):
            if path.is_symlink():
                lock.release()
                raise symlink_error(path)
        return lock

    def _begin(self, request: dict[str, Any], overwrite: bool) -> None:
        self._restore()
        path = self.directory / _REQUEST
        found = read_json(path)
        if found == request:
            return
        if found is not None and not overwrite:
            keys = [k for k in {**found, **request} if found.get(k) != request.get(k)]
            told = (
                f"{k} {_told(found, k)} there, {_told(request, k)} now" for k in keys
            )
            raise InputError(
                f"{self.directory} holds an unfinished output of another request: "
                f"{'; '.join(told)}. Ask for the same to go on with it, give "
                "--overwrite to start again, or another --out."
            )
        self._clear()
        write_json(path, request)

    def _clear(self) -> None:
        for path in list(self.directory.iterdir()):
            if path.name in (_LOCK, _REQUEST):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def writing_output(out: Path) -> AbstractContextManager[None]:
    """Turns what a file system refuses into an `InputError` that names the output."""
    advice = "Make room or put it right, and run the same command again to go on; "
    return writing(out, advice + "or choose another --out.")


def require_space(out: Path, needed: int, directory: Path) -> None:
    """`InputError` unless `needed` bytes are free on the disk of a directory."""
    with writing_output(out):
        free = shutil.disk_usage(directory).free
    if needed > free:
        raise InputError(
            f"{out} needs {needed / 1e9:,.3g} GB more, and its disk has "
            f"{free / 1e9:,.3g} GB free. Make room, choose another --out, or ask for "
            "less: one of --layers, --dtype float16 or --pool."
        )


def allocated(path: Path) -> int:
    """Bytes on the disk of a file, where vectors that are still to come have none; 0
    if it is not there."""
    return path.stat().st_blocks * 512 if path.is_file() else 0


def write_at(handle: int, array: np.ndarray, position: int) -> None:
    """Writes all bytes of an array at a position of an open file."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    while len(data):
        written = os.pwrite(handle, data, position)
        data, position = data[written:], position + written


def write_json(path: Path, value: Any) -> None:
    """Replaces a small JSON file at once: the old one or the new one is there."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # a link may stand there, which leads elsewhere
    with open(new, "x", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """None without a file; `InputError` for one that holds no JSON object."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged. Remove {path.parent} to start again.")


def sum_of(path: Path) -> list[int]:
    """Bytes and CRC-32C of a file that is not empty."""
    content = np.memmap(path, np.uint8, "r")
    return [len(content), crc32c.value(content)]


def _told(request: dict[str, Any], key: str) -> str:
    text = json.dumps(request[key]) if key in request else "nothing"
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass
class TextProgress:
    """How far a text has come. It is kept in `OUT.partial/_00003.json` for text 3."""

    file: str
    """Name of the text file."""
    text: str
    """Its digest."""
    lines: int
    done: int = 0
    """Lines that are on the disk."""
    parts: list[list[int]] = field(default_factory=list)
    """Sizes and sums that tell whether they are as they were, as the format has it."""
    rows: int = 0

    @classmethod
    def read(cls, directory: Path, number: int) -> TextProgress | None:
        """What an earlier run kept. `InputError` if it is damaged."""
        path = _file(directory, number)
        if (found := read_json(path)) is None:
            return None
        kinds = {f.name: type(getattr(cls("", "", 0), f.name)) for f in fields(cls)}
        if {name: type(value) for name, value in found.items()} != kinds:
            raise _damaged(path)
        return cls(**found)

    @classmethod
    def begin(
        cls, directory: Path, number: int, text: Text, overwrite: bool
    ) -> TextProgress:
        """What an earlier run kept of this text, or nothing yet.

        Raises:
          InputError: if it is of another text and `overwrite` is not given.
        """
        new = cls(os.fspath(text.path), text.digest, len(text.sizes))
        found = cls.read(directory, number) or new
        if (found.file, found.text, found.lines) == (new.file, new.text, new.lines):
            return found
        if not overwrite:
            raise InputError(
                f"{text.path} is not the text of which {directory} holds an unfinished "
                "output. Put that text back to go on, give --overwrite to start again, "
                "or another --out."
            )
        return new

    def write(self, directory: Path, number: int) -> None:
        """Keeps it, at once and on the disk."""
        write_json(_file(directory, number), asdict(self))


def forget_progress(directory: Path, number: int) -> None:
    """No line of this text is done."""
    _file(directory, number).unlink(missing_ok=True)


def has_progress(directory: Path) -> bool:
    """Whether lines of any text are on the disk."""
    paths = directory.glob("_[0-9]*.json")
    return any((read_json(path) or {}).get("done") for path in paths)


def finished_texts(directory: Path, names: Sequence[str]) -> list[TextProgress]:
    """The texts of an output, in order. `InputError` if lines of one are missing."""
    texts = []
    for number, name in enumerate(names):
        found = TextProgress.read(directory, number)
        if found is None or found.done != found.lines:
            out = directory.with_name(directory.name.removesuffix(".partial"))
            raise InputError(
                f"{out} is not whole: lines of {name} are missing. Run the same "
                "command again to go on."
            )
        texts.append(found)
    return texts


def _file(directory: Path, number: int) -> Path:
    return directory / f"_{number:05d}.json"

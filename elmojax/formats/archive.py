"""Archives of models, ZIP and tar (also packed by gzip, bzip2 or xz), unpacked safely.

What a file is, is read from its first bytes, never from its name. Nothing is written
outside of the directory that was asked for, no links, and no more than a model may be.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from elmojax.disk import Lock, install, new_directory
from elmojax.errors import InputError, one_line, writing

MAGIC = re.compile(
    rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|BZh[1-9]|\xfd7zXZ\x00|(?s:.{257})ustar"
)
MOST_FILES = 10_000
SMALL = 1 << 30
MOST_GROWTH = 200
"""An archive may unpack to SMALL bytes, or to so many times its own; weights hardly
shrink."""
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What the readers of damaged archives raise."""


class BadArchive(InputError):
    """An archive that is none, is damaged, or holds what no archive of a model does."""


class Member(NamedTuple):
    """A file, a directory, or something else in an archive."""

    name: str
    size: int
    kind: str
    """file | directory | anything else: what it is, in words."""
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether a file begins like an archive, or like what a packer packed."""
    try:
        if not path.is_file():  # a pipe would wait
            return False
        with open(path, "rb") as file:
            return MAGIC.match(file.read(300)) is not None
    except OSError:
        return False


@contextlib.contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A temporary directory with what an archive holds, see `unpack`."""
    with (
        tempfile.TemporaryDirectory(prefix="elmojax-") as temporary,
        name_in_errors(str(archive), temporary),
    ):
        unpack(archive, Path(temporary))
        yield content(Path(temporary))


@contextlib.contextmanager
def name_in_errors(name: str, directory: str) -> Iterator[None]:
    """An `InputError` of the block names what is in `directory` as the user did."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(directory, name)) from error


def unpacked_once(archive: Path) -> Path:
    """The directory with what a file of a cache holds, unpacked beside it by the first
    who asks.

    Raises `InputError` as `unpack`; an archive that is no good is not kept.
    """
    stat = archive.stat()
    folder = archive.with_name(f"{archive.name}.{stat.st_size}-{stat.st_mtime_ns}")
    if folder.is_dir():
        return content(folder)
    advice = "Name another directory, with room in it, in ELMOJAX_CACHE."
    try:
        with (
            writing(archive.parent, advice),
            Lock(Path(f"{archive}.lock"), math.inf),
        ):
            if not folder.is_dir():  # another process may have made it
                with new_directory(folder) as partly:
                    unpack(archive, partly)
                    install(partly, folder, replaces=False)
    except BadArchive as error:
        archive.unlink()
        raise InputError(f"{error} It is not kept.") from error
    return content(folder)


def content(directory: Path) -> Path:
    """The directory that an archive is of: often the only thing in it."""
    while True:
        inside = [p for p in directory.iterdir() if p.name[0] not in "._"]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name == "variables":
            return directory
        directory = inside[0]


def unpack(archive: Path, into: Path) -> None:
    """Writes the files of an archive into an empty directory.

    Raises:
      BadArchive: for an archive that is damaged, needs a password, holds links,
        devices or names that lead elsewhere, or unpacks to much more than a model is.
      InputError: if there is no room.
    """
    try:
        with _open(archive) as members:
            _write(archive, members, into)
    except InputError:
        raise
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            raise InputError(
                f"{archive} cannot be unpacked into {into}: {error.strerror}. Make "
                "room there, or unpack it elsewhere and give the directory."
            ) from error
        raise BadArchive(
            f"{archive} is damaged, cut short or no archive ({one_line(error)}). Get "
            "it again, whole."
        ) from error


@contextlib.contextmanager
def _open(archive: Path) -> Iterator[Iterator[Member]]:
    with open(archive, "rb") as file:
        if file.read(2) == b"PK":
            with zipfile.ZipFile(archive) as packed:
                yield _of_zip(archive, packed)
            return
    with tarfile.open(archive, "r:*") as tar:
        yield _of_tar(archive, tar)


def _of_zip(archive: Path, packed: zipfile.ZipFile) -> Iterator[Member]:
    for info in packed.infolist():
        if info.flag_bits & 1:
            raise BadArchive(
                f"{archive} needs a password ({info.filename!r}); unpack it, and give "
                "the directory."
            )
        link = info.external_attr >> 28 == 0o12
        kind = "a link" if link else "directory" if info.is_dir() else "file"
        open_it = partial(packed.open, info)
        yield Member(info.filename, info.file_size, kind, open_it)


def _of_tar(archive: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for info in tar:
        kind = "file" if info.isreg() else "directory" if info.isdir() else "a device"
        kind = "a link" if info.issym() or info.islnk() else kind
        open_it = partial(tar.extractfile, info)
        yield Member(info.name, info.size, kind, open_it)  # type: ignore[arg-type]
    # The checksum of all that was packed comes at the very end.
    left = SMALL
    while chunk := tar.fileobj.read(1 << 20):
        left -= len(chunk)
        if left < 0:
            raise BadArchive(f"{archive} goes on after its end; get it again, whole.")


def _write(archive: Path, members: Iterator[Member], into: Path) -> None:
    most = max(SMALL, MOST_GROWTH * archive.stat().st_size)
    total, unpacked = 0, "unpack it yourself if you trust it, and give the directory"
    for number, member in enumerate(members):
        name = PurePosixPath(member.name.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or "\0" in member.name:
            raise BadArchive(
                f"{archive} holds {member.name!r}, which leads out of it; {unpacked}."
            )
        if member.kind not in ("file", "directory"):
            raise BadArchive(
                f"{archive} holds {member.kind}, {member.name!r}; {unpacked}."
            )
        total += member.size
        if total > most or number >= MOST_FILES:
            raise BadArchive(
                f"{archive} of {archive.stat().st_size:,} bytes unpacks to "
                f"{total:,} bytes and more, in {number + 1} files, which is no model; "
                f"{unpacked}."
            )
        target = into / name
        if member.kind == "directory":
            target.mkdir(parents=True, exist_ok=True)
            continue
        if member.size > shutil.disk_usage(into).free:
            raise InputError(
                f"{into} has no room for the {member.size:,} bytes of {name} in "
                f"{archive}; make room, or name another directory in TMPDIR."
            )
        if target.exists():
            raise BadArchive(f"{archive} holds {member.name!r} twice; {unpacked}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, open(target, "xb") as out:
            shutil.copyfileobj(source, out, 1 << 20)

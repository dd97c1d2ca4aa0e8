"""What a file holds: plain, or packed by gzip, xz or bzip2, whatever its name.

What a file is, is read from its first bytes; what is neither plain nor packed like that
is called by its name.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import IO, Any

from elmojax.errors import InputError

_HEAD = 1 << 16
"""Bytes of a file that are looked at to tell what it is."""


@contextlib.contextmanager
def open_content(
    path: str | os.PathLike[str],
) -> Iterator[tuple[io.BufferedReader[Any], io.BufferedReader[Any]]]:
    """A file as it lies on the disk, and what it holds: unpacked, without a mark of
    its byte order.

    Whether gzip, xz or bzip2 packed it is told by its first bytes. Raises `InputError`
    for archives, other packers, UTF-16 and the like, and for a name that promises a
    packed file where there is none; what reading raises, it raises.
    """
    with io.BufferedReader(io.FileIO(path), _HEAD) as raw:
        head, suffix = raw.peek(), os.path.splitext(path)[1]
        packer = _packer(head)
        stream: io.BufferedReader[Any] = raw
        if packer is not None:
            stream = io.BufferedReader(_PACKERS[packer][1](raw), _HEAD)
            head = stream.peek()
        what = _other_kind(head)
        if what is None and packer is None and head and suffix.lower() in _PACKED:
            what = (
                f"not what its ending {suffix} says; get it again, or rename it if it "
                "is plain text"
            )
        if what is not None:
            raise InputError(f"{path} is {what}.")
        if head.startswith(b"\xef\xbb\xbf"):
            stream.read(3)
        yield raw, stream


_UTF = "in {0}; convert it, for example with `iconv -f {0} -t UTF-8`".format
_UNPACK = "; unpack it, and give the files in it"
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\0\0", _UTF("UTF-32")),
    (b"\0\0\xfe\xff", _UTF("UTF-32")),
    (b"\xff\xfe", _UTF("UTF-16")),
    (b"\xfe\xff", _UTF("UTF-16")),
    (b"\x28\xb5\x2f\xfd", f"packed by Zstandard (zstd){_UNPACK}"),
    (b"\x04\x22\x4d\x18", f"packed by LZ4{_UNPACK}"),
    (b"\x1f\x9d", f"packed by compress{_UNPACK}"),
    (b"LZIP\x01", f"packed by lzip{_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7-Zip archive{_UNPACK}"),
    (b"Rar!\x1a\x07", f"a RAR archive{_UNPACK}"),
    (b"%PDF-", "a PDF document; convert it to plain text"),
    (b"\x89HDF\r\n", "an HDF5 file, and text is due; check its name"),
)
"""How files begin that are neither text nor packed as `_PACKERS` unpack."""


def _other_kind(head: bytes) -> str | None:
    """What a file is that is no text, and what to do; None for what may be one."""
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        size = int.from_bytes(head[26:28], "little")
        return _archive("ZIP", [head[30 : 30 + size].decode("utf-8", "replace")])
    names: list[str] = []
    with (
        contextlib.suppress(tarfile.TarError),
        tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive,
    ):
        names.extend(member.name for member in islice(archive, 3))
    if names:
        return _archive("tar", names)
    if (packer := _packer(head)) is not None:
        return f"packed by {packer} twice{_UNPACK}"
    return next((what for magic, what in _KINDS if head.startswith(magic)), None)


def _archive(kind: str, names: Sequence[str]) -> str:
    listed = ", ".join(f"{name!r:.60}" for name in names)
    return f"a {kind} archive of {listed} and perhaps more{_UNPACK}"


_PACKERS: dict[str, tuple[tuple[bytes, ...], Callable[[IO[bytes]], Any]]] = {
    "gzip": ((b"\x1f\x8b",), lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    "xz": ((b"\xfd7zXZ\0",), lambda file: _Streams(file, lzma.LZMADecompressor)),
    "bzip2": (
        tuple(b"BZh%d" % level for level in range(1, 10)),
        lambda file: _Streams(file, bz2.BZ2Decompressor),
    ),
}
"""How files begin that they packed, and what unpacks those."""


def _packer(head: bytes) -> str | None:
    return next(
        (n for n, (magic, _) in _PACKERS.items() if head.startswith(magic)), None
    )


_PACKED = (".gz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".tgz", ".7z")


class _Streams(io.RawIOBase):
    """What bzip2 or xz packed, one stream after the other.

    The readers of the standard library take a later stream that is damaged for the end
    of the file, without a word; here it is an error.
    """

    def __init__(self, file: IO[bytes], decompressor: Callable[[], Any]) -> None:
        self._parts = self._unpacked(file, decompressor)
        self._rest = b""

    @staticmethod
    def _unpacked(file: IO[bytes], decompressor: Callable[[], Any]) -> Iterator[bytes]:
        data = file.read(_HEAD)
        while data:
            stream = decompressor()
            while not stream.eof:
                if stream.needs_input and not data and not (data := file.read(_HEAD)):
                    raise EOFError("it ends within a compressed stream")
                yield stream.decompress(data, _HEAD)
                data = b""
            data = stream.unused_data.lstrip(b"\0")  # streams may be padded
            while not data and (more := file.read(_HEAD)):
                data = more.lstrip(b"\0")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = part
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

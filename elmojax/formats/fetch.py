"""Files named by an address, downloaded once and kept in a cache.

fsspec reads http and https (with aiohttp), gs and s3 (with gcsfs and s3fs, the extra
`cloud`). Only this module knows these libraries, and imports them when they are used;
whatever goes wrong in them is an `InputError`. Nothing is downloaded unless it is asked
for. While a file comes it is NAME.VERSION.part, and NAME.lock makes others wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from elmojax.cloud import cache_directory, lacks_extra, reason
from elmojax.disk import Lock, sha256_of
from elmojax.errors import InputError, one_line, showable

SCHEMES = ("http", "https", "gs", "s3")
BLOCK = 1 << 20
CLOUD_BLOCK = 1 << 24  # bytes a request


def fetch(url: str) -> Path:
    """Downloads one file, unless it is in the cache.

    The file appears in the cache when it is whole, not before. A download that broke
    off is continued by the next call if the server can do that and says, by an entity
    tag or a date, that the file is still the same (or its SHA-256 will tell). Processes
    that want the same file wait for the first of them.

    Args:
      url: an http, https, gs or s3 address; `#sha256=` and 64 hexadecimal digits at its
        end say what the file must be. A file of the cache is checked too, and
        downloaded again if it is another.

    Returns:
      The path of the file in the cache: $ELMOJAX_CACHE, else elmojax in
      $XDG_CACHE_HOME, else ~/.cache/elmojax.

    Raises:
      InputError: if the address is none, has no file or cannot be reached; if the
        connection breaks off, or the file has another SHA-256 (it is not kept); if the
        cache cannot be written or is full.
    """
    url, sha256 = split_address(url)
    ending = re.search(r"(\.\w{1,8})?$", url.partition("?")[0], flags=re.ASCII)
    name = f"{cached_name(url)}{ending and ending[0]}"
    return fetch_first(cache_directory() / name, [url], sha256)


def split_address(url: str) -> tuple[str, str | None]:
    """The address without `#sha256=...`, and the SHA-256 that its file must have."""
    url, mark, sha256 = url.partition("#sha256=")
    if mark and not re.fullmatch("[0-9a-fA-F]{64}", sha256.strip()):
        raise InputError(f"The SHA-256 of {url} is none: give 64 hexadecimal digits.")
    url = re.sub(r"^\w+(?=://)", lambda scheme: scheme[0].lower(), url)
    return url, sha256.strip().lower() if mark else None


def cached_name(url: str) -> str:
    """A name to recognize an address by, and a hash to be sure of it."""
    path = showable(url).partition("://")[2].strip("/")
    words = re.sub(r"\.\w{1,8}$", "", path, flags=re.ASCII).split("/")[-2:]
    readable = re.sub(r"[^\w.]+", "-", "-".join(words), flags=re.ASCII)[-80:]
    return f"{readable.strip('-.')}-{_short_hash(url)}".lstrip("-")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


class Missing(InputError):
    """The server has no such file, or does not show it to us."""


Content: TypeAlias = tuple[str, bytes]
"""What a file is, and the regular expression of how it begins."""


def fetch_first(
    path: Path, urls: list[str], sha256: str | None, content: Content = ("", b"")
) -> Path:
    """`path`, from the first of these addresses that has a file, unless it is there
    and has the SHA-256. `Missing` if none has one; else `InputError` as `fetch`."""

    def whole() -> bool:
        return path.is_file() and (sha256 is None or sha256_of(path) == sha256)

    missing: list[Missing] = []
    try:
        if whole():
            return path
        with Lock(Path(f"{path}.lock"), math.inf):
            for url in urls:
                try:
                    while not whole():  # another process may have brought it
                        _download(path, url, sha256, content)
                    return path
                except Missing as error:
                    missing.append(error)
    except OSError as error:
        raise InputError(
            f"{error.filename or path} cannot be written: {error.strerror or error}. "
            "Name another directory, with room in it, in ELMOJAX_CACHE."
        ) from error
    raise missing[0]


def _download(path: Path, url: str, sha256: str | None, content: Content) -> None:
    """Brings `path`; or nothing, where an earlier part proved to be of another file."""
    files, size, tag = _ask(url)
    part = path.with_name(f"{path.name}.{_short_hash(f'{size} {tag or sha256}')}.part")
    for other in path.parent.glob(f"{path.name}.*part*"):
        if other != part or not (tag or sha256):
            other.unlink()  # not known to be of this very file
    start = part.stat().st_size if part.exists() else 0
    if not start or start != size:
        with _answering(url):
            file, start = _open(files, url, start if start < (size or 0) else 0, tag)
        with contextlib.closing(file):
            _transfer(file, url, part, start, size, sha256)
    if sha256 and (found := sha256_of(part)) != sha256:
        part.unlink()
        if start:
            return
        path.unlink(missing_ok=True)
        raise InputError(
            f"{url} has the SHA-256 {found}, not {sha256}; it is not kept. Either the "
            "file is not the one you want or the SHA-256 is another's."
        )
    what, pattern = content
    with open(part, "rb") as whole:
        beginning = whole.read(4096)
    if not re.match(pattern, beginning):
        part.unlink()
        raise InputError(
            f"{url} gives something that is not {what}; it begins with "
            f"{beginning[:20]!r} and is not kept. Is that the address of the file "
            "itself?"
        )
    os.replace(part, path)


def _transfer(
    file: Any,
    url: str,
    part: Path,
    start: int,
    size: int | None,
    sha256: str | None,
) -> None:
    """Completes `part`, which has `start` bytes, or raises."""
    free = shutil.disk_usage(part.parent).free
    if size is not None and size - start > free:
        raise InputError(
            f"{part.parent} has room for {free} bytes, and {size - start} are to come. "
            "Make room there, or name another directory in ELMOJAX_CACHE."
        )
    ends = {"Content-Length", "Transfer-Encoding"}
    if size is None and sha256 is None and ends.isdisjoint(file.r.headers):
        raise InputError(
            f"{url} does not say how long it is, so that nobody could tell whether it "
            "came whole; give its SHA-256."
        )
    with open(part, "ab" if start else "wb") as out:
        while True:
            with _answering(url):
                chunk = file.read(BLOCK)
            if not chunk:
                break
            out.write(chunk)
        os.fsync(out.fileno())
        done = out.tell()
    if size is not None and done != size:
        raise _failed(url, f"it ended after {done} of {size} bytes")


# --- fsspec --------------------------------------------------------------------------


def _ask(url: str) -> tuple[Any, int | None, str]:
    """The file system of an address; bytes of the file there, where the server says;
    and its entity tag, or the time of its last change, or nothing."""
    try:
        parts = urlsplit(url)
        # What stands for a port and is no number is part of a password, and raises.
        good = parts.scheme in SCHEMES and parts.hostname and parts.port != 0
        good = good and (url.startswith("http") or "@" not in parts.netloc)
    except ValueError:
        good = False
    if not good:
        raise InputError(
            f"{showable(url)!r} is no address that begins with {', '.join(SCHEMES)} "
            "and has a host or bucket. In a password / ? # @ are written %2F %3F %23 "
            "%40; with gs and s3 it has no place in the address."
        )
    options: dict[str, Any] = {}
    with _answering(url):
        import fsspec  # type: ignore[import-untyped]

        if url.startswith("http"):
            from aiohttp import ClientTimeout

            options["client_kwargs"] = {
                "timeout": ClientTimeout(total=None, sock_connect=20, sock_read=60),
                "headers": {"Accept-Encoding": "identity"},
                "trust_env": True,  # proxies
            }
        files = fsspec.filesystem(parts.scheme, skip_instance_cache=True, **options)
        info = files.info(url)
        if info["type"] != "file":
            raise FileNotFoundError(url)
    tags = [info.get(name) or "" for name in ("ETag", "etag", "Last-Modified")]
    # A weak tag is not about single bytes.
    strong = (tag for tag in tags if tag and not tag.startswith("W/"))
    return files, info["size"], next(strong, "")


def _open(files: Any, url: str, have: int, tag: str) -> tuple[Any, int]:
    """The file from byte `have` on if the server can do that, else from the first."""
    if not url.startswith("http"):
        file = files.open(url, block_size=CLOUD_BLOCK)
        return file, file.seek(have)
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and tag:
        headers["If-Range"] = tag
    # Blocks of 0 bytes are one stream; with a size nobody asks for it once more.
    file = files.open(url, block_size=0, size=1, headers=headers)
    return file, have if file.r.status == 206 else 0


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """What goes wrong in a library is an `InputError`, and not raised from its own
    exception, which may hold passwords and keys."""
    try:
        yield
    except ImportError as error:
        raise lacks_extra(f"{url} cannot be downloaded", error) from None
    except Exception as error:
        status, why = reason(error)
        why = one_line(f"{status} {why}")
        absent = isinstance(error, FileNotFoundError | PermissionError)
        if status in (401, 403, 404, 410) or (absent and not url.startswith("http")):
            raise Missing(
                f"There is no file that we may read at {url} ({why}). Check the "
                "address and, where they are needed, the credentials."
            ) from None
        raise _failed(url, why) from None


def _failed(url: str, why: str) -> InputError:
    return InputError(
        f"{url} cannot be downloaded ({why}). Check the address, the network and, "
        "where they are needed, the credentials, and try again: a download that broke "
        "off goes on from there if the server can do that."
    )

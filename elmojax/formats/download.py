"""Files from an address: downloaded once, whole or not at all, and kept in a cache.

A file that is in the cache is not asked for again. While one comes, it is NAME.part;
NAME.part.json says of which version of the remote file, and NAME.lock makes other
processes wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from elmojax.errors import InputError
from elmojax.formats.remote import Version, broken, open_url, shown

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with the bytes that are there and, where it is known, those of the whole."""


def fetch(
    url: str,
    sha256: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads one file, unless it is in the cache.

    The file appears in the cache when it is whole, not before. A download that broke
    off is continued by the next call if the server can do that and says, by an entity
    tag or a date, that the file is still the same (or `sha256` will tell). Processes
    that want the same file wait for the first of them.

    Args:
      url: an http, https, gs or s3 address.
      sha256: what the file must have, 64 hexadecimal digits; it may also stand at the
        end of the address as `#sha256=...`. A file of the cache is checked too, and
        downloaded again if it is another.
      cache: a directory; by default $ELMOJAX_CACHE, else elmojax in $XDG_CACHE_HOME,
        else ~/.cache/elmojax.
      progress: called as `progress(bytes, bytes of the whole file or None)`.

    Returns:
      The path of the file in the cache.

    Raises:
      InputError: if the address is none, has no file or cannot be reached; if the
        connection breaks off, or the file has another SHA-256 (it is not kept); if the
        cache cannot be written or is full.
    """
    url, sha256 = expected(url, sha256)
    ending = re.search(r"(\.\w{1,8})?$", url.partition("?")[0], flags=re.ASCII)
    path = cache_directory(cache) / f"{cached_name(url)}{ending and ending[0]}"
    return fetch_to(path, url, sha256, progress)


# --- names ---------------------------------------------------------------------------


def expected(url: str, sha256: str | None) -> tuple[str, str | None]:
    """The address without `#sha256=...`, and the SHA-256 that its file must have."""
    url, mark, fragment = url.partition("#sha256=")
    if sha256 is None and mark:
        sha256 = fragment
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256.strip()):
        raise InputError(f"{sha256!r} is no SHA-256: give 64 hexadecimal digits.")
    return url, sha256 and sha256.strip().lower()


def cache_directory(cache: str | os.PathLike[str] | None = None) -> Path:
    """Where files are kept: `cache` if it is given, else as `fetch` says."""
    chosen = cache or os.environ.get("ELMOJAX_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "elmojax"


def cached_name(url: str) -> str:
    """A name to recognize an address by, and a hash to be sure of it."""
    path = shown(url).partition("://")[2].strip("/")
    words = re.sub(r"\.\w{1,8}$", "", path, flags=re.ASCII).split("/")[-2:]
    readable = re.sub(r"[^\w.]+", "-", "-".join(words), flags=re.ASCII)[-80:]
    digest = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{readable.strip('-.')}-{digest}".lstrip("-")


# --- one file ------------------------------------------------------------------------


def fetch_to(
    path: Path, url: str, sha256: str | None, progress: Progress | None
) -> Path:
    """`path`, downloaded if it is not there or has not the SHA-256."""
    with writing(path):
        if _is_whole(path, sha256):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(path, sha256):  # another process may have brought it
                _download(path, url, sha256, progress)
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong with a file of the cache is an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or path} cannot be written: {error.strerror or error}. "
            "Name another directory, with room in it, in ELMOJAX_CACHE."
        ) from error


def _is_whole(path: Path, sha256: str | None) -> bool:
    return path.is_file() and (sha256 is None or _digest(path) == sha256)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(
    path: Path, url: str, sha256: str | None, progress: Progress | None
) -> None:
    part = Path(f"{path}.part")
    continued = _transfer(part, url, sha256, progress)
    while sha256 and (found := _digest(part)) != sha256:
        part.unlink()
        if not continued:
            path.unlink(missing_ok=True)
            raise InputError(
                f"{shown(url)} has the SHA-256 {found}, not {sha256}; it is not kept. "
                "Either the file is not the one you want or the SHA-256 is another's."
            )
        continued = _transfer(part, url, sha256, progress)
    os.replace(part, path)
    _record(part).unlink(missing_ok=True)


def _transfer(
    part: Path, url: str, sha256: str | None, progress: Progress | None
) -> bool:
    """Completes `part`, or raises. Returns whether it continued an earlier one."""
    have, known = _earlier(part, sha256)
    if known and have == known.size:
        return True
    body = open_url(url, have, known)
    done, size = body.start, body.version.size
    with contextlib.closing(body), open(part, "ab" if done else "wb") as file:
        if not done:
            _record(part).write_text(json.dumps(body.version._asdict()))
        if size is None and not (body.framed or sha256):
            raise InputError(
                f"{shown(url)} does not say how long it is, so that nobody could tell "
                "whether it came whole; give its SHA-256."
            )
        _require_room(part.parent, size, done)
        if progress is not None:
            progress(done, size)
        for chunk in body.chunks:
            done += file.write(chunk)
            if progress is not None:
                progress(done, size)
        file.flush()
        os.fsync(file.fileno())
    if size is not None and done != size:
        raise broken(url, f"after {done} of {size} bytes")
    return body.start > 0


def _record(part: Path) -> Path:
    return Path(f"{part}.json")


def _earlier(part: Path, sha256: str | None) -> tuple[int, Version | None]:
    """The bytes that are there of a file that may be continued; else 0."""
    try:
        version = Version(**json.loads(_record(part).read_text()))
        have = part.stat().st_size
    except (OSError, ValueError, TypeError):
        return 0, None
    recognizable = version.validator or sha256
    if not recognizable or version.size is None or not 0 < have <= version.size:
        return 0, None
    return have, version


def _require_room(folder: Path, size: int | None, done: int) -> None:
    free = shutil.disk_usage(folder).free
    if size is not None and size - done > free:
        raise InputError(
            f"{folder} has room for {free} bytes, and {size - done} are to come. Make "
            "room there, or name another directory in ELMOJAX_CACHE."
        )

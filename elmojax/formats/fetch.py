"""Models named by an address: found, downloaded once, and kept in a cache.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from elmojax.atomic import Lock, sha256_of
from elmojax.cloud import cache_directory, reason
from elmojax.errors import InputError, one_line, showable
from elmojax.formats.archive import unpacked_once

SCHEMES = ("http", "https", "gs", "s3")
BLOCK = 1 << 20
CLOUD_BLOCK = 1 << 24  # bytes a request

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
    url, sha256 = _expected(url, sha256)
    ending = re.search(r"(\.\w{1,8})?$", url.partition("?")[0], flags=re.ASCII)
    path = cache_directory(cache) / f"{_cached_name(url)}{ending and ending[0]}"
    return _fetch_to(path, url, sha256, progress)


def _expected(url: str, sha256: str | None) -> tuple[str, str | None]:
    """The address without `#sha256=...`, and the SHA-256 that its file must have."""
    url, mark, fragment = url.partition("#sha256=")
    if sha256 is None and mark:
        sha256 = fragment
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256.strip()):
        raise InputError(f"The SHA-256 of {url} is none: give 64 hexadecimal digits.")
    url = re.sub(r"^\w+(?=://)", lambda scheme: scheme[0].lower(), url)
    return url, sha256 and sha256.strip().lower()


def _cached_name(url: str) -> str:
    """A name to recognize an address by, and a hash to be sure of it."""
    path = showable(url).partition("://")[2].strip("/")
    words = re.sub(r"\.\w{1,8}$", "", path, flags=re.ASCII).split("/")[-2:]
    readable = re.sub(r"[^\w.]+", "-", "-".join(words), flags=re.ASCII)[-80:]
    return f"{readable.strip('-.')}-{_short_hash(url)}".lstrip("-")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


# --- one file ------------------------------------------------------------------------


def _fetch_to(
    path: Path, url: str, sha256: str | None, progress: Progress | None
) -> Path:
    """`path`, downloaded if it is not there or has not the SHA-256."""
    try:
        if _is_whole(path, sha256):
            return path
        with Lock(Path(f"{path}.lock"), math.inf):
            while not _is_whole(path, sha256):  # another process may have brought it
                _download(path, url, sha256, progress or (lambda *_: None))
    except OSError as error:
        raise InputError(
            f"{error.filename or path} cannot be written: {error.strerror or error}. "
            "Name another directory, with room in it, in ELMOJAX_CACHE."
        ) from error
    return path


def _is_whole(path: Path, sha256: str | None) -> bool:
    return path.is_file() and (sha256 is None or sha256_of(path) == sha256)


def _download(path: Path, url: str, sha256: str | None, progress: Progress) -> None:
    """Brings `path`; or nothing, where an earlier part proved to be of another file."""
    remote = _ask(url)
    version = f"{remote.size} {remote.tag or sha256}"
    part = path.with_name(f"{path.name}.{_short_hash(version)}.part")
    for other in path.parent.glob(f"{path.name}.*part*"):
        if other != part or not (remote.tag or sha256):
            other.unlink()  # not known to be of this very file
    continued = _transfer(remote, part, sha256, progress)
    if sha256 and (found := sha256_of(part)) != sha256:
        part.unlink()
        if continued:
            return
        path.unlink(missing_ok=True)
        raise InputError(
            f"{url} has the SHA-256 {found}, not {sha256}; it is not kept. Either the "
            "file is not the one you want or the SHA-256 is another's."
        )
    what, pattern = BEGINNINGS.get(path.name, ("", b""))
    with open(part, "rb") as file:
        start = file.read(4096)
    if not re.match(pattern, start):
        part.unlink()
        raise InputError(
            f"{url} gives something that is not {what}; it begins with {start[:20]!r} "
            "and is not kept. Is that the address of the file itself?"
        )
    os.replace(part, path)


def _transfer(
    remote: _Remote, part: Path, sha256: str | None, progress: Progress
) -> bool:
    """Completes `part`, or raises. Returns whether it continued an earlier one."""
    size, have = remote.size, part.stat().st_size if part.exists() else 0
    if have and have == size:
        return True
    file, start = _open(remote, have if have < (size or 0) else 0)
    with contextlib.closing(file):
        free = shutil.disk_usage(part.parent).free
        if size is not None and size - start > free:
            raise InputError(
                f"{part.parent} has room for {free} bytes, and {size - start} are to "
                "come. Make room there, or name another directory in ELMOJAX_CACHE."
            )
        ends = {"Content-Length", "Transfer-Encoding"}
        if size is None and sha256 is None and ends.isdisjoint(file.r.headers):
            raise InputError(
                f"{remote.url} does not say how long it is, so that nobody could tell "
                "whether it came whole; give its SHA-256."
            )
        with open(part, "ab" if start else "wb") as out:
            progress(start, size)
            for chunk in _chunks(file, remote.url):
                out.write(chunk)
                progress(out.tell(), size)
            os.fsync(out.fileno())
            done = out.tell()
    if size is not None and done != size:
        raise _failed(remote.url, f"it ended after {done} of {size} bytes")
    return start > 0


# --- fsspec --------------------------------------------------------------------------


class _Remote(NamedTuple):
    """The file at an address, as the server describes it."""

    url: str
    files: Any
    """The file system."""
    size: int | None
    tag: str
    """Its entity tag or the time of its last change; empty if there is neither."""


def _ask(url: str) -> _Remote:
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = {"skip_instance_cache": True}
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
    with _answering(url):
        import fsspec  # type: ignore[import-untyped]

        if url.startswith("http"):
            from aiohttp import ClientTimeout

            options["client_kwargs"] = {
                "timeout": ClientTimeout(total=None, sock_connect=20, sock_read=60),
                "headers": {"Accept-Encoding": "identity"},
                "trust_env": True,  # proxies
            }
        files = fsspec.filesystem(parts.scheme, **options)
        info = files.info(url)
        if info["type"] != "file":
            raise FileNotFoundError(url)
    tags = [info.get(name) or "" for name in ("ETag", "etag", "Last-Modified")]
    # A weak tag is not about single bytes.
    strong = (tag for tag in tags if tag and not tag.startswith("W/"))
    return _Remote(url, files, info["size"], next(strong, ""))


def _open(remote: _Remote, have: int) -> tuple[Any, int]:
    """The file from byte `have` on if the server can do that, else from the first."""
    with _answering(remote.url):
        if not remote.url.startswith("http"):
            file = remote.files.open(remote.url, block_size=CLOUD_BLOCK)
            file.seek(have)
            return file, have
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and remote.tag:
            headers["If-Range"] = remote.tag
        # Blocks of 0 bytes are one stream; with a size nobody asks for it once more.
        file = remote.files.open(remote.url, block_size=0, size=1, headers=headers)
        return file, have if file.r.status == 206 else 0


def _chunks(file: Any, url: str) -> Iterator[bytes]:
    with _answering(url):
        while chunk := file.read(BLOCK):
            yield chunk


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """What goes wrong in a library is an `InputError`, and not raised from its own
    exception, which may hold passwords and keys."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{url} cannot be downloaded without the extra `cloud`: pip install "
            f"'elmojax[cloud]' ({error})."
        ) from None
    except Exception as error:
        status, why = reason(error)
        why = one_line(f"{status} {why}")
        absent = isinstance(error, FileNotFoundError | PermissionError)
        if status in (401, 403, 404, 410) or (absent and not url.startswith("http")):
            raise _Missing(
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


class _Missing(InputError):
    """The server has no such file, or does not show it to us."""


# --- models --------------------------------------------------------------------------

OPTIONS, WEIGHTS = "options.json", "weights.hdf5"
REGISTERED = "allennlp:"
ARCHIVE = re.compile(
    r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))(\?|$)|\?tf-hub-format=compressed", re.I
)
"""In the address of an archive; the last is how TF-Hub names the one of a module."""
BEGINNINGS = {
    OPTIONS: ("a JSON object", rb"\s*\{"),
    WEIGHTS: ("HDF5", rb"(?s:.{512}|.{1024}|.{2048})?\x89HDF\r\n\x1a\n"),
}
"""What the files of a model are, and how these begin."""
ALLENNLP = "https://s3-us-west-2.amazonaws.com/allennlp/models/elmo/"

Published: TypeAlias = tuple[str, str, str | None]


def _published(folder: str, name: str = "", weights: str = WEIGHTS) -> Published:
    start = f"{ALLENNLP}{folder}/{name}"
    return f"{start}{OPTIONS}", f"{start}{weights}", None


def _of_shape(shape: str) -> Published:
    return _published(shape, f"elmo_{shape}_")


REGISTRY: dict[str, Published] = {
    "small": _of_shape("2x1024_128_2048cnn_1xhighway"),
    "medium": _of_shape("2x2048_256_2048cnn_1xhighway"),
    "original": _of_shape("2x4096_512_2048cnn_2xhighway"),
    "original-5.5B": _of_shape("2x4096_512_2048cnn_2xhighway_5.5B"),
    "pt": _published("contributed/pt", "elmo_pt_"),
    "pt-wikipedia": _published("contributed/pt/wikipedia", "", "elmo_pt_weights.hdf5"),
    "pt-brwac": _published("contributed/pt/brwac", "", "elmo_pt_weights_dgx1.hdf5"),
    "pubmed": _published(
        "contributed/pubmed",
        "elmo_2x4096_512_2048cnn_2xhighway_",
        "weights_PubMed_only.hdf5",
    ),
}
"""Name -> (options, weights, SHA-256 of the weights; None: none was published).

The models of https://allennlp.org/elmo. `allennlp:NAME` is their address for short.
"""


def is_url(model: object) -> bool:
    """Whether a model is named by an address, as `fetch_model` takes them."""
    starts = (REGISTERED, *(f"{scheme}://" for scheme in SCHEMES))
    return isinstance(model, str) and model.lower().startswith(starts)


def fetch_model(
    url: str,
    sha256: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads a model, unless it is in the cache.

    Args:
      url: one of
        - a directory that holds options.json and weights.hdf5 or model.hdf5;
        - either of two files side by side: `..._options.json` and `..._weights.hdf5`,
          as AllenNLP names them, options.json and an HDF5 file of any name, or
          options262.json and `XX_weights.hdf5`, as CrossLingualELMo has them;
        - a ZIP or tar archive of a model in any form that `load` takes;
        - `allennlp:NAME`, NAME one of `REGISTRY`.
      sha256: of the weights or the archive; also as `#sha256=...` at the end of the
        address.
      cache: as for `fetch`.
      progress: as for `fetch`; for the options first, then for the weights.

    Returns:
      A directory with options.json and weights.hdf5, for `load_hdf5`, or with what an
      archive holds, which is unpacked once.

    Raises:
      InputError: as `fetch` does; and if the registry has no such name, the other file
        is not found, or what came is not JSON, not HDF5 or no sound archive (then it is
        not kept).
    """
    url, sha256 = _expected(url, sha256)
    if ARCHIVE.search(url):
        return unpacked_once(fetch(url, sha256, cache, progress))
    options, weights, published = _files(url)
    folder = cache_directory(cache) / _cached_name(weights[0])
    try:
        _fetch_first(folder / OPTIONS, options, None, progress)
        _fetch_first(folder / WEIGHTS, weights, sha256 or published, progress)
    except _Missing as error:
        raise InputError(
            f"{error} A model at {url} is two files side by side, options.json and "
            "weights.hdf5 or ..._options.json and ..._weights.hdf5; where they have "
            "other names, download both and give a directory that holds them."
        ) from None
    return folder


def _fetch_first(
    path: Path, urls: list[str], sha256: str | None, progress: Progress | None
) -> None:
    """`path`, from the first of these addresses that has a file."""
    missing: list[_Missing] = []
    for url in urls:
        try:
            _fetch_to(path, url, sha256, progress)
            return
        except _Missing as error:
            missing.append(error)
    raise missing[0]


def _files(url: str) -> tuple[list[str], list[str], str | None]:
    """Where the options and the weights may be, and the SHA-256 of the weights."""
    if url.startswith(REGISTERED):
        name = url.removeprefix(REGISTERED)
        if name not in REGISTRY:
            raise InputError(
                f"{REGISTERED} has no model {name!r}; it has {', '.join(REGISTRY)}."
            )
        option, weight, sha256 = REGISTRY[name]
        return [option], [weight], sha256
    for *pair, sha256 in REGISTRY.values():
        for file in pair:
            base = url.removesuffix(file.removeprefix(ALLENNLP))
            if base != url and base.endswith("models/elmo/"):  # there, or a copy of it
                option, weight = (part.replace(ALLENNLP, base) for part in pair)
                return [option], [weight], sha256
    path, mark, query = url.partition("?")
    query = mark + query
    folder, _, name = path.rpartition("/")
    names, files = [OPTIONS], [WEIGHTS, "model.hdf5"]
    if match := re.fullmatch(r"(.*)options\.json", name):
        files = [f"{match[1]}{WEIGHTS}", *files[1:]]
        names = [name]
    elif match := re.fullmatch(r"(.*?)(weights.*)?\.(hdf5|h5)", name):
        files = [name]
        if match[2]:
            shared = (f"{match[1]}{OPTIONS}", OPTIONS, "options262.json")
            names = [*dict.fromkeys(shared)]
    else:
        folder = path.rstrip("/")
    there = f"{folder}/{{}}{query}".format
    return [*map(there, names)], [*map(there, files)], None

"""Models named by an address: found, downloaded once, and kept in a cache.

    http, https    with requests
    gs, s3         with fsspec, which needs the extra `cloud` (gcsfs, s3fs)

Only this module knows these libraries, and imports them when they are used. Whatever
goes wrong in them is an `InputError`. Nothing is downloaded unless it is asked for, and
a file that is in the cache is not asked for again. While one comes, it is NAME.part;
NAME.part.json says of which version of the remote file, and NAME.lock makes other
processes wait.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from elmojax.atomic import parse_json
from elmojax.errors import InputError

if TYPE_CHECKING:
    import requests
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TypeAlias

WEB = ("http", "https")
SCHEMES = (*WEB, "gs", "s3")
TIMEOUT = (20.0, 60.0)  # seconds: to connect, and without a byte
BLOCK = 1 << 18
CLOUD_BLOCK = 1 << 24  # bytes a request


class Missing(InputError):
    """The server has no such file, or does not show it to us."""


class Version(NamedTuple):
    """Which file an address gives, as far as the server says."""

    size: int | None
    validator: str
    """Its entity tag or the time of its last change; empty if there is neither."""


class Body(NamedTuple):
    """What comes: the bytes from `start` on."""

    start: int
    version: Version
    chunks: Iterator[bytes]
    framed: bool
    """Whether `chunks` raises if the connection ends before the file does."""
    close: Callable[[], object]


def open_url(url: str, have: int = 0, known: Version | None = None) -> Body:
    """The file at an address, from byte `have` on if it is still the `known` version.

    Raises:
      Missing: if there is none, or it is not shown to us.
      InputError: if the address is none or does not answer as it should.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in SCHEMES or not rest.strip("/"):
        known_schemes = ", ".join(SCHEMES)
        raise InputError(
            f"{shown(url)!r} is no address that begins with {known_schemes}."
        )
    return (_from_web if scheme.lower() in WEB else _from_cloud)(url, have, known)


def shown(url: str) -> str:
    """An address without the passwords and keys that it may hold."""
    return re.sub(r"(?<=://)[^/]*@", "", url.partition("?")[0])


# --- where it comes from -------------------------------------------------------------


def _from_web(url: str, have: int, known: Version | None) -> Body:
    """An http address, from byte `have` on if it still gives the `known` file."""
    with _reading(url):
        response = _get(url, have)
        changed = response.status_code == 206 and _version(response, have) != known
        if have and (changed or response.status_code == 416):
            response.close()
            have, response = 0, _get(url, 0)
    continued = response.status_code == 206 and have > 0
    if not continued and response.status_code != 200:
        response.close()
        raise _refused(url, response.status_code, response.reason)
    headers = response.headers
    encoded = "Content-Encoding" in headers
    chunks = response.raw.stream(BLOCK, decode_content=encoded)
    return Body(
        have if continued else 0,
        _version(response, have),
        _until_it_breaks(chunks, url),
        "Content-Length" in headers or "Transfer-Encoding" in headers,
        response.close,
    )


def _get(url: str, start: int) -> requests.Response:
    """Without If-Range: with it the answer may leave out what tells the version."""
    import requests

    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)


def _version(response: requests.Response, start: int) -> Version:
    headers = response.headers
    if headers.get("Content-Encoding"):
        return Version(None, "")  # what is counted is not what arrives
    if response.status_code == 206:
        content = headers.get("Content-Range", "")
        match = re.fullmatch(rf"bytes {start}-(\d+)/(\d+)", content)
        length = match[2] if match and int(match[1]) + 1 == int(match[2]) else ""
    else:
        length = headers.get("Content-Length", "")
    tag = headers.get("ETag", "")
    if not tag or tag.startswith("W/"):  # a weak one is not about single bytes
        tag = headers.get("Last-Modified", "")
    return Version(int(length) if length.isdecimal() else None, tag)


def _from_cloud(url: str, have: int, known: Version | None) -> Body:
    """A gs or s3 address, from byte `have` on if it still gives the `known` file."""
    with _reading(url):
        import fsspec  # type: ignore[import-untyped]

        files, path = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        info = files.info(path)
        if info["type"] != "file":
            raise FileNotFoundError(path)
        version = Version(info["size"], info.get("ETag") or info.get("etag") or "")
        start = have if version == known else 0
        file = files.open(path, "rb", block_size=CLOUD_BLOCK)
        file.seek(start)
    chunks = iter(lambda: file.read(BLOCK), b"")
    return Body(start, version, _until_it_breaks(chunks, url), False, file.close)


# --- what goes wrong -----------------------------------------------------------------


def _refused(url: str, status: int, reason: str) -> InputError:
    answer = f"{status} {reason}".strip()
    if status in (404, 410):
        return Missing(
            f"There is no file at {shown(url)} ({answer}): mend the address."
        )
    if status in (401, 403):  # S3 also says 403 where there is nothing
        return Missing(
            f"There is no file, or none that we may read, at {shown(url)} ({answer})."
        )
    return InputError(
        f"{shown(url)} cannot be downloaded: the server answers {answer}. Try again "
        "later, or check the address."
    )


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """What goes wrong before the first byte is an `InputError`."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{shown(url)} cannot be downloaded without the extra `cloud`: pip install "
            f"'elmojax[cloud]' ({error})."
        ) from error
    except (FileNotFoundError, PermissionError) as error:
        raise Missing(
            f"There is no file, or none that we may read, at {shown(url)} ({error})."
        ) from error
    except Exception as error:  # of any library below
        raise InputError(
            f"{shown(url)} cannot be reached ({_reason(error)}). Check the address, "
            "the network and, where they are needed, the credentials."
        ) from error


def _until_it_breaks(chunks: Iterator[bytes], url: str) -> Iterator[bytes]:
    try:
        yield from chunks
    except Exception as error:  # of any library below
        raise broken(url, _reason(error)) from error


def broken(url: str, what: str) -> InputError:
    return InputError(
        f"The download of {shown(url)} broke off ({what}). Try again: it goes on from "
        "there if the server can do that."
    )


def _reason(error: BaseException) -> str:
    """The innermost of nested errors, in one line."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        nested = (getattr(error, "reason", None), *error.args, error.__cause__)
        inner = next((x for x in nested if isinstance(x, BaseException)), None)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


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
    try:
        if chosen:
            return Path(chosen).expanduser()
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise InputError(
            "There is no home directory to keep files in; name a directory in "
            "ELMOJAX_CACHE."
        ) from error
    return caches / "elmojax"


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
        version = Version(**parse_json(_record(part).read_bytes()))
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


OPTIONS, WEIGHTS = "options.json", "weights.hdf5"
REGISTERED = "allennlp:"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_STARTS = (0, 512, 1024, 2048)  # where it may stand, as a rule at 0

Published: TypeAlias = tuple[str, str, str | None]
ALLENNLP = "https://s3-us-west-2.amazonaws.com/allennlp/models/elmo/"


def _published(folder: str, options: str, weights: str) -> Published:
    return f"{ALLENNLP}{folder}/{options}", f"{ALLENNLP}{folder}/{weights}", None


def _named(folder: str, name: str) -> Published:
    return _published(folder, f"elmo_{name}_options.json", f"elmo_{name}_weights.hdf5")


def _original(name: str) -> Published:
    return _named(name, name)


REGISTRY: dict[str, Published] = {
    "small": _original("2x1024_128_2048cnn_1xhighway"),
    "medium": _original("2x2048_256_2048cnn_1xhighway"),
    "original": _original("2x4096_512_2048cnn_2xhighway"),
    "original-5.5B": _original("2x4096_512_2048cnn_2xhighway_5.5B"),
    "pt": _named("contributed/pt", "pt"),
    "pt-wikipedia": _published(
        "contributed/pt/wikipedia", "options.json", "elmo_pt_weights.hdf5"
    ),
    "pt-brwac": _published(
        "contributed/pt/brwac", "options.json", "elmo_pt_weights_dgx1.hdf5"
    ),
    "pubmed": _published(
        "contributed/pubmed",
        "elmo_2x4096_512_2048cnn_2xhighway_options.json",
        "elmo_2x4096_512_2048cnn_2xhighway_weights_PubMed_only.hdf5",
    ),
}
"""Name -> (options, weights, SHA-256 of the weights; None: none was published).

The models of https://allennlp.org/elmo. `allennlp:NAME` is their address for short.
"""


def is_url(model: object) -> bool:
    """Whether a model is named by an address, as `fetch_model` takes them."""
    return isinstance(model, str) and (
        model.startswith(REGISTERED)
        or ("://" in model and model.partition("://")[0].lower() in SCHEMES)
    )


def fetch_model(
    url: str,
    sha256: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads a model in the files of AllenNLP, unless it is in the cache.

    Args:
      url: one of
        - a directory that holds options.json and weights.hdf5;
        - either of two files side by side: `..._options.json` and `..._weights.hdf5`,
          as AllenNLP names them, or options.json and weights.hdf5;
        - `allennlp:NAME`, NAME one of `REGISTRY`.
      sha256: of the weights; also as `#sha256=...` at the end of the address.
      cache: as for `fetch`.
      progress: as for `fetch`; for the options first, then for the weights.

    Returns:
      A directory with options.json and weights.hdf5, for `load_hdf5`.

    Raises:
      InputError: as `fetch` does; and if the registry has no such name, the other file
        is not found, or what came is not JSON or not HDF5 (then it is not kept).
    """
    url, sha256 = expected(url, sha256)
    options, weights, published = _files(url)
    folder = cache_directory(cache) / cached_name(weights)
    for i, address in enumerate(options):
        try:
            path = fetch_to(folder / OPTIONS, address, None, progress)
            break
        except Missing as error:
            if i == len(options) - 1:
                raise _no_model(url, error) from error
    _require(path, address, "a JSON object", lambda data: data.lstrip()[:1] == b"{")
    try:
        path = fetch_to(folder / WEIGHTS, weights, sha256 or published, progress)
    except Missing as error:
        raise _no_model(url, error) from error
    _require(path, weights, "HDF5", _is_hdf5)
    return folder


def _files(url: str) -> tuple[list[str], str, str | None]:
    """Where the options may be, where the weights are, and the SHA-256 of these."""
    if url.startswith(REGISTERED):
        name = url.removeprefix(REGISTERED)
        if name not in REGISTRY:
            raise InputError(
                f"{REGISTERED} has no model {name!r}; it has {', '.join(REGISTRY)}."
            )
        options, weights, sha256 = REGISTRY[name]
        return [options], weights, sha256
    for options, weights, sha256 in REGISTRY.values():
        for file in (options, weights):
            base = url.removesuffix(file.removeprefix(ALLENNLP))
            if base != url and base.endswith("models/elmo/"):  # there, or a copy of it
                there = weights.replace(ALLENNLP, base)
                return [options.replace(ALLENNLP, base)], there, sha256
    path, mark, query = url.partition("?")
    query = mark + query
    folder, _, name = path.rpartition("/")
    if match := re.fullmatch(r"(.*)options\.json", name):
        return [url], f"{folder}/{match[1]}{WEIGHTS}{query}", None
    if match := re.fullmatch(r"(.*)weights.*\.(hdf5|h5)", name):
        names = dict.fromkeys((f"{match[1]}{OPTIONS}", OPTIONS))
        return [f"{folder}/{name}{query}" for name in names], url, None
    folder = path.rstrip("/")
    return [f"{folder}/{OPTIONS}{query}"], f"{folder}/{WEIGHTS}{query}", None


def _no_model(url: str, error: Missing) -> InputError:
    return InputError(
        f"{error} A model at {shown(url)} is two files side by side, options.json and "
        "weights.hdf5 or ..._options.json and ..._weights.hdf5; where they have other "
        "names, download both and give a directory that holds them."
    )


def _require(path: Path, url: str, what: str, fits: Callable[[bytes], bool]) -> None:
    """`InputError` for a web page or the like; then the cache does not keep it."""
    with writing(path):
        with open(path, "rb") as file:
            start = file.read(HDF5_STARTS[-1] + len(HDF5_SIGNATURE))
        if fits(start):
            return
        path.unlink()
    raise InputError(
        f"{shown(url)} gives something that is not {what}; it begins with "
        f"{start[:20]!r} and is not kept. Is that the address of the file itself?"
    )


def _is_hdf5(start: bytes) -> bool:
    return any(start[i:].startswith(HDF5_SIGNATURE) for i in HDF5_STARTS)

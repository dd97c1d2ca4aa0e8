"""What comes from an address: its bytes, from any of them on, and of which file.

    http, https    with requests
    gs, s3         with fsspec, which needs the extra `cloud` (gcsfs, s3fs)

Only this module knows these libraries, and imports them when they are used. Whatever
goes wrong in them is an `InputError`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from elmojax.errors import InputError

if TYPE_CHECKING:
    import requests

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

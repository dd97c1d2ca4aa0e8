"""Directories in object stores (gs://, s3://), worked on in copies on this machine.

An object store has neither rename nor append nor locks, and nothing there can be mapped
into memory. So what is there has a copy, in the cache: `bring` makes the copy what the
directory is, `send` makes the directory what the copy is. Files go whole, and what
marks others as whole goes last. fsspec moves them, with s3fs and gcsfs (the extra
`cloud`), which find credentials and endpoints as ever.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from elmojax.disk import local
from elmojax.errors import InputError, one_line

SCHEMES = ("gs", "s3")
WHOLE = "commit_success.txt"
"""File that makes a checkpoint whole in an object store, by Orbax's convention."""
MARKS = ("config.json", "corpus.json", "options.json")
"""Files that make a directory a run, a corpus or a model."""
OTHERS = (
    "a directory can only be at one that begins with gs:// or s3://. Give one of them, "
    "or a path of this machine."
)
OWNER = ".owner"
"""File that says which copy a directory was last sent from."""


class Unreachable(InputError):
    """An object store does not give or take what it should."""


def address(path: str | os.PathLike[str]) -> str | None:
    """`gs://BUCKET/NAME` or `s3://BUCKET/NAME`; None for a path of this machine.

    A `Path` has made s3:/ of s3://, which counts as the same. `InputError` for
    addresses of other kinds.
    """
    name = os.fspath(path)
    match = re.match(rf"({'|'.join(SCHEMES)}):(/.*|)$", name, re.IGNORECASE)
    if match is None:
        local(name, OTHERS)
        return None
    parts = match[2].strip("/").split("/")
    odd = {"", ".", ".."} & set(parts) or "@" in parts[0]
    if odd or re.search(r"[?#*\[\]]", match[2]):
        raise InputError(
            f"{match[1]}://... is no address of a directory; give "
            f"{match[1].lower()}://BUCKET/NAME, without credentials, `..` and ?#*[]."
        )
    return f"{match[1].lower()}://{'/'.join(parts)}"


def cache_directory() -> Path:
    """Where files are kept: $ELMOJAX_CACHE, else elmojax in
    $XDG_CACHE_HOME, else ~/.cache/elmojax."""
    chosen = os.environ.get("ELMOJAX_CACHE")
    if chosen:
        return local(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "elmojax"


def copy_of(path: str | os.PathLike[str]) -> Path:
    """Where the copy of a directory is; a path of this machine is its own."""
    found = address(path)
    if found is None:
        return Path(path)
    return (cache_directory() / "cloud" / found.replace("://", "/")).absolute()


def origin(path: Path) -> str:
    """What a path is the copy of, else the path itself."""
    with contextlib.suppress(InputError, RuntimeError):  # no cache, no home, no copies
        root = (cache_directory() / "cloud").absolute()
        if path.is_relative_to(root):
            return str(path.relative_to(root)).replace("/", "://", 1)
    return str(path)


def bring(
    path: str | os.PathLike[str],
    wanted: Callable[[str], object] = lambda name: True,
    belongs: Callable[[str], object] | None = None,
) -> Path:
    """The copy of a directory, with its files as they are there now.

    A directory that was last sent from this very copy is not looked through: the copy
    may be ahead of it.

    Args:
      path: an address; a path of this machine is given back as it is.
      wanted: whether to bring a file, by its name relative to the directory.
      belongs: whether to delete a file of the copy that is not there (any more); by
        default as `wanted`.

    Raises:
      Unreachable: if the object store cannot be read.
    """
    found, copy = address(path), copy_of(path)
    if found is None:
        return copy
    owner = read(found, OWNER)
    if owner is not None and owner == _owner_of(copy):
        return copy
    there, get = listing(found), {}
    for name, (size, changed) in there.items():
        known = (copy / name).stat() if (copy / name).exists() else None
        same = known and (known.st_size, int(known.st_mtime)) == (size, int(changed))
        if wanted(name) and not same:
            get[name] = changed
    for name in files_below(copy):
        if name not in there and (belongs or wanted)(name):
            (copy / name).unlink()
    for folder, _, _ in os.walk(copy, topdown=False):
        with contextlib.suppress(OSError):  # only those that are empty
            os.rmdir(folder)
    _get(found, copy, get)
    return copy


def _get(found: str, copy: Path, changed: Mapping[str, float]) -> None:
    """Downloads files, which get their names when all have come."""
    names = sorted(changed, key=lambda name: (name in MARKS, name))
    if not names:
        return
    # Others may bring the same at the same time.
    with tempfile.TemporaryDirectory(prefix=".brought-", dir=_made(copy)) as partial:
        with _answering(found, "read"):
            there = [f"{found}/{name}" for name in names]
            _files(found).get(there, [f"{partial}/{name}" for name in names])
        for name in names:
            path = Path(partial) / name
            os.utime(path, (changed[name], changed[name]))
            os.replace(path, _made((copy / name).parent) / path.name)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def send(copy: Path, found: str, names: Iterable[str]) -> None:
    """Uploads files of a copy, those that mark others as whole last.

    Args:
      found: the address of the directory.
      names: relative to it.

    Raises:
      Unreachable: if the object store does not take them.
    """
    with _answering(found, "written"):
        for _, group in groupby(sorted(names, key=_rank), _rank):
            here = [*group]
            there = [f"{found}/{name}" for name in here]
            _files(found).put([str(copy / name) for name in here], there)


def remove(found: str, names: Iterable[str]) -> None:
    """Deletes files, those that mark others as whole first."""
    with _answering(found, "written"):
        for _, group in groupby(sorted(names, key=_rank, reverse=True), _rank):
            _files(found).rm([f"{found}/{name}" for name in group])


def _rank(name: str) -> int:
    """0, but 1 or 2 for what marks others as whole: sent after them, deleted before."""
    checkpoint = re.fullmatch(rf"checkpoints/\d+/{re.escape(WHOLE)}", name)
    return 2 if name in MARKS else int(checkpoint is not None)


@contextlib.contextmanager
def written(
    out: Path, wanted: Callable[[str], object], new: bool = False
) -> Iterator[Path]:
    """Where a directory is to be written on this machine; after the block it is sent.

    Args:
      out: an address; a path of this machine is given back as it is.
      wanted: files that may be there already, and are brought, as for `bring`.
      new: whether nothing may be there.

    Raises:
      InputError: if something is there.
      Unreachable: if the object store cannot be read or written.
    """
    found = address(out)
    if found is None:
        yield out
        return
    if new and listing(found):
        raise InputError(f"{found} is there already; choose another --out.")
    copy = bring(found, wanted)
    yield copy
    mark_checkpoints(copy)
    send(copy, found, filter(wanted, files_below(copy)))


def mark_checkpoints(run: Path) -> None:
    """Gives checkpoints, all of them whole, the mark that Orbax itself writes only in
    some versions."""
    for step in (run / "checkpoints").glob("[0-9]*"):
        if step.name.isdigit() and not (step / WHOLE).exists():
            (step / WHOLE).touch()


def listing(found: str, halves: bool = False) -> dict[str, tuple[int, float]]:
    """Files of a directory: size, and time of the last change, in seconds since 1970.

    Empty where there is nothing. Without `halves`, checkpoints that are not whole are
    left out.
    """
    with _answering(found, "read"):
        # Without the slash, s3fs and gcsfs find `run-2` beside `run` in some cases.
        infos = _files(found).find(f"{found}/", detail=True)
    root = f"{found.partition('://')[2]}/"
    there = {}
    for path, info in infos.items():
        name = path.removeprefix(root)
        if name and not name.endswith("/") and path != name:
            changed = info.get("LastModified") or info["mtime"]
            there[name] = (int(info["size"]), changed.timestamp())
    return {n: there[n] for n in there if halves or _is_whole(n, there)}


def _is_whole(name: str, there: Mapping[str, object]) -> bool:
    match = re.match(r"checkpoints/\d+/", name)
    return match is None or f"{match[0]}{WHOLE}" in there


def files_below(directory: Path) -> list[str]:
    """Names of the files in a directory at any depth, without what is hidden."""
    found = []
    for folder, below, names in os.walk(directory):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                found.append(str((Path(folder) / name).relative_to(directory)))
    return found


def read(found: str, name: str) -> bytes | None:
    """One file of a directory; None where there is none."""
    with _answering(found, "read"), contextlib.suppress(FileNotFoundError):
        return bytes(_files(found).cat_file(f"{found}/{name}"))
    return None


def write(found: str, name: str, data: bytes, new: bool = False) -> bool:
    """Writes one file; with `new` only where there is none. Whether it was written."""
    with _answering(found, "written"):
        try:
            mode = "create" if new else "overwrite"
            _files(found).pipe_file(f"{found}/{name}", data, mode=mode)
        except FileExistsError:
            return False
    return True


def _owner_of(copy: Path) -> bytes | None:
    try:
        return (copy / OWNER).read_bytes()
    except OSError:
        return None


def _files(found: str) -> Any:
    """The file system of an address. Nothing is remembered of what was listed."""
    import fsspec  # type: ignore[import-untyped]

    scheme, options = found.partition("://")[0], {}
    if scheme == "s3":  # botocore waits for a minute, several times
        options = {"config_kwargs": {"connect_timeout": 10}}
    return fsspec.filesystem(scheme, use_listings_cache=False, **options)


def lacks_extra(what: str, error: ImportError) -> InputError:
    """`what` cannot be done as long as a library of the extra is not installed."""
    return InputError(
        f"{what} without the extra `cloud`: pip install 'elmojax[cloud]' "
        f"({one_line(error)})."
    )


@contextlib.contextmanager
def _answering(found: str, done: str) -> Iterator[None]:
    """What goes wrong in a library is `Unreachable`, in one sentence."""
    try:
        yield
    except ImportError as error:
        raise lacks_extra(f"{found} cannot be {done}", error) from None
    except Exception as error:
        status, why = reason(error)
        raise Unreachable(
            f"{found} cannot be {done} ({one_line(f'{status} {why}')}). See to the "
            "bucket, the credentials and the network, and try again."
        ) from None


def reason(error: BaseException) -> tuple[Any, str]:
    """What an exception of fsspec's file systems began with: an HTTP status or "", and
    words; its own message may hold passwords and keys."""
    inner = error
    while nested := [inner.__cause__, *inner.args]:
        found = [each for each in nested if isinstance(each, BaseException)]
        if not found:
            break
        inner = found[0]
    why = getattr(inner, "message", "") or getattr(inner, "strerror", "")
    return getattr(inner, "status", ""), str(why or inner or type(inner).__name__)

"""Arrays of a file that `torch.save` wrote, without torch and without running a pickle.

Such a file says in pickles which array lies where. A pickle is a program. Here only the
instructions are followed that describe a dict of tensors; every other one, and every
name of a class or function that is not of these, is refused. Nothing is imported, and
nothing that a file names is called.

Two forms: since torch 1.6 a zip (`*/data.pkl` and `*/data/KEY`); before that a file of
five pickles (a magic number, the version, sizes of numbers, the tensors, the keys of
the data) and the data of each key: int64 count, then its numbers.
"""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from elmojax.arguments import shown
from elmojax.errors import InputError, one_line

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
}
REBUILD = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
ORDERED = "collections OrderedDict"
DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""What Python, NumPy and zipfile make of bytes that make no sense."""


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    pass


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `state_dict`, by name.

    Raises:
      InputError: if there is no such file, or it is damaged, or holds anything but a
        dict of tensors of floating-point numbers.
    """
    try:
        with open(path, "rb") as file:
            read = _read_zip if file.read(4) == b"PK\x03\x04" else _read_legacy
            file.seek(0)
            return read(file)
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}.") from error
    except DAMAGE as error:
        raise InputError(
            f"{path} is damaged or cut short, or no file of torch.save "
            f"({one_line(error)}); get it again, whole."
        ) from error


def _read_zip(file: IO[bytes]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        folder = name.removesuffix("data.pkl")
        members = archive.infolist()
        stored = sum(member.file_size for member in members)
        if any(m.compress_type for m in members) or stored > _size(file):
            raise ValueError("it is compressed")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise InputError("has numbers of another byte order; save it on a PC.")

        def load(storage: _Storage) -> np.ndarray:
            member = archive.getinfo(f"{folder}data/{storage.key}")
            if member.file_size != storage.size * storage.dtype.itemsize:
                raise ValueError(f"data {shown(storage.key)} are of another size")
            return np.frombuffer(archive.read(member), storage.dtype)

        with archive.open(name) as pickle:
            return _arrays(_of(dict, _follow(pickle)), load)


def _read_legacy(file: IO[bytes]) -> dict[str, np.ndarray]:
    if _follow(file) != MAGIC:
        raise ValueError("it does not begin as one")
    _, sizes, tensors, keys = (_follow(file) for _ in range(4))
    if sizes["little_endian"] is not True:
        raise InputError("has numbers of another byte order; save it on a PC.")
    every = _of(dict, tensors).values()
    wanted = {t.storage.key: t.storage for t in every if type(t) is _Tensor}
    found = {}
    for key in keys:
        dtype, _, size = wanted[key]
        stored = int.from_bytes(file.read(8), "little")
        if stored != size or size * dtype.itemsize > _size(file) - file.tell():
            raise ValueError(f"data {shown(key)} are cut short")
        found[key] = np.fromfile(file, dtype, size)
    return _arrays(tensors, lambda storage: found[storage.key])


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _arrays(
    tensors: dict[str, Any], load: Callable[[_Storage], np.ndarray]
) -> dict[str, np.ndarray]:
    storages: dict[_Storage, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        if type(tensor) is not _Tensor:
            raise ValueError(f"{shown(name)} is no tensor")
        storage, offset, shape, strides = tensor
        if storage not in storages:
            storages[storage] = load(storage)
        whole = storages[storage]
        pairs = list(zip(shape, strides, strict=True))
        last = offset + sum((size - 1) * step for size, step in pairs)
        numbers = (offset, *shape, *strides)
        if min(numbers) < 0 or 0 in shape or last >= len(whole):
            raise ValueError(f"{shown(name)} lies outside of its data")
        steps = [step * whole.itemsize for step in strides]
        arrays[name] = np.ndarray(
            shape, whole.dtype, whole, offset * whole.itemsize, steps
        )
    return arrays


def _follow(file: IO[bytes]) -> Any:
    """What the next pickle of a file describes."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def above() -> list[Any]:
        """What lies above the last mark, taken off with it."""
        items = []
        while (item := stack.pop()) is not _Mark:
            items.append(item)
        return items[::-1]

    value: Any
    for code, value, _ in pickletools.genops(file):
        match code.name:
            case "PROTO":
                pass
            case "STOP":
                (result,) = stack
                return result
            case "MARK":
                stack.append(_Mark)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(code.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(value)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(code.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(above()))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND":
                item = stack.pop()
                _of(list, stack[-1]).append(item)
            case "APPENDS":
                items = above()
                _of(list, stack[-1]).extend(items)
            case "SETITEM":
                item, key = stack.pop(), _of(str, stack.pop())
                _of(dict, stack[-1])[key] = item
            case "SETITEMS":
                items = above()
                pairs = zip(items[::2], items[1::2], strict=True)
                _of(dict, stack[-1]).update((_of(str, k), v) for k, v in pairs)
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_known(value))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = _of(tuple, stack.pop()), stack.pop()
                stack.append(_made(_of(_Global, function), arguments))
            case "BUILD":  # of the dict: notes on versions, which are not needed
                stack.pop()
                _of(dict, stack[-1])
            case _:
                raise InputError(
                    f"has the pickle instruction {code.name}, which arrays do not "
                    "need, so it is not read; get the file from its author."
                )
    raise ValueError("a pickle has no end")


def _of(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError("a pickle in it makes no sense")
    return value


def _known(name: str) -> _Global:
    if name not in (ORDERED, *REBUILD, *STORAGES):
        raise InputError(
            f"names {shown(name)}, which arrays of floating-point numbers do not need, "
            "so it is not read; get the file from its author."
        )
    return _Global(name)


def _storage(about: Any) -> _Storage:
    """From ("storage", kind, key, device, size), long ago with a view, None, too."""
    word, kind, key, _, size, *view = _of(tuple, about)
    if word != "storage" or view not in ([], [None]):
        raise ValueError("its data are not arrays of their own")
    dtype = STORAGES[_of(_Global, kind).name]
    if _of(int, size) < 0:
        raise ValueError("its data have no size")
    return _Storage(dtype, _of(str, key), size)


def _made(function: _Global, arguments: tuple[Any, ...]) -> Any:
    """What a call of these few functions stands for."""
    if function.name == ORDERED and not arguments:
        return {}
    if function.name not in REBUILD:
        raise ValueError(f"{function.name} is called")
    storage, offset, shape, strides, *_ = arguments
    for number in (offset, *_of(tuple, shape), *_of(tuple, strides)):
        _of(int, number)
    return _Tensor(_of(_Storage, storage), offset, shape, strides)

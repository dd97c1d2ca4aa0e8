"""Files of torch.save without torch: both forms, damaged ones, and hostile pickles.

`data/manylangs` has the same arrays in both forms, as torch itself wrote them
(experiments/peers/make_manylangs.py).
"""

from __future__ import annotations

import io
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from elmojax.errors import InputError
from elmojax.formats.torch_file import MAGIC, read_torch

DATA = Path(__file__).parents[1] / "data" / "manylangs"
FILES = ("token_embedder.pkl", "encoder.pkl")


@pytest.mark.parametrize("name", FILES)
def test_both_forms_are_the_same_arrays(name: str) -> None:
    legacy, new = (read_torch(DATA / form / name) for form in ("legacy", "zip"))
    assert list(legacy) == list(new) and len(legacy) > 10
    for array, other in zip(legacy.values(), new.values(), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("form", ["legacy", "zip"])
def test_damage_is_refused_or_does_no_harm(form: str, tmp_path: Path) -> None:
    """A bit of a number may be another one; nothing else comes of a damaged file."""
    whole = (DATA / form / FILES[0]).read_bytes()
    names, damaged = read_torch(DATA / form / FILES[0]).keys(), tmp_path / "x.pkl"
    chance = random.Random(0)
    pickles = 3000  # most of it at the beginning of the legacy form
    for number in range(600):
        data = bytearray(whole)
        if number % 3 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            place = chance.randrange(pickles if number % 3 == 1 else len(data))
            data[place] = chance.randrange(256)
        damaged.write_bytes(data)
        try:
            found = read_torch(damaged)
        except InputError as error:
            assert str(error).startswith(str(damaged)) and "\n" not in str(error)
        else:
            assert len(found) == len(names)


def legacy(*pickles: Any, data: bytes = b"", protocol: int = 2) -> bytes:
    """A file in the older form; bytes are pickles already."""
    start = [MAGIC, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [
        each if isinstance(each, bytes) else pickle.dumps(each, protocol)
        for each in (*start, *pickles)
    ]
    return b"".join(parts) + data


def zipped(tensors: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr("archive/data.pkl", tensors)
    return out.getvalue()


class Shell:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "first"])
def test_code_is_not_run(protocol: int, form: str, tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "x.pkl"
    hostile = pickle.dumps({"weight": Shell(made)}, protocol)
    forms = {"zip": zipped(hostile), "legacy": legacy(hostile), "first": hostile}
    path.write_bytes(forms[form])
    with pytest.raises(InputError, match="is not read; get the file from its author"):
        read_torch(path)
    assert not made.exists()


def test_names_and_instructions_that_arrays_do_not_need(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    for tensors, says in (
        (b"\x80\x02ctorch\nLongStorage\n.", "'torch LongStorage'"),
        (b"\x80\x02cbuiltins\neval\n.", "'builtins eval'"),
        (b"\x80\x02(icollections\nOrderedDict\n.", "INST"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x04\x8c\x01a.", "SHORT_BINUNICODE"),
    ):
        path.write_bytes(legacy(tensors))
        with pytest.raises(InputError, match=says):
            read_torch(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"PK\x03\x04",
        b"<html></html>",
        pickle.dumps(MAGIC, 2),
        legacy(),
        legacy({}, []) + b"\x80\x02",
        legacy([1], []),
        legacy({"weight": 1}, []),
        legacy({1: 2}, []),
        legacy({}, ["0"]),
        legacy(b"\x80\x02}(X\x01\x00\x00\x00au.", []),
        legacy(b"\x80\x02h\x07.", []),
        legacy(b"\x80\x02u.", []),
        legacy(b"\x80\x02}R.", []),
        legacy(b"\x80\x02ccollections\nOrderedDict\nR.", []),
        legacy(b"\x80\x02)Q.", []),
        legacy(b"\x80\x02.", []),
        zipped(pickle.dumps({}, 2), zipfile.ZIP_DEFLATED),
        zipped(pickle.dumps({}, 2))[:-30],
    ],
)
def test_what_is_no_such_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    if content.startswith(legacy({}, [])):
        assert read_torch(path) == {}  # what follows is not looked at
        return
    with pytest.raises(InputError, match=r"damaged or cut short, .* get it again"):
        read_torch(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_torch(tmp_path)


class Storage(str):
    """A key of data, which the pickler below writes as torch does."""

    dtype: Any = None
    size = 0


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        if not isinstance(value, Storage):
            return None
        return "storage", value.dtype, str(value), "cuda:3", value.size, None


class Tensor:
    def __init__(self, storage: Storage, *layout: Any) -> None:
        self.layout = (storage, *layout, False, OrderedDict())

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.layout


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Names to pickle, in place of torch's."""
    module, utils = ModuleType("torch"), ModuleType("torch._utils")
    for place, name in (
        (module, "FloatStorage"),
        (module, "HalfStorage"),
        (module, "DoubleStorage"),
        (utils, "_rebuild_tensor_v2"),
    ):
        kind = type(name, (), {"__module__": place.__name__})
        setattr(place, name, kind)
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return module


def saved(kind: Any, numbers: np.ndarray, *layout: Any) -> bytes:
    storage = Storage("94")
    storage.dtype, storage.size = kind, numbers.size
    out = io.BytesIO()
    tensors = OrderedDict(weight=Tensor(storage, *layout))
    tensors._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    Pickler(out, 2).dump(tensors)
    data = struct.pack("<q", numbers.size) + numbers.tobytes()
    return legacy(out.getvalue(), ["94"], data=data)


@pytest.mark.parametrize(
    ("name", "dtype"), [("Float", "<f4"), ("Half", "<f2"), ("Double", "<f8")]
)
def test_views(torch: ModuleType, name: str, dtype: str, tmp_path: Path) -> None:
    numbers = np.arange(20).astype(dtype)
    (tmp_path / "x.pkl").write_bytes(
        saved(getattr(torch, f"{name}Storage"), numbers, 3, (4, 3), (1, 4))
    )
    (found,) = read_torch(tmp_path / "x.pkl").values()
    assert found.dtype == numbers.dtype
    np.testing.assert_array_equal(found, numbers[3:15].reshape(3, 4).T)


@pytest.mark.parametrize(
    "layout",
    [
        (-1, (2,), (1,)),
        (0, (21,), (1,)),
        (18, (3,), (1,)),
        (19, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (0,), (1,)),
        (0, (2, 2), (1,)),
        (0, (1 << 40, 1 << 40), (0, 0)),
        (0, (1 << 200,), (0,)),
        (0, (2,), (1 << 62,)),
        (0, ("2",), (1,)),
        (True, (2,), (1,)),
        (0, [2], [1]),
    ],
)
def test_tensors_outside_of_their_data(
    torch: ModuleType, layout: tuple[Any, ...], tmp_path: Path
) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(saved(torch.FloatStorage, np.zeros(20, np.float32), *layout))
    with pytest.raises(InputError, match="damaged or cut short"):
        read_torch(path)

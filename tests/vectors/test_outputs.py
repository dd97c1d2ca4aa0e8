"""Files of vectors: what is in them, and that no end of a run makes another file."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from elmojax.embedding.pooling import Block, Pooler, pool
from elmojax.errors import InputError
from elmojax.text.files import Text, read_text
from elmojax.text.formats import split
from elmojax.vectors import hdf5, output, unfinished
from elmojax.vectors.npy import read_vectors
from elmojax.vectors.output import open_output
from elmojax.vectors.writer import Form

LINES = [
    "The bank of the river .",
    "",
    "naïve \x01control \u2028 words\tand   spaces",
    "one",
    " ".join(f"w{i}" for i in range(45)),  # in three blocks, alone
    "",
    "",
    "The end , nearly .",
    "a form\x0cfeed and a no-break\u00a0space",
]
LAYERS, VECTOR = 3, 4
MOST = 16  # words of a block
ALL, TOP = Form((LAYERS, VECTOR)), Form((VECTOR,))
FORMS = {
    "all.hdf5": ALL,
    "top-half.hdf5": replace(TOP, dtype="float16"),
    "all-bfloat16.hdf5": replace(ALL, dtype="bfloat16"),
    "pooled.hdf5": replace(ALL, pool="mean"),
    "gzip.hdf5": replace(ALL, compression="gzip:1"),
    "pooled-lzf.hdf5": replace(TOP, pool="max", compression="lzf"),
    "bfloat16-gzip.hdf5": replace(TOP, dtype="bfloat16", compression="gzip"),
    "all": replace(ALL, settings={"model": "abc"}),
    "top-bfloat16": replace(TOP, dtype="bfloat16"),
    "pooled": replace(ALL, pool="first-last"),
    "all.parquet": ALL,
    "top-half.parquet": replace(TOP, dtype="float16", compression="zstd:3"),
    "pooled.parquet": replace(ALL, pool="mean"),
}
NAMES = pytest.mark.parametrize("name", FORMS)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quicken(monkeypatch.setattr)


def quicken(setter) -> None:
    """Parts and row groups of Parquet, and slices that are packed, of a few words; no
    waiting for the disk, which only a power cut would show."""
    from elmojax.vectors import parquet

    setter(parquet, "_PART", 20)
    setter(parquet, "_GROUP", 6)
    setter(hdf5, "_SLICE", 7)
    setter(hdf5, "_CHUNK", 5)
    setter(os, "fsync", lambda handle: None)


@pytest.fixture
def text(tmp_path) -> Text:
    return write_text(tmp_path)


def write_text(directory: Path, lines: list[str] = LINES, name: str = "t") -> Text:
    path = directory / f"{name}.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return read_text(path)


def words_of(line: int) -> np.ndarray:
    """The vectors of all words of a line, [words, layers, vector]."""
    rng = np.random.default_rng(line)
    count = len(split(LINES[line]))
    return rng.normal(size=(count, LAYERS, VECTOR)).astype(np.float32)


def expected(line: int, form: Form) -> np.ndarray:
    """What the file should have of a line, in float32."""
    vectors = words_of(line)[:, -1] if len(form.shape) == 1 else words_of(line)
    if form.pool is not None:
        vectors = np.moveaxis(vectors[None], 1, -2)  # [1, (layers,) words, vector]
        mask = jnp.ones((1, vectors.shape[-2]), bool)
        vectors = np.moveaxis(vectors, 0, -3)  # [(layers,) 1, words, vector]
        vectors = np.asarray(pool(jnp.asarray(vectors), mask, form.pool))[..., 0, :]
    elif vectors.ndim == 3:
        vectors = vectors.swapaxes(0, 1)
    return vectors.astype(form.numpy).astype(np.float32)


def engine(form: Form, sizes: np.ndarray, done: int = 0) -> Iterator[Block]:
    """Blocks of at most `MOST` words; longer sentences alone, in several."""
    pending: list[int] = []
    for line, size in enumerate([*sizes, MOST + 1]):
        if sum(sizes[i] for i in pending) + size > MOST and pending:
            if pending[0] >= done:
                yield make(form, [(i, 0, sizes[i]) for i in pending], False)
            else:
                assert done > pending[-1], "no boundary between blocks"
            pending = []
        if line == len(sizes):
            return
        if size <= MOST:
            pending.append(line)
        elif line >= done:
            for start in range(0, size, MOST):
                end = min(size, start + MOST)
                yield make(form, [(line, start, end)], end < size)


def make(form: Form, spans: list[tuple[int, int, int]], more: bool) -> Block:
    vectors = np.concatenate([words_of(line)[a:b] for line, a, b in spans])
    vectors = vectors[:, -1] if len(form.shape) == 1 else vectors
    dtype = np.float32 if form.pool else form.numpy
    return Block(tuple(int(b - a) for _, a, b in spans), vectors.astype(dtype), more)


def write(out: Path, texts, form: Form, stop: int | None = None, **options) -> None:
    """Writes an output; after `stop` blocks the engine fails."""

    def blocks(text: Text, done: int) -> Iterator[Block]:
        sentences = text.sentences(done)
        for number, block in enumerate(engine(form, text.sizes, done)):
            if number == stop:
                raise KeyboardInterrupt
            for _ in block.sizes if not block.more else ():
                next(sentences)
            yield block
        assert list(sentences) == []

    texts = [texts] if isinstance(texts, Text) else texts
    with open_output(out, texts, form, **{"every": 0.0, **options}) as output:
        output.fill(blocks)
        output.finish()


def snapshot(path: Path) -> dict[str, bytes]:
    """All bytes of a file or of all files of a directory."""
    paths = [p for p in [path, *path.rglob("*")] if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(paths)}


def close_to(got: np.ndarray, line: int, form: Form) -> None:
    wanted = expected(line, form)
    assert got.shape == wanted.shape
    if form.pool is None:
        np.testing.assert_array_equal(got.astype(np.float32), wanted)
    else:
        np.testing.assert_allclose(got.astype(np.float32), wanted, atol=1e-6)


# --- what is in the files ------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FORMS if name.endswith("hdf5")])
def test_hdf5_as_users_of_bilm_tf_read_it(text, tmp_path, name):
    form = FORMS[name]
    write(tmp_path / name, text, form)
    with h5py.File(tmp_path / name) as file:
        assert sorted(map(int, file)) == list(range(len(LINES)))
        dtype = "float32" if form.dtype == "bfloat16" else form.dtype
        for line in range(len(LINES)):
            data = file[str(line)]
            assert data.dtype == dtype
            close_to(data[...], line, form)
            told = " ".join(split(LINES[line]))
            assert data.attrs["sentence"] == told
        assert file.attrs["axes"] == form.axes
        assert json.loads(file.attrs["elmojax"])["dtype"] == form.dtype
        packed = {"gzip.hdf5": "gzip", "pooled-lzf.hdf5": "lzf"}
        assert file["0"].compression == packed.get(name, file["0"].compression)
        assert (file["0"].chunks is None) == (form.compression is None)
    assert {path.name for path in tmp_path.iterdir()} == {"t.txt", name}


@pytest.mark.parametrize("name", ["all", "top-bfloat16", "pooled"])
def test_arrays_that_are_mapped_into_memory(text, tmp_path, name):
    out, form = tmp_path / name, FORMS[name]
    write(out, text, form)
    vectors = read_vectors(out)
    assert len(vectors) == len(LINES)
    for line in range(len(LINES)):
        assert vectors[line].dtype == form.numpy
        close_to(vectors[line], line, form)
    close_to(vectors[-2], len(LINES) - 2, form)
    assert [v.shape for v in vectors[1:3]] == [vectors[i].shape for i in (1, 2)]
    assert len(list(vectors)) == len(LINES)
    with pytest.raises(IndexError):
        vectors[len(LINES)]
    assert vectors.sentences() == [split(line) for line in LINES]
    plain = np.load(out / "vectors.npy", mmap_mode="r")
    if form.pool:
        assert plain.shape == (len(LINES), LAYERS, VECTOR)
        assert not (out / "offsets.npy").exists()
        return
    offsets = np.load(out / "offsets.npy")
    part = plain[offsets[4] : offsets[5]]
    if name == "top-bfloat16":
        assert part.dtype == np.uint16
        part = part.view(ml_dtypes.bfloat16)
        assert json.loads((out / "info.json").read_text())["bits"] == "bfloat16"
    close_to(part.swapaxes(0, 1) if part.ndim == 3 else part, 4, form)


@pytest.mark.parametrize("name", ["all.parquet", "top-half.parquet", "pooled.parquet"])
def test_parquet(text, tmp_path, name):
    pq = pytest.importorskip("pyarrow.parquet")
    out, form = tmp_path / name, FORMS[name]
    other = write_text(tmp_path, LINES[:4], "other")
    write(out, [text, other], form)
    assert sorted(p.name for p in out.iterdir())[-1] == "_info.json"
    parts = sorted(p.name for p in out.glob("00000-*"))
    assert len(parts) > (1 if form.pool is None else 0)
    table = pq.read_table(out).sort_by([("file", "ascending"), ("line", "ascending")])
    layers = [f"layer_{i}" for i in range(LAYERS)] if len(form.shape) == 2 else None
    rows = table.to_pylist()
    for given, lines in ((text, LINES), (other, LINES[:4])):
        mine = [row for row in rows if row["file"] == str(given.path)]
        assert sorted({row["line"] for row in mine}) == list(range(len(lines)))
        for line in range(len(lines)):
            pieces = [row for row in mine if row["line"] == line]
            pieces.sort(key=lambda row: row["start"])
            long = form.pool is None and line == 4
            assert [p["start"] for p in pieces] == ([0, 16, 32] if long else [0])
            assert [w for p in pieces for w in p["words"]] == split(lines[line])
            close_to(joined(pieces, layers, form), line, form)


def joined(pieces: list[dict], layers: list[str] | None, form: Form) -> np.ndarray:
    columns = []
    for column in layers or ["vectors"]:
        if form.pool is not None:
            columns.append(np.array(pieces[0][column], np.float32))
            continue
        flat = [np.array(p[column], np.float32).reshape(-1, VECTOR) for p in pieces]
        columns.append(np.concatenate(flat))
    return np.stack(columns) if layers else columns[0]


def test_line_of_a_megabyte(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("word " * 200_000 + "\n")
    text = read_text(path)
    form = replace(TOP, pool="mean")
    with open_output(tmp_path / "v.hdf5", [text], form) as output:
        (writer,) = output.writers()
        for part in range(20):
            vectors = np.full((10_000, VECTOR), part, np.float32)
            writer.write(Block((10_000,), vectors, part < 19))
        writer.finish()
        output.finish()
    with h5py.File(tmp_path / "v.hdf5") as file:
        assert len(file["0"].attrs["sentence"]) == 999_999
        np.testing.assert_allclose(file["0"], 9.5)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def changed(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def holds(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def holds_array(array: np.ndarray) -> Callable[[Path], Any]:
    return lambda path: np.save(path, array)


def info_with(**values: Any) -> Callable[[Path], Any]:
    def edit(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


WORDS = sum(len(split(line)) for line in LINES)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(
            (name, damage)
            for name in ("info.json", "vectors.npy", "offsets.npy")
            for damage in (
                Path.unlink,
                cut,
                holds(b""),
                holds(b"\x93NUMPY"),
                None,
            )
        ),
        *(
            ("info.json", holds(text))
            for text in (b"[]", b"3", b"[" * 100_000, b"\xff")
        ),
        *(
            ("info.json", info_with(**values))
            for values in (
                {"lines": None},
                {"words": "many"},
                {"words": WORDS - 1},
                {"shape": [LAYERS, VECTOR + 1]},
                {"shape": 3},
                {"dtype": "float16"},
                {"dtype": "x"},
                {"dtype": {}},
                {"pool": "mean"},
                {"bits": "bfloat16"},
            )
        ),
        ("vectors.npy", lambda path: changed(path, 30)),  # in its header
        ("vectors.npy", holds(b"PK\x03\x04")),
        ("vectors.npy", holds_array(np.array([{}]))),
        ("vectors.npy", holds_array(np.float32(3))),
        ("offsets.npy", holds_array(np.arange(len(LINES) + 1))),
        ("offsets.npy", holds_array(np.float64([0] * len(LINES) + [WORDS]))),
        (
            "offsets.npy",
            holds_array(np.int64([0, 9, 8, *[9] * (len(LINES) - 3), WORDS])),
        ),
        ("offsets.npy", holds_array(np.int64(0))),
    ],
)
def test_damaged_vectors_are_refused_in_one_way(text, tmp_path, file, damage):
    out = tmp_path / "v"
    write(out, text, ALL)
    if damage is None:  # a directory in place of the file
        (out / file).unlink()
        (out / file).mkdir()
    else:
        damage(out / file)
    with pytest.raises(InputError, match=r"is no directory of vectors .*or is damaged"):
        read_vectors(out)


@pytest.mark.parametrize("damage", [Path.unlink, cut, holds(b"\xff\n"), holds(b"a\n")])
def test_the_text_beside_vectors_may_be_damaged(text, tmp_path, damage):
    write(tmp_path / "v", text, ALL)
    vectors = read_vectors(tmp_path / "v")
    damage(tmp_path / "v" / "sentences.txt")
    with pytest.raises(InputError, match=r"sentences\.txt"):
        vectors.sentences()


def test_other_files_are_no_vectors(text, tmp_path):
    write(tmp_path / "v.hdf5", text, ALL)
    for path in (tmp_path, tmp_path / "v.hdf5", tmp_path / "none"):
        with pytest.raises(InputError, match="no directory of vectors"):
            read_vectors(path)


# --- runs that end early -------------------------------------------------------------


@NAMES
def test_stopped_after_every_block(text, tmp_path, name):
    form = FORMS[name]
    write(tmp_path / name, text, form)
    whole = snapshot(tmp_path / name)
    count = len(list(engine(form, text.sizes)))
    assert count > 4
    (tmp_path / "again").mkdir()
    for stop in range(count):
        for every in (0.0, 1e9):
            out = tmp_path / "again" / name
            with pytest.raises(KeyboardInterrupt):
                write(out, text, form, stop=stop, every=every)
            assert not out.exists()
            write(out, text, form)
            assert snapshot(out) == whole
            assert os.listdir(out.parent) == [name]
            shutil.rmtree(out) if out.is_dir() else out.unlink()


def test_progress_is_kept_once_the_disk_has_the_vectors(text, tmp_path, monkeypatch):
    calls, replace_file = [], os.replace

    def synced(handle):
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    def replaced(old, new):
        calls.append(f"-> {Path(new).name}")
        replace_file(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "pwrite", noted(os.pwrite, calls))
    write(tmp_path / "v.hdf5", text, ALL)
    kept = [i for i, call in enumerate(calls) if call == "-> _00000.json"]
    assert len(kept) == 4
    for first, last in pairwise(kept):
        between = calls[first + 1 : last]
        assert "pwrite" in between
        assert "result" in between[between.index("pwrite") :]
    assert calls.index("-> v.hdf5") > kept[-1]


def noted(function, calls: list[str]):
    def call(*args):
        calls.append("pwrite")
        return function(*args)

    return call


def test_goes_on_where_it_stopped(text, tmp_path):
    for name in ("v.hdf5", "v", "v.parquet"):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / name, text, ALL, stop=4)
        with open_output(tmp_path / name, [text], ALL) as output:
            (writer,) = output.writers()
            assert writer.done == 5
            writer.close()


@pytest.mark.parametrize("name", ["all.hdf5", "gzip.hdf5", "all", "all.parquet"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, changed, holds(b"")])
def test_what_was_left_is_taken_up_only_if_it_is_whole(text, tmp_path, name, damage):
    form = FORMS[name]
    write(tmp_path / name, text, form)
    whole, out = snapshot(tmp_path / name), tmp_path / "again" / name
    out.parent.mkdir()
    for number in range(20):
        with pytest.raises(KeyboardInterrupt):
            write(out, text, form, stop=4)
        partial = out.with_name(f"{name}.partial")
        files = [p for p in sorted(partial.rglob("*")) if p.is_file()]
        files = [p for p in files if p.name not in ("_lock", "_request.json")]
        if number == len(files):
            break
        damage(files[number])
        try:
            write(out, text, form)
        except InputError as error:
            assert "is damaged. Remove" in str(error)
            shutil.rmtree(partial)
        else:
            assert snapshot(out) == whole, files[number]
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert number > 1


@pytest.mark.parametrize("name", ["all.hdf5", "all"])
def test_every_byte_that_was_committed_counts(text, tmp_path, name):
    """But for vectors that are still to come."""
    write(tmp_path / name, text, ALL)
    whole, out = snapshot(tmp_path / name), tmp_path / "again" / name
    out.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write(out, text, ALL, stop=4)
    left = out.with_name(f"{name}.partial")
    path = left / "result" if name == "all.hdf5" else left / "result" / "vectors.npy"
    taken_up, places = 0, np.linspace(0, path.stat().st_size - 1, 30).astype(int)
    for at in places:
        copy = tmp_path / "copy"
        shutil.copytree(left, copy)
        changed(path, at)
        with open_output(out, [text], ALL) as output:
            (writer,) = output.writers()
            taken_up += writer.done > 0
            writer.close()
            shutil.rmtree(left)
            shutil.move(copy, left)
    assert 0 < taken_up < 25
    write(out, text, ALL)
    assert snapshot(out) == whole


@pytest.mark.parametrize(
    "name",
    [
        *("all.hdf5", "all"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("pooled.hdf5", "gzip.hdf5", "all.parquet")
        ),
    ],
)
def test_killed_at_every_step(tmp_path, name):
    """A process of its own: it forks, and every child kills itself one step later."""
    call = f"kill_at_every_step({name!r}, {str(tmp_path)!r})"
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            f"import test_outputs; test_outputs.{call}",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def kill_at_every_step(name: str, directory: str) -> None:
    quicken(setattr)
    form, home = FORMS[name], Path(directory)
    text = write_text(home, LINES[:6])
    write(home / name, text, form)
    whole, out = snapshot(home / name), home / "again" / name
    out.parent.mkdir()
    for replaces in (False, True) if name in ("all", "pooled.hdf5") else (False,):
        steps, alive = 0, False
        while not alive:
            steps += 1
            if replaces:
                write(out, text, replace(form, settings={"model": "old"}))
            child = os.fork()
            if not child:
                die_after(steps)
                write(out, text, form, overwrite=replaces)
                os._exit(0)
            alive = os.waitpid(child, 0)[1] == 0
            if not alive and out.exists() and not replaces:
                assert snapshot(out) == whole  # Killed when it had its name already.
            else:
                if not alive:
                    write(out, text, form, overwrite=replaces)
                assert snapshot(out) == whole
                assert os.listdir(out.parent) == [name]
            shutil.rmtree(out.parent)
            out.parent.mkdir()
    sys.stdout.write(str(steps))


def die_after(steps: int) -> None:
    """Kills this process at the `steps`-th call that changes something on the disk."""
    import pyarrow.parquet as pq

    def mortal(function):
        def call(*args, **kwargs):
            nonlocal steps
            steps -= 1
            if not steps:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, names in (
        (os, ("pwrite", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")),
        (hdf5, ("_create",)),
        (pq.ParquetWriter, ("write_batch", "close")),
    ):
        for name in names:
            setattr(owner, name, mortal(getattr(owner, name)))


@pytest.mark.parametrize(
    "name", ["all.hdf5", "pooled.hdf5", "gzip.hdf5", "all", "pooled"]
)
def test_disk_that_fills(text, tmp_path, monkeypatch, name):
    form, out = FORMS[name], tmp_path / name
    write(out, text, form)
    whole = snapshot(out)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    pwrite, left = os.pwrite, 0

    def full(handle, data, place):
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = min(left, len(data))  # The last write is a short one.
        left -= count
        return pwrite(handle, data[:count], place)

    monkeypatch.setattr(os, "pwrite", full)
    for room in (0, 40, 300):
        left = room
        with pytest.raises(InputError, match=r"No space left on device.*same command"):
            write(out, text, form)
        assert not out.exists()
    left = 10**9
    write(out, text, form)
    assert snapshot(out) == whole


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As `ulimit -f`: writing more fails, whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["all.hdf5", "gzip.hdf5", "all", "all.parquet"])
def test_limit_of_the_file_system(text, tmp_path, name):
    out, form = tmp_path / name, FORMS[name]
    with largest_file(1500), pytest.raises(InputError, match="cannot be written"):
        write(out, text, form)
    assert not out.exists()
    write(out, text, form)


def test_no_room(text, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    for name in ("v.hdf5", "v", "v.parquet"):
        with pytest.raises(InputError, match="GB more, and its disk has 1e-06 GB free"):
            write(tmp_path / name, text, ALL)
    assert os.listdir(tmp_path) == ["t.txt"]


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["v.hdf5", "v", "v.parquet"])
def test_what_is_there_stays(text, tmp_path, name):
    out = tmp_path / name
    write(out, text, ALL)
    before = snapshot(out)
    with pytest.raises(InputError, match="is there already"):
        write(out, text, TOP)
    with pytest.raises(KeyboardInterrupt):
        write(out, text, TOP, stop=4, overwrite=True)
    assert snapshot(out) == before
    with pytest.raises(InputError, match=r"another request: shape .*3, 4.* now"):
        shutil.move(out, tmp_path / "aside")
        write(out, text, ALL)
    write(out, text, ALL, overwrite=True)
    assert snapshot(out) == before
    write(out, text, TOP, overwrite=True)
    assert snapshot(out) != before
    assert not Path(f"{out}.partial").exists()


@pytest.mark.parametrize("name", ["v.hdf5", "v", "v.parquet"])
def test_overwrite_spares_what_is_not_ours(text, tmp_path, name):
    out = tmp_path / name
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"is there already.* only\)"):
        write(out, text, ALL, overwrite=True)
    shutil.rmtree(out)
    other = Path(f"{out}.partial")
    other.mkdir()
    (other / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="in the way"):
        write(out, text, ALL, overwrite=True)
    assert os.listdir(other) == ["thesis.tex"]


@pytest.mark.parametrize("name", ["v.hdf5", "v", "v.parquet"])
def test_one_process_at_a_time(text, tmp_path, name):
    with open_output(tmp_path / name, [text], ALL):
        with pytest.raises(InputError, match="Another process is writing"):
            write(tmp_path / name, text, ALL)
    write(tmp_path / name, text, ALL)


def test_other_settings_are_told(text, tmp_path):
    form = replace(ALL, settings={"model": "a" * 64, "layers": "all"})
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "v", text, form, stop=4)
    other = replace(form, settings={"model": "a" * 64, "gammas": [1.0]})
    says = (
        r'request: layers "all" there, nothing now; gammas nothing there, \[1.0\] now'
    )
    with pytest.raises(InputError, match=says):
        write(tmp_path / "v", text, other)


@pytest.mark.parametrize("name", ["v.hdf5", "v", "v.parquet"])
def test_text_that_changes(text, tmp_path, name):
    out = tmp_path / name
    with pytest.raises(KeyboardInterrupt):
        write(out, text, ALL, stop=4)
    changed = write_text(tmp_path, [line.replace("end", "END") for line in LINES])
    with pytest.raises(InputError, match=r"text .* there, .* now|is not the text"):
        write(out, changed, ALL)
    write(out, changed, ALL, overwrite=True)
    assert out.exists()


@pytest.mark.parametrize("name", ["v.hdf5", "v", "v.parquet"])
def test_text_that_changes_meanwhile(text, tmp_path, name):
    """Never a file that lacks lines, nor one with those of another text."""
    blocks = list(engine(ALL, text.sizes))
    with open_output(tmp_path / name, [text], ALL) as output:
        with pytest.raises(InputError, match="changed while"):
            output.fill(lambda text, done: blocks[:-1])
        with pytest.raises(InputError, match="changed while"):
            output.fill(lambda text, done: list(engine(ALL, text.sizes, done))[:0])
    short = Block((2,), np.zeros((2, LAYERS, VECTOR), np.float32), False)
    with open_output(tmp_path / f"a{name}", [text], ALL) as output:
        with pytest.raises(InputError, match="changed while"):
            output.fill(lambda text, done: [short])
    for lines in (LINES[:-1], [*LINES, "more"], ["THE", *LINES[1:]]):
        write_text(tmp_path, lines)
        with pytest.raises(InputError, match="changed while"):
            list(text.sentences())
    write_text(tmp_path, [LINES[0].replace("bank", "tank"), *LINES[1:]])
    with pytest.raises(InputError, match="changed while"):
        list(text.sentences(3))


def test_bad_texts(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="has no lines at all"):
        read_text(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"Line 2 .* is not UTF-8"):
        read_text(tmp_path / "latin.txt")
    assert list(read_text(tmp_path / "latin.txt", "replace").sizes) == [1, 1]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a plain file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(InputError, match="There is no file"):
        read_text(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "form", "says"),
    [
        ("no/v.hdf5", ALL, "there is no directory"),
        ("v.parquet", replace(ALL, dtype="bfloat16"), "Parquet has no bfloat16"),
        ("v.parquet", replace(ALL, compression="lzf"), "no compression 'lzf'"),
        ("v", replace(ALL, compression="gzip"), "not for this format"),
        ("v.h5", replace(ALL, compression="gzip:10"), "a level from 0 to 9"),
        ("v.h5", replace(ALL, compression="gzip:"), "a level from 0 to 9"),
        ("v.h5", replace(ALL, compression="lzf:1"), "lzf takes no level"),
        ("v.h5", replace(ALL, compression="zip"), "choose one of gzip, lzf"),
    ],
)
def test_forms_that_there_are_not(text, tmp_path, name, form, says):
    with pytest.raises(InputError, match=says):
        write(tmp_path / name, text, form)
    assert os.listdir(tmp_path) == ["t.txt"]


def test_without_pyarrow(text, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "elmojax.vectors.parquet")
    monkeypatch.delattr("elmojax.vectors.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'elmojax\[parquet\]'"):
        write(tmp_path / "v.parquet", text, ALL)
    write(tmp_path / "v.hdf5", text, ALL)


def test_form_checks_itself(request):
    if request.config.getoption("--shapes"):
        pytest.skip("beartype refuses them before we do")
    with pytest.raises(InputError, match="no dtype 'int8'"):
        replace(ALL, dtype="int8")
    with pytest.raises(InputError, match="no pooling 'sum'"):
        replace(ALL, pool="sum")


def test_only_parquet_holds_several_texts(text, tmp_path):
    with pytest.raises(InputError, match="only Parquet holds several"):
        write(tmp_path / "v.h5", [text, text], ALL)


def test_damaged_state(text, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "v", text, ALL, stop=4)
    (tmp_path / "v.partial" / "_request.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        write(tmp_path / "v", text, ALL)


def test_a_part_of_parquet_is_full_before_the_next(text, tmp_path, monkeypatch):
    """However many blocks it comes from, and however long they take."""
    pytest.importorskip("pyarrow")
    from elmojax.vectors import parquet

    monkeypatch.setattr(parquet, "_PART", 10_000)
    write(tmp_path / "v.parquet", text, ALL)
    assert len([*(tmp_path / "v.parquet").glob("00000-*")]) == 1


# --- many texts, and pooling ---------------------------------------------------------


def test_parquet_by_other_processes(tmp_path):
    """Any of them may write any text; the output waits for all."""
    from elmojax.vectors.parquet import ParquetWriter

    texts = [write_text(tmp_path, LINES[: 4 + i], f"t{i}") for i in range(3)]
    write(tmp_path / "wanted.parquet", texts, ALL)
    paths = [text.path for text in texts]
    with open_output(tmp_path / "v.parquet", paths, ALL) as output:
        for number in (2, 0):
            with ParquetWriter(
                output.directory, number, texts[number], output.form
            ) as writer:
                for block in engine(ALL, texts[number].sizes):
                    writer.write(block)
                writer.finish()
        with pytest.raises(InputError, match=r"lines of .*t1.txt are missing"):
            output.finish()
    with open_output(tmp_path / "v.parquet", texts, ALL) as output:
        left = [
            w.text.path.name for w in output.writers() if w.done < len(w.text.sizes)
        ]
        assert left == ["t1.txt"]
    write(tmp_path / "v.parquet", texts, ALL)
    assert snapshot(tmp_path / "v.parquet") == snapshot(tmp_path / "wanted.parquet")


@pytest.mark.parametrize("how", ["mean", "max", "first-last"])
@pytest.mark.parametrize("form", [ALL, TOP], ids=["all", "top"])
def test_pooling_of_a_stream_is_that_of_a_batch(text, how, form):
    pooler = Pooler(how)
    blocks = [pooler.push(block) for block in engine(form, text.sizes)]
    assert sum((b.sizes for b in blocks), ()) == tuple(text.sizes)
    got = np.concatenate([block.vectors for block in blocks])
    wanted = [expected(i, replace(form, pool=how)) for i in range(len(LINES))]
    np.testing.assert_allclose(got, np.stack(wanted), atol=1e-6)
    assert not got[1].any()


def test_installed_names_are_kept_apart(tmp_path):
    assert output.kind_of(Path("a.H5")) == output.kind_of(Path("b.hdf5")) == "hdf5"
    assert output.kind_of(Path("a.parquet")) == "parquet"
    assert output.kind_of(Path("vectors")) == "npy"
    assert unfinished.allocated(tmp_path) == 0

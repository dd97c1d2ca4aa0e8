"""Where files are written: locks, links that lead elsewhere, addresses."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from elmojax import disk
from elmojax.disk import Lock, Taken, is_locked, local, replacing
from elmojax.errors import InputError, Remark
from elmojax.training.metrics import JsonLines, plot_losses
from elmojax.training.record import Status, lock_run
from elmojax.vectors.unfinished import Unfinished

HOLD = """
import sys, time, types
from pathlib import Path

sys.modules["elmojax"] = types.ModuleType("elmojax")  # without JAX, in a moment
sys.modules["elmojax"].__path__ = [sys.argv[1]]
from elmojax.disk import Lock

lock = Lock(Path(sys.argv[2]))
print(flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    path = tmp_path / "run" / ".lock"
    assert is_locked(path) is False
    package = os.path.dirname(disk.__file__)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, package, path], stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        assert is_locked(path) is True
        for _ in range(2):  # who is refused, or looks, does not take the name away
            with pytest.raises(Taken, match=f"^process {other.pid} on "):
                Lock(path)
        with pytest.raises(InputError, match=rf"trains in .* \(process {other.pid} on"):
            lock_run(path.parent)
        threading.Timer(0.3, other.kill).start()
        with Lock(path, patience=30) as lock:
            assert lock.held and is_locked(path) is True
            assert path.read_text().startswith(f"process {os.getpid()} on ")
        assert not lock.held and is_locked(path) is False
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_who_only_looks_keeps_nobody_out(tmp_path):
    path, end = tmp_path / ".lock", threading.Event()
    Lock(path).release()

    def look() -> None:
        while not end.is_set():
            is_locked(path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(100):
            Lock(path).release()
    finally:
        end.set()
        looking.join()


def test_a_lock_that_was_removed_is_made_again(tmp_path, monkeypatch):
    """As a process does that finishes between our opening and locking the file."""
    path, real, removed = tmp_path / "out.partial" / "_lock", fcntl.flock, []

    def flock(file: int, how: int) -> None:
        if not removed:
            removed.append(path.unlink())
            path.parent.rmdir()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Lock(path):
        assert removed and is_locked(path)


@pytest.mark.parametrize("code", ["ENOLCK", "ENOTSUP", "ENOSYS", "EINVAL", "EIO"])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, code):
    def flock(file: int, how: int) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(Remark, match=r"\.lock cannot be locked .*only one runs there"):
        lock = lock_run(tmp_path / "run")
    assert lock.held and is_locked(tmp_path / "run" / ".lock") is None
    with pytest.warns(Remark, match="cannot be locked"):
        Unfinished(tmp_path / "v.hdf5", {}, overwrite=False).release(keep=False)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("code", ["EAGAIN", "ENOSPC"])
def test_only_would_block_is_another_process(tmp_path, monkeypatch, code):
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    if code == "EAGAIN":
        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(InputError, match=r"Another process trains in .* \(unnamed"):
            lock_run(tmp_path)
    else:  # a full disk does not take the owner's name, and that costs nothing
        monkeypatch.setattr(os, "pwrite", refuse)
        lock_run(tmp_path).release()
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(InputError, match=r"cannot be written: No space left"):
            lock_run(tmp_path)


# --- links ---------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that nothing may write to, whatever leads to it."""
    path = tmp_path / "secret"
    path.write_text("kept")
    return path


def test_a_run_writes_through_no_link(tmp_path, secret):
    run, partial = tmp_path / "run", f".partial-{os.getpid()}"
    run.mkdir()
    names = ["metrics.jsonl", "status.json", "loss.png"]
    for name in [*names, *(f".{name}{partial}" for name in names)]:
        (run / name).symlink_to(secret)
    lines = JsonLines(run / "metrics.jsonl", 0)
    lines.log(1, {"loss": 1.0})
    lines.close()
    Status("training", 1, 9).write(run)
    plot_losses(run)
    assert sorted(os.listdir(run)) == sorted(names)
    assert not any((run / name).is_symlink() for name in names)
    (run / ".lock").symlink_to(secret)
    with pytest.raises(InputError, match=r"\.lock is a symbolic link"):
        lock_run(run)
    (run / "new").symlink_to(tmp_path / "made")
    with pytest.raises(InputError, match="new is a symbolic link"):
        Lock(run / "new")
    assert not (tmp_path / "made").exists() and secret.read_text() == "kept"


@pytest.mark.parametrize(
    "name", ["", "_lock", "_request.json.new", "_progress.json.new", "result", "a/b"]
)
def test_an_output_is_made_through_no_link(tmp_path, secret, name):
    partial = tmp_path / "v.partial"
    Unfinished(tmp_path / "v", {}, overwrite=False).release(keep=True)
    if name:
        (partial / name).parent.mkdir(exist_ok=True)
        (partial / name).unlink(missing_ok=True)
        (partial / name).symlink_to(secret)
    else:
        partial.rename(tmp_path / "elsewhere")
        partial.symlink_to(tmp_path / "elsewhere")
    for _ in range(2):  # refusing lets go of the lock
        with pytest.raises(InputError, match=f"{name or 'v.partial'} is a symbolic li"):
            Unfinished(tmp_path / "v", {}, overwrite=True)
    assert secret.read_text() == "kept"


def test_what_is_replaced_is_the_link(tmp_path, secret):
    link = tmp_path / "link"
    link.symlink_to(secret)
    with replacing(link) as partial:
        partial.write_text("new")
    assert not link.is_symlink() and link.read_text() == "new"
    assert secret.read_text() == "kept"


# --- addresses -----------------------------------------------------------------------


def test_addresses_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("gs://b/run", "S3://b", Path("gs://b/run"), "s3:", "file:///a"):
        for use in (local, lambda path: Lock(Path(path)), lambda path: lock_run(path)):
            with pytest.raises(
                InputError, match=r"^\w+://\S* is an address, and this m"
            ):
                use(address if use is local else Path(address))
    with pytest.raises(InputError, match=r"^s3://bucket/a is an address"):
        local("s3://key:secret@bucket/a?signature=1")
    for path in ("run", "a:b", "./gs", "C:/run", "x/gs://y", "12:/a", "a b:/c"):
        assert local(path) == Path(path)
    with pytest.raises(InputError, match="is an address"):
        with disk.new_directory(Path("gs://b/data")):
            pass
    assert os.listdir() == []

"""Files and directories that may not be read or written: a sentence, nothing left."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

import elmojax
from tests.commands import TINY, Outcome, done, run

NOBODY = 65534

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that everybody may read, with a text, a corpus, a run and a model.

    Each command was run once, so that what it imports is there.
    """
    if not _readable(elmojax.__file__) or not _readable(jax.__file__):
        pytest.skip("the packages lie where only their owner may read them")
    path = Path(tempfile.mkdtemp(prefix="elmojax-permissions-"))
    path.chmod(0o755)
    here = os.getcwd()
    os.chdir(path)
    Path("text.txt").write_text("the river bank\na bank\n" * 40)
    done("prepare", "--text", "text.txt", "--out", "data")
    done("pretrain", "--data", "data", "--workdir", "runs/a", "--steps", 2, *TINY)
    done("convert", "runs/a", "--out", "model")
    done("embed", "model", "--text", "text.txt", "--out", "vectors.hdf5")
    done("score", "model", "--text", "text.txt")
    done("evaluate", "runs/a", "--data", "data")
    done("verify", "model")
    done("runs", "runs")
    done("export", "model", "--out", "exported.zip")
    done("convert", "model", "--out", "converted")
    Path("open").mkdir(mode=0o777)
    Path("open").chmod(0o777)  # whatever the umask
    yield path
    os.chdir(here)
    shutil.rmtree(path)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """The rights of a user who owns nothing here."""
    if os.geteuid():
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _readable(path: str) -> bool:
    with nobody():
        return os.access(path, os.R_OK, effective_ids=True)


def as_nobody(*arguments: object) -> Outcome:
    with nobody():
        return run(*arguments)


def without_rights(path: Path, mode: int, command: Callable[[], Outcome]) -> Outcome:
    before, tree = path.stat().st_mode, sorted(Path().rglob("*"))
    path.chmod(mode)
    try:
        found = command()
    finally:
        path.chmod(before)
    assert sorted(Path().rglob("*")) == tree
    return found


CASES = [
    ("text.txt", "embed model --text text.txt --out open/o.hdf5"),
    ("text.txt", "score model --text text.txt"),
    ("text.txt", "evaluate model --text text.txt"),
    ("text.txt", "prepare --text text.txt --out open/o"),
    ("model/options.json", "score model --text text.txt"),
    ("model/weights.hdf5", "embed model --text text.txt --out open/o.hdf5"),
    ("model/softmax.hdf5", "score model --text text.txt"),
    ("model/vocabulary.txt", "score model --text text.txt"),
    ("model", "verify model"),
    ("runs/a", "evaluate runs/a --data data"),
    ("runs/a/config.json", "evaluate runs/a --data data"),
    ("runs/a/vocabulary.txt", "convert runs/a --out open/o"),
    ("runs/a/checkpoints", "evaluate runs/a --data data"),
    ("runs/a/checkpoints/2", "convert runs/a --out open/o"),
    ("runs/a/config.json", "pretrain --data data --workdir runs/a --steps 3"),
    ("data", "evaluate runs/a --data data"),
    ("data/corpus.json", "evaluate runs/a --data data"),
    ("data/words.npy", "evaluate runs/a --data data"),
    ("data/types.txt", "pretrain --data data --workdir runs/b --steps 1"),
    ("runs", "runs runs"),
]


@pytest.mark.parametrize(("name", "command"), CASES, ids=lambda value: value)
def test_what_may_not_be_read_is_named(place: Path, name: str, command: str) -> None:
    found = without_rights(place / name, 0, lambda: as_nobody(*command.split()))
    assert_refused(found, name)


@pytest.mark.parametrize(
    "command",
    [
        "embed model --text text.txt --out closed/o.hdf5",
        "embed model --text text.txt --out closed/o",
        "prepare --text text.txt --out closed/o",
        "convert runs/a --out closed/o",
        "convert model --out closed/o",
        "export model --out closed/o.zip",
        "pretrain --data data --workdir closed/run --steps 1",
    ],
    ids=lambda command: command,
)
def test_where_nothing_may_be_written_is_named(place: Path, command: str) -> None:
    closed = place / "closed"
    closed.mkdir(exist_ok=True)
    found = without_rights(closed, 0o555, lambda: as_nobody(*command.split()))
    assert_refused(found, "closed")


@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json", "loss.png"])
def test_a_run_of_somebody_else_is_left_alone(place: Path, name: str) -> None:
    """All its files may be read, and none written: it does not go on."""
    command = "pretrain --data data --workdir runs/a --steps 4".split()
    found = without_rights(place / "runs/a" / name, 0o444, lambda: as_nobody(*command))
    assert_refused(found, "runs/a")


def test_a_run_that_may_not_be_read_hides_no_other(place: Path) -> None:
    shutil.copytree("runs/a", "runs/c")
    found = without_rights(
        place / "runs/a/config.json", 0, lambda: as_nobody("runs", "runs")
    )
    assert found.status == 0 and "runs/c" in found.out and "unreadable" in found.out
    shutil.rmtree("runs/c")


def assert_refused(found: Outcome, name: str) -> None:
    assert found.status == 2 and not found.out, found
    last = found.err.rstrip().splitlines()[-1]
    assert last.startswith("elmojax: ") and name.split("/")[-1] in last, found.err
    assert "Traceback" not in found.err and "Warning" not in found.err, found.err

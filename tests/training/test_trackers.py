"""Other programs that hear of a run: their names, and that no run depends on them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import TINY, done, refused

from elmojax.training import trackers
from elmojax.training.metrics import Tracker, read_metrics
from elmojax.training.trackers import Threaded

pytestmark = pytest.mark.usefixtures("quick_compilation", "compile_once")


@pytest.fixture(scope="module")
def data(tmp_path_factory, sample_lines) -> Path:
    folder = tmp_path_factory.mktemp("trackers")
    (folder / "text.txt").write_text("\n".join(sample_lines(60)), encoding="utf-8")
    done("prepare", "--text", folder / "text.txt", "--out", folder / "data")
    return folder / "data"


def pretrain(data: Path, run: Path, steps: int, *more: object) -> str:
    command = ("pretrain", "--data", data, "--workdir", run, "--steps", steps, *TINY)
    return done(*command, *more).err


@pytest.mark.slow
def test_a_run_of_weights_and_biases_goes_on_as_the_same(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (2, 4):
        said = pretrain(data, tmp_path / "run", steps, "--tracker", "wandb")
        assert "failed" not in said
    identity = (tmp_path / "run" / trackers.ID).read_text().strip()
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.stem for path in files] == [f"run-{identity}"] * 2
    assert b"gradient_norm" in files[0].read_bytes()
    assert b"learning_rate" in files[0].read_bytes()  # the configuration has it, too


@pytest.mark.slow
def test_trackio_has_all_steps_of_a_run_that_went_on(data, tmp_path):
    """In a process of its own: trackio reads TRACKIO_DIR when it is imported."""
    pytest.importorskip("trackio")
    command = [sys.executable, "-m", "elmojax", "pretrain", "--data", data, *TINY]
    command += ["--workdir", tmp_path / "run", "--tracker", "trackio", "--json"]
    for steps in (2, 4):
        ended = subprocess.run(
            [*map(str, command), "--steps", str(steps)],
            env=os.environ | {"TRACKIO_DIR": str(tmp_path / "kept")},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0 and "failed" not in ended.stderr, ended.stderr
        assert json.loads(ended.stdout)["step"] == steps
    identity = (tmp_path / "run" / trackers.ID).read_text().strip()
    with sqlite3.connect(tmp_path / "kept" / "elmojax.db") as kept:
        rows = kept.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert {name for name, _, _ in rows} == {f"run-{identity}"}
    losses = {step: json.loads(numbers)["loss"] for _, step, numbers in rows}
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert losses == {line["step"]: line["loss"] for line in lines}


def test_a_package_that_is_missing_is_said_before_anything(data, tmp_path, monkeypatch):
    """And a directory `wandb`, as it leaves them, is no package."""
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "a_tracker_that_nobody_has")
    flags = ("pretrain", "--data", data, "--workdir", tmp_path / "run", *TINY)
    says = "--tracker wandb needs the extra: pip install 'elmojax[wandb]'"
    refused(*flags, "--tracker", "wandb", says=says)
    (tmp_path / "a_tracker_that_nobody_has").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    refused(*flags, "--tracker", "wandb", says=says)
    refused(*flags, "--tracker", "other", says="invalid choice 'other'")
    assert not (tmp_path / "run").exists()


class Bad(Tracker):
    """Fails at one of its calls, or never comes back from it."""

    def __init__(self, where: str, hangs: bool = False) -> None:
        self.where, self.hangs, self.heard = where, hangs, []

    def _call(self, name: str) -> None:
        self.heard.append(name)
        if name == self.where:
            if self.hangs:
                threading.Event().wait()
            raise SystemExit("the network is down")

    def begin(self, step, steps):
        self._call("begin")

    def log(self, step, metrics):
        self._call("log")

    def close(self):
        self._call("close")


@pytest.mark.parametrize("where", ["begin", "log", "close"])
def test_a_tracker_that_fails_is_said_once_and_left_out(where):
    told, bad = [], Bad(where)
    tracker = Threaded("wandb", bad, told.append)
    tracker.begin(0, 3)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert len(told) == 1 and "wandb failed (the network is down)" in told[0]
    assert bad.heard.count(where) == 1 and bad.heard[-1] == "close"


@pytest.mark.parametrize("where", ["begin", "log", "close"])
def test_nobody_waits_for_a_tracker_that_hangs(where, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    told: list[str] = []
    tracker, began = Threaded("wandb", Bad(where, hangs=True), told.append), time.time()
    tracker.begin(0, 3)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert len(told) == 1 and "within 0.2 s" in told[0]
    assert time.time() - began < 30


def test_a_tracker_that_never_began_is_closed_without_a_word():
    told: list[str] = []
    Threaded("wandb", Bad("close"), told.append).close()
    assert told == []

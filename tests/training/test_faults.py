"""Kills at random moments change nothing; see `tests/faults.py`."""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import LSTM, SMALL
from faults import (
    REPOSITORY,
    Difference,
    Harness,
    compare_arrays,
    compare_files,
    compare_metrics,
    compare_runs,
    done,
    pretraining,
)

from elmojax.config import TrainConfig
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.record import RunRecord, create_run, read_record
from elmojax.training.start import start

CHECK = REPOSITORY / "experiments" / "check_determinism.py"

# --- what the harness would see ------------------------------------------------------

NUMBERS = np.array([0.0, 1.0, np.nan], np.float32)


def _with(value: float) -> np.ndarray:
    array = NUMBERS.copy()
    array[0] = value
    return array


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"a": _with(-0.0)}, "a differs in 1 of 3 numbers, first in number 0"),
        ({"a": _with(np.float32(1e-45))}, "a differs in 1 of 3"),
        ({"a": NUMBERS.view(np.int32)}, "float32 .* and int32"),
        ({"a": NUMBERS[:2]}, r"\[3\] and .* \[2\]"),
        ({"b": NUMBERS}, "only one of both has a"),
        ({}, "only one of both has a"),
    ],
)
def test_arrays_are_compared_to_the_bit(other, says):
    compare_arrays({"a": NUMBERS}, {"a": NUMBERS.copy()}, "here")
    scalar = {"a": np.asarray(NUMBERS[1])}
    compare_arrays(scalar, scalar, "here")
    with pytest.raises(Difference, match=f"here: .*{says}"):
        compare_arrays({"a": NUMBERS}, other, "here")


LINES = [
    {"step": 0, "heldout_loss": 5.5, "heldout_seconds": 1.0},
    {"step": 1, "loss": 0.1, "tokens_per_second": 0.0},
    {"step": 2, "loss": 0.2, "tokens_per_second": 9.0},
]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[:-1], "has 2 lines, and .* has 3"),
        (lambda lines: [*lines, lines[2]], "has 4 lines"),
        (lambda lines: [lines[0], lines[1], lines[1], lines[2]], "has in line 3"),
        (lambda lines: [lines[0], lines[2], lines[1]], "has in line 2"),
        (lambda lines: [lines[0], lines[1].replace("0.1", "0.10000000000000002")], "2"),
        (lambda lines: [*lines[:2], lines[2][:9] + "\n"], "Line 3 .* is damaged"),
        (lambda lines: [*lines[:2], lines[2][:-1]], "is cut short"),
    ],
)
def test_metrics_are_compared_line_by_line(tmp_path, change, says):
    lines = [json.dumps(values) + "\n" for values in LINES]
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("".join(lines))
    other.write_text("".join(lines).replace("9.0", "8.0").replace("1.0}", "2.0}"))
    compare_metrics(one, other)
    other.write_text("".join(change(lines)))
    with pytest.raises(Difference, match=says):
        compare_metrics(one, other)


def test_files_are_compared_byte_by_byte(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (one / "a").write_bytes(b"abc")
    shutil.copytree(one, other)
    compare_files(one, other)
    (other / "a").write_bytes(b"abd")
    with pytest.raises(Difference, match="other bytes"):
        compare_files(one, other)
    (other / "b").touch()
    with pytest.raises(Difference, match="has b"):
        compare_files(one, other)


# --- kills ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harness(tmp_path_factory, quick_compilation) -> Harness:
    return Harness(tmp_path_factory.mktemp("faults"), random.Random(0), print)


@pytest.mark.slow
def test_prepare_survives_kills(harness):
    harness.preparing(4)
    assert len(harness.prepared) == 4


@pytest.mark.slow
def test_training_survives_twenty_kills_and_signals(tmp_path):
    harness = Harness(tmp_path, random.Random(1), print)
    harness.training(20, signals=True)
    report = harness.report()
    assert report["kills"] == 20 and report["saving"] >= 4
    assert report["training"] + report["evaluation"] >= 5


# --- the harness fails where it must -------------------------------------------------


@pytest.fixture
def copied(harness, tmp_path) -> Path:
    """The uninterrupted run as a run of its own, to be damaged."""
    source, _ = harness.uninterrupted
    run = shutil.copytree(source, tmp_path / "run")
    _edit(run / "config.json", str(source), str(run))
    return run


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def _change_a_digit(run: Path) -> None:
    path = run / "metrics.jsonl"
    digit = path.read_text("utf-8").partition('"loss": ')[2][0]
    _edit(path, f'"loss": {digit}', f'"loss": {(int(digit) + 1) % 10}')


def _say_the_last_line_twice(run: Path) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]), encoding="utf-8")


def _flip_a_bit(run: Path) -> None:
    """Of the last checkpoint's random key, with all that Orbax writes around it."""
    ready = start(read_record(run).train, "")
    data = np.asarray(ready.state.key).copy()
    data[-1] ^= 1
    state = ready.state.replace(key=jax.device_put(data, ready.state.key.sharding))
    ready.checkpoints.save(ready.step, state.params, state.replace(params={}))
    ready.checkpoints.close()
    assert ready.lock is not None
    ready.lock.release()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "line 2 .*'loss'": _change_a_digit,
    "Step 60 of .*key differs in 1 of": _flip_a_bit,
    "metrics.jsonl has 68 lines, and .* has 67": _say_the_last_line_twice,
    "config.json is not": lambda run: _edit(run / "config.json", "0.1", "0.2"),
    "vocabulary.txt is not": lambda run: _edit(run / "vocabulary.txt", "the", "teh"),
    "damaged is left in it": lambda run: (run / "damaged").mkdir(),
    ".x.partial is left in it": lambda run: (run / ".x.partial").touch(),
    "tmp is left in it": lambda run: (run / "checkpoints/64.orbax-tmp").mkdir(),
    "keeps the steps|ends at step": lambda run: shutil.rmtree(run / "checkpoints/60"),
    "cannot be read": lambda run: shutil.rmtree(run / "checkpoints/56/params"),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("says", DAMAGE)
def test_a_run_that_is_not_the_same_is_seen(harness, copied, says):
    whole, _ = harness.uninterrupted
    compare_runs(whole, copied)
    DAMAGE[says](copied)
    with pytest.raises(Difference, match=says):
        compare_runs(whole, copied)


# --- moments that chance seldom finds ------------------------------------------------


def test_the_check_of_determinism_sees_a_bit():
    difference = runpy.run_path(str(CHECK))["difference"]
    one = {"step": np.int32(3), "kernel": np.zeros(4, np.float32)}
    assert difference(one, one) == ""
    assert (
        difference(one, {**one, "kernel": -one["kernel"]}) == "1 differ, kernel first"
    )


@pytest.mark.slow
def test_a_run_ends_with_the_same_bits_each_time():
    """What somebody with another device types, on this one."""
    flags = [*LSTM, *SMALL, "--encoder", "words", "--steps", "6"]
    command = [sys.executable, str(CHECK), *flags]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    device, *lines = checked.stdout.splitlines()
    assert f"jax {jax.__version__}" in device
    assert [line.partition(":")[0] for line in lines] == [
        "trained twice",
        "interrupted",
    ]
    assert all("all have the same bits" in line for line in lines)


@pytest.mark.slow
def test_a_kill_after_the_last_save_leaves_no_old_checkpoint(harness, copied):
    """Orbax deletes a checkpoint file by file, after the new one has its name."""
    whole, _ = harness.uninterrupted
    steps = copied / "checkpoints"
    shutil.copytree(steps / "52", steps / "48")
    shutil.rmtree(steps / "48" / "params")
    done(harness.out, *pretraining(harness.out, copied))
    compare_runs(whole, copied)


class _Killed(BaseException):
    """Nobody cleans up after it, as after SIGKILL."""


def test_a_kill_before_the_vocabulary_has_its_name_leaves_nothing(
    tmp_path, monkeypatch
):
    """The next process, of another number, is the one that clears away."""

    def killed(*_: object) -> None:
        raise _Killed

    record = RunRecord(TrainConfig(workdir=tmp_path), corpus="", vocabulary=4)
    vocabulary = Vocabulary((*SPECIALS, "word"))
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(os, "replace", killed)
        create_run(tmp_path, record, vocabulary)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    create_run(tmp_path, record, vocabulary)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "vocabulary.txt",
    }

"""Runs that meet trouble: other devices, bad numbers, full disks, and early stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from commands import CHARACTERS, LSTM, answer, done, refused, run

from elmojax.config import TrainConfig
from elmojax.errors import InputError
from elmojax.training import loop, prefetch
from elmojax.training.checkpoint import Checkpoints, read_run
from elmojax.training.damage import SaveFailed
from elmojax.training.distributed import SIGNALS
from elmojax.training.evaluate import Evaluator
from elmojax.training.metrics import read_metrics
from elmojax.training.record import Status, describe, lock_run

pytestmark = pytest.mark.usefixtures("quick_compilation", "compile_once")

SHAPE = [*LSTM, *CHARACTERS, "--rows", 8, "--window", 10, "--log-every", 1]


class World(NamedTuple):
    data: Path
    heldout: Path
    command: list[Any]
    """`elmojax pretrain` on one device, but for --workdir and --steps."""
    plain: Path
    """A run of twelve steps, uninterrupted."""


@pytest.fixture(scope="module")
def world(tmp_path_factory, sample_lines) -> World:
    folder = tmp_path_factory.mktemp("resilience")
    paths = [folder / "data", folder / "heldout"]
    for out, name, count in zip(paths, ("train", "heldout"), (80, 10), strict=True):
        text = folder / f"{name}.txt"
        text.write_text("\n".join(sample_lines(count, name)) + "\n", encoding="utf-8")
        known = ("--vocabulary", paths[0] / "vocabulary.txt")
        limit = ("--max-vocabulary", 60)
        done(
            "prepare",
            "--text",
            text,
            "--out",
            out,
            *(known if name[0] == "h" else limit),
        )
    command = ["pretrain", "--data", paths[0], *SHAPE]
    done(*command, "--mesh.data", 1, "--steps", 12, "--workdir", folder / "plain")
    return World(*paths, command, folder / "plain")


def losses(workdir: Path) -> dict[int, float]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def tree_of(workdir: Path, step: int | None = None):
    return read_run(workdir, step)[2]


def assert_same_run(workdir: Path, wanted: Path):
    """Losses and parameters within what other sums round."""
    assert losses(workdir) == pytest.approx(losses(wanted), rel=1e-5)
    jax.tree.map(
        lambda got, other: np.testing.assert_allclose(got, other, atol=2e-5),
        tree_of(workdir),
        tree_of(wanted),
    )


# --- other devices -------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_moves_from_devices_to_devices_and_back(world, tmp_path):
    """8, 1, 2, 4 x 2, 8 devices, three steps or two each: the same run."""
    command = [*world.command, "--workdir", tmp_path]
    meshes = [(8, 1, 3), (1, 1, 5), (2, 1, 7), (4, 2, 10), (8, 1, 12)]
    for data, model, steps in meshes:
        mesh = ("--mesh.data", data, "--mesh.model", model)
        outcome = done(*command, *mesh, "--steps", steps)
        assert ("Going on from the checkpoint" in outcome.err) == (steps > 3)
    assert_same_run(tmp_path, world.plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param((1, 1), id="1"),
        pytest.param((2, 2), id="2x2", marks=pytest.mark.slow),
    ],
)
def test_rows_in_microbatches_are_the_same_run(world, tmp_path, mesh):
    sizes = ("--mesh.data", mesh[0], "--mesh.model", mesh[1], "--accumulate", 4)
    done(*world.command, "--workdir", tmp_path, "--steps", 12, *sizes)
    assert_same_run(tmp_path, world.plain)


@pytest.mark.slow
def test_a_sampled_softmax_in_microbatches_is_the_same_run(world, tmp_path):
    sampled = ("--head.kind", "sampled", "--head.samples", 20, "--steps", 3)
    for microbatches in (1, 2):
        more = ("--workdir", tmp_path / str(microbatches), "--accumulate", microbatches)
        done(*world.command, "--mesh.data", 2, *sampled, *more)
    jax.tree.map(
        lambda got, wanted: np.testing.assert_allclose(got, wanted, atol=2e-6),
        tree_of(tmp_path / "2"),
        tree_of(tmp_path / "1"),
    )


def test_microbatches_must_divide_the_rows(world, tmp_path):
    command = [*world.command, "--workdir", tmp_path / "run"]
    says = "--rows 8 ... --accumulate 3 microbatches on 1 devices ... a multiple of 3"
    refused(*command, "--mesh.data", 1, "--accumulate", 3, says=says)
    says = "--accumulate 2 microbatches on 8 devices ... a multiple of 16"
    refused(*command, "--accumulate", 2, says=says)
    assert not (tmp_path / "run").exists()


# --- bad numbers ---------------------------------------------------------------------


def poisoned(monkeypatch, steps: set[int]):
    """Batches of these steps (from 0) make the loss NaN."""
    real = loop.prefetched

    def prefetched(run, first, *rest):
        for step, ready in enumerate(real(run, first, *rest), start=first):
            if step in steps:
                nan = ready.batch.weights * np.float32("nan")
                ready = ready._replace(batch=ready.batch._replace(weights=nan))
            yield ready

    monkeypatch.setattr(loop, "prefetched", prefetched)


@pytest.fixture
def one_device(world) -> list[Any]:
    return [*world.command, "--mesh.data", 1]


def test_a_bad_number_stops_the_run_and_spares_its_checkpoints(
    world, one_device, tmp_path, monkeypatch
):
    command = [*one_device, "--workdir", tmp_path, "--checkpoint-every", 4]
    with monkeypatch.context() as patch:
        poisoned(patch, {7})
        outcome = run(*command, "--steps", 12)
    assert outcome.status == 2 and outcome.out == ""
    assert "The loss of step 8 is nan" in outcome.err
    assert "last checkpoint is of step 4; go on from it" in outcome.err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    status = describe(tmp_path)
    assert status["state"] == "failed" and "loss of step 8" in status["why"]
    done(*command, "--steps", 12)
    assert losses(tmp_path) == losses(world.plain)
    assert describe(tmp_path)["state"] == "finished"


@pytest.mark.slow
def test_bad_updates_are_skipped_as_often_as_allowed(one_device, tmp_path, monkeypatch):
    """The count outlives a restart; metrics.jsonl stays JSON, with null for NaN."""
    poisoned(monkeypatch, {2, 5})
    command = [*one_device, "--workdir", tmp_path]
    outcome = done(*command, "--steps", 4, "--skip-nonfinite", 2)
    assert "loss of step 3 is nan" in outcome.err and "skipped (1 of 2)" in outcome.err
    outcome = done(*command, "--steps", 7)  # --skip-nonfinite as it was
    assert "loss of step 6" in outcome.err and "skipped (2 of 2)" in outcome.err
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [line["loss"] is None for line in lines] == [False, False, True] + 2 * [
        False
    ] + [True, False]
    assert [line.get("skipped") for line in lines] == [None, None, 1, 1, 1, 2, 2]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree_of(tmp_path)))
    poisoned(monkeypatch, {8})
    outcome = run(*command, "--steps", 12)
    assert outcome.status == 2
    assert "loss of step 9 is nan" in outcome.err
    assert "stops, after 2 updates were skipped" in outcome.err


@pytest.mark.slow
def test_a_skipped_update_is_one_that_was_not_made(one_device, tmp_path, monkeypatch):
    poisoned(monkeypatch, {3})
    more = ("--workdir", tmp_path, "--skip-nonfinite", 1, "--checkpoint-every", 1)
    done(*one_device, *more, "--steps", 4, "--keep", 9)
    jax.tree.map(
        np.testing.assert_array_equal, tree_of(tmp_path, 4), tree_of(tmp_path, 3)
    )


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_parameters_that_are_not_finite_are_never_saved(
    one_device, tmp_path, monkeypatch, value
):
    """An update can make them while loss and gradient are finite."""
    real = prefetch.compile_train_step

    def compile_train_step(*arguments):
        step = real(*arguments)

        def wrong(state, batch):
            state, metrics = step(state, batch)
            if int(state.step) == 4:
                head = {**state.params["head"]}
                head["kernel"] = head["kernel"].at[0, 0].set(np.float32(value))
                state = state.replace(params={**state.params, "head": head})
            return state, metrics

        return wrong

    monkeypatch.setattr(prefetch, "compile_train_step", compile_train_step)
    command = [*one_device, "--workdir", tmp_path, "--checkpoint-every", 2]
    outcome = run(*command, "--steps", 8)
    assert outcome.status == 2
    assert "Step 4 made parameters that are not finite" in outcome.err
    assert Checkpoints(tmp_path).steps == [2]


@pytest.mark.slow
def test_a_leap_of_the_loss_stops_a_run_where_it_is_asked_for(one_device, tmp_path):
    """A learning rate that throws the loss up by far."""
    wild = ("--optimizer.learning-rate", 30, "--optimizer.warmup-steps", 0)
    command = [*one_device, *wild, "--steps", 12]
    outcome = run(*command, "--workdir", tmp_path / "off")
    assert outcome.status == 2 and "The run diverged" in outcome.err
    found = losses(tmp_path / "off")
    assert max(found.values()) > 1.5 * found[1]
    guarded = (*command, "--workdir", tmp_path / "on", "--spike-guard", 1.5)
    outcome = run(*guarded)
    assert outcome.status == 2 and "the run stops" in outcome.err
    with pytest.raises(InputError, match=r"spike_guard is 0\.5; .* or above 1"):
        TrainConfig(spike_guard=0.5)


# --- stopping and choosing -----------------------------------------------------------


def evaluations(monkeypatch, perplexities: list[float]):
    """Held-out evaluations that give these numbers, one after the other."""
    given = iter(perplexities)

    def call(self, params, progress=None):
        names = ("forward_perplexity", "backward_perplexity", "mean_perplexity")
        names += ("geometric_perplexity", "loss", "seconds")
        return dict.fromkeys(names, next(given))

    monkeypatch.setattr("elmojax.training.evaluate.Evaluator.__call__", call)


@pytest.mark.slow
def test_patience_ends_a_run_and_the_best_is_kept(
    world, one_device, tmp_path, monkeypatch
):
    evaluations(monkeypatch, [90, 50, 30.0, 40, 35, 31])
    command = [*one_device, "--heldout", world.heldout, "--workdir", tmp_path]
    command += ["--evaluate-every", 2, "--patience", 3, "--keep", 1, "--steps", 100]
    outcome = done(*command)
    assert "Stopped early after step 10" in outcome.err
    assert "is 30.0 of step 4, which is kept" in outcome.err
    assert Checkpoints(tmp_path).steps == [4, 10]
    status = describe(tmp_path)
    assert (status["state"], status["step"]) == ("stopped early", 10)
    assert (status["best"], status["best_step"]) == (30.0, 4)
    again = answer(*command)  # stays where it is
    assert (again["step"], again["early"], again["best"]) == (10, True, 4)
    evaluations(monkeypatch, [20.0, 60, 60, 60])
    longer = answer(*command, "--patience", 4, "--steps", 14)
    assert (longer["step"], longer["best"]) == (14, 12)


@pytest.mark.slow
def test_patience_is_the_same_after_an_interruption(
    world, one_device, tmp_path, monkeypatch
):
    command = [*one_device, "--heldout", world.heldout, "--workdir", tmp_path]
    command += ["--evaluate-every", 2, "--patience", 2, "--keep", 1]
    evaluations(monkeypatch, [90, 50, 60.0])
    with pytest.raises(StopIteration):  # as if killed
        run(*command, "--steps", 100)
    evaluations(monkeypatch, [55.0])
    outcome = done(*command, "--steps", 100)
    assert "Stopped early after step 6" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("when", ["between", "last"])
def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(
    world, one_device, tmp_path, monkeypatch, when
):
    """As if it had not been: the same lines, and the best checkpoint is known."""
    command = [*one_device, "--heldout", world.heldout, "--evaluate-every", 2]
    command += ["--steps", 4 if when == "last" else 6]
    done(*command, "--workdir", tmp_path / "never")
    real, calls = Evaluator.__call__, []

    def stopped(self, params, progress):
        calls.append(1)
        if len(calls) == 3:  # of step 0, 2 and 4
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, params, progress)

    handlers = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", stopped)
        outcome = run(*command, "--workdir", tmp_path / "run")
    for number, handler in zip(SIGNALS, handlers, strict=True):
        assert signal.getsignal(number) != handler, "a second one ends the process"
        signal.signal(number, handler)
    assert outcome.status == 143 and "Stopped by SIGTERM after step 4" in outcome.err
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(Evaluator, "__call__", lambda *_: next(iter(())))  # as if killed
        run(*command, "--workdir", tmp_path / "run")
    done(*command, "--workdir", tmp_path / "run")
    lines = [
        read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "never")
    ]
    for line in (*lines[0], *lines[1]):
        for name in ("tokens_per_second", "heldout_seconds"):
            line.pop(name, None)
    assert lines[0] == lines[1]
    runs = [Checkpoints(tmp_path / name) for name in ("run", "never")]
    assert runs[0].steps == runs[1].steps and runs[0].best == runs[1].best


def test_patience_needs_evaluations(world, one_device, tmp_path):
    command = [*one_device, "--workdir", tmp_path / "run", "--patience", 2]
    refused(*command, says="--patience counts evaluations; give --evaluate-every")


def test_runs_are_listed_with_step_perplexity_and_state(
    world, one_device, tmp_path, monkeypatch
):
    evaluations(monkeypatch, [90.0, 50.0])
    folder = tmp_path / "all" / "deep"
    command = [*one_device, "--heldout", world.heldout, "--steps", 3]
    done(*command, "--workdir", folder / "a")
    shutil.copytree(world.plain, folder.parent / "b")
    shutil.copytree(folder / "a", folder / "c")
    Status("training", 1, 9).write(folder / "c")
    (folder / "d").mkdir()
    for name in ("config.json", "vocabulary.txt"):
        shutil.copy(folder / "a" / name, folder / "d")
    (folder / "d" / "config.json").write_text("{")
    found = {Path(r["run"]).name: r for r in answer("runs", folder.parent)["runs"]}
    assert list(found) == ["b", "a", "c", "d"]
    assert found["a"]["state"] == found["b"]["state"] == "finished"
    assert (found["a"]["step"], found["a"]["steps"], found["a"]["saved"]) == (3, 3, 3)
    assert found["a"]["perplexity"] == 50.0 and found["b"]["perplexity"] is None
    assert found["c"]["state"] == "killed", "it says it trains, and nobody does"
    assert found["d"]["state"] == "unreadable"
    lock = lock_run(folder / "c")
    assert describe(folder / "c")["state"] == "training"
    assert describe(folder / "c")["seconds_left"] > 0
    lock.release()
    printed = done("runs", folder.parent).out.splitlines()
    assert (
        printed[0].split() == "run state step saved loss perplexity best left".split()
    )
    assert len(printed) == 6 and "does not hold a RunRecord" in printed[5]
    (tmp_path / "none").mkdir()
    refused("runs", tmp_path / "none", says="There is no run in")
    refused("runs", tmp_path / "gone", says="is no directory")


@pytest.mark.slow
def test_runs_are_compared_by_what_they_differ_in(world, one_device, tmp_path):
    for name, rate in (("slow", 0.1), ("fast", 0.3)):
        flags = ("--optimizer.learning-rate", rate, "--heldout", world.heldout)
        done(*one_device, *flags, "--steps", 3, "--workdir", tmp_path / name)
    found = answer("runs", tmp_path, "--compare")
    assert found["differences"] == {"optimizer.learning_rate": [0.3, 0.1]}
    fast, slow = found["runs"]
    assert (fast["step"], fast["tokens"]) == (3, 3 * 8 * 10)
    assert fast["perplexity"] != slow["perplexity"] and fast["seconds"] > 0
    found = answer("runs", tmp_path / "fast", world.plain, "--compare")
    assert found["differences"]["steps"] == [3, 12]
    assert found["differences"]["heldout"] == [str(world.heldout), None]
    heading, *rows = done("runs", tmp_path, "--compare").out.splitlines()
    assert heading.split() == ["fast", "slow"]
    assert rows[0].split() == ["optimizer.learning_rate", "0.3", "0.1"]
    refused("runs", tmp_path / "fast", "--compare", says="is one run; name others")
    (tmp_path / "slow" / "config.json").write_text("{")
    refused("runs", tmp_path, "--compare", says="does not hold a RunRecord")


# --- a disk that is full -------------------------------------------------------------


def test_a_save_that_fails_is_said_and_the_run_goes_on(
    world, one_device, tmp_path, monkeypatch
):
    """One save of three comes to nothing: the run ends as if there had been none."""
    real, calls = Checkpoints.settle, []

    def settle(self, wait=True):
        done_so_far = self._saving
        if done_so_far == 8 and not calls:
            calls.append(8)
            self._orbax.wait_until_finished()
            raise self._failed(OSError(28, "No space left on device"))
        return real(self, wait)

    monkeypatch.setattr(Checkpoints, "settle", settle)
    command = [*one_device, "--workdir", tmp_path, "--steps", 12]
    outcome = done(*command, "--checkpoint-every", 4)
    assert calls == [8] and losses(tmp_path) == losses(world.plain)
    assert "checkpoint of step 8 could not be saved" in outcome.err
    assert "No space left on device" in outcome.err
    assert "that of step 4 is" in outcome.err and "Training goes on" in outcome.err


FULL = """
mount -t tmpfs -o size={size}k tmpfs {disk} || exit 99
{python} -m elmojax pretrain --workdir {disk}/run {flags} --steps {steps}
code=$?
df -k {disk} | tail -1
ls {disk}/run/checkpoints
cp -r {disk}/run {saved}
exit $code
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
def test_a_full_disk_leaves_the_checkpoint_before_whole(world, one_device, tmp_path):
    """On a disk of its own that holds one checkpoint and not two."""
    wide = "--model.lstm.dim 128 --model.lstm.projection 32".split()
    flags = [*one_device[1:], *wide, "--checkpoint-every", 3]
    big = tmp_path / "big"
    done("pretrain", *flags, "--steps", 3, "--workdir", big)
    size = sum(p.stat().st_size for p in big.rglob("*") if p.is_file()) // 1024
    disk = tmp_path / "disk"
    disk.mkdir()
    script = FULL.format(
        size=int(1.6 * size),
        disk=disk,
        python=sys.executable,
        flags=" ".join(map(str, flags)),
        steps=7,
        saved=tmp_path / "saved",
    )
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
    )
    if ended.returncode in (1, 99) and "elmojax" not in ended.stderr:
        pytest.skip(f"no disk can be mounted here: {ended.stderr}")
    said = [line for line in ended.stderr.splitlines() if line.startswith("elmojax:")]
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert "step 6 could not be saved" in ended.stderr, ended.stderr
    assert "step 7 could not be saved" in said[-1], said
    assert "the newest whole one: that of step 3 is" in said[-1]
    saved = tmp_path / "saved"
    assert [path.name for path in (saved / "checkpoints").iterdir()] == ["3"]
    for workdir in (saved, tmp_path / "never"):  # of the same programs, bit for bit
        command = [sys.executable, "-m", "elmojax", "pretrain", *flags, "--steps", 7]
        command = [str(part) for part in (*command, "--workdir", workdir)]
        subprocess.run(command, check=True, capture_output=True)
    jax.tree.map(
        np.testing.assert_array_equal, tree_of(saved), tree_of(tmp_path / "never")
    )
    assert losses(saved) == losses(tmp_path / "never")


def test_saves_that_fail_leave_nothing_behind(tmp_path, monkeypatch):
    """And the next one does not mind."""
    checkpoints = Checkpoints(tmp_path)
    array = {"a": jax.numpy.ones(3, np.float32)}
    checkpoints.save(1, array, None)
    checkpoints.save(2, array, None)

    def wait():
        real()
        (checkpoints.directory / "2.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: Failed writing: no space")

    real = checkpoints._orbax.wait_until_finished
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._orbax, "wait_until_finished", wait)
        with pytest.raises(SaveFailed, match=r"step 2 .* that of step 1 is"):
            checkpoints.settle()
    assert not list(checkpoints.directory.glob("*tmp*"))
    assert checkpoints.latest == 1
    checkpoints.save(3, array, None)
    checkpoints.close()
    assert Checkpoints(tmp_path).latest == 3

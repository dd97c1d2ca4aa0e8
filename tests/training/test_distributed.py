"""Several processes on 127.0.0.1: one run, whoever computes it, and whoever is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from commands import CHARACTERS, LSTM, done

from elmojax.training.checkpoint import Checkpoints, read_run
from elmojax.training.distributed import HEARTBEAT
from elmojax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compilation", "compile_once")

SHAPE = [*LSTM, *CHARACTERS, "--rows", 8, "--window", 10, "--log-every", 1]
PATIENCE = 240
"""Seconds that a busy machine may take."""


class World(NamedTuple):
    command: list[Any]
    """`pretrain` with text to train on and to evaluate on."""
    plain: Path
    """A run of eight steps by one process of four devices."""


@pytest.fixture(scope="module")
def world(tmp_path_factory, sample_lines) -> World:
    folder = tmp_path_factory.mktemp("distributed")
    data, heldout = folder / "data", folder / "heldout"
    for out, name, count in ((data, "train", 80), (heldout, "heldout", 10)):
        text = folder / f"{name}.txt"
        text.write_text("\n".join(sample_lines(count, name)) + "\n", encoding="utf-8")
        known = ("--vocabulary", data / "vocabulary.txt")
        words = known if name == "heldout" else ("--max-vocabulary", 60)
        done("prepare", "--text", text, "--out", out, *words)
    command = ["pretrain", "--data", data, "--heldout", heldout, *SHAPE]
    done(*command, "--mesh.data", 4, "--steps", 8, "--workdir", folder / "plain")
    return World(command, folder / "plain")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def begin(
    count: int, devices: int, *arguments: Any, slurm: bool = False
) -> list[subprocess.Popen[str]]:
    """`count` processes of `devices` each; of arguments, lists go to one each."""
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for index in range(count):
        own = [a[index] if isinstance(a, list) else a for a in arguments]
        where = ("--coordinator", address, "--process-id", index)
        more = () if slurm else (*where, "--process-count", count)
        command = [*own, "--distributed", *more]
        told = _as_slurm_tells(count, index, address) if slurm else {}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "elmojax", *map(str, command)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | told | {"JAX_NUM_CPU_DEVICES": str(devices)},
            )
        )
    return processes


def _as_slurm_tells(count: int, index: int, address: str) -> dict[str, str]:
    """The variables that srun sets for a task on one node."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": address.partition(":")[0],
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": address.partition(":")[2],
        "JAX_COORDINATOR_BIND_ADDRESS": address,
    }


def end(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Status, output and errors of each; none outlives the test."""
    try:
        texts = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *t) for p, t in zip(processes, texts, strict=True)]


def last_sentence(err: str) -> str:
    return [line for line in err.splitlines() if line.startswith("elmojax: ")][-1]


def losses(workdir: Path) -> list[tuple[int, float]]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return [(m["step"], m.get("loss", m.get("heldout_loss"))) for m in lines]


def assert_same_run(workdir: Path, wanted: Path):
    got, expected = losses(workdir), losses(wanted)
    assert [step for step, _ in got] == [step for step, _ in expected]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5),
        read_run(workdir)[2],
        read_run(wanted)[2],
    )


def wait_for_checkpoint(workdir: Path, step: int, processes) -> None:
    deadline = time.monotonic() + PATIENCE
    folder = workdir / "checkpoints"
    while not any(int(p.name) >= step for p in folder.glob("*") if p.name.isdigit()):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(1, id="rows apart", marks=pytest.mark.slow),
        pytest.param(4, id="model over both", marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one_run(world, tmp_path, model):
    """Of two devices each. Only the first speaks; --json stays one object."""
    mesh = ("--mesh.model", model, "--accumulate", 2)
    command = [*world.command, "--workdir", tmp_path, "--steps", 8, *mesh, "--json"]
    (first, out, err), (second, *silent) = end(begin(2, 2, *command))
    assert (first, second) == (0, 0), f"{err}\n{silent}"
    assert json.loads(out)["step"] == 8 and out.count("\n") == 1
    assert "held-out perplexity" in err
    assert not silent[0] and "elmojax:" not in silent[1]
    assert_same_run(tmp_path, world.plain)


@pytest.mark.slow
def test_slurm_is_recognised(world, tmp_path):
    command = [*world.command, "--workdir", tmp_path, "--steps", 8]
    for status, _, err in end(begin(2, 2, *command, slurm=True)):
        assert status == 0, err
    assert_same_run(tmp_path, world.plain)


@pytest.mark.slow
def test_a_lost_process_ends_the_others_and_one_process_goes_on(world, tmp_path):
    """In bounded time, with a sentence and a status of their own; nothing is lost."""
    command = [*world.command, "--workdir", tmp_path, "--checkpoint-every", 2]
    processes = begin(2, 2, *command, "--steps", 10**6)
    wait_for_checkpoint(tmp_path, 4, processes)
    processes[1].kill()
    killed = time.monotonic()
    status, _, err = end(processes)[0]
    assert time.monotonic() - killed < 60 and HEARTBEAT < 60
    assert status == 75, err
    assert "another process of this run ended" in last_sentence(err)
    newest = Checkpoints(tmp_path).latest
    assert newest is not None and newest >= 4
    longer = (*world.command, "--mesh.data", 4, "--steps", newest + 3)
    outcome = done(*longer, "--workdir", tmp_path)
    assert f"Going on from the checkpoint of step {newest}" in outcome.err
    done(*longer, "--workdir", tmp_path / "never")
    assert_same_run(tmp_path, tmp_path / "never")


@pytest.mark.slow
def test_the_first_process_may_be_the_one_that_is_lost(world, tmp_path):
    command = [*world.command, "--workdir", tmp_path, "--checkpoint-every", 2]
    processes = begin(2, 2, *command, "--steps", 10**6)
    wait_for_checkpoint(tmp_path, 2, processes)
    processes[0].kill()
    status, _, err = end(processes)[1]
    assert status == 75, err
    assert "another process of this run ended" in last_sentence(err)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(world, tmp_path):
    command = [*world.command, "--workdir", tmp_path, "--checkpoint-every", 2]
    processes = begin(2, 2, *command, "--steps", 10**6)
    wait_for_checkpoint(tmp_path, 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    (first, _, err), (second, _, other) = end(processes)
    assert (first, second) == (143, 143), err + other
    newest = Checkpoints(tmp_path).latest
    assert f"Stopped by SIGTERM after step {newest};" in err
    steps = [step for step, _ in losses(tmp_path)]
    assert steps == list(range(newest + 1))


def test_what_ends_one_process_ends_all_with_its_sentence(world, tmp_path):
    """Here the second process cannot find its text."""
    command = [*world.command, "--workdir", tmp_path / "run", "--steps", 4]
    where = command.index("--data") + 1
    command[where] = [command[where], tmp_path / "nowhere"]
    ended = end(begin(2, 1, *command))
    for status, out, err in ended:
        assert (status, out) == (2, ""), err
        assert "is not a prepared corpus" in last_sentence(err)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            "--distributed",
            "no Slurm, GKE, Cloud TPU or Open MPI ... give --coordinator",
        ),
        ("--distributed --process-id 0", "--process-count together"),
        ("--coordinator a:1", "go with --distributed"),
        (
            "--distributed --coordinator here --process-id 0 --process-count 2",
            "--coordinator here is no address; give HOST:PORT",
        ),
        (
            "--distributed --coordinator a:1 --process-id 2 --process-count 2",
            "--process-id 2 is not one of --process-count 2",
        ),
    ],
)
def test_processes_that_cannot_be(tmp_path, flags, says):
    command = [sys.executable, "-m", "elmojax", "pretrain", "--workdir", tmp_path / "r"]
    ended = subprocess.run(
        [*map(str, command), *flags.split()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    sentence = last_sentence(ended.stderr)
    for part in says.split(" ... "):
        assert part in sentence
    assert not (tmp_path / "r").exists()


def test_a_mesh_that_leaves_devices_out_is_refused_by_all(world, tmp_path):
    command = [*world.command, "--workdir", tmp_path / "run", "--mesh.data", 1]
    for status, _, err in end(begin(2, 1, *command)):
        assert status == 2, err
        assert "takes 1 of 2 devices" in last_sentence(err)

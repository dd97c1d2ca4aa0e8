"""Runs, corpora and models in an object store: moto's S3, on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import time
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import commands
import jax
import numpy as np
import pytest
from commands import TINY, answer, done, refused

import elmojax
from elmojax import cloud, initialization
from elmojax.errors import InputError
from elmojax.training.checkpoint import read_run
from elmojax.training.metrics import read_metrics
from elmojax.training.record import read_record
from elmojax.training.remote import Sending, bring_run

pytestmark = pytest.mark.usefixtures("quick_compilation", "compile_once")

BUCKET = "elmojax-tests"


class Store:
    """A server with one bucket, which can be stopped and started again."""

    def __init__(self) -> None:
        self._port, self._server = 0, None
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def names(self, below: str) -> list[str]:
        return sorted(cloud.listing(f"s3://{BUCKET}/{below}"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Store]:
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = Store()
    variables = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ELMOJAX_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield server
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


class World(NamedTuple):
    text: Path
    data: str
    """In the store."""
    plain: Path
    """A local run of twelve steps on the same text."""


FLAGS = [*TINY, "--checkpoint-every", 3, "--steps", 12]


@pytest.fixture(scope="module")
def world(store, tmp_path_factory, sample_lines) -> World:
    folder, data = tmp_path_factory.mktemp("world"), f"s3://{BUCKET}/data"
    text = folder / "text.txt"
    text.write_text("\n".join(sample_lines(60)) + "\n", encoding="utf-8")
    done("prepare", "--text", text, "--out", data)
    done("prepare", "--text", text, "--out", folder / "data")
    plain = folder / "plain"
    done("pretrain", "--data", folder / "data", "--workdir", plain, *FLAGS)
    return World(text, data, plain)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Another machine: it has no copies."""
    monkeypatch.setenv("ELMOJAX_CACHE", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def losses(run: Path) -> dict[int, float]:
    lines = read_metrics(run / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_same_run(address: str, plain: Path) -> None:
    """What is in the store, brought anew, has the bits of a local run."""
    run = bring_run(address)
    assert losses(run) == losses(plain)
    trees = [read_run(each)[2] for each in (run, plain)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))


# --- addresses -----------------------------------------------------------------------


def test_addresses_and_their_copies():
    """A Path has made one slash of two."""
    for given in ("s3://b/a/run", "s3:/b/a/run/", Path("s3://b/a/run"), "S3://b/a/run"):
        assert cloud.address(given) == "s3://b/a/run"
        assert cloud.origin(cloud.copy_of(given)) == "s3://b/a/run"
    for given in ("runs/a", Path("a:b"), "/s3/b", "./s3:x"):
        assert cloud.address(given) is None
        assert cloud.copy_of(given) == Path(given)
        assert cloud.origin(Path(given)) == str(Path(given))


def test_without_a_home_there_are_no_copies(monkeypatch):
    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    for name in ("ELMOJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert cloud.origin(Path("/runs/a")) == "/runs/a"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ftp://host/run", "one that begins with gs:// or s3://. Give one"),
        ("http://host/run", "one that begins with gs:// or s3://. Give one"),
        ("s3://", "give s3://BUCKET/NAME"),
        ("s3://b/../../x", "give s3://BUCKET/NAME"),
        ("s3://b/run-*", "give s3://BUCKET/NAME"),
        ("s3://key:secret@b/x", "give s3://BUCKET/NAME"),
    ],
)
def test_addresses_that_are_none(given, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        cloud.address(given)
    assert "secret" not in str(caught.value)
    refused("pretrain", "--workdir", given, says=says)
    refused("pretrain", "--data", given, says=says)
    refused("prepare", "--text", "a.txt", "--out", given, says=says)
    assert os.listdir() == []


# --- runs ----------------------------------------------------------------------------


def test_a_run_in_a_store_is_the_run_of_a_directory(world, store, elsewhere):
    run = f"s3://{BUCKET}/runs/whole"
    command = ("pretrain", "--data", world.data, "--workdir", run, *FLAGS)
    told = answer(*command)
    assert told["run"] == run and told["step"] == 12
    record = json.loads(cloud.read(run, "config.json"))
    assert (record["train"]["workdir"], record["train"]["data"]) == (run, world.data)
    names = store.names("runs/whole")
    steps = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
    assert steps == {"6", "9", "12"}, "the newest three; what is old is deleted there"
    assert {"config.json", "status.json", "card.md", "vocabulary.txt"} < {*names}
    assert json.loads(cloud.read(run, "status.json"))["state"] == "finished"
    shutil.rmtree(elsewhere)
    assert_same_run(run, world.plain)
    assert "has done its 12 steps already" in done(*command).err
    assert_same_run(run, world.plain)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped_on_another_machine(world, store, elsewhere):
    run = f"s3://{BUCKET}/runs/moved"
    command = ["pretrain", "--data", world.data, "--workdir", run, *FLAGS]
    done(*command[:-1], 7)
    shutil.rmtree(elsewhere)
    done("pretrain", "--workdir", run, "--steps", 12)  # its own settings, as ever
    assert_same_run(run, world.plain)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["same machine", "another"])
def test_killed_runs_end_with_the_bits_of_one_that_was_not(
    world, store, elsewhere, lost, tmp_path
):
    """SIGKILL at two moments; the machine with the copy is lost with it, or not. All
    are processes of their own, whose programs are the same."""
    run = f"s3://{BUCKET}/runs/killed-{lost}"
    command = [sys.executable, "-m", "elmojax", "pretrain", "--data", world.data]
    command += map(str, FLAGS)
    subprocess.run([*command, "--workdir", tmp_path / "plain"], check=True)
    command += ["--workdir", run]
    for wanted in ("3", "9"):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while f"checkpoints/{wanted}/{cloud.WHOLE}" not in store.names(
            run.partition(f"{BUCKET}/")[2]
        ):
            assert process.poll() is None and time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.wait()
        if lost:
            shutil.rmtree(elsewhere)
    subprocess.run(command, check=True)
    assert_same_run(run, tmp_path / "plain")
    shutil.rmtree(elsewhere)
    assert_same_run(run, tmp_path / "plain")


@pytest.mark.slow
def test_a_run_that_was_removed_stops_and_another_is_another(
    world, store, elsewhere, monkeypatch
):
    """Nothing of the first is taken for the second, which is shorter."""
    run = f"s3://{BUCKET}/runs/removed"
    command = ["pretrain", "--data", world.data, "--workdir", run, *FLAGS]
    done(*command)
    elmojax.restore(run)
    cloud.remove(run, [*cloud.listing(run), cloud.OWNER])
    with pytest.raises(InputError, match="is not a run directory"):
        elmojax.restore(run)
    done(*command[:-1], 3, "--seed", 1)
    monkeypatch.setenv("ELMOJAX_CACHE", str(elsewhere / "reader"))
    first = elmojax.restore(run)
    assert read_record(cloud.copy_of(run)).train.seed == 1
    cloud.remove(run, [*cloud.listing(run), cloud.OWNER])
    monkeypatch.setenv("ELMOJAX_CACHE", str(elsewhere))
    done(*command[:-1], 2, "--seed", 2)
    monkeypatch.setenv("ELMOJAX_CACHE", str(elsewhere / "reader"))
    second, wanted = elmojax.restore(run), elmojax.restore(bring_run(run), 2)
    assert jax.tree.all(jax.tree.map(np.array_equal, second.tree, wanted.tree))
    assert not jax.tree.all(jax.tree.map(np.array_equal, second.tree, first.tree))


def test_several_processes_are_refused(world, store, elsewhere, monkeypatch):
    monkeypatch.setattr(initialization, "is_multiprocess", lambda: True)
    command = ("pretrain", "--workdir", f"s3://{BUCKET}/runs/many", *FLAGS)
    refused(*command, says="need a --workdir that all of them see ... mount the bucket")


@pytest.mark.slow
def test_a_half_sent_checkpoint_is_none(world, store, elsewhere):
    """A machine that is lost while it sends: the mark comes last."""
    run = f"s3://{BUCKET}/runs/half"
    command = ["pretrain", "--data", world.data, "--workdir", run, *FLAGS]
    done(*command[:-1], 6)
    cloud.remove(run, [f"checkpoints/6/{cloud.WHOLE}"])
    shutil.rmtree(elsewhere)
    assert "from the checkpoint of step 3" in done(*command).err
    assert_same_run(run, world.plain)


@pytest.mark.slow
def test_a_run_that_was_taken_over_stops(world, store, elsewhere, monkeypatch):
    run = f"s3://{BUCKET}/runs/taken"
    command = ["pretrain", "--data", world.data, "--workdir", run, *FLAGS]
    real, calls = Sending.send, []

    def send(self):
        calls.append(1)
        if len(calls) == 2:  # another process has come
            cloud.write(run, cloud.OWNER, b"process 7 on other (123)")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Sending, "send", send)
        status, _, err = commands.run(*command)
    assert status == 2 and f"{run} was taken over by process 7 on other" in err
    shutil.rmtree(elsewhere)
    assert "process 7 on other trains there" in done(*command).err
    assert_same_run(run, world.plain)


@pytest.mark.slow
def test_a_store_that_is_down_for_a_while_costs_nothing(
    world, store, elsewhere, monkeypatch
):
    """Down at one checkpoint: said, and training goes on. Down at the end: refused, and
    the same command sends what is there."""
    run = f"s3://{BUCKET}/runs/down"
    command = ["pretrain", "--data", world.data, "--workdir", run, *FLAGS]
    real, calls = Sending.send, []

    def send(self):
        calls.append(1)
        if len(calls) in (2, 5):
            store.stop()
        if len(calls) == 3:
            store.start()
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Sending, "send", send)
        status, _, err = commands.run(*command)
    assert status == 2 and err.count("Training goes on") == 1, err
    assert "The run is whole in" in err.splitlines()[-1]
    refused(*command, says="cannot be read")
    store.start()
    assert "has done its 12 steps already" in done(*command).err
    shutil.rmtree(elsewhere)
    assert_same_run(run, world.plain)


class Parts(BytesParser):
    """What gcsfs uploads, whose lines end in a line feed: to the standard parser, which
    the emulator takes, a carriage return that ends a file is part of the line's end."""

    def parsebytes(self, data: bytes, headersonly: bool = False) -> Any:
        found = re.fullmatch(
            rb"[^\n]*multipart/related.*?\n\n(.*?)\n--==0==.*?\n\n(.*)\n--==0==--",
            data,
            re.DOTALL,
        )
        if found is None:
            return super().parsebytes(data, headersonly)
        parts = [
            SimpleNamespace(
                get_payload=lambda decode=False, part=part: part,
                get_content_type=lambda: "application/octet-stream",
            )
            for part in found.groups()
        ]
        return SimpleNamespace(get_payload=lambda: parts)


@pytest.mark.slow
def test_a_run_on_gs_is_one_that_orbax_reads_by_itself(
    world, elsewhere, tmp_path, monkeypatch
):
    server = pytest.importorskip("gcp_storage_emulator.server")
    gcsfs = pytest.importorskip("gcsfs")
    import orbax.checkpoint as ocp

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Its queue of 5 connections is shorter than what gcsfs opens at once.
    monkeypatch.setattr(socketserver.TCPServer, "request_queue_size", 128)
    monkeypatch.setattr(server, "BytesParser", Parts)
    emulator = server.create_server("127.0.0.1", port, True, default_bucket=BUCKET)
    emulator.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    gcsfs.GCSFileSystem.clear_instance_cache()
    run = f"gs://{BUCKET}/runs/a"
    command = ["pretrain", "--data", world.data, "--workdir", run, *FLAGS]
    done(*command[:-1], 7)
    shutil.rmtree(elsewhere)
    done(*command)
    shutil.rmtree(elsewhere)
    assert_same_run(run, world.plain)
    with ocp.StandardCheckpointer() as orbax:
        found = orbax.restore(f"{run}/checkpoints/12/params")
    wanted = elmojax.restore(world.plain).tree["encoder"]["projection_kernel"]
    np.testing.assert_array_equal(found["encoder.projection_kernel"], wanted)
    gcsfs.GCSFileSystem.clear_instance_cache()
    emulator.stop()


# --- models and corpora --------------------------------------------------------------


@pytest.mark.slow
def test_models_in_a_store_are_those_of_the_directory(
    world, store, elsewhere, tmp_path
):
    run, out = f"s3://{BUCKET}/runs/model", f"s3://{BUCKET}/models/hdf5"
    done("pretrain", "--data", world.data, "--workdir", run, *FLAGS)
    shutil.rmtree(elsewhere)
    params, wanted = elmojax.restore(run, 9), elmojax.restore(world.plain, 9)
    assert jax.tree.all(jax.tree.map(np.array_equal, params.tree, wanted.tree))
    (step,) = (cloud.copy_of(run) / "checkpoints").iterdir()
    assert step.name == "9" and not (step / "training").exists()
    wanted = elmojax.restore(world.plain)
    assert elmojax.model_config(run) == wanted.config
    params = elmojax.load(Path(run))
    assert jax.tree.all(jax.tree.map(np.array_equal, params.tree, wanted.tree))
    scores = answer("evaluate", world.plain, "--text", world.text)
    found = answer("evaluate", run, "--data", world.data)
    assert found["geometric_perplexity"] == scores["geometric_perplexity"]
    done("embed", run, "--text", world.text, "--out", tmp_path / "vectors.hdf5")
    assert answer("convert", run, "--out", out)["out"] == out
    assert store.names("models/hdf5") == [
        "card.md",
        "options.json",
        "softmax.hdf5",
        "vocabulary.txt",
        "weights.hdf5",
    ]
    shutil.rmtree(elsewhere)
    params = elmojax.load(out)
    assert jax.tree.all(jax.tree.map(np.array_equal, params.tree, wanted.tree))
    refused("convert", run, "--out", out, says=f"{out} is there already")
    elmojax.save_pretrained(params, elsewhere / "saved")
    saved = f"s3://{BUCKET}/models/saved"
    cloud.send(elsewhere / "saved", saved, cloud.files_below(elsewhere / "saved"))
    params = elmojax.load(saved)
    assert jax.tree.all(jax.tree.map(np.array_equal, params.tree, wanted.tree))
    again = f"s3://{BUCKET}/models/orbax"
    done("convert", out, "--out", again)
    shutil.rmtree(elsewhere)
    params = elmojax.restore(again)
    assert jax.tree.all(jax.tree.map(np.array_equal, params.tree, wanted.tree))
    assert str(read_record(cloud.copy_of(again)).train.workdir) == again.replace(
        "//", "/"
    )
    found = answer("evaluate", again, "--data", world.data)
    assert found["geometric_perplexity"] == scores["geometric_perplexity"]


@pytest.mark.slow
def test_a_corpus_in_a_store_is_copied_once_and_checked(world, store, elsewhere):
    out = f"s3://{BUCKET}/corpus"
    command = ("prepare", "--text", world.text, "--out", out)
    assert answer(*command)["status"] == "written"
    assert answer(*command)["status"] == "unchanged"
    says = "made with other settings (min_count)"
    refused(*command, "--min-count", 2, says=says)
    assert answer(*command, "--min-count", 2, "--overwrite")["status"] == "replaced"
    run = ("pretrain", "--data", out, "--workdir", elsewhere / "run", *TINY)
    done(*run, "--steps", 1)
    words = cloud.copy_of(out) / "words.npy"
    before = words.stat().st_mtime_ns, words.stat().st_ino
    done(*run, "--steps", 2)
    assert (words.stat().st_mtime_ns, words.stat().st_ino) == before
    damaged = bytearray(words.read_bytes())
    damaged[-1] ^= 1
    cloud.write(out, "words.npy", bytes(damaged))
    refused(*run, "--steps", 3, says="has changed since it was made: its SHA-256")


# --- what is wrong -------------------------------------------------------------------


def test_a_bucket_that_is_not_there(world, store, elsewhere):
    gone = "s3://no-such-bucket/x"
    says = "no-such-bucket/x cannot be read ... bucket does not exist"
    refused("pretrain", "--data", world.data, "--workdir", gone, *FLAGS, says=says)
    refused("pretrain", "--data", gone, "--workdir", elsewhere / "run", says=says)
    refused("prepare", "--text", world.text, "--out", gone, says=says)
    refused("convert", world.plain, "--out", gone, says=says)
    refused("evaluate", gone, "--data", world.data, says=says)
    refused("evaluate", world.plain, "--data", gone, says=says)
    nothing = f"s3://{BUCKET}/nothing"
    refused("evaluate", world.plain, "--data", nothing, says="is not a prepared corpus")
    with pytest.raises(InputError, match="run directory"):
        elmojax.restore(nothing)


def test_without_credentials_or_the_package(world, store, elsewhere, monkeypatch):
    import fsspec
    import s3fs

    command = ("pretrain", "--data", world.data, "--workdir", f"s3://{BUCKET}/no")
    with monkeypatch.context() as patch:
        patch.setattr(fsspec, "filesystem", _without)
        says = "without the extra `cloud`: pip install 'elmojax[cloud]'"
        refused(*command, says=says)
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("HOME", str(elsewhere))
        s3fs.S3FileSystem.clear_instance_cache()
        refused(*command, says="cannot be read ... credentials")
    s3fs.S3FileSystem.clear_instance_cache()
    assert store.names("no") == []


def _without(*_: Any, **__: Any) -> None:
    raise ImportError("Install s3fs to access S3")


def test_what_cannot_be_in_a_store_is_said_before_any_work(world, store, tmp_path):
    for name in ("v.hdf5", "v.parquet", "v.npy"):
        out = f"s3://{BUCKET}/{name}"
        command = ("embed", world.plain, "--text", world.text, "--out", out)
        refused(*command, says="is an address, and this must be on this machine")
    refused("runs", f"s3://{BUCKET}/runs", says="must be on this machine")
    refused("export", world.plain, "--out", f"s3://{BUCKET}/m.zip", says="must be on")

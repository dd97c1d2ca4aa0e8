"""What version 0.1.0 wrote on 2026-11-22 (commit 48b202d) is read as it was then.

elmojax prepare --text text.txt --out data
elmojax pretrain --data data --workdir run --steps 6 ... (the flags are in config.json)
elmojax convert run --out hdf5
elmojax embed run --text three.txt --out vectors, vectors.hdf5, vectors.parquet
elmojax export run --out exported.elmojax
"""

from __future__ import annotations

import runpy
import tarfile
from pathlib import Path

import commands
import h5py
import jax
import numpy as np
import pytest
from conftest import REPOSITORY

import elmojax
from elmojax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROUNDING = 1e-6


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    archive = Path(__file__).parent / "data/made_before/made.tar.xz"
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "made")  # config.json names the corpus from there
    return tmp_path / "made"


@pytest.fixture
def sentences(made) -> list[list[str]]:
    return [line.split() for line in (made / "three.txt").read_text().splitlines()]


def vectors_then(made: Path) -> list[np.ndarray]:
    with h5py.File(made / "vectors.hdf5") as file:
        return [file[str(n)][...] for n in range(3)]


@pytest.mark.parametrize("model", ["run", "hdf5"])
def test_models_give_the_same_vectors(made, sentences, model):
    params = elmojax.load(made / model)
    columns = params.config.encoder.max_characters
    tokens = elmojax.batch_to_ids(sentences, columns)
    layers = elmojax.encode(params, tokens).layers
    for row, then in enumerate(vectors_then(made)):
        now = layers[row, :, : len(sentences[row])]
        np.testing.assert_allclose(now, then, atol=ROUNDING, rtol=0)


def test_both_forms_of_the_model_are_one(made):
    run, hdf5 = elmojax.restore(made / "run"), elmojax.load(made / "hdf5")
    jax.tree.map(np.testing.assert_array_equal, run.tree, hdf5.tree)


def test_files_of_vectors(made, sentences):
    pq = pytest.importorskip("pyarrow.parquet")
    read = elmojax.read_vectors(made / "vectors")
    rows = pq.read_table(made / "vectors.parquet").sort_by("line").to_pylist()
    for n, then in enumerate(vectors_then(made)):
        np.testing.assert_array_equal(np.asarray(read[n]).reshape(then.shape), then)
        assert rows[n]["words"] == sentences[n]
        layers = [rows[n][f"layer_{k}"] for k in range(len(then))]
        np.testing.assert_array_equal(np.float32(layers), then)


def test_an_exported_program(made, sentences):
    pytest.importorskip("flatbuffers", reason="JAX needs it to read programs")
    loader = runpy.run_path(str(REPOSITORY / "experiments" / "load_exported.py"))
    model = loader["load"](made / "exported.elmojax")
    layers = model.layers(model.weights, elmojax.batch_to_ids(sentences, 16))
    for row, then in enumerate(vectors_then(made)):
        now = layers[row, :, : len(sentences[row])]
        np.testing.assert_allclose(now, then, atol=ROUNDING, rtol=0)


def test_the_run_goes_on(made):
    before = {m["step"]: m for m in read_metrics(made / "run/metrics.jsonl")}
    outcome = commands.done("pretrain", "--workdir", "run", "--steps", 8)
    assert "step 8, checkpoint saved" in outcome.out
    after = {m["step"]: m for m in read_metrics(made / "run/metrics.jsonl")}
    assert max(after) == 8 and before.items() <= after.items()
    assert 1 < after[8]["loss"] < before[max(before)]["loss"] + 1

"""What benchmarks rest on: compiled programs are read, variants compute alike."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from toys import CORPUS, TINY, drawn

from elmojax.config import (
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    MeshConfig,
    OptimizerConfig,
    WordTableConfig,
)
from elmojax.model.state import LstmState
from elmojax.text.batches import TrainingText
from elmojax.text.tables import Words
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import make_mesh, place, shardings
from elmojax.training.step import (
    LanguageModel,
    compile_train_step,
    init_state,
    loss,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, WINDOW = 8, 3


@pytest.fixture
def benchmark(monkeypatch):
    """A module of experiments/benchmarks by its name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "experiments" / "benchmarks"))
    return importlib.import_module


def test_collectives_are_read_from_a_compiled_program(benchmark):
    """Kinds, bytes, groups, and how often a loop does them."""
    mesh = make_mesh(MeshConfig(4, 2))
    given = NamedSharding(mesh, P("data", "model"))

    def program(x):
        def inside(x):
            def body(_, sums):
                return jax.lax.psum(sums * 0.5, "model")

            x = jax.lax.fori_loop(0, 7, body, x)
            whole = jax.lax.all_gather(x, "data")
            return jax.lax.psum(whole.sum(0), "data")

        specs = {"in_specs": P("data", "model"), "out_specs": P(None, None)}
        return jax.shard_map(inside, mesh=mesh, check_vma=False, **specs)(x)

    x = jax.device_put(jnp.ones((16, 10)), given)
    text = jax.jit(program).lower(x).compile().as_text()
    found = benchmark("collectives").collectives(text, 8)
    own = 4 * 5 * 4  # bytes of a device's share
    got = {(e.kind, e.group, e.times, e.bytes, e.exact): e.sent for e in found}
    assert got == {
        ("all-reduce", 2, 7, own, True): 7 * own,
        ("all-gather", 4, 1, 4 * own, True): 3 * own,
        ("all-reduce", 4, 1, own, True): 2 * 3 / 4 * own,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param("full", marks=pytest.mark.slow), "adaptive", "sampled"]
)
def test_only_gradients_travel_between_devices_along_data(benchmark, kind):
    """Once each; of a sampled softmax's table, the rows of the step."""
    config = ElmoConfig(WordTableConfig(30, 6), LstmConfig(8, 6, 1))
    head = HeadConfig(kind, (6, 15) if kind == "adaptive" else (), 2.0, samples=4)
    mesh = make_mesh(MeshConfig(8, 1))
    lm = LanguageModel(config, len(CORPUS.vocabulary), head, 0.1, mesh=mesh)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    shapes = jax.eval_shape(partial(init_state, lm, optimizer, ROWS, 0))
    state = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        shardings(mesh, shapes),
    )
    words = Words(CORPUS, CORPUS.vocabulary, config, 8)
    samples = head.samples if kind == "sampled" else 0
    batch = TrainingText(CORPUS, words, ROWS, WINDOW, 0, samples).batch(0)
    step = compile_train_step(lm, optimizer, state)
    text = step.lower(state, place(mesh, batch, "batch.")).compile().as_text()
    found = benchmark("collectives").collectives(text, 8)
    params = dict(shapes.params)
    if kind == "sampled":
        size = len(batch.negatives.words)
        head_rows = {k: (size, *v.shape[1:]) for k, v in params.pop("head").items()}
        extra = sum(4 * int(np.prod(shape)) for shape in head_rows.values())
    else:
        extra = 0
    gradients = extra + sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert {each.kind for each in found} == {"all-reduce"}
    assert all(each.exact and each.group == 8 for each in found)
    reduced = sum(each.times * each.bytes for each in found)
    assert gradients <= reduced <= gradients + 64  # and a few sums


@pytest.mark.slow
def test_the_unstacked_lstm_of_the_ablation_computes_the_same(benchmark):
    ablation = benchmark("ablation")
    head = HeadConfig("adaptive", (6, 15), 2.0)
    lm = LanguageModel(TINY, len(CORPUS.vocabulary), head)
    plain = {field.name: getattr(lm, field.name) for field in fields(lm)}
    other = ablation.Unstacked(**plain)
    params = drawn(jax.eval_shape(lm.init, jax.random.key(0)))
    words = Words(CORPUS, CORPUS.vocabulary, TINY)
    batch = TrainingText(CORPUS, words, ROWS, WINDOW, 0).batch(1)
    carry = drawn(LstmState.zeros(TINY.lstm, ROWS), seed=1)
    results = [
        jax.jit(jax.value_and_grad(partial(loss, which, keys=None), has_aux=True))(
            params, carry, batch
        )
        for which in (lm, other)
    ]
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, results[1], results[0])


def test_times_on_paper_are_rings(benchmark):
    projection = benchmark("projection")
    gpu = projection.CHIPS[0]
    seconds = projection.reduce_seconds
    assert seconds(gpu, 8, 450e9) == pytest.approx(2 * 7 / 8)
    between = 2 * 31 / 32 * 450e9 / 8 / 50e9
    assert seconds(gpu, 256, 450e9) == pytest.approx(2 * 7 / 8 + between)
    tpu = projection.CHIPS[1]
    assert seconds(tpu, 256, 200e9) == pytest.approx(2 * 255 / 256)
    entry = projection.project(gpu, 8, 450e9, int(1.75 * gpu.tokens_per_second))
    assert entry["efficiency"] == pytest.approx(0.5)
    assert entry["efficiency_with_overlap"] == pytest.approx(3 / 4)


@pytest.mark.slow
def test_everything_about_a_gpu_is_measured_with_what_is_on_a_bare_machine(tmp_path):
    """Every section of on_gpu.sh has rows, or says why not."""
    missing = ("array_record", "grain", "importlib_resources", "tensorflow_datasets")
    refuse = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {(*missing, 'tyro')}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    (tmp_path / "sitecustomize.py").write_text(refuse, encoding="utf-8")
    environment = os.environ | {
        "OUT": str(tmp_path / "out"),
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]),
    }
    command = [REPOSITORY / "experiments" / "benchmarks" / "on_gpu.sh", "--smoke"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    log = (tmp_path / "out" / "on_gpu.log").read_text(encoding="utf-8")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log}"
    found = json.loads((tmp_path / "out" / "on_gpu.json").read_bytes())
    assert all(found[name] for name in ("machine", "jax", "date", "command"))
    sections = {
        "device": "value",
        "parity": "gradients",
        "train": "tokens/s",
        "torch": "tokens/s",
        "embed": "words/s",
        "softmax": "ms",
        "determinism": "bits",
        "layers": "ms",
        "kernels": "ms",
        "memory": "estimate, temporary GB",
    }
    assert list(found["sections"]) == list(sections)
    table = (tmp_path / "out" / "on_gpu.md").read_text(encoding="utf-8")
    for name, number in sections.items():
        section = found["sections"][name]
        assert f"## {name}\n" in table
        if section["status"] == "skipped":
            assert name in ("torch", "kernels") and section["reason"]
        else:
            assert section["status"] == "ok" and section["rows"]
            assert all(row.get(number) is not None for row in section["rows"])

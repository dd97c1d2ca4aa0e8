"""What benchmarks rest on: compiled programs are read, variants compute alike."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from toys import CORPUS

from elmojax.config import (
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    MeshConfig,
    OptimizerConfig,
    WordTableConfig,
)
from elmojax.text.batches import TrainingText
from elmojax.text.tables import WordTables
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import make_mesh, put_on_mesh, shardings
from elmojax.training.step import (
    LanguageModel,
    compile_train_step,
    init_state,
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
    found = benchmark("programs").Program(text).collectives(8)
    own = 4 * 5 * 4  # bytes of a device's share
    got = {(e.kind, e.group, e.times, e.bytes, e.exact): e.sent for e in found}
    assert got == {
        ("all-reduce", 2, 7, own, True): 7 * own,
        ("all-gather", 4, 1, 4 * own, True): 3 * own,
        ("all-reduce", 4, 1, own, True): 2 * 3 / 4 * own,
    }


STEP = """\
HloModule jit_step, is_scheduled=true

%body (arg: (s32[], f32[5,8], f32[8], s32[])) -> (s32[], f32[5,8], f32[8], s32[]) {
  %arg = (s32[], f32[5,8]{1,0}, f32[8]{0:T(8)S(1)}, s32[]) parameter(0)
  %at = s32[] get-tuple-element(%arg), index=0
  %stack = f32[5,8]{1,0} get-tuple-element(%arg), index=1
  %kept = f32[8]{0:T(8)S(1)} get-tuple-element(%arg), index=2
  %limit = s32[] get-tuple-element(%arg), index=3
  %written = f32[5,8]{1,0} fusion(%stack, %at, %kept), kind=kLoop, calls=%put, backend_config={"estimated_cycles":"30","cost_model_type":"COST_MODEL_TYPE_INVALID"}
  %one = s32[] constant(2)
  %next = s32[] add(%at, %one)
  ROOT %out = (s32[], f32[5,8]{1,0}, f32[8]{0:T(8)S(1)}, s32[]) tuple(%next, %written, %kept, %limit)
}

%put (a: f32[5,8], b: s32[], c: f32[8]) -> f32[5,8] {
  %a = f32[5,8]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[8]{0} parameter(2)
  %row = f32[1,8]{1,0} bitcast(%c)
  %zero = s32[] constant(0)
  ROOT %put.1 = f32[5,8]{1,0} dynamic-update-slice(%a, %row, %b, %zero)
}

%less (arg.1: (s32[], f32[5,8], f32[8], s32[])) -> pred[] {
  %arg.1 = (s32[], f32[5,8]{1,0}, f32[8]{0:T(8)S(1)}, s32[]) parameter(0)
  %at.1 = s32[] get-tuple-element(%arg.1), index=0
  %limit.1 = s32[] get-tuple-element(%arg.1), index=3
  ROOT %less.1 = pred[] compare(%at.1, %limit.1), direction=LT
}

ENTRY %main (x: f32[8], w: bf16[8,8]) -> f32[5,8] {
  %x = f32[8]{0} parameter(0)
  %w = bf16[8,8]{1,0} parameter(1)
  %start = (f32[8]{0:T(8)S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[8]{0:T(8)S(1)} copy-done(%start)
  %zeros = f32[] constant(0)
  %stack.1 = f32[5,8]{1,0} broadcast(%zeros), dimensions={}
  %from = s32[] constant(1)
  %to = s32[] constant(9)
  %turned = bf16[8,8]{0,1} transpose(%w), dimensions={1,0}, metadata={op_name="jit(step)/turn"}
  %square = f32[8,8]{1,0} dot(%w, %turned), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/square"}
  %given = (s32[], f32[5,8]{1,0}, f32[8]{0:T(8)S(1)}, s32[]) tuple(%from, %stack.1, %done, %to)
  %loop = (s32[], f32[5,8]{1,0}, f32[8]{0:T(8)S(1)}, s32[]) while(%given), condition=%less, body=%body, metadata={op_name="jit(step)/lstm/while"}
  ROOT %result = f32[5,8]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_what_runs_and_what_it_costs_is_read_from_a_compiled_program(benchmark):
    """Arrays on the chip are free, of one changed in place only the change counts."""
    programs = benchmark("programs")
    rates = programs.Rates(bf16=1e3, float32=1e2, bandwidth=1e6, clock=1e3)
    kernels, loops = programs.Program(STEP).kernels(rates)
    (loop,) = loops
    assert (loop.rounds, loop.exact, loop.kernels) == (4, True, 1)
    assert loop.label == "jit(step)/lstm/while"
    found = {kernel.instruction.name: kernel for kernel in kernels}
    bytes_of = {name: kernel.bytes for name, kernel in found.items()}
    assert bytes_of["written"] == 32 and bytes_of["start"] == 32
    assert bytes_of["stack.1"] == 160 and bytes_of["turned"] == 256
    moves = {name: kernel.move for name, kernel in found.items() if kernel.move}
    assert moves == {"start": "copy", "stack.1": "fill", "turned": "transpose"}
    assert found["stack.1"].label == loop.label  # of what takes it
    assert found["written"].times == 4 and found["written"].cycles == 4 * 0.03
    assert found["written"].seconds == pytest.approx(4 * 32e-6)  # not the cycles
    gpu = replace(rates, clock=0.0)
    (square,) = (
        kernel
        for kernel in programs.Program(STEP).kernels(gpu)[0]
        if kernel.instruction.name == "square"
    )
    assert square.seconds == 2 * 8 * 8 * 8 / 1e3
    endless = STEP.replace("%from = s32[] constant(1)", "%from = s32[] custom-call()")
    ((unknown,),) = programs.Program(endless).kernels(rates)[1:]
    assert (unknown.rounds, unknown.exact) == (1, False)


def test_loops_of_this_machine_s_compiler_are_counted(benchmark):
    programs = benchmark("programs")

    def step(x, n):
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, None, length=6)
        return jax.lax.while_loop(lambda x: x.sum() < n, lambda x: x + 1, x)

    text = jax.jit(step).lower(jnp.ones((4, 4)), 3.0).compile().as_text()
    _, loops = programs.Program(text).kernels(programs.Rates(1e9, 1e9, 1e9))
    assert sorted((loop.rounds, loop.exact) for loop in loops) == [
        (1, False),
        (6, True),
    ]


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
        shardings(mesh, shapes, sampled=kind == "sampled"),
    )
    words = WordTables(CORPUS, CORPUS.vocabulary, config, 8)
    samples = head.samples if kind == "sampled" else 0
    batch = TrainingText(CORPUS, words, ROWS, WINDOW, 0, samples).batch(0)
    step = compile_train_step(lm, optimizer, state)
    text = step.lower(state, put_on_mesh(mesh, batch, "batch.")).compile().as_text()
    found = benchmark("programs").Program(text).collectives(8)
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


def test_times_on_paper_are_rings(benchmark):
    scaling = benchmark("scaling")
    gpu, tpu, _ = scaling.LINKS
    seconds = scaling.reduce_seconds
    assert seconds(gpu, 8, 450e9) == pytest.approx(2 * 7 / 8)
    between = 2 * 31 / 32 * 450e9 / 8 / 50e9
    assert seconds(gpu, 256, 450e9) == pytest.approx(2 * 7 / 8 + between)
    assert seconds(tpu, 256, 200e9) == pytest.approx(2 * 255 / 256)
    entry = scaling.project(gpu, 8, 450e9, int(1.75 * gpu.tokens_per_second))
    assert entry["efficiency"] == pytest.approx(0.5)
    assert entry["with overlap"] == pytest.approx(3 / 4)


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
    command += ["--seconds", "3000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    log = (tmp_path / "out" / "on_gpu.log").read_text(encoding="utf-8")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log}"
    found = json.loads((tmp_path / "out" / "on_gpu.json").read_bytes())
    assert all(found[name] for name in ("machine", "jax", "date", "command"))
    sections = {
        "device": "value",
        "parity": "distance",
        "train": "tokens/s",
        "torch": "tokens/s",
        "embed": "words/s",
        "parts": "ms",
        "determinism": "bits",
        "kernels": "ms",
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

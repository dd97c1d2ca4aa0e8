"""`elmojax estimate`: against numbers known beforehand and against real runs."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from commands import TINY, answer, done, refused, run
from jax.experimental import topologies

from elmojax import estimate as estimating
from elmojax.cli.estimate import EstimateArguments
from elmojax.cli.pretrain import parse_recipe
from elmojax.config import ElmoConfig, HeadConfig, TrainConfig
from elmojax.errors import InputError
from elmojax.estimate import (
    QUIET,
    Estimate,
    Memory,
    absent_devices,
    largest_rows,
    least_microbatches,
    least_time,
    memory_of,
)
from elmojax.training import memory, prefetch
from elmojax.training import start as starting
from elmojax.training.memory import StepMemory, explain_out_of_memory
from elmojax.training.sharding import put_on_mesh
from elmojax.training.sizes import (
    BENCHMARK_POSITIONS,
    BENCHMARK_WORDS,
    assumed_text,
    step_sizes,
)
from elmojax.training.start import start
from elmojax.training.step import Guard, compile_train_step
from elmojax.training.utilization import (
    CHIPS,
    Flops,
    chip_named,
    chip_of,
    lstm_flops,
    softmax_flops,
    word_flops,
)

pytestmark = pytest.mark.usefixtures("quick_compilation", "compile_once")

ORIGINAL = ElmoConfig.preset("original")
ADAPTIVE = HeadConfig("adaptive", (4000, 40_000, 200_000))
WORDS = ("--encoder", "words")
SAMPLED = ("--head.kind", "sampled", "--head.samples", 20)


@pytest.fixture(scope="module")
def data(tmp_path_factory, sample_lines) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text = folder / "text.txt"
    text.write_text("\n".join(sample_lines(60)) + "\n", encoding="utf-8")
    done("prepare", "--text", text, "--out", folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def benchmark():
    return assumed_text(BENCHMARK_WORDS, BENCHMARK_POSITIONS)


# --- operations and least time -------------------------------------------------------


def mega(flops):
    return pytest.approx(1e6 * flops, rel=0.03)


def test_operations_are_those_worked_out_by_hand(benchmark):
    """A multiply-add is two operations; forward and backward pass are three."""
    size, shares = BENCHMARK_WORDS, benchmark.shares(ADAPTIVE)
    assert lstm_flops(ORIGINAL.lstm) == mega(453)
    assert word_flops(ORIGINAL, 50) == mega(160)
    assert word_flops(ORIGINAL, 25) == mega(130)
    assert softmax_flops(ADAPTIVE, size, 512, shares) == pytest.approx(36e6, rel=0.06)
    assert softmax_flops(HeadConfig("sampled"), size, 512, ()) == mega(50)
    assert softmax_flops(HeadConfig("full"), size, 512, ()) == mega(4875)


def test_shares_of_clusters_are_of_the_targets(benchmark):
    head, *rest = 1 - sum(benchmark.shares(ADAPTIVE)), *benchmark.shares(ADAPTIVE)
    assert head > 0.7 and rest == sorted(rest, reverse=True) and rest[-1] > 0
    assert benchmark.shares(HeadConfig("full")) == ()


@pytest.mark.parametrize(
    ("rows", "tokens_per_second"),
    [(128, 1.05e6), (384, 1.30e6), (512, 1.35e6), (1024, 1.43e6), (2048, 1.49e6)],
)
def test_the_floor_of_an_h200_is_that_worked_out_by_hand(
    benchmark, rows, tokens_per_second
):
    """At the rates measured on one: 790 TFLOP/s and 4.3 TB/s."""
    config = replace(TrainConfig.preset("original"), rows=rows, head=ADAPTIVE)
    sizes = step_sizes(benchmark, config, 1, rows)
    each = sizes.words / (rows * 20) * word_flops(ORIGINAL, 25)
    softmax = softmax_flops(ADAPTIVE, BENCHMARK_WORDS, 512, benchmark.shares(ADAPTIVE))
    flops = Flops(each, lstm_flops(ORIGINAL.lstm), softmax)
    moved = 6 * 4 * 110_000_000  # Adagrad, about 110 M parameters
    nothing = Memory(0, 0, 0, 0, 0, 0, 0)
    made = Estimate(config, {}, nothing, flops, 0, (), moved, 1, 1, 3600)
    least = least_time(made, chip_named("h200"), "bf16", peak=False)
    assert least.tokens_per_second == pytest.approx(tokens_per_second, rel=0.05)
    assert least.hours == pytest.approx(least.step)
    assert least_time(made, chip_named("h200"), "bf16").step < least.step
    assert least_time(made, chip_named("h200"), "float32").step > 5 * least.step


def test_chips_go_by_the_names_that_people_use():
    for name in ("h200", "H200", "nvidia-h200", "H200-SXM", " H200 SXM5"):
        assert chip_named(name).name == "h200"
    assert chip_named("TPU v5e").name == chip_named("V5E").name == "v5e"
    assert chip_named("TPU7x").name == chip_named("7x").name == "tpu7x"
    with pytest.raises(InputError, match=r"'h300'.*b200, h200, h100, a100, v5e, v5p"):
        chip_named("h300")
    assert chip_of("NVIDIA H200").name == "h200"
    assert chip_of("TPU v5 lite").name == "v5e" and chip_of("TPU v6 lite").name == "v6e"
    assert chip_of("TPU v5").name == "v5p" and chip_of("TPU7x").name == "tpu7x"
    assert chip_of("NVIDIA A100-SXM4-40GB") is None and chip_of("cpu") is None
    assert all(chip.source.startswith("https://") for chip in CHIPS)


def test_a_chip_without_its_compiler_is_left_to_this_machine_s(monkeypatch):
    monkeypatch.setattr(estimating, "find_spec", lambda _: None)
    assert not any(absent_devices(chip, 1) for chip in CHIPS)
    monkeypatch.setattr(estimating, "_installed", lambda _: True)
    monkeypatch.setattr(estimating, "_attached", lambda _: True)
    assert not any(absent_devices(chip, 1) for chip in CHIPS)


def test_a_step_is_compiled_for_the_chip_where_its_compiler_is(monkeypatch):
    """Devices of this machine stand in for the chip's; no server is asked."""
    asked = []

    def slice_of(topology_name, platform):
        asked.append((platform, topology_name, os.environ["TPU_SKIP_MDS_QUERY"]))
        return SimpleNamespace(devices=jax.devices()[:8])

    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setattr(estimating, "_installed", lambda _: True)
    monkeypatch.setattr(estimating, "_attached", lambda _: False)
    monkeypatch.setattr(topologies, "get_topology_desc", slice_of)
    for chip, count in (("v5e", 8), ("v5p", 4), ("tpu7x", 8), ("v6e", 2)):
        assert len(absent_devices(chip_named(chip), count)) == count
    assert not absent_devices(chip_named("v5e"), 3)  # no part of a slice
    assert asked == [
        ("tpu", "v5e:2x4", "1"),
        ("tpu", "v5p:2x2x1", "1"),
        ("tpu", "tpu7x:2x2x1", "1"),
        ("tpu", "v6e:2x2", "1"),
    ]


def test_what_a_compiler_refuses_as_too_large_is_what_it_takes():
    said = "RESOURCE_EXHAUSTED: the memory required (25.04G) exceeds HBM (15.75G)."
    assert estimating._bytes_refused(said) == int(25.04 * 2**30)
    assert estimating._bytes_refused("INTERNAL: 3G") is None


# --- memory, against real runs -------------------------------------------------------


def real(data, workdir, flags):
    """A real run, a batch of it, and what the compiler says."""
    argv = ["--data", str(data), "--workdir", str(workdir), *map(str, flags)]
    asked, _ = parse_recipe(EstimateArguments, "estimate", argv)
    started = start(asked.train_config(), "test")
    config = started.record.train
    microbatches = config.accumulate > 1
    batch = put_on_mesh(
        started.lm.mesh, started.text.batch(0), "batch.", microbatches=microbatches
    )
    guard = Guard(config.skip_nonfinite, config.spike_guard)
    step = compile_train_step(started.lm, started.optimizer, started.state, guard)
    found = memory_of(step.lower(started.state, batch).compile())
    started.lock.release()
    return started, batch, found


def on_first_device(tree):
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(
            ("--mesh.data", 2, "--mesh.model", 2, "--optimizer.name", "adamw"),
            marks=pytest.mark.slow,
        ),
        pytest.param((*SAMPLED, "--accumulate", 2), marks=pytest.mark.slow),
        pytest.param(
            (*WORDS, "--head.kind", "full", "--optimizer.name", "adafactor"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--head.cutoffs", 20, 80, "--precision", "bf16", "--mesh.data", 8),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["adaptive", "mesh", "sampled", "words", "bf16"],
)
def test_memory_is_that_of_a_real_run(data, tmp_path, flags):
    flags = (*TINY, "--rows", 64, *flags)
    report = answer("estimate", "--data", data, "--workdir", tmp_path / "none", *flags)
    started, batch, found = real(data, tmp_path / "run", flags)
    sizes = started.text.capacities.usual.words
    assert [table[0] for table in report["tables"]] == list(sizes)
    memory = report["memory_per_device"]
    assert memory["parameters"] == on_first_device(started.state.params)
    assert memory["optimizer"] == on_first_device(started.state.optimizer)
    assert memory["carry"] == on_first_device(started.state.carry)
    assert memory["batch"] == on_first_device(batch)
    assert memory["temporary"] == pytest.approx(found.temporary, rel=0.01)
    assert memory["total"] == pytest.approx(found.total, rel=0.01)
    assert report["parameters"]["total"] == sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(started.state.params)
    )
    assert report["softmax"]["cutoffs"] == list(started.record.train.head.cutoffs)
    assert report["steps"] == started.steps
    assert report["text"]["positions"] == started.text.positions


def test_nothing_is_allocated_and_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {id(array) for array in jax.live_arrays()}
    report = answer("estimate", *TINY, "--vocabulary", 500_000, "--tokens", 10**9)
    assert report["parameters"]["total"] > 500_000
    assert report["text"] | {"source": ""} == {
        "source": "",
        "assumed": True,
        "vocabulary": 500_000,
        "positions": 10**9,
    }
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.nbytes for array in new) < 10_000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_original_model_is_estimated_in_little_memory(tmp_path):
    """Of its own: `ru_maxrss` also holds the peak of the process that started it."""
    code = (
        "import pathlib, sys\n"
        "from elmojax.cli import main\n"
        "main(sys.argv[1:])\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    flags = "estimate --preset original --rows 1024 --chip H200 --mesh.data 2 --json"
    ran = subprocess.run(
        [sys.executable, "-c", code, *flags.split()],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    report = json.loads(ran.stdout)
    assert report["chip"] == "h200" and report["fits"] and report["warning"] is None
    assert report["precision"] == "bf16" and report["compiled_for"] == "cpu"
    assert report["text"]["vocabulary"] == BENCHMARK_WORDS
    piece = math.ceil(BENCHMARK_POSITIONS / 1024)
    assert report["steps"] == math.ceil(10 * piece / 20)
    assert report["parameters"]["lstm"] == pytest.approx(75.6e6, rel=0.02)
    assert 3e9 < report["memory_per_device"]["total"] < 20e9
    assert int(ran.stderr.split()[-1]) < 2_000_000  # kilobytes


# --- what does not fit, and what is wrong --------------------------------------------


WIDE = ("--window", 16, "--model.lstm.dim", 128, "--mesh.data", 2)
LARGE = (*TINY, *WIDE, "--vocabulary", 1000, "--rows")


@pytest.mark.slow
def test_the_rows_that_a_warning_names_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    warning = answer("estimate", *LARGE, 1_000_000, "--chip", "v5e")["warning"]
    (rows,) = re.findall(r"--rows (\d+)", warning)
    assert 0 < int(rows) < 1_000_000 and int(rows) % 2 == 0
    report = answer("estimate", *LARGE, rows, "--chip", "v5e")
    assert report["fits"] and report["warning"] is None
    assert 0.7 < report["chips"][0]["share"] <= 0.9


@pytest.fixture
def compiler_says(monkeypatch):
    """Stands in for the compiler: a step takes 49 GB."""
    found = Memory(10**9, 10**9, 0, 0, 47 * 10**9, 10**9, 49 * 10**9)
    monkeypatch.setattr(estimating, "_memory", lambda *_: found)


@pytest.mark.usefixtures("compiler_says")
def test_a_batch_that_does_not_fit_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimating, "largest_rows", lambda *_: 600)
    monkeypatch.setattr(estimating, "least_microbatches", lambda *_: 8)
    outcome = done("estimate", *LARGE, 1_000_000, "--chip", "V5E")
    warning = outcome.err.splitlines()[-1]
    assert re.search(r"takes \S+ [GT]B a device, and a TPU v5e has 16 GB", warning)
    assert "will not fit. About --rows 600 would, or all 1000000 with --acc" in warning
    assert " NO " in outcome.out
    report = answer("estimate", *LARGE, 1_000_000)
    assert report["fits"] and "will not fit on v5e, v6e;" in report["warning"]
    small = [chip["chip"] for chip in report["chips"] if not chip["fits"]]
    assert small == ["v5e", "v6e"]


def test_rows_and_microbatches_that_fit_are_found_on_a_line():
    """Of 10 bytes a row and 1,000 for everything else, and more for each piece."""

    def memory(config):
        each = config.rows // 2 // config.accumulate
        total = 1000 + 10 * each + (100 if config.accumulate > 1 else 0)
        return Memory(100, 100, 0, 0, 0, 50, total)

    config = replace(TrainConfig.preset("mini"), rows=4096)
    rows = largest_rows(config, 2, memory(config), 6000, memory)
    assert 850 <= rows <= 1000 and rows % 2 == 0
    assert memory(replace(config, rows=rows)).total <= 6000
    assert least_microbatches(config, 2, rows, 6000, memory) == 8
    assert largest_rows(config, 2, memory(config), 900, memory) is None
    assert least_microbatches(config, 2, 2, 900, memory) is None


def test_bad_input_is_one_sentence(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = [
        ("--chip h300", "no chip 'h300' ... h100, a100, v5e, v5p, v6e, tpu7x."),
        ("--rows 10 --mesh.data 4", "--rows 10 ... over 4 devices ... multiple of 4"),
        ("--rows 8 --accumulate 3", "--accumulate 3 ... multiple of 3"),
        (f"--data {data} --tokens 5", "leave them out, or --data"),
        ("--vocabulary 2", "vocabulary is 2; it must be a whole number from 4"),
        ("--tokens 0", "--tokens is 0"),
        ("--data none", "none is not a prepared corpus"),
        ("--preset mini --config some.py", "not both"),
        ("--head.kind sampled --head.samples 500 --vocabulary 400", "--head.samples"),
        ("--head.cutoffs 20 9000", "cutoffs (20, 9000) must increase"),
        ("--mesh.model 3 --rows 3", "mesh axis 'model' ... does not divide"),
    ]
    for flags, says in bad:
        refused("estimate", *TINY, *shlex.split(flags), says=says)


@pytest.mark.slow
@pytest.mark.parametrize("text", [(), ("--data",)])
def test_a_table_of_every_position_is_larger(data, text):
    flags = (*TINY, "--rows", 16, "--window", 20, *text, *([data] if text else []))
    every = answer("estimate", *flags, "--no-unique-words")
    few = answer("estimate", *flags)
    ((rows, _),) = every["tables"]
    assert rows == 2 * 16 * 20 > sum(table[0] for table in few["tables"])
    assert _temporary(every) > _temporary(few)


def _temporary(report):
    return report["memory_per_device"]["temporary"]


@pytest.mark.slow
def test_more_devices_than_there_are_have_the_share_of_those_that_are_there(data):
    flags = (*TINY, "--data", data, "--mesh.data")
    few = answer("estimate", *flags, 8, "--rows", 64)
    many = answer("estimate", *flags, 1024, "--rows", 8192)
    assert many["mesh"] == {"data": 1024, "model": 1}
    memory = many["memory_per_device"]["total"]
    assert memory == pytest.approx(few["memory_per_device"]["total"], rel=0.02)
    assert many["chips"][0]["floor"]["exchange"] > few["chips"][0]["floor"]["exchange"]


@pytest.mark.usefixtures("compiler_says")
def test_a_configuration_may_name_a_text_that_is_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text(
        "import elmojax\n"
        "from pathlib import Path\n"
        "def config():\n"
        "    return elmojax.TrainConfig(data=Path('elsewhere'), rows=16)\n",
        encoding="utf-8",
    )
    outcome = done("estimate", "--config", "a.py", *TINY, "--steps", 7)
    assert "elsewhere is not here; its size is assumed" in outcome.err
    assert "793,471 words" in outcome.out
    assert re.search(r"steps +7\n", outcome.out)


# --- running out of memory -----------------------------------------------------------


class Full(jax.errors.JaxRuntimeError):
    pass


def full(*_):
    raise Full("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.")


@pytest.mark.slow
def test_out_of_memory_at_a_step_names_the_estimate(data, tmp_path, monkeypatch):
    directory = tmp_path / "a run"
    flags = ("--data", data, "--workdir", directory, *TINY)
    done("pretrain", *flags, "--steps", 2)
    saved = sorted(path.name for path in (directory / "checkpoints").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(prefetch, "compile_train_step", lambda *_: full)
        outcome = run("pretrain", *flags, "--steps", 4)
    assert (outcome.status, outcome.out) == (2, "")
    said = outcome.err.splitlines()[-1]
    assert "Memory ran out by step 3 with --rows 8;" in said and len(said) < 500
    assert "give --accumulate 2 (" in said and said.endswith("in another --workdir.")
    assert saved == sorted(path.name for path in (directory / "checkpoints").iterdir())
    (command,) = re.findall("`(.*?)`", said)
    program, *rest = shlex.split(command)
    report = answer(*rest)
    assert program == "elmojax" and rest[0] == "estimate"
    assert report["rows"] == 8 and report["parameters"]["lstm"] < 10_000


@pytest.mark.slow
def test_a_cpu_is_given_a_step_when_the_one_before_is_finished(
    data, tmp_path, monkeypatch
):
    ready = []

    def slowly(*arguments):
        step = real(*arguments)

        def handed(state, batch):
            ready.extend(leaf.is_ready() for leaf in jax.tree.leaves(state))
            state, metrics = step(state, batch)
            return replace(state, key=later(state.key)), metrics

        return handed

    @jax.jit
    def later(key):
        heavy = jnp.ones((800, 800)) * key[0].astype(jnp.float32)
        heavy = jax.lax.fori_loop(0, 30, lambda _, x: jnp.tanh(x @ x), heavy)
        return jnp.where(jnp.isnan(heavy.sum()), key + 1, key)

    real = prefetch.compile_train_step
    monkeypatch.setattr(prefetch, "compile_train_step", slowly)
    done("pretrain", "--data", data, "--workdir", tmp_path / "run", *TINY, "--steps", 4)
    assert len(ready) > 4 and all(ready)


def test_idle_memory_goes_back_where_it_has_grown(monkeypatch):
    given = []
    sizes = iter([100, 150, 158, 170, 151, 160])
    monkeypatch.setattr(memory, "resident", lambda: next(sizes))
    monkeypatch.setattr(memory, "return_freed_memory", lambda: given.append(1))
    steps, counts = StepMemory(), []
    for compiles in (True, False, False, False, False, False):
        with steps.of_step(jnp.zeros(1), compiles):
            counts.append(len(given))
    assert counts == [1, 2, 2, 3, 3, 3]  # compiled (before and after), then 170 of 150


def test_out_of_memory_while_the_state_is_made(data, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "_resume", full)
    flags = ("--data", data, "--workdir", tmp_path / "run", *TINY)
    refused("pretrain", *flags, says="Memory ran out while the state was made")


def test_other_errors_stay_what_they_are():
    config = TrainConfig.preset("mini")
    with (
        pytest.raises(Full, match="INTERNAL"),
        explain_out_of_memory(config, lambda: "at step 1"),
    ):
        raise Full("INTERNAL: a mistake of ours")
    with (
        pytest.raises(InputError, match="at step 1 with --rows 64"),
        explain_out_of_memory(config, lambda: "at step 1"),
    ):
        raise MemoryError

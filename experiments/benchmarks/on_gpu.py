"""What `on_gpu.sh` measures on one GPU: parity with the CPU, speed, memory, bits.

Each section runs in a process of its own, one after the other: one that crashes or
runs out of memory or time leaves the rest alone, and what it had found by then is kept.
Where a row cannot be had it says why, and the next one is tried. A section that the
time left of `--seconds` is too short for is skipped. on_gpu.json and on_gpu.md are
written anew with every row; both begin with the machine, the versions, the date and the
command. Exit status 1 where a section failed.

Sizes are those of the published model and of its vocabulary of 793,471 words; text is
random, with the share of each word as `training.sizes` assumes it, so that a step has
as many distinct words as a real one. Products are bfloat16 unless a row says otherwise.
Seconds are the median of repeated rounds, each of several calls, after a warm-up.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import check_determinism
import embedding
import harness
import jax
import jax.numpy as jnp
import numpy as np
import softmax
import training
from harness import Row, compiled

import elmojax
from elmojax.config import (
    PRESETS,
    CharCnnConfig,
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    WordTableConfig,
)
from elmojax.estimate import estimate
from elmojax.model.bilm import BiLM
from elmojax.model.lstm import LstmState
from elmojax.text.batches import TrainingText
from elmojax.text.prepare import sample_corpora
from elmojax.text.tables import WordTables
from elmojax.training import step as training_step
from elmojax.training.choices import resolved
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import make_mesh, path_name
from elmojax.training.sizes import (
    BENCHMARK_POSITIONS,
    BENCHMARK_WORDS,
    assumed_text,
)
from elmojax.training.step import LanguageModel, init_state, train_step
from elmojax.training.utilization import (
    FORWARD_AND_BACKWARD,
    chip_of,
    lstm_flops,
    softmax_flops,
    word_flops,
)

Known = dict[str, list[Row]]
"""Rows of the sections before. A row with an "error" makes a section fail."""


class Skipped(Exception):
    """Why a section cannot be had on this machine."""


@dataclass(frozen=True)
class Sizes:
    """What is measured; the published sizes unless `--smoke`."""

    model: ElmoConfig = PRESETS["original"]
    vocabulary: int = BENCHMARK_WORDS
    tokens: int = 2_000_000
    """Of the text that batches are taken from."""
    rows: tuple[int, ...] = (128, 512, 1024)
    torch_rows: tuple[int, ...] = (128, 512)
    middle: int = 512
    """Rows of what is measured at one size only."""
    window: int = 20
    samples: int = 8192
    sentences: tuple[int, int] = (256, 30)
    """Sentences that `embed` takes at once, and words of each."""
    stream: int = 20_000
    """Sentences that an Embedder reads."""
    batch_tokens: int = 131_072
    steps: int = 50
    """Of the runs whose bits are compared."""
    compared: tuple[str, ...] = ("float32", "bfloat16")
    """Precisions whose results are compared with the CPU's."""
    flags: tuple[str, ...] = ("", "--xla_gpu_deterministic_ops=true")
    """Of XLA, with each of which a run is made twice."""
    copied: int = 1 << 28
    """Numbers that the copy of the first section reads and writes."""


SMALL = ElmoConfig(
    CharCnnConfig(((1, 24), (2, 24), (3, 40), (4, 72)), highway_layers=1),
    LstmConfig(dim=200, projection=56, cell_clip=0.5, projection_clip=0.2),
)
"""For parity: no tile divides its sizes, and both clips act."""
SMOKE = Sizes(
    ElmoConfig(
        CharCnnConfig(((1, 4), (2, 4), (3, 8)), 4, 1, max_characters=40),
        LstmConfig(dim=16, projection=8),
    ),
    vocabulary=4000,
    tokens=20_000,
    rows=(8,),
    torch_rows=(8,),
    middle=8,
    window=6,
    samples=64,
    sentences=(4, 5),
    stream=40,
    batch_tokens=512,
    steps=3,
    compared=("bfloat16",),
    flags=("--xla_gpu_deterministic_ops=true",),
    copied=1 << 16,
)


# Timing


def seconds_of(program: Any, *arguments: Any, calls: int = 5, rounds: int = 7) -> float:
    """Median seconds of a call, of several that the device has in its queue."""

    def run() -> None:
        for _ in range(calls):
            result = program(*arguments)
        jax.block_until_ready(result)

    return harness.measure(run, rounds, calls)["seconds"]


def tried(row: Row, function: Callable[[], Row]) -> Row:
    """The row with what a function adds, or with why it adds nothing."""
    try:
        return row | function()
    except Exception as error:
        traceback.print_exc()
        return row | {"error": f"{type(error).__name__}: {error}".strip()[:300]}


def temporary_gb(program: Any) -> float:
    return harness.temporary_bytes(program) / 1e9


def peak_gb() -> float | None:
    """The most memory that arrays and programs of this process held at once."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None


def against(flops: float, seconds: float, dtype: Any = jnp.bfloat16) -> Row:
    """The least time by the data sheet, for a chip that is in the table."""
    chip = chip_of(jax.devices()[0].device_kind)
    if chip is None:
        return {"floor ms": None, "of data sheet": None}
    rate = chip.bf16 if dtype == jnp.bfloat16 else chip.float32
    return {"floor ms": 1e3 * flops / rate, "of data sheet": flops / rate / seconds}


# The text and the recipe


class Text:
    """Random text of a size, and the head that a run of `pretrain` on it chooses."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.model = sizes, sizes.model
        statistics = assumed_text(sizes.vocabulary, BENCHMARK_POSITIONS)
        share = statistics.types[3:]
        self.corpus = harness.zipf_corpus(len(share), sizes.tokens, share)
        self.statistics = replace(statistics, corpus=self.corpus)
        run = TrainConfig(model=sizes.model)
        self.head = resolved(run, statistics.counts).head

    @cached_property
    def _words(self) -> WordTables:
        vocabulary = self.corpus.vocabulary
        return WordTables(self.corpus, vocabulary, self.model, head=self.head)

    def reader(self, rows: int, samples: int = 0) -> TrainingText:
        window = self.sizes.window
        return TrainingText(self.corpus, self._words, rows, window, 0, samples)

    def encoder_flops(self, rows: int) -> float:
        """Of the encoder in a training step."""
        tables = self.reader(rows).batch(0).words
        each = (
            t.any(axis=1).sum() * word_flops(self.model, t.shape[1]) for t in tables
        )
        return float(sum(each))

    def flops(self, rows: int) -> float:
        """Of a training step, as `estimate` counts them."""
        sizes, lstm = self.sizes, self.model.lstm
        shares = self.statistics.shares(self.head)
        token = lstm_flops(lstm)
        token += softmax_flops(self.head, sizes.vocabulary, lstm.projection, shares)
        return token * rows * sizes.window + self.encoder_flops(rows)


ARGUMENTS = SimpleNamespace(precision="bf16", steps=4, rounds=5, parts=False)
"""As `training.py` takes them."""


# Sections


def device(sizes: Sizes, known: Known) -> Iterator[Row]:
    """What machine this is, and what it can do at most."""
    chip = jax.devices()[0]
    sheet = chip_of(chip.device_kind)
    yield {"what": "device", "value": f"{jax.device_count()} x {chip.device_kind}"}
    yield {"what": "platform", "value": " ".join(chip.client.platform_version.split())}
    for name in ("jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch"):
        try:
            yield {"what": name, "value": version(name)}
        except PackageNotFoundError:
            yield {"what": name, "value": "not installed"}

    def product(dtype: Any, rate: str) -> Row:
        wanted = sheet and getattr(sheet, rate) / 1e12
        return {"value": harness.matmul_rate(dtype) / 1e12, "data sheet": wanted}

    yield tried(
        {"what": "product of bf16, TFLOP/s"}, lambda: product("bfloat16", "bf16")
    )

    def copy() -> Row:
        x = jax.random.normal(jax.random.key(0), (sizes.copied,), jnp.float32)
        program, _ = compiled(lambda x: x + 1, x)
        rate = 2 * x.nbytes / seconds_of(program, x)
        return {"value": rate / 1e9, "data sheet": sheet and sheet.bandwidth / 1e9}

    yield tried({"what": "copy, read and written, GB/s"}, copy)


BOUNDS = {"float32": 3e-5, "bfloat16": 1e-2}
"""Largest distance of an array: norm of the difference over the norm. Sums of some
hundred products of float32 in another order are 1e-6 away; TF32, which rounds factors
to 11 bits, would be 4e-4 away in every product. The 8 bits of bfloat16 make 2e-3: where
sums differ in their last digit, a factor may be rounded the other way."""


class Case(NamedTuple):
    """One part of the model on this device, and on the CPU that it is compared with."""

    name: str
    here: Callable[..., Any]
    there: Callable[..., Any]
    arguments: tuple[Any, ...]
    pulls: bool = True
    """Gradients are to be made; else the function gives "values" and "gradients"."""


def parity(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Values and gradients on this device, and on the CPU of the same process."""
    todo: list[tuple[Row, Case]] = []
    for dtype, bound in BOUNDS.items():
        if dtype in sizes.compared:
            for case in parity_cases(jnp.dtype(dtype)):
                row = {"part": case.name, "dtype": dtype, "bound": bound}
                todo.append((row, case))
    with ThreadPoolExecutor() as pool:  # compilers side by side
        yield from pool.map(lambda pair: tried(pair[0], partial(apart, *pair)), todo)


def apart(row: Row, case: Case) -> Row:
    """How far the results on this device are from those on the CPU."""
    arguments, wrap = case.arguments, lambda run: run
    if case.pulls:
        arguments = (arguments, drawn(jax.eval_shape(case.there, *arguments)))
        wrap = partial(partial, pulled)
    results, times = {}, []
    here, there = (case.here, jax.devices()[0]), (case.there, jax.devices("cpu")[0])
    for function, device in dict.fromkeys((here, there)):
        placed = jax.device_put(arguments, device)
        program, seconds = compiled(wrap(function), *placed)
        results[function, device] = jax.device_get(program(*placed))
        times.append(seconds)
    found: Row = {}
    for kind in ("values", "gradients"):
        pair = (results[here][kind], results[there][kind])
        each = jax.tree_util.tree_leaves_with_path(jax.tree.map(distance, *pair))
        path, far = max(each, key=lambda leaf: (np.isnan(leaf[1]), leaf[1]))
        found |= {kind: far, f"furthest of {kind}": path_name(path)}
        if not far <= row["bound"]:
            found["error"] = f"The {kind} are too far from those of the CPU."
    return found | {"compile s": times[0]}


def distance(found: Any, wanted: Any) -> float:
    """Norm of the difference over the norm; 0 where both are 0."""
    found, wanted = (np.asarray(array, np.float64) for array in (found, wanted))
    difference, norm = np.linalg.norm(found - wanted), np.linalg.norm(wanted)
    if difference == 0:
        return 0.0
    return float(difference / norm) if norm else float("inf")


def pulled(run: Callable[..., Any], arguments: Any, cotangents: Any) -> Any:
    """Values of a function, and its gradients for given cotangents."""
    values, pull = jax.vjp(run, *arguments)
    return {"values": values, "gradients": pull(cotangents)}


def parity_cases(dtype: Any) -> Iterator[Case]:
    """The parts of a model and the whole of it.

    In bfloat16 no clip acts, as one number on the other side of a clip would change the
    gradient more than all roundings.
    """
    model, half, rows = SMALL, dtype == jnp.bfloat16, 24
    if half:
        free = replace(model.lstm, cell_clip=np.inf, projection_clip=np.inf)
        model = replace(model, lstm=free)
    sizes = Sizes(model, vocabulary=5003, tokens=20_000)
    text = Text(sizes)
    batch = text.reader(rows).batch(1)

    def lm(platform: Any, head: HeadConfig = text.head) -> LanguageModel:
        size = sizes.vocabulary
        return LanguageModel(model, size, head, 0.1, dtype, platform=platform)

    def of_model(run: Callable[..., Any], platform: Any) -> Callable[..., Any]:
        return partial(run, BiLM(model, dtype=dtype, platform=platform))

    def lstm(model: BiLM, params: Any, x: Any, state: Any) -> Any:
        return model.apply({"params": params}, x, state, method="contextualize")

    def encoder(model: BiLM, params: Any) -> Any:
        tree, own = {"params": params}, {"method": "encode_words"}
        return jnp.concatenate([model.apply(tree, t, **own) for t in batch.words])

    params = few_digits(jax.jit(lm(None).init)(jax.random.key(0)))
    carry = drawn(jax.eval_shape(partial(LstmState.zeros, model.lstm, rows)), 0.1)
    shape = (sizes.window, 2, rows, model.lstm.projection)
    x = drawn(jax.ShapeDtypeStruct(shape, jnp.float32))
    run = of_model(lstm, "accelerator")
    yield Case("LSTM", run, run, ({"lstm": params["lstm"]}, x, carry))
    for name, form in (("window", "accelerator"), ("character", "cpu")):
        run = of_model(encoder, form)
        own = ({"encoder": params["encoder"]},)
        yield Case(f"char CNN, by {name}", run, run, own)

    def adaptive(head: Any, top: Any) -> Any:
        return lm(None).nll(head, top, batch, train=True)

    yield Case("adaptive softmax", adaptive, adaptive, (params["head"], x))
    kind = HeadConfig("sampled", samples=512)
    taken = text.reader(rows, kind.samples).batch(1)
    table = jax.jit(lm(None, kind).init)(jax.random.key(0))["head"]
    table = training_step.take({"head": table}, jnp.asarray(taken.negatives.words))[
        "head"
    ]

    def sampled(head: Any, top: Any) -> Any:
        return lm(None, kind).nll(head, top, taken, train=True)

    yield Case("sampled softmax", sampled, sampled, (table, x))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=10.0), 10)
    state = jax.jit(partial(init_state, lm(None), optimizer, rows, 0))()
    state = state.replace(params=params, carry=carry)

    def step(platform: Any, state: Any) -> Any:
        new, metrics = train_step(lm(platform), optimizer, state, batch)
        change = jax.tree.map(jnp.subtract, new.params, state.params)
        return {"values": (metrics, new.carry), "gradients": change}

    # What a run does on each, so the char CNN is computed in two ways.
    forms = partial(step, "accelerator"), partial(step, "cpu")
    yield Case("training step", *forms, (state,), pulls=False)
    sentences = [["word" * (1 + n % 3)] * (1 + n % 7) for n in range(rows)]
    assert isinstance(model.encoder, CharCnnConfig)
    tokens = elmojax.batch_to_ids(sentences, model.encoder.max_characters)

    def embed(params: Any, gammas: Any) -> Any:
        params = elmojax.cast(params, "bf16") if half else params
        return elmojax.embed(params, tokens, gammas)

    gammas = jnp.asarray([0.5, 0.3, 0.2], jnp.float32)
    yield Case("embed", embed, embed, (elmojax.from_tree(model, params), gammas))


def drawn(shapes: Any, scale: float = 1.0) -> Any:
    """A tree of random arrays."""
    random = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        return np.asarray(scale * random.standard_normal(leaf.shape), np.float32)

    return jax.tree.map(draw, shapes)


def few_digits(params: Any) -> Any:
    """Parameters whose convolutions are exact, so that the largest response of a filter
    is the same one on every machine."""

    def near(name: str, leaf: Any) -> Any:
        grid = 64 if name == "embedding" else 1024
        exact = name == "embedding" or name.startswith("convolution")
        return np.round(np.asarray(leaf) * grid) / grid if exact else np.asarray(leaf)

    encoder = {name: near(name, leaf) for name, leaf in params["encoder"].items()}
    return {**jax.device_get(params), "encoder": encoder}


def train(sizes: Sizes, known: Known) -> Iterator[Row]:
    """The training step of the model: tokens/s, against the floor, and memory."""
    text = Text(sizes)
    peak = harness.matmul_rate(jnp.bfloat16)

    def measured(rows: int) -> Row:
        reader = text.reader(rows)
        found = training.ours(reader, sizes.model, text.head, ARGUMENTS)
        seconds, tokens = found["seconds"], rows * sizes.window
        flops = text.flops(rows)
        return {
            "tokens/s": tokens / seconds,
            "ms a step": 1e3 * seconds,
            **against(flops, seconds),
            "of measured product": flops / seconds / peak,
            "MFLOP a token": flops / tokens / 1e6,
            "tables of words": ", ".join(
                "x".join(map(str, shape)) for shape in found["tables"]
            ),
            "temporary GB": found["temporary_bytes"] / 1e9,
            "peak GB": peak_gb(),
            "loss": found["loss"],
            "compile s": found["compile_seconds"],
        }

    for rows in sizes.rows:
        yield tried({"rows": rows}, partial(measured, rows))


def torch(sizes: Sizes, known: Known) -> Iterator[Row]:
    """The same step in PyTorch under autocast; its LSTM has no clips."""
    if importlib.util.find_spec("torch") is None:
        raise Skipped("torch is not installed.")
    import torch

    text, cuda = Text(sizes), torch.cuda
    ours = {row["rows"]: row.get("tokens/s") for row in known.get("train", [])}

    def measured(rows: int) -> Row:
        gc.collect()
        cuda.empty_cache()
        reader = text.reader(rows)
        begin = time.perf_counter()
        try:
            found = training.torch_peer(reader, sizes.model, text.head, ARGUMENTS)
        except torch.OutOfMemoryError:
            return {"note": "out of memory"}
        rate = rows * sizes.window / found["seconds"]
        return {
            "tokens/s": rate,
            "ms a step": 1e3 * found["seconds"],
            "elmojax is, times as fast": ours.get(rows) and ours[rows] / rate,
            "peak GB": cuda.max_memory_allocated() / 1e9
            if cuda.is_available()
            else None,
            "all s": time.perf_counter() - begin,
        }

    for rows in sizes.torch_rows:
        yield tried({"rows": rows}, partial(measured, rows))


def embed(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Words/s of `embed` and of an Embedder whose words are all known."""
    model, (batch, words) = sizes.model, sizes.sentences
    assert isinstance(model.encoder, CharCnnConfig)
    text = Text(sizes)
    running = [text.corpus.types[n] for n in text.corpus.words[: batch * words]]
    sentences = np.array(running).reshape(batch, words).tolist()
    tokens = jax.device_put(
        elmojax.batch_to_ids(sentences, model.encoder.max_characters)
    )
    params = elmojax.init(model, jax.random.key(0))
    columns = model.encoder.max_characters
    flops = batch * (words + 2) * (lstm_flops(model.lstm) + word_flops(model, columns))
    gammas = jnp.full(model.lstm.layers + 1, 1 / 3, jnp.float32)

    def at_once(precision: Any) -> Row:
        arguments = (elmojax.cast(params, precision), tokens, gammas)
        program, took = compiled(elmojax.embed, *arguments)
        seconds = seconds_of(program, *arguments)
        dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
        return {
            "words/s": batch * words / seconds,
            "ms": 1e3 * seconds,
            **against(flops / FORWARD_AND_BACKWARD, seconds, dtype),
            "temporary GB": temporary_gb(program),
            "compile s": took,
        }

    def stream(precision: Any) -> Row:
        sizes_ = (sizes.batch_tokens, sizes.stream, precision)
        found = embedding.on_device(model, *sizes_)
        return {
            "words/s": found["on_device_tokens_per_second"],
            "words/s, vectors on the host": found["on_host_tokens_per_second"],
            "first pass s": found["first_pass_seconds"],
        }

    for name, measured in (
        (f"embed, {batch} x {words}", at_once),
        ("Embedder", stream),
    ):
        for precision in ("bf16", "float32"):
            row = {"what": name, "precision": precision}
            yield tried(row, partial(measured, precision))


def heads(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Softmax heads alone, forward and backward, on the positions of one step."""
    text = Text(sizes)
    positions = 2 * sizes.middle * sizes.window
    settings = SimpleNamespace(
        vocabulary=sizes.vocabulary,
        counts=text.statistics.types,
        cutoffs=text.head.cutoffs,
        div_value=text.head.div_value,
        dim=sizes.model.lstm.projection,
        samples=sizes.samples,
        precision="bf16",
        rounds=15,
    )

    def measured(form: str) -> Row:
        found = softmax.run_jax(form, positions, positions, settings)
        return {
            "ms": 1e3 * found["seconds"],
            "temporary GB": found["temporary"] / 1e9,
            "compile s": found["compile_seconds"],
        }

    for form in ("adaptive", "sampled"):
        row = {"softmax": form, "positions": positions}
        yield tried(row, partial(measured, form))


def bits(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Whether a small run that is made twice ends with the same bits in every array."""
    jax.config.update("jax_platforms", "cpu")  # here runs are only compared
    flags = os.environ.get("XLA_FLAGS", "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = sample_corpora(folder)[0].directory

        def twice(extra: str) -> Row:
            runs = [folder / f"{len(extra)}-{n}" for n in range(2)]
            begin = time.perf_counter()
            for run in runs:
                command = [sys.executable, __file__, "--run", str(run), str(data)]
                environment = os.environ | {"XLA_FLAGS": f"{flags} {extra}".strip()}
                command += [str(sizes.steps)]
                subprocess.run(command, check=True, env=environment)
            seconds = (time.perf_counter() - begin) / 2
            one, other = map(check_determinism.arrays, runs)
            what = check_determinism.difference(one, other)
            return {"arrays": len(one), "bits": what or "the same", "s a run": seconds}

        for extra in sizes.flags:
            row = {"XLA_FLAGS": extra or "none", "steps": sizes.steps}
            yield tried(row, partial(twice, extra))


def run(directory: str, data: str, steps: str) -> None:
    """One run, in this process."""
    config = TrainConfig(
        data=Path(data),
        workdir=Path(directory),
        model=replace(SMALL, lstm=LstmConfig(dim=128, projection=32)),
        optimizer=OptimizerConfig("adamw", 5e-3),
        steps=int(steps),
        rows=32,
    )
    elmojax.pretrain(config)


def layers(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Parts of a step alone, forward and backward: one LSTM layer, the char CNN."""
    model, window = sizes.model, sizes.window
    lstm = replace(model.lstm, layers=1)
    width = lstm.projection
    layer = ElmoConfig(WordTableConfig(2, width), lstm)
    flat = BiLM(layer, dtype=jnp.bfloat16)
    params = elmojax.init(layer, jax.random.key(0)).tree

    def one_layer(params: Any, x: Any, state: Any) -> Any:
        return flat.apply({"params": params}, x, state, method="contextualize")

    def recurrent(rows: int) -> Row:
        x = drawn(jax.ShapeDtypeStruct((window, 2, rows, width), jnp.float32))
        arguments = {"lstm": params["lstm"]}, x, LstmState.zeros(lstm, rows)
        flops = rows * window * lstm_flops(lstm)
        return measured(one_layer, arguments, flops)

    def measured(function: Any, arguments: Any, flops: float) -> Row:
        cotangents = drawn(jax.eval_shape(function, *arguments))
        arguments = jax.device_put((arguments, cotangents))
        program, took = compiled(partial(pulled, function), *arguments)
        seconds = seconds_of(program, *arguments)
        found = {"temporary GB": temporary_gb(program), "compile s": took}
        return {"ms": 1e3 * seconds, **against(flops, seconds), **found}

    for rows in sorted({sizes.middle, *sizes.torch_rows}, reverse=True):
        row = {"part": "LSTM layer", "rows": rows}
        yield tried(row, partial(recurrent, rows))
    text = Text(sizes)
    words = text.reader(sizes.middle).batch(0).words
    whole = elmojax.init(model, jax.random.key(0)).tree

    def characters(form: Any) -> Row:
        encoder = BiLM(model, dtype=jnp.bfloat16, platform=form)

        def encode(params: Any) -> Any:
            return encoder.apply({"params": params}, words, method="encode_words")

        own = ({"encoder": whole["encoder"]},)
        return measured(encode, own, text.encoder_flops(sizes.middle))

    for name, form in (("window", "accelerator"), ("character", "cpu")):
        row = {"part": f"char CNN, by {name}", "rows": sizes.middle}
        yield tried(row, partial(characters, form))


def memory(sizes: Sizes, known: Known) -> Iterator[Row]:
    """What `elmojax estimate` says on a machine without a GPU, beside the GPU's."""
    jax.config.update("jax_platforms", "cpu")
    text = Text(sizes)
    mesh = make_mesh(MeshConfig(1, 1))
    seen = {row["rows"]: row for row in known.get("train", [])}

    def estimated(rows: int) -> Row:
        config = TrainConfig(
            model=sizes.model, head=text.head, rows=rows, window=sizes.window
        )
        begin = time.perf_counter()
        found = estimate(config, text.statistics, mesh, 1, jnp.bfloat16)
        here = seen.get(rows, {})
        return {
            "estimate, temporary GB": found.memory.temporary / 1e9,
            "compiled, temporary GB": here.get("temporary GB"),
            "estimate, all GB": found.memory.total / 1e9,
            "peak GB": here.get("peak GB"),
            "MFLOP a token": found.flops.total / 1e6,
            "all s": time.perf_counter() - begin,
        }

    for rows in sizes.rows:
        yield tried({"rows": rows}, partial(estimated, rows))


def kernels(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Where the time of a training step goes, by the profiler."""
    text = Text(sizes)
    reader = text.reader(sizes.middle)
    step, _ = training.our_step(reader, sizes.model, text.head, ARGUMENTS)
    step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        (path,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(path))
    spent: dict[str, list[float]] = defaultdict(list)
    for plane in trace.planes:
        if plane.name.startswith("/device:"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        spent[event.name].append(event.duration_ns / 1e6)
    if not spent:
        raise Skipped("The profiler saw no kernels of a device.")

    most = sorted(spent.items(), key=lambda pair: -sum(pair[1]))[:40]
    every = [time for each in spent.values() for time in each]
    for name, each in (("all", every), *most):
        steps = ARGUMENTS.steps
        yield {"kernel": name, "ms": sum(each) / steps, "times": len(each) / steps}


# Running the sections


class Section(NamedTuple):
    measure: Callable[[Sizes, Known], Iterator[Row]]
    least: int
    """Seconds without which it is not begun."""
    most: int
    """Seconds after which it is ended."""


SECTIONS = {
    "device": Section(device, 10, 60),
    "parity": Section(parity, 40, 150),
    "train": Section(train, 60, 200),
    "torch": Section(torch, 30, 90),
    "embed": Section(embed, 30, 120),
    "softmax": Section(heads, 20, 80),
    "determinism": Section(bits, 40, 130),
    "layers": Section(layers, 20, 80),
    "kernels": Section(kernels, 30, 90),
    "memory": Section(memory, 30, 120),
}
"""In the order in which they run; what other machines can tell comes last."""


class Report:
    """on_gpu.json and on_gpu.md, on disk at any time as far as they are known."""

    def __init__(self, out: Path, facts: Row | None = None) -> None:
        self.out = out
        self.found = facts or json.loads((out / "on_gpu.json").read_bytes())

    def put(self, name: str, **what: Any) -> None:
        self.found["sections"].setdefault(name, {}).update(what)
        written = json.dumps(self.found, indent=1) + "\n"
        for end, text in ((".json", written), (".md", self.table())):
            path = self.out / f"on_gpu{end}"
            partial = path.with_suffix(f"{end}.partial")
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)

    def table(self) -> str:
        """Markdown."""
        facts = {key: self.found[key] for key in self.found if key != "sections"}
        lines = ["; ".join(f"{key}: {value}" for key, value in facts.items())]
        for name, part in self.found["sections"].items():
            reason = f": {part['reason']}" if part["reason"] else ""
            status = f"{part['status']}{reason} ({part['seconds']:.0f} s)"
            about = (SECTIONS[name].measure.__doc__ or "").strip()
            lines += ["", f"## {name}", "", f"{about} {status}", ""]
            columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
            if columns:
                rows = [[row.get(key) for key in columns] for row in part["rows"]]
                lines.append(harness.table(columns, rows))
        return "\n".join(lines) + "\n"


def section(report: Report, name: str, sizes: Sizes) -> None:
    """Measures a section in this process; each row is in the report at once."""
    begin, rows = time.monotonic(), []
    before = report.found["sections"].items()
    known = {name: part["rows"] for name, part in before}

    def put(status: str, reason: str = "") -> None:
        seconds = time.monotonic() - begin
        report.put(name, status=status, reason=reason, seconds=seconds, rows=rows)

    try:
        for row in SECTIONS[name].measure(sizes, known):
            rows.append(row)
            put("running")
    except Skipped as skipped:
        put("skipped", str(skipped))
        return
    except Exception as error:
        traceback.print_exc()
        rows.append({"error": f"{type(error).__name__}: {error}"[:300]})
    wrong = [row["error"] for row in rows if "error" in row]
    if wrong:
        put("failed", f"{len(wrong)} times, first: {wrong[0]}")
    else:
        put("ok")


def machine() -> str:
    """GPUs with their driver as the system names them, and the processor."""
    fields = "name,driver_version,memory.total"
    gpu = output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return f"{gpu or 'no NVIDIA GPU'}, {os.cpu_count()} cores, {platform.platform()}"


def output(*command: str) -> str:
    """What a command prints; nothing where it cannot be had."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return " / ".join(done.stdout.strip().splitlines())


def all_sections(report: Report, asked: argparse.Namespace) -> bool:
    """Runs the sections one after the other; whether none failed."""
    begin, good = time.monotonic(), True
    for name in asked.only:
        left = asked.seconds - (time.monotonic() - begin)
        _, least, most = SECTIONS[name]
        if left < least:
            reason = f"{left:.0f} s were left, and it needs about {least}."
            report.put(name, status="skipped", reason=reason, seconds=0.0, rows=[])
        else:
            report.put(name, status="running", reason="", seconds=0.0, rows=[])
            in_process(report, name, min(left, most), asked)
        part = report.found["sections"][name]
        good = good and part["status"] != "failed"
        harness.say(f"{name}: {part['status']} {part['reason']}".strip())
    return good


def in_process(
    report: Report, name: str, limit: float, asked: argparse.Namespace
) -> None:
    """One section, which writes the report for as long as it runs."""
    command = [sys.executable, __file__, "--section", name, "--out", str(report.out)]
    command += ["--smoke"] if asked.smoke else []
    begin = time.monotonic()
    with open(report.out / "on_gpu.log", "a", encoding="utf-8") as log:
        print(f"== {name}", file=log, flush=True)
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True
        )
        try:
            reason = f"It ended with status {process.wait(limit)}."
        except subprocess.TimeoutExpired:
            reason = f"It was ended after {limit:.0f} s."
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    report.found = Report(report.out).found
    what: Row = {"seconds": time.monotonic() - begin}
    if report.found["sections"][name]["status"] == "running":
        what |= {"status": "failed", "reason": reason}
    report.put(name, **what)


def main() -> None:
    parser = harness.options(
        __doc__,
        out=(Path, "The directory of the results."),
        seconds=(520.0, "For all sections."),
        smoke=(False, "Measure with tiny sizes."),
    )
    every = list(SECTIONS)
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--section", choices=every, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        return run(*asked.run)
    if asked.section:
        sizes = SMOKE if asked.smoke else Sizes()
        return section(Report(asked.out), asked.section, sizes)
    if asked.smoke:  # programs of the sections need not be fast
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    facts = {
        "machine": machine(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["on_gpu.sh", *sys.argv[1:]]),
        "commit": output("git", "rev-parse", "HEAD"),
        "sections": {},
    }
    report = Report(asked.out, facts)
    good = all_sections(report, asked)
    print(report.table())
    sys.exit(not good)


if __name__ == "__main__":
    main()

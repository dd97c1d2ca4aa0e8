"""What `on_gpu.sh` measures on one GPU: parity with the CPU, speed, memory, bits.

Each section runs in a process of its own, one after the other: one that crashes or
runs out of memory or time leaves the rest alone, and the rows that it had by then are
kept. A row that cannot be had says why. A section that the time left of `--seconds` is
too short for is skipped. on_gpu.json and on_gpu.md are written after each section; both
begin with the machine, the versions, the date and the command. Exit status 1 where a
section failed.

Sizes are those of the published model and of its vocabulary of 793,471 words; text is
random, with the share of each word as `training.sizes` assumes it, so that a step has
as many distinct words as a real one. Products are bfloat16 unless a row says otherwise.
Seconds are the median of repeated rounds, after a warm-up.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import check_determinism
import embedding
import harness
import jax
import jax.numpy as jnp
import numpy as np
import training
from harness import DTYPES, Row
from training import drawn

import elmojax
from elmojax.config import (
    PRESETS,
    CharCnnConfig,
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    OptimizerConfig,
    TrainConfig,
)
from elmojax.estimate import StepPlan
from elmojax.text.batches import TrainingText
from elmojax.text.prepare import sample_corpora
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import path_name
from elmojax.training.sizes import (
    BENCHMARK_POSITIONS,
    BENCHMARK_WORDS,
    TextStatistics,
    assumed_text,
)
from elmojax.training.step import train_step
from elmojax.training.utilization import (
    FORWARD_AND_BACKWARD,
    Flops,
    chip_of,
    lstm_flops,
    token_flops,
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
    compared: tuple[str, ...] = ("float32", "bf16")
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
    compared=("bf16",),
    flags=("--xla_gpu_deterministic_ops=true",),
    copied=1 << 16,
)
STEPS, ROUNDS = 4, 5


# --- the text and the recipe ---------------------------------------------------------


def text_of(sizes: Sizes) -> TextStatistics:
    """Random text of a size."""
    statistics = assumed_text(sizes.vocabulary, BENCHMARK_POSITIONS)
    share = statistics.types[3:]
    corpus = harness.zipf_corpus(len(share), sizes.tokens, share)
    return replace(statistics, corpus=corpus)


def planned(
    sizes: Sizes,
    text: TextStatistics,
    rows: int,
    kind: Any = "adaptive",
    precision: str = "bf16",
) -> tuple[StepPlan, TrainingText]:
    """The step that a run of `pretrain` on the text takes, and its batches."""
    config = TrainConfig(
        model=sizes.model,
        head=HeadConfig(kind, samples=sizes.samples),
        rows=rows,
        window=sizes.window,
    )
    return harness.planned(config, text, DTYPES[precision])


def flops_of(plan: StepPlan, text: TextStatistics) -> Flops:
    """Of a position, as `estimate` counts them."""
    return token_flops(plan.config, text, plan.sizes)


def tried(row: Row, function: Callable[[], Row]) -> Row:
    """The row with what a function adds, or with why it adds nothing."""
    try:
        return row | function()
    except Exception as error:
        traceback.print_exc()
        return row | {"error": f"{type(error).__name__}: {error}".strip()[:300]}


def against(flops: float, seconds: float, precision: str = "bf16") -> Row:
    """The time, and the least by the data sheet, for a chip that is in the table."""
    chip = chip_of(jax.devices()[0].device_kind)
    least = (chip and flops / chip.products(precision)) or None
    return {
        "ms": 1e3 * seconds,
        "floor ms": least and 1e3 * least,
        "of data sheet": least and least / seconds,
    }


def program(found: Row) -> Row:
    return {"temporary GB": found["temporary"] / 1e9, "compile s": found["compile"]}


# --- sections ------------------------------------------------------------------------


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

    def product() -> Row:
        rate = harness.matmul_rate(jnp.bfloat16)
        return {"value": rate / 1e12, "data sheet": sheet and sheet.bf16 / 1e12}

    def copy() -> Row:
        x = jax.random.normal(jax.random.key(0), (sizes.copied,), jnp.float32)
        found = harness.timed(lambda x: x + 1, x, rounds=7, calls=5)
        rate = 2 * x.nbytes / found["seconds"]
        return {"value": rate / 1e9, "data sheet": sheet and sheet.bandwidth / 1e9}

    yield tried({"what": "product of bf16, TFLOP/s"}, product)
    yield tried({"what": "copy, read and written, GB/s"}, copy)


BOUNDS = {"float32": 3e-5, "bf16": 1e-2}
"""Largest distance of an array: norm of the difference over the norm. Sums of some
hundred products of float32 in another order are 1e-6 away; TF32, which rounds factors
to 11 bits, would be 4e-4 away in every product. The 8 bits of bfloat16 make 2e-3: where
sums differ in their last digit, a factor may be rounded the other way."""


def parity(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Values and gradients on this device, and on the CPU of the same process."""

    def row(precision: str, name: str, *case: Any) -> Row:
        bound = BOUNDS[precision]
        row = {"part": name, "precision": precision, "bound": bound}
        return tried(row, partial(apart, bound, *case))

    todo = ((each, *case) for each in sizes.compared for case in compared(each))
    with ThreadPoolExecutor() as pool:  # compilers side by side
        yield from pool.map(lambda case: row(*case), todo)


def apart(bound: float, here: Any, there: Any, arguments: Any) -> Row:
    """How far the results on this device are from those on the CPU."""
    pair = (here, jax.devices()[0]), (there, jax.devices("cpu")[0])
    results = {
        (function, place): jax.jit(function)(*jax.device_put(arguments, place))
        for function, place in dict.fromkeys(pair)
    }
    one, other = (jax.device_get(results[each]) for each in pair)
    far = jax.tree_util.tree_leaves_with_path(jax.tree.map(distance, one, other))
    path, most = max(far, key=lambda leaf: (np.isnan(leaf[1]), leaf[1]))
    found = {"arrays": len(far), "distance": most, "furthest": path_name(path)}
    wrong = {"error": "The results are too far from those of the CPU."}
    return found if most <= bound else found | wrong


def distance(found: Any, wanted: Any) -> float:
    """Norm of the difference over the norm; 0 where both are 0."""
    found, wanted = (np.asarray(array, np.float64) for array in (found, wanted))
    difference, norm = np.linalg.norm(found - wanted), np.linalg.norm(wanted)
    if difference == 0:
        return 0.0
    return float(difference / norm) if norm else float("inf")


def compared(precision: Any) -> Iterator[tuple[str, Any, Any, tuple[Any, ...]]]:
    """The parts of a model and the whole of it: name, functions and arguments.

    In bfloat16 no clip acts, as one number on the other side of a clip would change the
    gradient more than all roundings.
    """
    model, half, rows = SMALL, precision == "bf16", 24
    if half:
        free = replace(model.lstm, cell_clip=np.inf, projection_clip=np.inf)
        model = replace(model, lstm=free)
    sizes = Sizes(model, vocabulary=5003, tokens=20_000, samples=512)
    text = text_of(sizes)

    def prepared(kind: str) -> tuple[Any, ...]:
        plan, reader = planned(sizes, text, rows, kind, precision)
        # Whose form of a computation is taken must not depend on where it runs.
        lm = replace(plan.lm, mesh=None, platform="accelerator")
        state = jax.device_get(training.Steps.begun(plan).state)
        params, carry = few_digits(state.params), drawn(state.carry, 0.1)
        state = state.replace(params=params, carry=carry)
        return lm, plan.optimizer, state, reader.batch(1)

    function, arguments = dict(training.parts_of(*prepared("sampled")))["softmax"]
    yield "softmax, sampled", function, function, arguments
    lm, optimizer, state, batch = prepared("adaptive")
    by_character = replace(lm, platform="cpu")
    for form, model_, names in (
        ("", lm, ("encoder", "LSTM", "softmax")),
        (", by character", by_character, ("encoder",)),
    ):
        parts = dict(training.parts_of(model_, optimizer, state, batch))
        for name in names:
            function, arguments = parts[name]
            yield name + form, function, function, arguments
    fast = make_optimizer(OptimizerConfig(learning_rate=10.0), 10)

    def step(lm: Any, state: Any, batch: Any) -> Any:
        new, metrics = train_step(lm, fast, state, batch)
        change = jax.tree.map(jnp.subtract, new.params, state.params)
        return {"values": (metrics, new.carry), "change": change}

    # What a run does on each, so the char CNN is computed in two ways.
    forms = partial(step, lm), partial(step, by_character)
    yield "training step", *forms, (state, batch)
    sentences = [["word" * (1 + n % 3)] * (1 + n % 7) for n in range(rows)]
    tokens = elmojax.batch_to_ids(sentences, model.encoder.max_characters)

    def embed(params: Any, gammas: Any) -> Any:
        return elmojax.embed(elmojax.cast(params, precision), tokens, gammas)

    elmo = elmojax.from_tree(model, state.params)
    gammas = np.asarray([0.5, 0.3, 0.2], np.float32)
    function, arguments = training.both_ways(embed, elmo, gammas)
    yield "embed", function, function, arguments


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
    text, peak = text_of(sizes), harness.matmul_rate(jnp.bfloat16)

    def measured(rows: int) -> Row:
        plan, reader = planned(sizes, text, rows)
        found = training.ours(plan, reader, STEPS, ROUNDS)
        seconds, tokens = found["seconds"], rows * sizes.window
        flops = flops_of(plan, text).total
        stats = jax.devices()[0].memory_stats() or {}
        return {
            "tokens/s": tokens / seconds,
            **against(flops * tokens, seconds),
            "of measured product": flops * tokens / seconds / peak,
            "MFLOP a token": flops / 1e6,
            **program(found),
            "peak GB": stats.get("peak_bytes_in_use", 0) / 1e9 or None,
            "loss": found["loss"],
        }

    for rows in sizes.rows:
        yield tried({"rows": rows}, partial(measured, rows))


def torch(sizes: Sizes, known: Known) -> Iterator[Row]:
    """The same step in PyTorch under autocast; its LSTM has no clips."""
    if importlib.util.find_spec("torch") is None:
        raise Skipped("torch is not installed.")
    import torch

    text, cuda = text_of(sizes), torch.cuda
    ours = {row["rows"]: row.get("tokens/s") for row in known.get("train", [])}

    def measured(rows: int) -> Row:
        gc.collect()
        cuda.empty_cache()
        try:
            found = training.theirs(*planned(sizes, text, rows), STEPS, ROUNDS)
        except torch.OutOfMemoryError:
            return {"note": "out of memory"}
        rate = rows * sizes.window / found["seconds"]
        return {
            "tokens/s": rate,
            "ms": 1e3 * found["seconds"],
            "elmojax is, times as fast": ours.get(rows) and ours[rows] / rate,
            "peak GB": cuda.max_memory_allocated() / 1e9 or None,
        }

    for rows in sizes.torch_rows:
        yield tried({"rows": rows}, partial(measured, rows))


def embed(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Words/s of `embed` and of an Embedder whose words are all known."""
    model, (batch, words) = sizes.model, sizes.sentences
    columns = model.encoder.max_characters
    corpus = text_of(sizes).corpus
    running = [corpus.types[n] for n in corpus.words[: batch * words]]
    sentences = np.array(running).reshape(batch, words).tolist()
    tokens = jax.device_put(elmojax.batch_to_ids(sentences, columns))
    params = elmojax.init(model, jax.random.key(0))
    flops = batch * (words + 2) * (lstm_flops(model.lstm) + word_flops(model, columns))
    gammas = jnp.full(model.lstm.layers + 1, 1 / 3, jnp.float32)

    def at_once(precision: Any) -> Row:
        arguments = (elmojax.cast(params, precision), tokens, gammas)
        found = harness.timed(elmojax.embed, *arguments, rounds=7, calls=5)
        return {
            "words/s": batch * words / found["seconds"],
            **against(flops / FORWARD_AND_BACKWARD, found["seconds"], precision),
            **program(found),
        }

    def stream(precision: Any) -> Row:
        settings = (sizes.batch_tokens, sizes.stream, precision)
        return embedding.on_device(model, *settings)

    for precision in ("bf16", "float32"):
        row = {"what": f"embed, {batch} x {words}", "precision": precision}
        yield tried(row, partial(at_once, precision))
    for precision in ("bf16", "float32"):
        row = {"what": "Embedder", "precision": precision}
        yield tried(row, partial(stream, precision))


def determinism(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Whether a small run that is made twice ends with the same bits in every array."""
    jax.config.update("jax_platforms", "cpu")  # here runs are only compared
    code = "import on_gpu, sys; on_gpu.small_run(*sys.argv[1:])"
    flags = os.environ.get("XLA_FLAGS", "")

    def twice(extra: str) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            data = sample_corpora(Path(folder))[0].directory
            runs = [Path(folder) / name for name in ("first", "second")]
            for run in runs:
                command = [sys.executable, "-c", code, run, data, sizes.steps]
                environment = os.environ | {"XLA_FLAGS": f"{flags} {extra}".strip()}
                environment["PYTHONPATH"] = os.pathsep.join(sys.path)
                subprocess.run([*map(str, command)], check=True, env=environment)
            one, other = map(check_determinism.arrays, runs)
        what = check_determinism.difference(one, other)
        return {"arrays": len(one), "bits": what or "the same"}

    for extra in sizes.flags:
        row = {"XLA_FLAGS": extra or "none", "steps": sizes.steps}
        yield tried(row, partial(twice, extra))


def small_run(directory: str, data: str, steps: str) -> None:
    """A run in this process."""
    config = TrainConfig(
        data=Path(data),
        workdir=Path(directory),
        model=replace(SMALL, lstm=LstmConfig(dim=128, projection=32)),
        optimizer=OptimizerConfig("adamw", 5e-3),
        steps=int(steps),
        rows=32,
    )
    elmojax.pretrain(config)


def parts(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Parts of a step alone, forward and backward, among them both gradients of the
    char CNN (by window, and by character as on a CPU) and the sampled softmax."""
    text, tokens = text_of(sizes), sizes.middle * sizes.window
    for kind, only, form in (
        ("adaptive", ("encoder", "LSTM", "softmax", "update"), None),
        ("sampled", ("softmax",), None),
        ("by character", ("encoder",), "cpu"),
    ):
        softmax = "sampled" if kind == "sampled" else "adaptive"
        plan, reader = planned(sizes, text, sizes.middle, softmax)
        plan = replace(plan, lm=replace(plan.lm, platform=form))
        flops = flops_of(plan, text)
        each = {"encoder": flops.encoder, "LSTM": flops.lstm, "softmax": flops.softmax}
        for found in training.timed_parts(plan, reader, 3 * ROUNDS, only):
            times = against(each.get(found["part"], 0) * tokens, found["seconds"])
            yield {"part": f"{found['part']}, {kind}", **times, **program(found)}


def kernels(sizes: Sizes, known: Known) -> Iterator[Row]:
    """Where the time of a training step goes, by the profiler."""
    plan, reader = planned(sizes, text_of(sizes), sizes.middle)
    steps, batches = training.stepping(plan, reader, STEPS)
    steps.run(batches)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps.run(batches)
        (path,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(path))
    spent: dict[str, list[float]] = defaultdict(list)
    for plane in trace.planes:
        for line in plane.lines if plane.name.startswith("/device:") else ():
            for event in line.events if line.name.startswith("Stream") else ():
                for name in (event.name, "all"):
                    spent[name].append(event.duration_ns / 1e6)
    if not spent:
        raise Skipped("The profiler saw no kernels of a device.")
    for name, each in sorted(spent.items(), key=lambda pair: -sum(pair[1]))[:40]:
        yield {"kernel": name, "ms": sum(each) / STEPS, "times": len(each) / STEPS}


# --- running the sections ------------------------------------------------------------


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
    "parts": Section(parts, 40, 160),
    "determinism": Section(determinism, 40, 130),
    "kernels": Section(kernels, 30, 90),
}
"""In the order in which they run."""


def one_section(name: str, asked: argparse.Namespace) -> None:
    """Measures in this process; prints each row, as JSON, as soon as it is known."""
    path = asked.out / "on_gpu.json"
    before = json.loads(path.read_bytes())["sections"] if path.exists() else {}
    known = {name: part["rows"] for name, part in before.items()}
    try:
        for row in SECTIONS[name].measure(SMOKE if asked.smoke else Sizes(), known):
            print(json.dumps(row), flush=True)
    except Skipped as skipped:
        print(json.dumps({"skipped": str(skipped)}))


def in_process(name: str, limit: float, asked: argparse.Namespace) -> Row:
    """What a section found until it ended, or was ended with all that it started."""
    command = ["timeout", "-s", "KILL", str(limit), sys.executable, __file__]
    command += ["--section", name, "--out", str(asked.out)]
    command += ["--smoke"] if asked.smoke else []
    begin = time.monotonic()
    with open(asked.out / "on_gpu.log", "ab") as log, tempfile.TemporaryFile() as told:
        log.write(f"== {name}\n".encode())
        log.flush()
        code = subprocess.run(command, stdout=told, stderr=log).returncode
        told.seek(0)
        lines = [line for line in told if line.endswith(b"\n")]
    rows = [json.loads(line) for line in lines if line.startswith(b"{")]
    seconds = time.monotonic() - begin
    wrong = [row["error"] for row in rows if "error" in row]
    status, reason = "ok", ""
    if rows and "skipped" in rows[-1]:
        status, reason = "skipped", rows.pop()["skipped"]
    elif code:
        why = f"status {code}" if seconds < limit else f"a kill after {limit:.0f} s"
        status, reason = "failed", f"It ended with {why}."
    elif wrong:
        status, reason = "failed", f"{len(wrong)} times, first: {wrong[0]}"
    return {"status": status, "reason": reason, "seconds": seconds, "rows": rows}


def all_sections(asked: argparse.Namespace) -> bool:
    """Runs the sections one after the other; whether none failed."""
    begin, sections = time.monotonic(), {}
    found = {
        "machine": machine(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["on_gpu.sh", *sys.argv[1:]]),
        "commit": output("git", "rev-parse", "HEAD"),
        "sections": sections,
    }
    for name in asked.only:
        left = asked.seconds - (time.monotonic() - begin)
        _, least, most = SECTIONS[name]
        if left < least:
            reason = f"{left:.0f} s were left, and it needs about {least}."
            part = {"status": "skipped", "reason": reason, "seconds": 0.0, "rows": []}
        else:
            limit = left if asked.smoke else min(left, most)
            part = in_process(name, limit, asked)
        sections[name] = part
        for end, text in (("json", json.dumps(found, indent=1)), ("md", page(found))):
            path = asked.out / f"on_gpu.{end}"
            path.write_text(text + "\n", encoding="utf-8")
        harness.say(f"{name}: {part['status']} {part['reason']}".strip())
    print(page(found))
    return all(part["status"] != "failed" for part in sections.values())


def page(found: Row) -> str:
    """Markdown."""
    lines = ["; ".join(f"{key}: {found[key]}" for key in found if key != "sections")]
    for name, part in found["sections"].items():
        status = ": ".join(filter(None, (part["status"], part["reason"])))
        about = " ".join((SECTIONS[name].measure.__doc__ or "").split())
        lines += [f"\n## {name}\n", f"{about} {status} ({part['seconds']:.0f} s)", ""]
        lines += [harness.table_of(part["rows"])] if part["rows"] else []
    return "\n".join(lines)


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


def main() -> None:
    every = list(SECTIONS)
    parser = harness.options(
        __doc__,
        out=(Path, "The directory of the results."),
        seconds=(520.0, "For all sections."),
        smoke=(False, "Measure with tiny sizes."),
        only=(every, "Sections to run.", every),
    )
    parser.add_argument("--section", choices=every, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.section:
        return one_section(asked.section, asked)
    if asked.smoke:  # programs of the sections need not be fast
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    sys.exit(not all_sections(asked))


if __name__ == "__main__":
    main()

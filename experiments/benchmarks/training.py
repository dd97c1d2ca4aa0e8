"""Training throughput of one machine: elmojax, and PyTorch beside it in the same run.

    python experiments/benchmarks/training.py --preset mini --rows 64 --vocabulary 30000
    python experiments/benchmarks/training.py --preset original \\
        --rows 128 384 512 1024 --vocabulary 793471 --out training.json \\
        --plot training.png

Text is synthetic with Zipf's law, so nothing is read from disk. Both programs take the
same batches (unique words encoded once) and do forward, backward and an Adagrad update.
PyTorch's LSTM has no clips and no skip connection inside; where torch is not installed
that column is left out. Prints a table and writes JSON: tokens/s (median of the rounds,
a token is one position trained in both directions), CPU-seconds a token, temporary
memory, and the share of the matmul rate that was measured in the same run. `--heads
adaptive full sampled` times other heads beside the first, `--parts` a step's parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from parts import seconds_by_part
from report import Bar, bars, write

from elmojax.config import ElmoConfig, HeadConfig, OptimizerConfig
from elmojax.text.batches import TrainingText
from elmojax.text.corpus import Corpus
from elmojax.text.tables import WordTables
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.choices import automatic_cutoffs
from elmojax.training.optim import make_optimizer
from elmojax.training.step import LanguageModel, compile_train_step, init_state
from elmojax.training.utilization import lstm_flops, word_flops


def zipf_corpus(
    types: int, words: int, seed: int = 0, share: np.ndarray | None = None
) -> Corpus:
    """A corpus of made-up words, 24 a sentence: `share` of each, or 1/rank."""
    random = np.random.default_rng(seed)
    share = 1 / np.arange(1, types + 1) if share is None else share
    text = 3 + random.choice(types, size=words, p=share / share.sum()).astype(np.int32)
    lengths = random.integers(2, 18, types)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    drawn = letters[random.integers(0, 26, (types, 18))]
    pairs = zip(drawn, lengths, strict=True)
    names = [f"{''.join(row[:n])}{i}" for i, (row, n) in enumerate(pairs)]
    counts = np.bincount(text, minlength=types + 3)
    offsets = np.arange(0, words + 1, 24)
    offsets[-1] = words
    every = [*SPECIALS, *names]
    vocabulary = Vocabulary(tuple(every))
    parts = (vocabulary, every, counts, text, offsets)
    return Corpus(Path("synthetic"), {}, "", *parts)


def matmul_rate(dtype: Any) -> float:
    """Floating-point operations a second of one large product, of random numbers: of
    ones or zeros a GPU makes it faster."""
    n, times = (8192, 20) if jax.default_backend() == "gpu" else (2048, 1)
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready([product(a, a) for _ in range(times)][-1])
        rates.append(2 * n**3 * times / (time.perf_counter() - begin))
    return max(rates)


def measure(run: Callable[[int], Any], rounds: int, steps: int) -> dict[str, float]:
    """Median seconds and CPU-seconds of `steps` steps, after a warm-up."""
    run(0)
    walls, cpus = [], []
    for number in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        run(1 + number)
        walls.append((time.perf_counter() - wall) / steps)
        cpus.append((time.process_time() - cpu) / steps)
    return {"seconds": statistics.median(walls), "cpu": statistics.median(cpus)}


def alike(text: TrainingText, count: int) -> list[Any]:
    """Batches of the same shapes, so that one compiled program runs them all."""

    def shapes(batch: Any) -> tuple[Any, ...]:
        return tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))

    drawn = [text.batch(step) for step in range(3 * count)]
    usual = Counter(map(shapes, drawn)).most_common(1)[0][0]
    return [batch for batch in drawn if shapes(batch) == usual][:count]


def for_head(text: TrainingText, config: ElmoConfig, head: HeadConfig) -> TrainingText:
    """The same rows, with what this softmax takes besides."""
    corpus, samples = text.corpus, head.samples if head.kind == "sampled" else 0
    words = WordTables(corpus, corpus.vocabulary, config, head=head)
    return TrainingText(corpus, words, text.rows, text.window, text.seed, samples)


def our_step(
    text: TrainingText, config: ElmoConfig, head: HeadConfig, args: Any
) -> tuple[Callable[[int], None], dict[str, Any]]:
    """What makes `args.steps` steps, and what is known of them before they run."""
    dtype = jnp.float32 if args.precision == "float32" else jnp.bfloat16
    text = for_head(text, config, head)
    size = len(text.corpus.vocabulary)
    lm = LanguageModel(config, size, head, 0.1, dtype)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    device = jax.devices()[0]  # named, or the second step is compiled once more
    state = jax.jit(partial(init_state, lm, optimizer, text.rows, 0))()
    state = jax.device_put(state, device)
    batches = [jax.device_put(batch, device) for batch in alike(text, args.steps)]
    parts = {}
    if args.parts:
        parts = seconds_by_part(lm, optimizer, state, batches[0], 3 * args.rounds)
    step: Any = compile_train_step(lm, optimizer, state)
    begin = time.perf_counter()
    compiled = step.lower(state, batches[0]).compile()
    facts: dict[str, Any] = {
        "compile_seconds": time.perf_counter() - begin,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "parts": parts,
        "tables": [table.shape for table in batches[0].words],
    }

    def run(_: int) -> None:
        nonlocal state
        for batch in batches:
            state, metrics = compiled(state, batch)
        jax.block_until_ready(state.params)
        facts[lm.loss_name] = float(metrics[lm.loss_name])

    return run, facts


def ours(
    text: TrainingText, config: ElmoConfig, head: HeadConfig, args: Any
) -> dict[str, Any]:
    run, facts = our_step(text, config, head, args)
    return measure(run, args.rounds, args.steps) | facts


def torch_peer(
    text: TrainingText, config: ElmoConfig, cutoffs: tuple[int, ...], args: Any
) -> dict[str, float]:
    from torch_bilm import TorchBiLM, torch_step

    half = args.precision != "float32"
    size = len(text.corpus.vocabulary)
    model = TorchBiLM(config, size, cutoffs or (size // 2,), args.div_value)
    step = torch_step(model, text.rows, half)
    batches = alike(text, args.steps)

    def run(_: int) -> None:
        for batch in batches:
            loss = step(batch)
        float(loss)

    return measure(run, args.rounds, args.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rows", type=int, nargs="+", default=[64])
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=30000)
    parser.add_argument("--div-value", type=float, default=4.0)
    parser.add_argument("--samples", type=int, default=8192)
    heads = ("adaptive", "full", "sampled")
    parser.add_argument("--heads", nargs="+", default=["adaptive"], choices=heads)
    parser.add_argument("--precision", choices=["float32", "bf16"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--parts", action="store_true", help="also time by part")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="needs matplotlib")
    args = parser.parse_args()
    backend = jax.default_backend()
    args.precision = args.precision or ("float32" if backend == "cpu" else "bf16")
    config = ElmoConfig.preset(args.preset)
    corpus = zipf_corpus(args.vocabulary - 3, max(2_000_000, 60 * args.vocabulary))
    words = WordTables(corpus, corpus.vocabulary, config, 1)
    counts = np.sort(np.asarray(corpus.counts, np.float64))[::-1]
    cutoffs = automatic_cutoffs(counts, config.lstm.projection, args.div_value)
    half = jnp.float32 if args.precision == "float32" else jnp.bfloat16
    peak = matmul_rate(half)
    with_torch = not args.no_torch and importlib.util.find_spec("torch") is not None
    rows = []
    for count in args.rows:
        text = TrainingText(corpus, words, count, args.window, 0)
        batch = text.batch(0)
        unique = len(np.unique(batch.inputs)) / (count * args.window)
        # Of LSTM and encoder; what a softmax costs depends on its kind.
        distinct = words.frequencies(args.window).distinct(count * args.window)
        columns = float(np.average(words.columns, weights=distinct))
        flops = lstm_flops(config.lstm) + unique * word_flops(config, columns)
        tokens = count * args.window
        row: dict[str, Any] = {"rows": count, "flops_a_token": flops}
        for kind in args.heads:
            ranks = cutoffs if kind == "adaptive" else ()
            head = HeadConfig(kind, ranks, args.div_value, samples=args.samples)
            row[kind] = ours(text, config, head, args)
        row["elmojax"] = found = row.pop(args.heads[0])
        row["share_of_peak"] = flops * tokens / found["seconds"] / peak
        if with_torch:
            row["torch"] = torch_peer(text, config, cutoffs, args)
        for name in ("elmojax", "torch", *args.heads[1:]):
            if name in row:
                row[name]["tokens_per_second"] = tokens / row[name]["seconds"]
        rows.append(row)
        print(describe(row), flush=True)
    found = {"cutoffs": cutoffs, "matmul_flops_per_second": peak, "rows": rows}
    write(args.out, args, **found, config=dataclasses.asdict(config))
    bars(args.plot, panels(rows))


def panels(rows: list[dict[str, Any]]) -> dict[str, dict[str, Bar]]:
    """Tokens/s of each program, and milliseconds of each part of the last step."""
    speed: dict[str, Bar] = {}
    for row in rows:
        for name in ("elmojax", "torch", "full", "sampled"):
            if name in row:
                value = row[name]["tokens_per_second"]
                speed[f"{name}, {row['rows']} rows"] = (value, value, value)
    parts = {
        name: (1e3 * seconds, 1e3 * seconds, 1e3 * seconds)
        for name, seconds in rows[-1]["elmojax"]["parts"].items()
    }
    label = f"ms of a step of {rows[-1]['rows']} rows"
    return {"tokens/s": speed, **({label: parts} if parts else {})}


def describe(row: dict[str, Any]) -> str:
    line = f"rows {row['rows']:5}: "
    for name in ("elmojax", "torch", "full", "sampled"):
        if name in row:
            line += f"{name} {row[name]['tokens_per_second']:12,.0f} tokens/s   "
    ours = row["elmojax"]
    line += f"{row['share_of_peak']:.0%} of the matmul rate, "
    line += f"{ours['temporary_bytes'] / 1e9:.2f} GB temporary"
    for name, seconds in ours["parts"].items():
        line += f"\n    {name:18} {seconds * 1e3:10.2f} ms"
    return line


if __name__ == "__main__":
    main()

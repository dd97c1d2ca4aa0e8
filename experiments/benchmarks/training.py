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
adaptive full sampled` times other heads beside the first. `--parts` times each part of
a step alone, forward and backward, on the arrays of a real batch: parts add up to about
the step on a CPU; on an accelerator the difference is what overlaps or waits.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Bar, Row, Steps

from elmojax.config import ElmoConfig, HeadConfig, OptimizerConfig
from elmojax.model import bilm
from elmojax.model.bilm import BiLM
from elmojax.model.ops import row_keys
from elmojax.text.batches import TrainingText
from elmojax.training.optim import make_optimizer
from elmojax.training.step import LanguageModel, loss, take
from elmojax.training.utilization import lstm_flops, word_flops

DTYPES = {"float32": jnp.float32, "bf16": jnp.bfloat16}


def alike(text: TrainingText, count: int) -> list[Any]:
    """Batches of the same shapes, so that one compiled program runs them all."""

    def shapes(batch: Any) -> tuple[Any, ...]:
        return tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))

    drawn = [text.batch(step) for step in range(3 * count)]
    usual = Counter(map(shapes, drawn)).most_common(1)[0][0]
    return [batch for batch in drawn if shapes(batch) == usual][:count]


def our_step(
    text: TrainingText, config: ElmoConfig, head: HeadConfig, args: Any
) -> tuple[Callable[[], None], Row]:
    """What makes `args.steps` steps, and what is known of them before they run."""
    text = harness.reader(text.corpus, config, head, text.rows, text.window)
    size = len(text.corpus.vocabulary)
    lm = LanguageModel(config, size, head, 0.1, DTYPES[args.precision])
    steps = Steps.begun(lm, text.rows)
    batches = jax.device_put(alike(text, args.steps), jax.devices()[0])
    facts: Row = {"parts": {}}
    if args.parts:
        parts = parts_of(lm, steps.state, batches[0])
        for name, function, arguments in parts:
            run = partial(jax.jit(function), *arguments)
            found = harness.measure(
                lambda run=run: jax.block_until_ready(run()), 3 * args.rounds
            )
            facts["parts"][name] = found["seconds"]
    facts["compile_seconds"] = harness.clocked(lambda: steps.program(batches[0]))[0]
    facts["temporary_bytes"] = steps.temporary
    facts["tables"] = [table.shape for table in batches[0].words]

    def run() -> None:
        steps.run(batches)
        facts[lm.loss_name] = steps.loss

    return run, facts


def parts_of(lm: LanguageModel, state: Any, batch: Any) -> Iterator[tuple[Any, ...]]:
    """The name of each part of a step, its function and its arguments."""
    model = BiLM(lm.config, dtype=lm.dtype, platform=lm.platform)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    params, moments = state.params, state.optimizer
    if batch.negatives is not None:  # a step takes these rows alone
        params, moments = take((params, moments), batch.negatives.words)
    two, rows, window = batch.inputs.shape
    shape = (window, two, rows, lm.config.lstm.projection)
    x = jax.random.normal(jax.random.key(0), shape, jnp.float32) / 10
    keys = row_keys(jax.random.key(0), jnp.arange(rows))

    def encoder(params: Any, tables: Any) -> Any:
        return bilm.encode_words(model, params, tables).sum()

    def lstm(params: Any, x: Any, carry: Any) -> Any:
        return bilm.contextualize(model, params, x, carry)[0][-1].sum()

    def softmax(head: Any, x: Any, batch: Any) -> Any:
        return lm.nll(head, x, batch, train=True)[0]

    def whole(params: Any, carry: Any, batch: Any) -> Any:
        return loss(lm, params, carry, batch, keys)[0]

    def update(params: Any, moments: Any) -> Any:
        changes, moments = optimizer.update(params, moments, params)
        return optax.apply_updates(params, changes), moments

    yield "encoder", jax.grad(encoder), (params, batch.words)
    yield "LSTM", jax.grad(lstm, (0, 1)), (params, x, state.carry)
    yield "softmax", jax.grad(softmax, (0, 1)), (params["head"], x, batch)
    yield "loss and gradient", jax.grad(whole), (params, state.carry, batch)
    yield "update", update, (params, moments)


def ours(text: TrainingText, config: ElmoConfig, head: HeadConfig, args: Any) -> Row:
    run, facts = our_step(text, config, head, args)
    return harness.measure(run, args.rounds, args.steps) | facts


def torch_peer(
    text: TrainingText, config: ElmoConfig, head: HeadConfig, args: Any
) -> Row:
    from torch_bilm import TorchBiLM, torch_step

    size = len(text.corpus.vocabulary)
    model = TorchBiLM(config, size, head.cutoffs or (size // 2,), head.div_value)
    step = torch_step(model, text.rows, args.precision != "float32")
    batches = alike(text, args.steps)

    def run() -> None:
        for batch in batches:
            loss = step(batch)
        float(loss)

    return harness.measure(run, args.rounds, args.steps)


def measure(args: Any) -> tuple[HeadConfig, float, list[Row]]:
    """The adaptive softmax, the rate of a product, and a row for each --rows."""
    config = ElmoConfig.preset(args.preset)
    corpus = harness.zipf_corpus(args.vocabulary - 3)
    exact = harness.adaptive(corpus, config, args.div_value)
    others = {kind: HeadConfig(kind, samples=args.samples) for kind in args.heads}
    heads = {**others, "adaptive": exact}
    peak = harness.matmul_rate(DTYPES[args.precision])
    with_torch = not args.no_torch and importlib.util.find_spec("torch") is not None
    rows = []
    for count in args.rows:
        text = harness.reader(corpus, config, exact, count, args.window)
        tokens = count * args.window
        unique = len(np.unique(text.batch(0).inputs)) / tokens
        # Of LSTM and encoder; what a softmax costs depends on its kind.
        distinct = text.words.frequencies(args.window).distinct(tokens)
        columns = float(np.average(text.words.columns, weights=distinct))
        flops = lstm_flops(config.lstm) + unique * word_flops(config, columns)
        found = {kind: ours(text, config, heads[kind], args) for kind in args.heads}
        found = {"elmojax": found.pop(args.heads[0]), **found}
        if with_torch:
            found["torch"] = torch_peer(text, config, exact, args)
        for program in found.values():
            program["tokens_per_second"] = tokens / program["seconds"]
        share = flops * found["elmojax"]["tokens_per_second"] / peak
        rows.append(
            {"rows": count, "flops_a_token": flops, **found, "share_of_peak": share}
        )
        harness.say(describe(rows[-1]))
    return exact, peak, rows


def main() -> None:
    parser = harness.options(
        __doc__,
        preset="mini",
        rows=[64],
        window=20,
        vocabulary=30_000,
        div_value=(4.0, "How much narrower each tail of the softmax is."),
        samples=8192,
        steps=10,
        rounds=3,
        no_torch=(False, "Leave PyTorch out."),
        parts=(False, "Time each part of a step, too."),
        out=Path,
        plot=Path,
    )
    heads = ("adaptive", "full", "sampled")
    parser.add_argument("--heads", nargs="+", default=["adaptive"], choices=heads)
    usual = "float32" if jax.default_backend() == "cpu" else "bf16"
    parser.add_argument("--precision", choices=DTYPES, default=usual)
    args = parser.parse_args()
    head, peak, rows = measure(args)
    config = dataclasses.asdict(ElmoConfig.preset(args.preset))
    found = {"cutoffs": head.cutoffs, "matmul_flops_per_second": peak, "rows": rows}
    harness.write(args.out, args, **found, config=config)
    harness.bars(args.plot, panels(rows))


PROGRAMS = ("elmojax", "torch", "full", "sampled")


def panels(rows: list[Row]) -> dict[str, dict[str, Bar]]:
    """Tokens/s of each program, and milliseconds of each part of the last step."""
    speed = {
        f"{name}, {row['rows']} rows": [row[name]["tokens_per_second"]]
        for row in rows
        for name in PROGRAMS
        if name in row
    }
    parts = rows[-1]["elmojax"]["parts"]
    shown = {name: [1e3 * seconds] for name, seconds in parts.items()}
    label = f"ms of a step of {rows[-1]['rows']} rows"
    return {"tokens/s": speed, **({label: shown} if parts else {})}


def describe(row: Row) -> str:
    text = f"rows {row['rows']:5}: "
    for name in PROGRAMS:
        if name in row:
            text += f"{name} {row[name]['tokens_per_second']:12,.0f} tokens/s   "
    ours = row["elmojax"]
    text += f"{row['share_of_peak']:.0%} of the matmul rate, "
    text += f"{ours['temporary_bytes'] / 1e9:.2f} GB temporary"
    for name, seconds in ours["parts"].items():
        text += f"\n    {name:18} {seconds * 1e3:10.2f} ms"
    return text


if __name__ == "__main__":
    main()

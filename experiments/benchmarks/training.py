"""Training throughput of one machine: elmojax, and PyTorch beside it in the same run.

    python experiments/benchmarks/training.py --preset mini --rows 64 --vocabulary 30000
    python experiments/benchmarks/training.py --preset original \\
        --rows 128 384 512 1024 --vocabulary 793471 --out training.json

Text is synthetic with Zipf's law, so nothing is read from disk. Both programs take the
same batches (unique words encoded once) and do forward, backward and an Adagrad update.
PyTorch's LSTM has no clips and no skip connection inside; where torch is not installed
it is left out. Prints a table and writes JSON: tokens/s (median of the rounds, a token
is one position trained in both directions), CPU-seconds a token, temporary memory, and
the share of the matmul rate that was measured in the same run. `--heads adaptive full
sampled` times other heads beside the first. `--parts` times each part of a step alone,
forward and backward, on the arrays of a real batch: parts add up to about the step on a
CPU; on an accelerator the difference is what overlaps or waits.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import DTYPES, Row, Steps

from elmojax.config import ElmoConfig, HeadConfig, TrainConfig
from elmojax.estimate import StepPlan
from elmojax.model.bilm import BiLM
from elmojax.model.ops import row_keys
from elmojax.text.batches import TrainingText
from elmojax.training.sizes import statistics_of
from elmojax.training.step import LanguageModel, TrainState, loss, take
from elmojax.training.utilization import token_flops


def alike(text: TrainingText, count: int) -> list[Any]:
    """Batches of the same shapes, so that one compiled program runs them all."""

    def shapes(batch: Any) -> tuple[Any, ...]:
        return tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))

    drawn = [text.batch(step) for step in range(3 * count)]
    usual = Counter(map(shapes, drawn)).most_common(1)[0][0]
    return [batch for batch in drawn if shapes(batch) == usual][:count]


def stepping(plan: StepPlan, text: TrainingText, count: int) -> tuple[Steps, list[Any]]:
    """A new run, and batches for so many steps."""
    return Steps.begun(plan), jax.device_put(alike(text, count), jax.devices()[0])


def ours(plan: StepPlan, text: TrainingText, steps: int, rounds: int) -> Row:
    """Time and memory of a step."""
    training, batches = stepping(plan, text, steps)
    compiling, _ = harness.clocked(lambda: training.program(batches[0]))
    return {
        **harness.measure(lambda: training.run(batches), rounds, steps),
        "compile": compiling,
        "temporary": training.temporary,
        "loss": training.loss,
    }


def theirs(plan: StepPlan, text: TrainingText, steps: int, rounds: int) -> Row:
    """Time of a step in PyTorch, with the cutoffs of our adaptive softmax."""
    from torch_bilm import TorchBiLM, torch_step

    head, size = plan.lm.head, plan.lm.vocabulary
    cutoffs = head.cutoffs or (size // 2,)
    model = TorchBiLM(plan.lm.config, size, cutoffs, head.div_value)
    step = torch_step(model, text.rows, plan.lm.dtype != DTYPES["float32"])
    batches = alike(text, steps)

    def run() -> None:
        for batch in batches:
            loss = step(batch)
        float(loss)

    return harness.measure(run, rounds, steps)


# --- the parts of a step -------------------------------------------------------------


def drawn(shapes: Any, scale: float = 1.0) -> Any:
    """A tree of random arrays."""
    random = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        return np.asarray(scale * random.standard_normal(leaf.shape), np.float32)

    return jax.tree.map(draw, shapes)


Part = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function to be compiled, and its arguments."""


def both_ways(function: Callable[..., Any], moved: Any, *fixed: Any) -> Part:
    """A function's values, and gradients of its argument `moved` for a random one of
    the result."""
    cotangent = drawn(jax.eval_shape(function, moved, *fixed))

    def run(moved: Any, fixed: Any, cotangent: Any) -> Row:
        values, pull = jax.vjp(lambda moved: function(moved, *fixed), moved)
        return {"values": values, "gradients": pull(cotangent)}

    return run, (moved, fixed, cotangent)


def parts_of(
    lm: LanguageModel, optimizer: Any, state: TrainState, batch: Any
) -> Iterator[tuple[str, Part]]:
    """The parts of a step, forward and backward: encoder, LSTM, softmax, all of these,
    and the update."""
    model = BiLM(lm.config, mesh=lm.mesh, dtype=lm.dtype, platform=lm.platform)
    params, moments = state.params, state.optimizer
    if batch.negatives is not None:  # a step takes these rows alone
        whole_tables = jax.tree.map(jnp.asarray, (params, moments))
        params, moments = take(whole_tables, jnp.asarray(batch.negatives.words))
    rows, window = batch.weights.shape
    shape = (window, 2, rows, lm.config.lstm.projection)
    x = drawn(jax.ShapeDtypeStruct(shape, np.float32), 0.1)

    def encoder(params: Any, tables: Any) -> Any:
        return model.apply({"params": params}, tables, method="encode_words")

    def lstm(moved: Any, carry: Any) -> Any:
        params, x = moved
        return model.apply({"params": params}, x, carry, method="contextualize")

    def softmax(moved: Any, batch: Any) -> Any:
        return lm.nll(*moved, batch, train=True)

    def whole(params: Any, carry: Any, batch: Any) -> Any:
        keys = row_keys(jax.random.key(0), np.arange(rows))
        return loss(lm, params, carry, batch, keys)[0]

    def update(params: Any, moments: Any) -> Any:
        changes, moments = optimizer.update(params, moments, params)
        return optax.apply_updates(params, changes), moments

    tree = {name: {name: params[name]} for name in ("encoder", "lstm")}
    yield "encoder", both_ways(encoder, tree["encoder"], batch.words)
    yield "LSTM", both_ways(lstm, (tree["lstm"], x), state.carry)
    yield "softmax", both_ways(softmax, (params["head"], x), batch)
    yield "loss and gradient", both_ways(whole, params, state.carry, batch)
    yield "update", (update, (params, moments))


def timed_parts(
    plan: StepPlan, text: TrainingText, rounds: int, only: Sequence[str] = ()
) -> Iterator[Row]:
    """Time and memory of each part of a step, or of some, on a batch."""
    training, (batch,) = stepping(plan, text, 1)
    parts = parts_of(plan.lm, plan.optimizer, training.state, batch)
    for name, (function, arguments) in parts:
        if name in (only or (name,)):
            found = harness.timed(function, *jax.device_put(arguments), rounds=rounds)
            yield {"part": name, **found}


# --- the command ---------------------------------------------------------------------


def measure(args: Any) -> Iterator[Row]:
    """A row for each program, and for each part of ours."""
    corpus = harness.zipf_corpus(args.vocabulary - 3)
    statistics = statistics_of(corpus, "made up")
    dtype = DTYPES[args.precision]
    peak = harness.matmul_rate(dtype)
    with_torch = not args.no_torch and importlib.util.find_spec("torch") is not None
    for rows, kind in itertools.product(args.rows, args.heads):
        config = TrainConfig(
            model=ElmoConfig.preset(args.preset),
            head=HeadConfig(kind, (), args.div_value, samples=args.samples),
            rows=rows,
            window=args.window,
        )
        plan, text = harness.planned(config, statistics, dtype)
        tokens = rows * args.window
        flops = tokens * token_flops(plan.config, statistics, plan.sizes).total
        programs = {f"elmojax, {kind}": ours}
        if with_torch and kind == "adaptive":
            programs["torch"] = theirs
        for name, program in programs.items():
            found = program(plan, text, args.steps, args.rounds)
            yield {
                "program": name,
                "rows": rows,
                "tokens_per_second": tokens / found["seconds"],
                "of_matmul_rate": flops / found["seconds"] / peak,
                "cpu_seconds_per_token": found["cpu"] / tokens,
                **found,
            }
        if args.parts:
            for part in timed_parts(plan, text, 3 * args.rounds):
                yield {"program": f"elmojax, {kind}", "rows": rows, **part}


def main() -> None:
    usual = "float32" if jax.default_backend() == "cpu" else "bf16"
    parser = harness.options(
        __doc__,
        preset="mini",
        rows=[64],
        window=20,
        vocabulary=30_000,
        div_value=4.0,
        samples=8192,
        steps=10,
        rounds=3,
        heads=(["adaptive"], "Kinds of softmax.", ("adaptive", "full", "sampled")),
        precision=(usual, "Of matrix products.", tuple(DTYPES)),
        no_torch=(False, "Leave PyTorch out."),
        parts=(False, "Time each part of a step, too."),
        out=Path,
    )
    args = parser.parse_args()
    harness.report(args, measure(args))


if __name__ == "__main__":
    main()

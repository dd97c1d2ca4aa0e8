"""What each idea saves: training steps with one of them switched off at a time.

    python experiments/benchmarks/ablation.py --rows 64 --plot ablation.png
    python experiments/benchmarks/ablation.py --preset original --rows 8 --rounds 3

In one process, by turns: each round runs the same --steps batches in every variant,
and a variant's ratio is its time over that of "everything on" in the same round.
Batches are made and sent while the step before runs, as in a real run; synthetic text
by Zipf's law, or --data. Prints tokens/s (medians over the rounds; a token is one
position, trained in both directions), ratios with their range, and temporary memory;
writes JSON and bars.

On a CPU everything on is float32, and the variant "bf16" is emulated there: it says
nothing of accelerators, where everything on is bf16 and the variant is "float32".
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from report import bars, write
from training import zipf_corpus

from elmojax.config import ElmoConfig, HeadConfig, MeshConfig, OptimizerConfig
from elmojax.model.bilm import BiLM
from elmojax.model.ops import dropped
from elmojax.model.state import LstmState
from elmojax.text.batches import TrainingText
from elmojax.text.corpus import Corpus
from elmojax.text.tables import WordTables
from elmojax.training.choices import automatic_cutoffs
from elmojax.training.distributed import Stop
from elmojax.training.optim import make_optimizer
from elmojax.training.prefetch import prefetched
from elmojax.training.sharding import make_mesh, place, shardings
from elmojax.training.step import LanguageModel, compile_train_step, init_state


@dataclass(frozen=True)
class Unstacked(LanguageModel):
    """Each direction in a loop of its own, one after the other."""

    def outputs(
        self, params: Any, carry: LstmState, batch: Any, keys: Any, reset: Any = None
    ) -> tuple[Array, LstmState]:
        dropout = 0.0 if keys is None else self.dropout
        model = BiLM(self.config, dropout, self.mesh, directions=1)
        words = model.apply({"params": params}, batch.words, method="encode_words")
        inputs = self._look_up(words, batch.inputs.transpose(2, 0, 1))

        def direction(n: int) -> tuple[Array, LstmState]:
            weights = jax.tree.map(lambda leaf: leaf[n : n + 1], params["lstm"])
            before = jax.tree.map(lambda leaf: leaf[:, n : n + 1], carry)
            own = {"params": {**params, "lstm": weights}}
            read = inputs[:, n : n + 1], before, None, None, keys
            return model.apply(own, *read, method="contextualize")

        layers, states = zip(direction(0), direction(1), strict=True)
        both = partial(jnp.concatenate, axis=1)
        top = both([each[-1] for each in layers])
        if dropout and keys is not None:
            top = dropped(top, dropout, keys, self.config.lstm.layers)
        return top, jax.tree.map(lambda one, other: both([one, other]), *states)


class Variant:
    """A training run that steps as often as it is asked to."""

    def __init__(self, lm: LanguageModel, text: TrainingText, ahead: bool) -> None:
        assert lm.mesh is not None
        self.lm, self.text, self.ahead = lm, text, ahead
        optimizer = make_optimizer(OptimizerConfig(), 1000)
        create = partial(init_state, lm, optimizer, text.rows, 0)
        places = shardings(lm.mesh, jax.eval_shape(create))
        self.state = jax.jit(create, out_shardings=places)()
        self._step: Any = compile_train_step(lm, optimizer, self.state)
        self._programs: dict[tuple[int, ...], Any] = {}
        self.temporary, self.loss = 0, float("nan")

    def run(self, steps: int) -> float:
        """Seconds of the first `steps` batches, which are the same every time."""
        begin = time.perf_counter()
        for batch in self._batches(steps):
            shape = tuple(table.shape[0] for table in batch.words)
            if shape not in self._programs:
                program = self._step.lower(self.state, batch).compile()
                size = program.memory_analysis().temp_size_in_bytes
                self.temporary = max(self.temporary, size)
                self._programs[shape] = program
            self.state, metrics = self._programs[shape](self.state, batch)
        jax.block_until_ready(self.state.params)
        seconds = time.perf_counter() - begin
        self.loss = float(metrics[self.lm.loss_name])
        return seconds

    def _batches(self, steps: int) -> Iterator[Any]:
        if not self.ahead:
            for step in range(steps):
                yield place(self.lm.mesh, self.text.batch(step), "batch.")
            return
        record = SimpleNamespace(train=SimpleNamespace(accumulate=1))
        run: Any = SimpleNamespace(
            record=record, lm=self.lm, text=self.text, steps=steps
        )
        for ready in prefetched(run, 0, Stop()):
            yield ready.batch


def variants(corpus: Corpus, args: Any) -> dict[str, Variant]:
    """Everything on, and each idea switched off; all start from the same numbers."""
    config = ElmoConfig.preset(args.preset)
    counts = np.sort(corpus.target_counts(corpus.vocabulary).astype(np.float64))[::-1]
    cutoffs = automatic_cutoffs(counts, config.lstm.projection, 4.0)
    on_cpu = jax.default_backend() == "cpu"
    usual, other = (
        (jnp.float32, jnp.bfloat16) if on_cpu else (jnp.bfloat16, jnp.float32)
    )
    mesh = make_mesh(MeshConfig(data=1))
    head, size = HeadConfig("adaptive", cutoffs), len(corpus.vocabulary)
    lm = LanguageModel(config, size, head, args.dropout, usual, mesh)
    unstacked = Unstacked(config, size, head, args.dropout, usual, mesh)
    texts = [
        TrainingText(
            corpus,
            WordTables(corpus, corpus.vocabulary, config, every=every, head=head),
            args.rows,
            args.window,
            0,
        )
        for every in (False, True)
    ]
    precision = "bf16 (emulated)" if on_cpu else "float32 instead of bf16"
    made = {
        "everything on": (lm, texts[0], True),
        "no unique words": (lm, texts[1], True),
        "no stacking": (unstacked, texts[0], True),
        precision: (replace(lm, dtype=other), texts[0], True),
        "no prefetch": (lm, texts[0], False),
    }
    wanted = [name for name in made if not args.only or name in args.only]
    return {name: Variant(*made[name]) for name in ["everything on", *wanted]}


def measure(runs: dict[str, Variant], args: Any) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, args.rounds):
        for name, variant in runs.items():
            spent = variant.run(args.steps)
            if number >= 0:  # the round before compiles
                seconds[name].append(spent / args.steps)
    tokens, rows = args.rows * args.window, []
    for name, variant in runs.items():
        pairs = zip(seconds[name], seconds["everything on"], strict=True)
        ratios = [mine / base for mine, base in pairs]
        rows.append(
            {
                "variant": name,
                "tokens_per_second": tokens / statistics.median(seconds[name]),
                "seconds_a_step": seconds[name],
                "times_as_long": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "temporary_bytes": variant.temporary,
                variant.lm.loss_name: variant.loss,
            }
        )
    return rows


def describe(row: dict[str, Any]) -> str:
    low, high = row["range"]
    return (
        f"{row['variant']:24} {row['tokens_per_second']:11,.0f} tokens/s   "
        f"{row['times_as_long']:5.2f} times as long ({low:.2f} to {high:.2f})   "
        f"{row['temporary_bytes'] / 1e6:9,.1f} MB temporary"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="prepared corpus; none: synthetic")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=30000)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="variants besides everything on")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.data:
        corpus = Corpus.open(args.data)
    else:
        words = max(2_000_000, 60 * args.vocabulary)
        corpus = zipf_corpus(args.vocabulary - 3, words)
    rows = measure(variants(corpus, args), args)
    for row in rows:
        print(describe(row))
    write(args.out, args, rows=rows)
    took = {row["variant"]: (row["times_as_long"], *row["range"]) for row in rows}
    memory = {row["variant"]: [row["temporary_bytes"] / 1e6] * 3 for row in rows}
    bars(args.plot, {"times as long": took, "temporary memory, MB": memory})


if __name__ == "__main__":
    main()

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

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import jax
import jax.numpy as jnp
from harness import Row, Steps
from jax import Array

from elmojax.config import ElmoConfig, MeshConfig
from elmojax.model.bilm import BiLM
from elmojax.model.lstm import LstmState
from elmojax.model.ops import apply_dropout
from elmojax.text.batches import TrainingText
from elmojax.text.corpus import Corpus
from elmojax.training.distributed import Stop
from elmojax.training.prefetch import prefetched
from elmojax.training.sharding import make_mesh, put_on_mesh
from elmojax.training.step import LanguageModel

BASE = "everything on"


@dataclass(frozen=True)
class Unstacked(LanguageModel):
    """Each direction in a loop of its own, one after the other."""

    def top_layer(
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
            top = apply_dropout(top, dropout, keys, self.config.lstm.layers)
        return top, jax.tree.map(lambda one, other: both([one, other]), *states)


class Variant:
    """A training run that steps as often as it is asked to."""

    def __init__(self, lm: LanguageModel, text: TrainingText, ahead: bool) -> None:
        self.text, self.ahead = text, ahead
        self.steps = Steps.begun(lm, text.rows)

    def run(self, steps: int) -> float:
        """Seconds of the first `steps` batches, which are the same every time."""
        return harness.clocked(lambda: self.steps.run(self._batches(steps)))[0]

    def _batches(self, steps: int) -> Iterator[Any]:
        lm, text = self.steps.lm, self.text
        if not self.ahead:
            return (put_on_mesh(lm.mesh, text.batch(n), "batch.") for n in range(steps))
        record = SimpleNamespace(train=SimpleNamespace(accumulate=1))
        run: Any = SimpleNamespace(record=record, lm=lm, text=text, steps=steps)
        return (ready.batch for ready in prefetched(run, 0, Stop()))


def variants(corpus: Corpus, args: Any) -> dict[str, Variant]:
    """Everything on, and each idea switched off; all start from the same numbers."""
    config = ElmoConfig.preset(args.preset)
    on_cpu = jax.default_backend() == "cpu"
    usual, other = (
        (jnp.float32, jnp.bfloat16) if on_cpu else (jnp.bfloat16, jnp.float32)
    )
    mesh, head = make_mesh(MeshConfig(data=1)), harness.adaptive(corpus, config)
    settings = (config, len(corpus.vocabulary), head, args.dropout, usual, mesh)
    lm = LanguageModel(*settings)
    plain, every = (
        harness.reader(corpus, config, head, args.rows, args.window, each_position=each)
        for each in (False, True)
    )
    precision = "bf16 (emulated)" if on_cpu else "float32 instead of bf16"
    made = {
        BASE: (lm, plain, True),
        "no unique words": (lm, every, True),
        "no stacking": (Unstacked(*settings), plain, True),
        precision: (replace(lm, dtype=other), plain, True),
        "no prefetch": (lm, plain, False),
    }
    return {name: Variant(*each) for name, each in made.items()}


def measure(runs: dict[str, Variant], args: Any) -> list[Row]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, args.rounds):
        for name, variant in runs.items():
            spent = variant.run(args.steps)
            if number >= 0:  # the round before compiles
                seconds[name].append(spent / args.steps)
    tokens, rows = args.rows * args.window, []
    for name, variant in runs.items():
        middle, *ends = harness.spread(harness.ratios(seconds[name], seconds[BASE]))
        rows.append(
            {
                "variant": name,
                "tokens_per_second": tokens / statistics.median(seconds[name]),
                "seconds_a_step": seconds[name],
                "times_as_long": middle,
                "range": ends,
                "temporary_bytes": variant.steps.temporary,
                variant.steps.lm.loss_name: variant.steps.loss,
            }
        )
    return rows


def describe(row: Row) -> str:
    low, high = row["range"]
    return (
        f"{row['variant']:24} {row['tokens_per_second']:11,.0f} tokens/s   "
        f"{row['times_as_long']:5.2f} times as long ({low:.2f} to {high:.2f})   "
        f"{row['temporary_bytes'] / 1e6:9,.1f} MB temporary"
    )


def main() -> None:
    parser = harness.options(
        __doc__,
        data=Path,
        preset="mini",
        rows=64,
        window=20,
        vocabulary=30_000,
        dropout=(0.1, "The dropout of training."),
        steps=10,
        rounds=5,
        out=Path,
        plot=Path,
    )
    args = parser.parse_args()
    rows = measure(variants(harness.corpus_of(args), args), args)
    for row in rows:
        harness.say(describe(row))
    harness.write(args.out, args, rows=rows)
    took = {row["variant"]: (row["times_as_long"], *row["range"]) for row in rows}
    memory = {row["variant"]: [row["temporary_bytes"] / 1e6] for row in rows}
    harness.bars(args.plot, {"times as long": took, "temporary memory, MB": memory})


if __name__ == "__main__":
    main()

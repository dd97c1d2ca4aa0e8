"""The data pipeline alone: word ids on disk to batches, on one core.

    python experiments/benchmarks/pipeline.py --data DIR
    python experiments/benchmarks/pipeline.py --rows 64 384 1024 --vocabulary 30000

Times `TrainingText.batch`, which makes everything that a step takes (what is sent to
the devices is not in it), in CPU-seconds of the one thread that runs it. Without --data
the text is synthetic with Zipf's law. A token is one position, trained in both
directions and counted once. The shuffle of an epoch is timed apart, and spread over all
positions of the epoch in "with shuffle". Parts are the shares of a second run with a
clock in each. Prints a table and writes JSON and bars.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np

from elmojax.config import ElmoConfig
from elmojax.text.batches import TrainingText


def seconds(work: Callable[[], Any]) -> float:
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def measure(text: TrainingText, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds, in each of which all steps are made once."""
    a_step = text.rows * text.window
    steps = range(min(max(5, tokens // a_step), text.steps(1)))
    shuffles = [seconds(lambda n=n: text._shuffle(n)) for n in range(3)]
    text.batch(0)

    def run() -> None:
        for step in steps:
            text.batch(step)

    each = statistics.median(seconds(run) for _ in range(rounds)) / len(steps) / a_step
    shuffle = statistics.median(shuffles) / text.positions
    distinct = [len(np.unique(text.batch(step).inputs)) for step in steps[:5]]
    return {
        "rows": text.rows,
        "steps": len(steps),
        "seconds_a_batch": each * a_step,
        "tokens_per_second": 1 / each,
        "tokens_per_second_with_shuffle": 1 / (each + shuffle),
        "seconds_of_a_shuffle": statistics.median(shuffles),
        "distinct_words_a_position": statistics.mean(distinct) / (2 * a_step),
        "parts": parts(text, run),
    }


def parts(text: TrainingText, run: Callable[[], None]) -> dict[str, float]:
    """The share of the time that each part of a batch takes."""
    spent: dict[str, float] = defaultdict(float)

    def with_clock(plain: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begin = time.thread_time()
            try:
                return plain(*args, **options)
            finally:
                spent[label] += time.thread_time() - begin

        return call

    with ExitStack() as stack:
        for owner, name, label in (
            (text, "_types", "reading"),
            (text.words, "distinct", "distinct words"),
            (text.words, "rows", "rows"),
            (text.words, "tables", "tables"),
            (text.words, "members", "members of clusters"),
        ):
            timed = with_clock(getattr(owner, name), label)
            stack.enter_context(mock.patch.object(owner, name, timed))
        total = seconds(run)
    spent["targets and the rest"] = total - sum(spent.values())
    return {label: value / total for label, value in spent.items()}


def describe(row: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in row["parts"].items())
    return (
        f"rows {row['rows']:5}: {row['tokens_per_second'] / 1e6:5.2f} M tokens/s, "
        f"{row['tokens_per_second_with_shuffle'] / 1e6:5.2f} with shuffle, "
        f"{row['seconds_a_batch'] * 1e3:6.2f} ms a batch ({shares})"
    )


def main() -> None:
    parser = harness.options(
        __doc__,
        data=Path,
        preset="original",
        rows=[64, 384, 1024],
        window=20,
        vocabulary=30_000,
        words=(3_000_000, "Words of the text where it is made up."),
        shards=(1, "Devices along `data`."),
        tokens=(400_000, "Tokens of a round."),
        rounds=5,
        out=Path,
        plot=Path,
    )
    args = parser.parse_args()
    corpus, model = harness.corpus_of(args), ElmoConfig.preset(args.preset)
    head = harness.adaptive(corpus, model)
    sizes = {"types": len(corpus.types), "words": len(corpus.words)}
    print(f"{sizes['words']:,} words, {sizes['types']:,} types")
    rows = []
    for count in args.rows:
        text = harness.reader(corpus, model, head, count, args.window, (args.shards, 1))
        rows.append(measure(text, args.tokens, args.rounds))
        harness.say(describe(rows[-1]))
    harness.write(args.out, args, numpy=np.__version__, **sizes, rows=rows)
    keys = ("tokens_per_second", "tokens_per_second_with_shuffle")
    speed = {f"{row['rows']} rows": [row[key] / 1e6 for key in keys] for row in rows}
    harness.bars(args.plot, {"M tokens/s (left end: with shuffle)": speed})


if __name__ == "__main__":
    main()

"""The data pipeline alone: word ids on disk to batches, on one core.

    python experiments/benchmarks/pipeline.py --data DIR
    python experiments/benchmarks/pipeline.py --rows 64 384 1024 --vocabulary 30000

Times `TrainingText.batch`, which makes everything that a step takes (what is sent to
the devices is not in it), in CPU-seconds of the one thread that runs it. Without --data
the text is synthetic with Zipf's law. A token is one position, trained in both
directions and counted once. The shuffle of an epoch is timed apart, and spread over all
positions of the epoch in "with shuffle". Parts are the shares of a second run under
Python's profiler. Prints a table and writes JSON.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Row

from elmojax.config import ElmoConfig, TrainConfig
from elmojax.text.batches import TrainingText

PARTS = ("_types", "distinct", "rows", "tables", "members")
"""Functions whose shares are told."""


def seconds(work: Callable[[], Any]) -> float:
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def measure(text: TrainingText, tokens: int, rounds: int) -> Row:
    """Medians over rounds, in each of which all steps are made once."""
    a_step = text.rows * text.window
    steps = range(min(max(5, tokens // a_step), text.steps(1)))
    shuffles = [seconds(lambda n=n: text._shuffle(n)) for n in range(3)]
    text.batch(0)

    def run() -> None:
        for step in steps:
            text.batch(step)

    each = statistics.median(seconds(run) for _ in range(rounds)) / len(steps) / a_step
    shuffle = statistics.median(shuffles)
    distinct = [len(np.unique(text.batch(step).inputs)) for step in steps[:5]]
    return {
        "rows": text.rows,
        "tokens/s": 1 / each,
        "with shuffle": 1 / (each + shuffle / text.positions),
        "ms a batch": 1e3 * each * a_step,
        "s a shuffle": shuffle,
        "distinct words a position": statistics.mean(distinct) / (2 * a_step),
        **parts(run),
    }


def parts(run: Callable[[], None]) -> Row:
    """The share of the time that each part of a batch takes."""
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(run)
    stats: Any = pstats.Stats(profile)
    spent = {name: took for (_, _, name), (_, _, _, took, _) in stats.stats.items()}
    return {
        f"of it {name.strip('_')}": spent.get(name, 0) / stats.total_tt
        for name in PARTS
    }


def measured(args: Any) -> Iterator[Row]:
    corpus = harness.corpus_of(args)
    harness.say(f"{len(corpus.words):,} words, {len(corpus.types):,} types")
    for rows in args.rows:
        model = ElmoConfig.preset(args.preset)
        config = TrainConfig(model=model, rows=rows, window=args.window)
        _, text = harness.planned(config, corpus)
        yield measure(text, args.tokens, args.rounds)


def main() -> None:
    parser = harness.options(
        __doc__,
        data=Path,
        preset="original",
        rows=[64, 384, 1024],
        window=20,
        vocabulary=30_000,
        words=(3_000_000, "Words of the text where it is made up."),
        tokens=(400_000, "Tokens of a round."),
        rounds=5,
        out=Path,
    )
    args = parser.parse_args()
    harness.report(args, measured(args), numpy=np.__version__)


if __name__ == "__main__":
    main()

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

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import bars, write
from training import zipf_corpus

from elmojax.config import ElmoConfig, HeadConfig
from elmojax.text.batches import TrainingText
from elmojax.text.corpus import Corpus
from elmojax.text.tables import WordTables
from elmojax.training.choices import automatic_cutoffs


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
    spent: dict[str, float] = {}

    def clocked(owner: Any, name: str, label: str) -> Callable[[], None]:
        plain = getattr(owner, name)

        def with_clock(*args: Any, **options: Any) -> Any:
            begin = time.thread_time()
            try:
                return plain(*args, **options)
            finally:
                spent[label] = spent.get(label, 0) + time.thread_time() - begin

        setattr(owner, name, with_clock)
        return lambda: setattr(owner, name, plain)

    undo = [
        clocked(text, "_types", "reading"),
        clocked(text.words, "distinct", "distinct words"),
        clocked(text.words, "rows", "rows"),
        clocked(text.words, "tables", "tables"),
        clocked(text.words, "members", "members of clusters"),
    ]
    try:
        total = seconds(run)
    finally:
        for back in undo:
            back()
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="prepared corpus; none: synthetic")
    parser.add_argument("--preset", default="original")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 384, 1024])
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=30000, help="if synthetic")
    parser.add_argument("--words", type=int, default=3_000_000, help="if synthetic")
    parser.add_argument("--shards", type=int, default=1, help="devices along `data`")
    parser.add_argument("--samples", type=int, default=0, help="of a sampled softmax")
    parser.add_argument("--tokens", type=int, default=400_000, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.data:
        corpus = Corpus.open(args.data)
    else:
        corpus = zipf_corpus(args.vocabulary - 3, args.words)
    model = ElmoConfig.preset(args.preset)
    dim, counts = model.lstm.projection, corpus.target_counts(corpus.vocabulary)
    cutoffs = () if args.samples else automatic_cutoffs(counts, dim, 4.0)
    head = HeadConfig("adaptive", cutoffs)
    words = WordTables(corpus, corpus.vocabulary, model, args.shards, head=head)
    print(f"{len(corpus.words):,} words, {len(corpus.types):,} types")
    rows = []
    for count in args.rows:
        text = TrainingText(corpus, words, count, args.window, 0, args.samples)
        rows.append(measure(text, args.tokens, args.rounds))
        print(describe(rows[-1]), flush=True)
    sizes = {"types": len(corpus.types), "words": len(corpus.words)}
    write(args.out, args, numpy=np.__version__, **sizes, rows=rows)
    keys = ("tokens_per_second", "tokens_per_second_with_shuffle", "tokens_per_second")
    speed = {f"{row['rows']} rows": [row[key] / 1e6 for key in keys] for row in rows}
    bars(args.plot, {"M tokens/s (left end: with shuffle)": speed})


if __name__ == "__main__":
    main()

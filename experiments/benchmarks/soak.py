"""Does embedding hold more and more memory? A long text, and the memory as it goes on.

    python experiments/benchmarks/soak.py --text train-000.txt.xz train-001.txt.xz \\
        train-002.txt.xz --sentences 100000

Random weights of a preset; vectors of all layers on the host, one sentence after the
other, kept by nobody. Prints resident memory after every 10,000 sentences and the
number of compiled programs, and last one JSON object: the growth after the first
20,000 sentences.

    python experiments/benchmarks/soak.py --text train-*.txt.xz --plan

computes no vectors: which shapes would all sentences need, and where does each first
come up?
"""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path

import harness
import jax
import numpy as np

import elmojax
from elmojax.embedding.embedder import BATCH_TOKENS
from elmojax.embedding.engine import (
    cut_runs,
    make_plan,
    read_steps,
    step_budget,
    word_capacity,
)
from elmojax.text.files import read_lines

EVERY = 10_000


def plan(paths: list[Path]) -> None:
    """Prints each (steps, rows, words) of all batches with its first sentence."""
    seen: dict[tuple[int, int, int], int] = {}
    sizes: list[int] = []
    number = slots = words = total = 0

    def batch() -> None:
        nonlocal slots, words
        space = word_capacity(total, BATCH_TOKENS)
        made = make_plan([np.zeros(total, np.int32)], [np.array(sizes)], space)
        steps, _, rows = made.table_rows.shape
        for cut in cut_runs(steps):
            shape = (cut.stop - cut.start, rows, space)
            seen.setdefault(shape, number - len(sizes))
        slots, words = slots + steps * rows, words + total

    for path in paths:
        for _, line in read_lines(path):
            if total + len(sizes) + len(line) + 1 > step_budget(BATCH_TOKENS):
                batch()
                sizes.clear()
                total = 0
            sizes.append(len(line))
            number, total = number + 1, total + len(line)
    batch()
    for shape, first in seen.items():
        print(f"steps, rows, words {shape}: from the batch of sentence {first:,} on")
    print(f"{number:,} sentences; words fill {words / slots:.1%} of all steps")


def main() -> None:
    parser = harness.options(
        __doc__,
        text=[Path],
        preset="mini",
        sentences=(100_000, "Sentences that are read."),
        plan=(False, "Compute no vectors, show the shapes that all sentences need."),
    )
    asked = parser.parse_args()
    if asked.plan:
        plan(asked.text)
        return
    params = elmojax.init(elmojax.ElmoConfig.preset(asked.preset), jax.random.key(0))
    text = (words for path in asked.text for _, words in read_lines(path))
    samples, tokens, begin = [], 0, time.perf_counter()
    embedder = elmojax.Embedder(params)
    vectors = embedder.embed_sentences(islice(text, asked.sentences))
    for number, layers in enumerate(vectors, 1):
        tokens += layers.shape[1]
        if number % EVERY == 0:
            samples.append((harness.memory("VmRSS") / 1e6, read_steps._cache_size()))
            held, programs = samples[-1]
            harness.say(f"{number:8,} sentences {held:8.1f} MB {programs} programs")
    if not samples:
        parser.error(f"the text has fewer than {EVERY:,} sentences; give more files.")
    held, programs = zip(*samples, strict=True)
    report = {
        "preset": asked.preset,
        "sentences": EVERY * len(samples),
        "tokens": tokens,
        "tokens_per_second": tokens / (time.perf_counter() - begin),
        "resident_mb": [round(mb, 1) for mb in held],
        "growth_mb": round(held[-1] - held[:2][-1], 1),
        "programs": programs[-1],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""Does embedding hold more and more memory? A long text, and the memory as it goes on.

    python experiments/benchmarks/soak.py --text train-000.txt.xz train-001.txt.xz \\
        train-002.txt.xz --sentences 100000

Random weights of a preset; vectors of all layers on the host, one sentence after the
other, kept by nobody. Prints resident memory and the number of compiled programs after
every 10,000 sentences, and last one JSON object: the growth after the first 20,000
sentences.
"""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path

import harness
import jax

import elmojax
from elmojax.embedding.engine import read_steps
from elmojax.text.files import read_lines

EVERY = 10_000


def main() -> None:
    parser = harness.options(
        __doc__,
        text=[Path],
        preset="mini",
        sentences=(100_000, "Sentences that are read."),
    )
    asked = parser.parse_args()
    params = elmojax.init(elmojax.ElmoConfig.preset(asked.preset), jax.random.key(0))
    text = (words for path in asked.text for _, words in read_lines(path))
    held, tokens, begin = [], 0, time.perf_counter()
    vectors = elmojax.Embedder(params).embed_sentences(islice(text, asked.sentences))
    for number, layers in enumerate(vectors, 1):
        tokens += layers.shape[1]
        if number % EVERY == 0:
            held.append(harness.memory("VmRSS") / 1e6)
            programs = read_steps._cache_size()
            harness.say(f"{number:8,} sentences {held[-1]:8.1f} MB {programs} programs")
    if not held:
        parser.error(f"the text has fewer than {EVERY:,} sentences; give more files.")
    report = {
        "sentences": EVERY * len(held),
        "tokens_per_second": tokens / (time.perf_counter() - begin),
        "growth_mb": round(held[-1] - held[:2][-1], 1),
        "programs": programs,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

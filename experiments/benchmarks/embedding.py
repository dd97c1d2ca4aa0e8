# ruff: noqa: E402  # imports are a part of what is measured
"""Embedding throughput, latency and memory: elmojax, and AllenNLP in the same run.

    python experiments/benchmarks/embedding.py --text heldout-wiki.txt.xz \\
        --allennlp-python ~/allennlp/bin/python --out embedding.json

Both read the same weights (random numbers in the shape of a published model, written by
`save_hdf5`), the same first sentences of the text, and make float32 vectors of all
layers on the host. Every measurement is a process of its own, one after the other, the
programs in turns; tokens/s are words of running text, without sentence marks, and the
median of the rounds. "characters" begins without any word known; "cached" has all words
of the text encoded beforehand (AllenNLP's `vocab_to_cache`; in elmojax, the word table
of the pass before). Start-up (imports, weights, compilation) stands apart. AllenNLP
2.10.1 needs a Python of its own (see `experiments/peers/check_allennlp.py`).
"""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

import json
import lzma
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
from harness import Row, clocked

import elmojax
from elmojax.training.utilization import FORWARD_AND_BACKWARD, lstm_flops

HERE = Path(__file__).resolve()
PEER = HERE.parents[1] / "peers" / "time_allennlp.py"
# Threads of OpenMP that spin while they wait would take the other core's time.
VARIABLES = {"GOMP_SPINCOUNT": "0", "JAX_PLATFORMS": "cpu"}

finish = partial(deque, maxlen=0)
"""Runs through an iterator."""


def main() -> None:
    parser = harness.options(
        __doc__,
        text=(Path, "A text packed with xz, one tokenised sentence a line."),
        allennlp_python=("", "A Python that has AllenNLP."),
        presets=["small", "original"],
        modes=["characters", "cached"],
        sentences=(2000, "Sentences of the text."),
        rounds=1,
        passes=(1, "Passes over the text in a round."),
        batch_tokens=(32_768, "Words and sentences of a batch."),
        allennlp_batch=(64, "Sentences of a batch of AllenNLP."),
        out=Path,
    )
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "MODE"))
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(measure(asked, *asked.worker)))
    elif asked.text is None or not asked.text.is_file():
        parser.error(f"--text {asked.text}: there is no such file.")
    else:
        harness.report(asked, compare(asked))


def compare(asked: Any) -> Iterator[Row]:
    """A row for each program and what it embeds: the median of the rounds, in which
    the programs take turns."""
    with tempfile.TemporaryDirectory() as directory:
        for preset in asked.presets:
            model = Path(directory) / preset
            config = elmojax.ElmoConfig.preset(preset)
            elmojax.save_hdf5(elmojax.init(config, jax.random.key(0)), model)
            for mode in asked.modes:
                todo = commands(asked, model, mode)
                rounds = [
                    {name: harness.alone(*todo[name], **VARIABLES) for name in todo}
                    for _ in range(asked.rounds)
                ]
                middle = {
                    name: medians([turn[name] for turn in rounds]) for name in todo
                }
                ours = middle["elmojax"]
                for name, row in middle.items():
                    rate = ours["tokens_per_second"] / row["tokens_per_second"]
                    far = np.abs(np.subtract(row["first"], ours["first"])).max()
                    more = {"elmojax is, times": rate, "difference": float(far)}
                    names = {"preset": preset, "mode": mode, "program": name}
                    yield {**names, **row, **more}


def medians(turns: list[Row]) -> Row:
    def median(values: list[Any]) -> Any:
        return statistics.median(values) if isinstance(values[0], float) else values[0]

    return {key: median([turn[key] for turn in turns]) for key in turns[0]}


def commands(asked: Any, model: Path, mode: str) -> dict[str, list[Any]]:
    ours = [sys.executable, HERE, "--worker", model, mode, "--text", asked.text]
    ours += ["--sentences", asked.sentences, "--passes", asked.passes]
    found = {"elmojax": [*ours, "--batch-tokens", asked.batch_tokens]}
    if asked.allennlp_python:
        theirs = [asked.allennlp_python, PEER, model, asked.text, asked.sentences]
        found["allennlp"] = [*theirs, asked.allennlp_batch, mode, asked.passes]
    return found


def measure(asked: Any, model: str, mode: str) -> Row:
    """One process of elmojax, as a user's program would be."""
    from elmojax.text.formats import words_of

    with lzma.open(asked.text, "rt", encoding="utf-8") as file:
        sentences = [words_of(text.rstrip()) for text in islice(file, asked.sentences)]
    params = elmojax.load(model)
    tokens, embedder = sum(map(len, sentences)), None

    def ready() -> elmojax.Embedder:
        """One that knows no words, unless they are to be known."""
        nonlocal embedder
        if embedder is None or mode == "characters":
            embedder = elmojax.Embedder(params, batch_tokens=asked.batch_tokens)
        return embedder

    def embed(some: list[list[str]]) -> None:
        finish(ready().embed_sentences(some))

    ready().embed_sentence(sentences[0])
    start = time.perf_counter() - BEGIN
    # Every shape is compiled by the first batches; the cache needs all words.
    embed(sentences[: 800 if mode == "characters" else None])
    spent = [clocked(partial(embed, sentences)) for _ in range(asked.passes)]
    walls, cpus = zip(*spent, strict=True)
    one = ready().embed_sentence
    latencies = [clocked(partial(one, sentence))[0] for sentence in sentences[:20]]
    # As if the products of the LSTM were all there is.
    flops = lstm_flops(params.config.lstm) / FORWARD_AND_BACKWARD
    return {
        "start_seconds": start,
        "tokens_per_second": tokens / statistics.median(walls),
        "cpu_seconds_per_token": statistics.mean(cpus) / tokens,
        "latency_seconds": statistics.median(latencies),
        "peak_gb": harness.memory("VmHWM") / 1e9,
        "ceiling": harness.matmul_rate(np.float32) / flops,
        "first": one(["The", "river", "bank"])[:, :, :4].tolist(),
    }


def on_device(config: Any, batch_tokens: int, count: int, precision: Any) -> Row:
    """Words/s with every word cached, with vectors on the device and on the host; for
    `on_gpu.py`.

    Args:
      count: sentences; their mean length is 24 words.
      precision: as `Embedder` takes it.
    """
    draw = np.random.default_rng(0)
    share = 1 / np.arange(1, 10_001)
    words = np.array([f"w{i}" for i in range(10_000)])
    sizes = np.clip(draw.lognormal(3.0, 0.6, count), 1, 200).astype(int)
    text = words[draw.choice(10_000, sizes.sum(), p=share / share.sum())]
    sentences = [part.tolist() for part in np.split(text, np.cumsum(sizes)[:-1])]
    params = elmojax.init(config, jax.random.key(0))
    embedder = elmojax.Embedder(params, batch_tokens=batch_tokens, precision=precision)

    def left() -> None:
        for block in embedder.blocks(sentences, on_device=True):
            jax.block_until_ready(block.vectors)

    def fetched() -> None:
        finish(embedder.blocks(sentences))

    first, _ = clocked(left)  # compiles
    here, there = (harness.measure(work, 3)["seconds"] for work in (left, fetched))
    rates = {"words/s": len(text) / here, "vectors on the host": len(text) / there}
    return {**rates, "first pass s": first}


if __name__ == "__main__":
    main()

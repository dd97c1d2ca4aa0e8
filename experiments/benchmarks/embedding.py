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

import argparse
import json
import lzma
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
PEER = HERE.parents[1] / "peers" / "time_allennlp.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path)
    parser.add_argument("--allennlp-python", default="")
    parser.add_argument("--presets", nargs="+", default=["small", "original"])
    parser.add_argument("--modes", nargs="+", default=["characters", "cached"])
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=32_768)
    parser.add_argument("--allennlp-batch", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "MODE"))
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(measure(asked, *asked.worker)))
    elif asked.text is None or not asked.text.is_file():
        parser.error(f"--text {asked.text}: there is no such file.")
    else:
        report(asked, compare(asked))


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    """Runs both programs in turns and sets their figures side by side."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for preset in asked.presets:
            model = Path(directory) / preset
            make = (
                "import sys, jax, elmojax as e\n"
                "config = e.ElmoConfig.preset(sys.argv[1])\n"
                "e.save_hdf5(e.init(config, jax.random.key(0)), sys.argv[2])"
            )
            subprocess.run([sys.executable, "-c", make, preset, model], check=True)
            for mode in asked.modes:
                todo = commands(asked, model, mode)
                row: dict[str, Any] = {"preset": preset, "mode": mode}
                row |= {program: [] for program in todo}
                for _ in range(asked.rounds):
                    for program, command in todo.items():
                        row[program].append(call(command))
                rows.append(row)
                print(line(row), flush=True)
    return {"rows": rows}


def commands(asked: argparse.Namespace, model: Path, mode: str) -> dict[str, list[str]]:
    ours = [sys.executable, str(HERE), "--worker", str(model), mode]
    ours += ["--text", str(asked.text), "--sentences", str(asked.sentences)]
    ours += ["--passes", str(asked.passes), "--batch-tokens", str(asked.batch_tokens)]
    found = {"elmojax": ours}
    if asked.allennlp_python:
        theirs = [asked.allennlp_python, str(PEER), str(model), str(asked.text)]
        theirs += [str(asked.sentences), str(asked.allennlp_batch), mode]
        found["allennlp"] = [*theirs, str(asked.passes)]
    return found


def call(command: list[str]) -> dict[str, Any]:
    # Threads of OpenMP that spin while they wait would take the other core's time.
    environment = {**os.environ, "GOMP_SPINCOUNT": "0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(asked: argparse.Namespace, model: str, mode: str) -> dict[str, Any]:
    """One process of elmojax, as a user's program would be."""
    begin = time.perf_counter()
    import elmojax
    from elmojax.text.files import words_of

    with lzma.open(asked.text, "rt", encoding="utf-8") as file:
        sentences = [words_of(text.rstrip()) for text in islice(file, asked.sentences)]
    params = elmojax.load(model)

    def fresh() -> elmojax.Embedder:
        return elmojax.Embedder(params, batch_tokens=asked.batch_tokens)

    embedder = fresh()
    embedder.embed_sentence(sentences[0])
    start = time.perf_counter() - begin
    begin = time.perf_counter()
    # Every shape is compiled by the first batches; the cache needs all words.
    last(embedder.embed_sentences(sentences[: 800 if mode == "characters" else None]))
    first_pass = time.perf_counter() - begin
    tokens, rates, clock = sum(map(len, sentences)), [], time.process_time()
    for _ in range(asked.passes):
        embedder = fresh() if mode == "characters" else embedder
        begin = time.perf_counter()
        last(embedder.embed_sentences(sentences))
        rates.append(tokens / (time.perf_counter() - begin))
    clock = (time.process_time() - clock) / asked.passes
    embedder = fresh() if mode == "characters" else embedder
    latencies = [timed(lambda s=s: embedder.embed_sentence(s)) for s in sentences[:20]]
    return {
        "start_seconds": start,
        "first_pass_seconds": first_pass,
        "tokens_per_second": statistics.median(rates),
        "cpu_seconds_per_token": clock / tokens,
        "latency_seconds": statistics.median(latencies),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "ceiling": lstm_ceiling(params),
        "first": embedder.embed_sentence(["The", "river", "bank"])[:, :, :4].tolist(),
    }


def last(items: Any) -> None:
    for _ in items:
        pass


def timed(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def lstm_ceiling(params: Any) -> float:
    """Tokens/s if the products of the LSTM were all there is, at the rate of a large
    product measured here."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    seconds = min(
        timed(lambda: jax.block_until_ready(product(a, a))) for _ in range(10)
    )
    lstm = params.config.lstm
    cell = (2 * lstm.projection * 4 + lstm.projection) * lstm.dim
    return 2 * 2048**3 / seconds / (2 * 2 * cell * lstm.layers)


def on_device(
    config: Any, batch_tokens: int, count: int = 20_000, precision: Any = None
) -> dict[str, float]:
    """Tokens/s with every word cached, with vectors on the device and on the host; for
    `on_gpu.py`.

    Args:
      count: sentences; their mean length is 24 words.
      precision: as `Embedder` takes it.
    """
    import jax
    import numpy as np

    import elmojax

    draw = np.random.default_rng(0)
    share = 1 / np.arange(1, 10_001)
    words = np.array([f"w{i}" for i in range(10_000)])
    sizes = np.clip(draw.lognormal(3.0, 0.6, count), 1, 200).astype(int)
    text = words[draw.choice(10_000, sizes.sum(), p=share / share.sum())].tolist()
    ends = np.cumsum(sizes).tolist()
    sentences = [text[e - n : e] for e, n in zip(ends, sizes.tolist(), strict=True)]
    params = elmojax.init(config, jax.random.key(0))
    embedder = elmojax.Embedder(params, batch_tokens=batch_tokens, precision=precision)

    def left() -> None:
        for block in embedder.blocks(sentences, on_device=True):
            jax.block_until_ready(block.vectors)

    def fetched() -> None:
        last(embedder.blocks(sentences))

    row = {"first_pass_seconds": timed(left)}  # compiles
    for name, function in (("on_device", left), ("on_host", fetched)):
        function()
        seconds = statistics.median(timed(function) for _ in range(3))
        row[f"{name}_tokens_per_second"] = len(text) / seconds
    return row


def line(row: dict[str, Any]) -> str:
    """One line of the table: medians over the rounds."""
    shown = f"{row['preset']:9}{row['mode']:11}"
    keys = ("tokens_per_second", "latency_seconds", "peak_gb", "start_seconds")
    medians = {
        program: [statistics.median(r[key] for r in row[program]) for key in keys]
        for program in ("elmojax", "allennlp")
        if program in row
    }
    for program, (rate, latency, peak, start) in medians.items():
        shown += f" | {program} {rate:8,.0f} tokens/s, one sentence {latency:.3f} s, "
        shown += f"{peak:.2f} GB, start {start:.1f} s"
    ceiling = statistics.median(r["ceiling"] for r in row["elmojax"])
    shown += f" | {medians['elmojax'][0] / ceiling:.0%} of LSTM ceiling {ceiling:,.0f}"
    if "allennlp" in medians:
        shown += f" | {medians['elmojax'][0] / medians['allennlp'][0]:.1f}x"
        ours, theirs = (row[p][0]["first"] for p in ("elmojax", "allennlp"))
        import numpy as np

        shown += f" | difference {np.abs(np.subtract(ours, theirs)).max():.0e}"
    return shown


def report(asked: argparse.Namespace, result: dict[str, Any]) -> None:
    result["machine"] = f"{platform.processor() or platform.machine()}"
    result |= {"cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

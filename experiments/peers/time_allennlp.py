"""Times AllenNLP 2.10.1 for `experiments/benchmarks/embedding.py`, in its own Python.

    python3.9 time_allennlp.py MODEL TEXT SENTENCES BATCH {characters,cached} PASSES

MODEL holds options.json and weights.hdf5. Embeds the first SENTENCES lines of TEXT
(plain or .xz, tokenised) in batches of BATCH, sorted by length, which costs AllenNLP
the least padding; with "cached" its word table (`vocab_to_cache`) holds every word
beforehand. Prints one JSON object.
"""

import json
import lzma
import os
import resource
import statistics
import sys
import time
from itertools import islice

begin = time.perf_counter()

import torch  # noqa: E402
from allennlp.modules.elmo import Elmo, batch_to_ids  # noqa: E402


def main():
    model, text, count, batch, mode, passes = sys.argv[1:]
    count, batch = int(count), int(batch)
    open_text = lzma.open if text.endswith(".xz") else open
    with open_text(text, "rt", encoding="utf-8") as file:
        sentences = [line.split() for line in islice(file, count)]
    torch.set_num_threads(2)
    options, weights = (
        os.path.join(model, name) for name in ("options.json", "weights.hdf5")
    )
    # Row 0 of AllenNLP's own table is padding.
    some = {word for s in sentences for word in s} | {"The", "river", "bank"}
    types = ["@@PADDING@@", *sorted(some)]
    row = {word: i for i, word in enumerate(types)}
    cache = types if mode == "cached" else None
    lm = Elmo(options, weights, 1, dropout=0.0, vocab_to_cache=cache)._elmo_lstm
    lm.eval()

    def embed(some):
        """Layers of each sentence, [layers + 1, words, vector]; characters are not
        even looked at where the words are cached."""
        most = max(map(len, some))
        with torch.no_grad():
            if cache is None:
                out = lm(batch_to_ids(some))
            else:
                ids = [[row[w] for w in s] + [0] * (most - len(s)) for s in some]
                out = lm(None, torch.tensor(ids))
        layers = torch.stack(out["activations"])[:, :, 1:-1]
        return [layers[:, i, : len(s)].numpy() for i, s in enumerate(some)]

    lm(batch_to_ids(sentences[:2]))
    report = {"start_seconds": time.perf_counter() - begin}
    ordered = sorted(sentences, key=len)
    tokens, rates = sum(map(len, sentences)), []
    clock = time.process_time()
    for _ in range(int(passes)):
        started = time.perf_counter()
        for first in range(0, len(ordered), batch):
            embed(ordered[first : first + batch])
        rates.append(tokens / (time.perf_counter() - started))
    clock = (time.process_time() - clock) / int(passes)
    latencies = []
    for sentence in sentences[:20]:
        started = time.perf_counter()
        embed([sentence])
        latencies.append(time.perf_counter() - started)
    report |= {
        "tokens_per_second": statistics.median(rates),
        "cpu_seconds_per_token": clock / tokens,
        "latency_seconds": statistics.median(latencies),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "torch": torch.__version__,
    }
    lm._elmo_lstm._states = None  # as if nothing had been read before
    report["first"] = embed([["The", "river", "bank"]])[0][:, :, :4].tolist()
    print(json.dumps(report))


main()

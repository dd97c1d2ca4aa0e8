"""Worker of `peers.py`: bilm-tf (TensorFlow 1.15, Python 3.7) trains as it always does.

`bilm.training.train` itself runs, with bilm-tf's own data sets, on one "GPU" that
TensorFlow places on the CPU. It asks for batches one by one, and so a turn is what it
does between the first batch of the turn and the one after the last: reading, feeding,
one `session.run` a step with its summaries. The 1,250th step writes a checkpoint and
histograms; a benchmark ends before.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from turns import Turns, read_task

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from bilm.data import BidirectionalLMDataset
from bilm.training import load_vocab, train


class Session(tf.Session):
    """Remembers the training perplexity, which `train` prints now and then only."""

    perplexity = math.nan

    def run(self, fetches: Any, *arguments: Any, **options: Any) -> Any:
        found = super().run(fetches, *arguments, **options)
        if isinstance(fetches, list) and isinstance(fetches[0], tf.Operation):
            Session.perplexity = found[2]  # after the update and the summary
        return found


class Text:
    """bilm-tf's data set, which hands out batches as the turns allow it."""

    def __init__(self, data: BidirectionalLMDataset, turns: Turns) -> None:
        self.data, self.turns = data, turns

    def iter_batches(self, rows: int, window: int) -> Iterator[dict[str, np.ndarray]]:
        batches = self.data.iter_batches(rows, window)
        yield next(batches)
        versions = {"tensorflow": tf.__version__, "numpy": np.__version__}
        loss = math.log(Session.perplexity)
        self.turns.ready(rows * window, versions=versions, loss=loss)
        for steps in self.turns:
            self.turns.begin()
            for _ in range(steps):
                yield next(batches)
            self.turns.finish(math.log(Session.perplexity))


def main() -> None:
    turns, task = Turns(), read_task()
    random.seed(0)
    np.random.seed(0)
    tf.set_random_seed(0)
    tf.Session = Session
    options = task["options"]
    characters = options["char_cnn"]["max_characters_per_token"]
    vocabulary = load_vocab(task["vocabulary"], characters)
    options["n_tokens_vocab"] = vocabulary.size
    data = BidirectionalLMDataset(task["text"], vocabulary, shuffle_on_load=True)
    os.makedirs(task["workdir"])
    train(options, Text(data, turns), 1, task["workdir"], task["workdir"])


if __name__ == "__main__":
    main()

"""Worker of `peers.py`: the biLM in PyTorch, in four variants (see `torch_bilm.py`).

lstm     `nn.LSTM(proj_size=...)`, which has no clips
clips    a loop over the steps that clips cells and outputs
-unique  each distinct word of the batch is encoded once, in elmojax's short tables;
         without it every position is, at the full width, as AllenNLP and bilm-tf do

Batches are elmojax's, made by a thread ahead of time. Threads of PyTorch: its default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from protocol import Turns, read_task

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from torch_bilm import TorchBiLM, one_table, torch_step

from elmojax.config import CharCnnConfig, ElmoConfig, from_json
from elmojax.text.batches import Batch, TrainingText
from elmojax.text.characters import PADDING
from elmojax.text.corpus import Corpus
from elmojax.text.tables import WordTables

AHEAD = 2
"""Batches made ahead of time, as many as elmojax makes."""


def every_position(batch: Batch, characters: int) -> Batch:
    """The batch with the characters of each position instead of each word."""
    words = one_table(batch.words)
    missing = characters - words.shape[1]
    words = np.pad(words, ((0, 0), (0, missing)), constant_values=PADDING + 1)
    shape = batch.inputs.shape
    order = np.arange(batch.inputs.size, dtype=np.int32).reshape(shape)
    return batch._replace(words=(words[batch.inputs.ravel()],), inputs=order)


def batches(text: TrainingText, characters: int) -> Iterator[Batch]:
    """All batches; with `characters`, those of every position."""

    def make(step: int) -> Batch:
        batch = text.batch(step)
        return every_position(batch, characters) if characters else batch

    with ThreadPoolExecutor(1) as thread:
        ahead = [thread.submit(make, step) for step in range(AHEAD)]
        step = AHEAD
        while True:
            ahead.append(thread.submit(make, step))
            step += 1
            yield ahead.pop(0).result()


def main() -> None:
    turns, task = Turns(), read_task()
    torch.manual_seed(0)
    config = from_json(ElmoConfig, task["config"], "the task")
    assert isinstance(config.encoder, CharCnnConfig)
    corpus = Corpus.open(Path(task["corpus"]))
    words = WordTables(corpus, corpus.vocabulary, config)
    text = TrainingText(corpus, words, task["rows"], task["window"], 0)
    size = len(corpus.vocabulary)
    cutoffs = tuple(task["cutoffs"]) or (size // 2,)
    clips = task["variant"].startswith("clips")
    model = TorchBiLM(config, size, cutoffs, task["div_value"], clips)
    step = torch_step(model, task["rows"], half=False)
    unique = task["variant"].endswith("unique")
    source = batches(text, 0 if unique else config.encoder.max_characters)

    def steps(count: int) -> float:
        for _ in range(count):
            loss = step(next(source))
        return float(loss)

    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    loss = steps(1)
    turns.ready(task["rows"] * task["window"], versions=versions, loss=loss)
    turns.serve(steps)


if __name__ == "__main__":
    main()

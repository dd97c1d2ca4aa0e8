"""Worker of `peers.py`: the biLM in PyTorch, in four variants (see `torch_bilm.py`).

lstm     `nn.LSTM(proj_size=...)`, which has no clips
clips    a loop over the steps that clips cells and outputs
-unique  each distinct word of the batch is encoded once, in elmojax's short tables;
         without it every position is, at the full width, as AllenNLP and bilm-tf do

Batches are elmojax's, made by a thread ahead of time. Threads of PyTorch: its default.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch_bilm import TorchBiLM, torch_step
from turns import Turns, read_task

from elmojax.config import TrainConfig, from_json
from elmojax.text.batches import Batch, TrainingText
from elmojax.text.corpus import Corpus
from elmojax.training.sizes import training_text


def batches(text: TrainingText) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(text.batch, 0)
        for step in itertools.count(1):
            batch, coming = coming.result(), thread.submit(text.batch, step)
            yield batch


def main() -> None:
    turns, task = Turns(), read_task()
    torch.manual_seed(0)
    config = from_json(TrainConfig, task["config"], "the task")
    assert config.data is not None
    corpus, variant = Corpus.open(config.data), task["variant"]
    config = replace(config, unique_words=variant.endswith("unique"))
    source = batches(training_text(config, corpus, 1))
    size, head = len(corpus.vocabulary), config.head
    cutoffs, clips = head.cutoffs or (size // 2,), variant.startswith("clips")
    model = TorchBiLM(config.model, size, cutoffs, head.div_value, clips)
    step = torch_step(model, config.rows, half=False)

    def steps(count: int) -> float:
        for batch in itertools.islice(source, count):
            loss = step(batch)
        return float(loss)

    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    loss = steps(1)
    turns.ready(config.rows * config.window, versions=versions, loss=loss)
    turns.serve(steps)


if __name__ == "__main__":
    main()

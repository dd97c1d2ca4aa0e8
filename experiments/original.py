"""The paper's run: One Billion Word Benchmark, 793,471 words, 10 epochs.

    elmojax prepare --tfds lm1b --split train --data-dir DATA_DIR --out data/lm1b \\
        --max-vocabulary 793471
    elmojax pretrain --config experiments/original.py --workdir runs/original

768,648,884 token positions an epoch. The recipe is that of the authors (Adagrad 0.2,
accumulator 1, gradient norm 10, dropout 0.1, 384 rows of 20 in all), with the exact
adaptive softmax in place of 8,192 negative samples.
"""

from dataclasses import replace
from pathlib import Path

from elmojax import TrainConfig


def config() -> TrainConfig:
    return replace(
        TrainConfig.preset("original"),
        data=Path("data/lm1b"),
        workdir=Path("runs/original"),
        checkpoint_every=2000,
        log_every=50,
    )

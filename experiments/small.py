"""A small ELMo (1024/128, 13.6 M) on your own text, with AdamW and warm-up.

elmojax prepare --text 'corpus/*.txt' --max-vocabulary 100000 --out data/train
elmojax pretrain --config experiments/small.py --workdir runs/small
"""

from dataclasses import replace
from pathlib import Path

from elmojax import TrainConfig
from elmojax.config import OptimizerConfig


def config() -> TrainConfig:
    return replace(
        TrainConfig.preset("small"),
        data=Path("data/train"),
        workdir=Path("runs/small"),
        rows=128,
        epochs=3.0,
        optimizer=OptimizerConfig("adamw", 2e-3, 1000, "cosine", 1.0),
        checkpoint_every=2000,
        log_every=50,
    )

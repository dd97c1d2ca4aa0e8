"""A minute's run on the text in the package: does everything work on this machine?

elmojax pretrain --config experiments/smoke.py
"""

from dataclasses import replace
from pathlib import Path

from elmojax import TrainConfig
from elmojax.config import LstmConfig


def config() -> TrainConfig:
    mini = TrainConfig.preset("mini")
    return replace(
        mini,
        workdir=Path("runs/smoke"),
        model=replace(mini.model, lstm=LstmConfig(128, 32)),
        steps=100,
        checkpoint_every=50,
        evaluate_every=50,
    )

"""The flags of tagging.py, and what they are when they are not given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elmojax import InputError


@dataclass(frozen=True)
class Options:
    """Trains a tagger on top of a biLM and scores it."""

    model: str
    """biLM: run directory, directory with options.json and weights.hdf5, address."""
    train: Path
    dev: Path
    """Chooses the epoch to keep, and ends training when it gets no better."""
    test: Path
    column: int = -1
    """Column of the tag, from 0 (the word is column 0); -1 = the last."""
    elmo: Literal["none", "input", "output", "both"] = "both"
    """Where the task's RNN gets ELMo."""
    sentences: int | None = None
    """Sentences of the training file to use, from its start; none = all."""
    loader: Literal["numpy", "grain"] = "numpy"
    rows: int = 32
    """Sentences of a batch."""
    epochs: int = 30
    patience: int = 3
    """Epochs without a better dev score after which training ends."""
    width: int = 50
    """Of the learned word vectors."""
    hidden: int = 100
    """Of each direction of the task's RNN."""
    dropout: float = 0.5
    """On word vectors and on the output of the RNN."""
    elmo_dropout: float = 0.5
    penalty: float = 0.001
    """Lambda of the L2 penalty on the weights of the mixes."""
    learning_rate: float = 0.003
    gradient_norm: float = 1.0
    """Gradients are clipped to this norm."""
    seed: int = 0
    json: bool = False
    """Print exactly one JSON object on standard output."""

    def check(self) -> None:
        """Raises `InputError` for a number that makes no sense."""
        for name in ("sentences", "rows", "epochs", "width", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}; it must be 1 or more.")
        if self.column == 0:
            raise InputError("--column is 0, the word; the tag's column is 1 or more.")

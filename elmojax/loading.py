"""MODEL, wherever a command or a user names one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from elmojax.config import TrainConfig, WordTableConfig
from elmojax.errors import InputError
from elmojax.formats.word_vectors import read_word_vectors
from elmojax.model.bilm import ElmoParams, from_tree
from elmojax.shapes import Params
from elmojax.text.vocabulary import Vocabulary
from elmojax.training.checkpoint import RunRecord, load_language_model


class Model(NamedTuple):
    """A biLM with what its source knows besides."""

    params: ElmoParams
    record: RunRecord
    vocabulary: Vocabulary
    tree: Params
    """Parameters with the head, as `training` takes them."""


def open_model(model: str | os.PathLike[str], step: int | None = None) -> Model:
    """Everything that a run directory holds of its newest (or given) checkpoint.

    Raises:
      InputError: if `model` is none, or cannot be read.
    """
    path = Path(model)
    if not path.exists():
        raise InputError(
            f"There is no model {str(model)!r}: give the run directory that `elmojax "
            "pretrain` made (its --workdir)."
        )
    record, vocabulary, tree = load_language_model(path, step)
    return Model(from_tree(record.train.model, tree), record, vocabulary, tree)


def load(model: str | os.PathLike[str]) -> ElmoParams:
    """`ElmoParams` of a model, ready for `embed`.

    Args:
      model: a run directory of `elmojax pretrain`; its newest checkpoint is taken.

    Raises:
      InputError: if there is no such model, or it cannot be read.
    """
    return open_model(model).params


class WordVectors:
    """A file of word vectors as the start of a word table."""

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        """Reads the vectors of the words in the vocabulary (see `read_word_vectors`)."""
        self.path = path
        self.vectors, self.found = read_word_vectors(path, vocabulary.words)

    def shape(self, config: TrainConfig) -> TrainConfig:
        """The configuration with a table as wide as the vectors."""
        table = WordTableConfig(*self.vectors.shape)
        return replace(config, model=replace(config.model, encoder=table))

    def fill(self, params: Params) -> Params:
        """Parameters with the vectors in the table; words without one keep theirs."""
        start = np.asarray(params["encoder"]["embedding"])
        table = np.where(self.found[:, None], self.vectors, start)
        encoder = {**params["encoder"], "embedding": jnp.asarray(table)}
        return {**params, "encoder": encoder}

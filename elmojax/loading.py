"""What users name: models, vectors of words, configurations in Python files."""

from __future__ import annotations

import os
import runpy
import traceback
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
from elmojax.text.prepared import Corpus
from elmojax.text.vocabulary import Vocabulary
from elmojax.training.checkpoint import RunRecord, load_language_model
from elmojax.training.start import Initialize


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


def with_word_vectors(config: TrainConfig) -> tuple[TrainConfig, Initialize, int]:
    """Makes `config.word_vectors` the start of the word table of a fresh run.

    Returns the configuration with a table as wide as the vectors, what fills the
    table of fresh parameters (words without a vector keep theirs), and how many words
    of the vocabulary have one.

    Raises:
      InputError: without training text, or for a file that cannot be used.
    """
    if config.data is None or config.word_vectors is None:
        raise InputError("--word-vectors needs --data: it says which words there are.")
    words = Corpus.open(config.data).vocabulary.words
    vectors, found = read_word_vectors(config.word_vectors, words)
    encoder = WordTableConfig(*vectors.shape)

    def initialize(params: Params) -> Params:
        start = np.asarray(params["encoder"]["embedding"])
        table = np.where(found[:, None], vectors, start)
        filled = {**params["encoder"], "embedding": jnp.asarray(table)}
        return {**params, "encoder": filled}

    model = replace(config.model, encoder=encoder)
    return replace(config, model=model), initialize, int(found.sum())


def read_config(path: Path) -> TrainConfig:
    """What `config()` of a Python file returns, as experiments/*.py define it.

    Raises:
      InputError: if the file is missing, fails, or gives something else.
    """
    if not path.is_file():
        raise InputError(f"--config {path}: there is no such file.")
    try:
        make = runpy.run_path(str(path)).get("config")
        config = make() if callable(make) else None
    except Exception as error:  # whatever the user's own code raises
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"--config {path} fails in line {_line(error, path)} ({what}); mend it."
        ) from error
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"--config {path} must define a function config() that returns an "
            f"elmojax.TrainConfig{'' if make is None else f', not {config!r}'[:80]}."
        )
    return config


def _line(error: BaseException, path: Path) -> int | str:
    """The line of a file that an exception came from or is about."""
    if isinstance(error, SyntaxError):
        return error.lineno or "?"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return (lines and lines[-1]) or "?"

"""What users name: models, vectors of words, configurations in Python files."""

from __future__ import annotations

import os
import runpy
import traceback
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elmojax.config import CharCnnConfig, HeadConfig, TrainConfig, WordTableConfig
from elmojax.errors import InputError
from elmojax.formats import hdf5
from elmojax.formats.addresses import fetch_model, is_url
from elmojax.formats.tables import load_head
from elmojax.formats.tf_checkpoint import load_tf_checkpoint
from elmojax.formats.verify import ArrayReport, check_hdf5
from elmojax.formats.word_vectors import read_word_vectors
from elmojax.model.bilm import ElmoParams, from_tree
from elmojax.model.softmax import edges_of
from elmojax.shapes import Params
from elmojax.text.prepared import Corpus
from elmojax.text.storage import install, new_directory
from elmojax.text.vocabulary import Vocabulary
from elmojax.training.checkpoint import (
    Checkpoints,
    RunRecord,
    create_run,
    fingerprint,
    load_language_model,
)
from elmojax.training.sharding import path_name
from elmojax.training.start import Initialize, open_corpora
from elmojax.training.step import LanguageModel


class Model(NamedTuple):
    """A biLM with what its source knows besides."""

    source: str
    params: ElmoParams
    vocabulary: Vocabulary | None
    """Of its softmax, or of the word ids that it reads."""
    head: Params | None
    """Parameters of its softmax."""
    shape: HeadConfig
    """Of its softmax."""

    def language_model(self) -> tuple[LanguageModel, Params, Vocabulary]:
        """For evaluation: shapes, parameters with the head, and its words.

        Raises:
          InputError: if the source has no softmax, or not its vocabulary.
        """
        if self.head is None or self.vocabulary is None:
            what = "softmax" if self.head is None else "vocabulary.txt"
            raise InputError(
                f"{self.source} has no {what}, so it gives words no probability; train "
                "one with `elmojax pretrain --init-from`."
            )
        lm = LanguageModel(
            self.params.config,
            len(self.vocabulary),
            self.shape.cutoffs,
            self.shape.div_value,
        )
        return lm, {**self.params.tree, "head": self.head}, self.vocabulary


def open_model(model: str | os.PathLike[str], step: int | None = None) -> Model:
    """Everything that a model's files hold.

    Args:
      model: a run directory of `elmojax pretrain`; a directory with options.json and
        weights.hdf5; a TensorFlow checkpoint of bilm-tf; or the address of a published
        model (see `fetch_model`).
      step: which checkpoint of a run; None = the newest.

    Raises:
      InputError: if there is no such model, or it cannot be read.
    """
    path = fetch_model(str(model)) if is_url(model) else Path(model)
    if not (path / "config.json").exists():
        files, is_checkpoint = hdf5_files(path), is_tf_checkpoint(path)
        if step is not None and (files or is_checkpoint):
            raise InputError(f"{path} is no run directory; leave --step out.")
        if files:
            return _from_hdf5(path, *files)
        if is_checkpoint:
            params, head = load_tf_checkpoint(path)
            return Model(str(model), params, _words(path), head, FULL)
    if not path.exists():
        raise InputError(
            f"There is no model {str(model)!r}: give a run directory of `elmojax "
            "pretrain`, or a directory with options.json and weights.hdf5."
        )
    record, vocabulary, tree = load_language_model(path, step)
    params = from_tree(record.train.model, tree)
    head = tree.get("head")
    return Model(str(path), params, vocabulary, head, record.train.head)


FULL = HeadConfig("full")


def hdf5_files(path: Path) -> tuple[Path, Path] | None:
    """Options and weights in a directory: under these names, or the only ones there
    whose names end like this (`elmo_..._options.json`, `elmo_..._weights.hdf5`)."""
    found = []
    for name in (hdf5.OPTIONS, hdf5.WEIGHTS):
        named = [path / name] if (path / name).is_file() else [*path.glob(f"*{name}")]
        if len(named) != 1:
            return None
        found += named
    return found[0], found[1]


def is_tf_checkpoint(path: Path) -> bool:
    """Whether it is a directory that bilm-tf trained in, or a checkpoint's prefix."""
    index = path.with_name(f"{path.name}.index")
    return (path / "checkpoint").is_file() or index.is_file()


def _from_hdf5(path: Path, options: Path, weights: Path) -> Model:
    params = hdf5.load_hdf5(options, weights)
    if not (path / hdf5.SOFTMAX).exists():
        return Model(str(path), params, _words(path), None, FULL)
    head = load_head(path / hdf5.SOFTMAX, params.config.lstm.projection)
    shape, cutoffs = FULL, edges_of(head)[:-1]
    if cutoffs:
        dim, narrow = head["down_0"].shape
        shape = HeadConfig("adaptive", cutoffs, dim / narrow)
    return Model(str(path), params, _words(path), head, shape)


def _words(path: Path) -> Vocabulary | None:
    file = (path if path.is_dir() else path.parent) / "vocabulary.txt"
    return Vocabulary.read(file) if file.exists() else None


def load(model: str | os.PathLike[str]) -> ElmoParams:
    """`ElmoParams` of a model, ready for `embed`.

    Args:
      model: a run directory of `elmojax pretrain` (its newest checkpoint), a directory
        with options.json and weights.hdf5, a TensorFlow checkpoint of bilm-tf, or the
        address of a published model (see `fetch_model`).

    Raises:
      InputError: if there is no such model, or it cannot be read.
    """
    return open_model(model).params


def convert(model: Model, out: Path, version: str = "") -> str:
    """Writes a run directory as HDF5, and any other model as a run directory.

    HDF5 is options.json and weights.hdf5, with softmax.hdf5 and vocabulary.txt where
    the model has them; all numbers go through unchanged. `out` is there when it is
    whole, and not before. Returns what was written, "HDF5" or "Orbax".

    Raises:
      InputError: if `out` is there already, cannot be written, or cannot hold the
        model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; choose another --out.")
    if (Path(model.source) / "config.json").exists():
        hdf5.save_hdf5(model.params, out, model.head, model.vocabulary)
        return "HDF5"
    if any(np.any(leaf) for leaf in jax.tree.leaves(model.params.initial_state)):
        raise InputError(
            f"{model.source} has an initial state other than zero, which a run "
            "directory does not hold; keep it as HDF5."
        )
    head = {} if model.head is None else {"head": model.head}
    record = RunRecord(
        train=TrainConfig(model=model.params.config, head=model.shape, workdir=out),
        corpus="",
        vocabulary=edges_of(model.head)[-1] if model.head else 0,
        words=fingerprint(model.vocabulary) if model.vocabulary else "",
        elmojax=version,
    )
    with new_directory(out) as partial:
        create_run(partial, record, model.vocabulary)
        checkpoints = Checkpoints(partial)
        checkpoints.save(0, {**model.params.tree, **head}, None)
        checkpoints.close()
        install(partial, out, replaces=out.exists())
    return "Orbax"


def verify(model: str | os.PathLike[str]) -> tuple[list[ArrayReport], list[str]]:
    """Every array of a model and its state, and who else can read it.

    Raises:
      InputError: if the model cannot be read at all.
    """
    path = fetch_model(str(model)) if is_url(model) else Path(model)
    files = None if (path / "config.json").exists() else hdf5_files(path)
    if files:
        report = check_hdf5(*files)
        arrays, notes = list(report.arrays), list(report.notes)
        if (path / hdf5.SOFTMAX).exists():
            head = load_head(path / hdf5.SOFTMAX, report.config.lstm.projection)
            arrays += _states({"softmax": head})
        return arrays, notes
    opened = open_model(model)
    tree = {**opened.params.tree, **({"head": opened.head} if opened.head else {})}
    return _states(tree), []


def _states(tree: Params) -> list[ArrayReport]:
    """Arrays that were read in full: all there is to see is whether they are finite."""
    reports = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        state = "ok" if np.isfinite(leaf).all() else "not finite"
        shape = tuple(leaf.shape)
        reports.append(ArrayReport(path_name(path), shape, shape, state))
    return reports


def with_model(config: TrainConfig) -> tuple[TrainConfig, Initialize, bool]:
    """Makes `config.init_from` the start of a fresh run.

    Returns the configuration with the shape of that model, what puts its weights into
    fresh parameters, and whether its softmax was kept: it is where its vocabulary is
    that of the training text.

    Raises:
      InputError: if the model cannot be read, or reads ids of other words.
    """
    assert config.init_from is not None
    model = open_model(config.init_from)
    vocabulary = open_corpora(config)[0].vocabulary
    same = model.vocabulary == vocabulary
    if not isinstance(model.params.config.encoder, CharCnnConfig) and not same:
        raise InputError(
            f"{model.source} reads ids of the words in its own vocabulary; prepare "
            "--data with `--vocabulary` of that file."
        )
    keep = model.head is not None and same

    def initialize(params: Params) -> Params:
        head = model.head if keep else params["head"]
        return {**model.params.tree, "head": head}

    config = replace(config, model=model.params.config)
    return replace(config, head=model.shape) if keep else config, initialize, keep


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

"""`pretrain`, and what a fresh run starts from: a Python file, a model, vectors."""

from __future__ import annotations

import runpy
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from elmojax.arguments import checked
from elmojax.cloud import address, origin
from elmojax.config import (
    PRESETS,
    CharCnnConfig,
    HeadConfig,
    TrainConfig,
    WordTableConfig,
    from_json,
)
from elmojax.disk import parse_json, read_utf8
from elmojax.errors import InputError, one_line, showable
from elmojax.formats.word_vectors import read_word_vectors
from elmojax.loading import open_model
from elmojax.model.ops import outside_meshes
from elmojax.shapes import Params
from elmojax.text.corpus import vocabulary_of
from elmojax.training import loop
from elmojax.training.choices import require_trainable
from elmojax.training.distributed import Stop, in_turn, is_multiprocess
from elmojax.training.loop import Result
from elmojax.training.metrics import Tracker
from elmojax.training.record import checkpoint_steps, difference
from elmojax.training.remote import bring_run
from elmojax.training.start import Initialize, open_corpora


@checked
@outside_meshes
def pretrain(
    config: TrainConfig,
    trackers: Sequence[Tracker] = (),
    *,
    stop: Stop | None = None,
    remark: Callable[[str], None] = lambda sentence: None,
) -> Result:
    """Pretrains a biLM, or goes on with the run in `config.workdir`.

    What `elmojax pretrain` does: the run is resumable, ends with a checkpoint when it
    is interrupted, and its directory is a model for `restore`, `load` and commands.

    Args:
      config: for example `TrainConfig.preset("mini")`; `dataclasses.replace` changes
        its fields, which are the flags of the command.
      trackers: are told of progress, besides metrics.jsonl; see `training.metrics`.
      stop: hears signals before and after this call too.
      remark: is told, in sentences, what a fresh run starts from.

    Returns:
      Result: `run` (the directory), `step`, held-out evaluations `before` and `after`,
      the step of the `best` checkpoint, `signal` if one ended it, and so on.

    Raises:
      InputError: for what the caller can put right, a loss that is not finite among it.
      TryAgain: where another process of the run was lost.
    """
    from elmojax import __version__

    if is_multiprocess() and address(origin(config.workdir)) is not None:
        raise InputError(
            "Several processes of one run need a --workdir that all of them see, and "
            "each would have its own copy of this one; mount the bucket, and give the "
            "path of a directory there."
        )
    config = replace(config, workdir=bring_run(config.workdir))
    initialize = None
    if not checkpoint_steps(config.workdir):
        if (config.workdir / "config.json").exists():
            remark(
                f"{origin(config.workdir)} has no checkpoint yet; it begins at step 0."
            )
        config, initialize = with_start(config, remark)
    return loop.pretrain(config, trackers, __version__, initialize, stop)


def with_start(
    config: TrainConfig, remark: Callable[[str], None]
) -> tuple[TrainConfig, Initialize | None]:
    """A fresh run with its start: word vectors, the weights of a model, or neither."""
    if config.word_vectors is not None:
        return with_word_vectors(config, remark)
    if config.init_from is not None:
        return with_model(config, remark)
    return config, None


def with_model(
    config: TrainConfig, remark: Callable[[str], None] = lambda sentence: None
) -> tuple[TrainConfig, Initialize]:
    """Makes `config.init_from` the start of a fresh run.

    Returns the configuration with the shape of that model, and what puts its weights
    into fresh parameters. Its softmax is kept where its vocabulary is that of the
    training text; `remark` is told whether it is.

    Raises:
      InputError: if the model cannot be read, reads ids of other words, or has another
        shape than the configuration asks for (a preset's gives way to the model's).
    """
    assert config.init_from is not None
    model = open_model(config.init_from)
    elmo_config = model.params.config
    require_trainable(elmo_config)
    if config.encoder == "words" and isinstance(elmo_config.encoder, CharCnnConfig):
        raise InputError(
            f"{model.source} reads characters, and its weights fit no --encoder words; "
            "leave --encoder or --init-from out."
        )
    if config.model not in PRESETS.values():  # a preset's gives way
        _require_same("model", config.model, elmo_config, model.source)
    if config.data is None:
        vocabulary = in_turn(partial(open_corpora, config))[0].vocabulary
    else:
        vocabulary = vocabulary_of(config.data)
    same = model.vocabulary == vocabulary
    if isinstance(model.params.config.encoder, WordTableConfig) and not same:
        raise InputError(
            f"{model.source} reads ids of the words in its own vocabulary; prepare "
            "--data with `--vocabulary` of that file."
        )
    keep = model.head is not None and same
    if keep and config.head not in (HeadConfig(), TrainConfig.preset("mini").head):
        _require_same("head", config.head, model.head_config, model.source)

    def initialize(params: Params) -> Params:
        head = model.head if keep else params["head"]
        return {**model.params.tree, "head": head}

    softmax = "with its softmax" if keep else "with a new softmax"
    remark(showable(f"The weights are those of {config.init_from}, {softmax}."))
    head = model.head_config if keep else config.head
    return replace(config, model=elmo_config, head=head), initialize


def _require_same(name: str, asked: Any, found: Any, source: str) -> None:
    if other := difference(asked, found):
        field, was, now = other
        raise InputError(
            f"The run is to have {name}.{field} = {was}, and {source} has {now}; what "
            f"starts from a model has its shape: leave --{name}.* out."
        )


def with_word_vectors(
    config: TrainConfig, remark: Callable[[str], None] = lambda sentence: None
) -> tuple[TrainConfig, Initialize]:
    """Makes `config.word_vectors` the start of the word table of a fresh run.

    Returns the configuration with a table as wide as the vectors, and what fills the
    table of fresh parameters (words without a vector keep theirs). `remark` is told
    how many words have one, and what `read_word_vectors` has to say.

    Raises:
      InputError: without training text, or for a file that cannot be used.
    """
    if config.data is None or config.word_vectors is None:
        raise InputError("--word-vectors needs --data: it says which words there are.")
    words = vocabulary_of(config.data).words
    vectors, found = read_word_vectors(config.word_vectors, words, remark)
    encoder = WordTableConfig(*vectors.shape)

    def initialize(params: Params) -> Params:
        start = np.asarray(params["encoder"]["embedding"])
        table = np.where(found[:, None], vectors, start)
        filled = {**params["encoder"], "embedding": jnp.asarray(table)}
        return {**params, "encoder": filled}

    remark(f"{int(found.sum()):,} words of the vocabulary have a vector.")
    model = replace(config.model, encoder=encoder)
    return replace(config, model=model), initialize


def read_config(path: Path) -> TrainConfig:
    """A run as a file describes it.

    TOML and JSON files hold fields of TrainConfig, or are the config.json of a run; a
    Python file has a function `config()`, as experiments/*.py define it.

    Raises:
      InputError: if the file is missing, fails, or gives something else.
    """
    if not path.is_file():
        raise InputError(f"--config {path}: there is no such file.")
    if path.suffix in (".json", ".toml"):
        return _read_fields(path)
    try:
        make = runpy.run_path(str(path)).get("config")
        config = make() if callable(make) else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's own code raises, exits too
        what = one_line(f"{type(error).__name__}: {error}")
        raise InputError(
            f"--config {path} fails in line {_line_of(error, path)} ({what}); mend it."
        ) from error
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"--config {path} must define a function config() that returns an "
            f"elmojax.TrainConfig{'' if make is None else f', not {config!r}'[:80]}."
        )
    return config


def _read_fields(path: Path) -> TrainConfig:
    """A TOML or JSON file with fields of TrainConfig, or with a RunRecord."""
    what = f"--config {path}"

    def parse(text: str) -> Any:
        found = parse_json(text, tomllib.loads if path.suffix == ".toml" else None)
        return found.get("train", found)

    return from_json(TrainConfig, read_utf8(path, what), what, parse)


def _line_of(error: BaseException, path: Path) -> int | str:
    """The line of a file that an exception came from or is about."""
    if isinstance(error, SyntaxError):
        return error.lineno or "?"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return (lines and lines[-1]) or "?"

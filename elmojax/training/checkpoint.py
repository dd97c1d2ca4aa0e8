"""Run directories: config, vocabulary, metrics, and Orbax checkpoints.

    config.json      RunRecord: what was trained, on which text
    vocabulary.txt   the words of the softmax, in bilm-tf's format
    metrics.jsonl    one line of numbers a logged step
    checkpoints/N/   state after step N: `params`, and `training` for going on

It is all that `evaluate`, `embed` and `restore` need. Only this module knows Orbax.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from elmojax.config import TrainConfig, from_json, to_json
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams, from_tree
from elmojax.shapes import Params
from elmojax.text.vocabulary import Vocabulary, write_words
from elmojax.training.sharding import path_name
from elmojax.training.step import LanguageModel

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails, we say ourselves

METRIC = "heldout_perplexity"
FORMAT = 1
"""Version of the layout of run directories, in config.json."""


@dataclass(frozen=True)
class RunRecord:
    """config.json of a run directory: all choices made, none left automatic."""

    train: TrainConfig
    corpus: str
    """Fingerprint of the training corpus."""
    vocabulary: int
    """Words of the softmax."""
    words: str = ""
    """SHA-256 of vocabulary.txt."""
    format: int = FORMAT
    elmojax: str = ""
    """Version that started the run."""


def read_record(run: Path) -> RunRecord:
    """The record of a run directory.

    Raises `InputError` when there is none or it cannot be read.
    """
    path = run / "config.json"
    if not path.is_file():
        what = "has no config.json" if run.is_dir() else "is no directory"
        raise InputError(
            f"{run} is not a run directory: it {what}. Give the --workdir of "
            "`elmojax pretrain`."
        )
    record = from_json(RunRecord, _read(path), path)
    if record.format != FORMAT:
        raise InputError(
            f"{run} has format {record.format!r}, and this elmojax reads format "
            f"{FORMAT}; use elmojax {record.elmojax}, which made it."
        )
    return record


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); restore it from a copy."
        ) from error


def fingerprint(vocabulary: Vocabulary) -> str:
    """SHA-256 of its file."""
    return hashlib.sha256(write_words(vocabulary.words)).hexdigest()


def _read_vocabulary(run: Path, record: RunRecord) -> Vocabulary | None:
    if not record.words and not record.vocabulary:
        return None  # converted from files that have no vocabulary
    path = run / "vocabulary.txt"
    vocabulary = Vocabulary.read(path)
    if record.vocabulary and len(vocabulary) != record.vocabulary:
        raise InputError(
            f"{path} has {len(vocabulary)} words and the run was trained with "
            f"{record.vocabulary}; put the original file back."
        )
    if record.words and fingerprint(vocabulary) != record.words:
        raise InputError(
            f"{path} holds other words than the run was trained with; put the "
            "original file back."
        )
    return vocabulary


def create_run(run: Path, record: RunRecord, vocabulary: Vocabulary | None) -> None:
    """Makes a run directory; config.json comes last and makes it one."""
    if (run / "checkpoints").exists():
        raise InputError(
            f"{run} has checkpoints but no config.json; put its config.json back, or "
            "choose another --workdir."
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        if vocabulary is not None:
            vocabulary.write(run / "vocabulary.txt")
        partial = run / ".config.json.partial"
        partial.write_text(to_json(record), encoding="utf-8")
        os.replace(partial, run / "config.json")
    except OSError as error:
        raise InputError(
            f"The run directory {run} cannot be written: {error.strerror or error}. "
            "Choose another --workdir."
        ) from error


def language_model(record: RunRecord, **options: Any) -> LanguageModel:
    """The shapes of a run, with dropout, precision and mesh as given."""
    train = record.train
    return LanguageModel(train.model, record.vocabulary, train.head, **options)


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def _steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are there, whole or damaged."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def has_checkpoint(run: Path) -> bool:
    """Whether a run has something to go on from."""
    return bool(_steps(run))


class Checkpoints:
    """The checkpoints of a run: saved without waiting, newest N and best kept."""

    def __init__(self, run: Path, keep: int = 3, clean: bool = False) -> None:
        """Finds what is there; `clean` removes what a killed run left unfinished."""
        self.directory = run.absolute() / "checkpoints"
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        newest = policies.LatestN(keep)
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory,
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
                cleanup_tmp_directories=clean,
            )
            self.steps = [c.step for c in self._orbax.checkpoints]
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._find_damaged_metrics()
            raise self._unreadable(self.directory, error) from error
        # A damaged checkpoint must never read as no checkpoint at all.
        hidden = sorted(set(_steps(run)) - set(self.steps))
        if hidden:
            path = self.directory / str(hidden[-1])
            raise self._unreadable(path, "its metadata is missing or cut short")

    def _find_damaged_metrics(self) -> None:
        """Orbax reads the metrics of all checkpoints at once and names none."""
        for path in self.directory.glob("*/metrics/metrics"):
            try:
                json.loads(path.read_bytes())
            except ValueError as error:
                raise self._unreadable(path.parent.parent, error) from error

    @staticmethod
    def _unreadable(path: Path, why: object) -> InputError:
        reason = " ".join(str(why).split())[:200]
        return InputError(
            f"The checkpoint {path} cannot be read ({reason}). Restore it from a copy, "
            "or move it away to go on from the one before."
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the lowest held-out perplexity, if known."""
        scored = [
            (c.metrics[METRIC], c.step) for c in self._orbax.checkpoints if c.metrics
        ]
        return min(scored)[1] if scored else None

    def save(self, step: int, params: Any, training: Any, **metrics: float) -> None:
        """Starts to save; the arrays may be given away when this returns.

        `training` is what else going on needs, None for a model that is only used.
        """
        parts = {"params": _flat(params)}
        if training is not None:
            parts["training"] = _flat(training)
        self._orbax.save_checkpointables_async(
            step, parts, metrics=metrics or None, force=True, overwrite=True
        )
        self.steps = sorted({*self.steps, step})

    def load(self, step: int, **parts: Any) -> dict[str, Any]:
        """Reads parts of a checkpoint into the shapes and shardings given.

        Args:
          parts: `params=` or `training=` with a tree of `jax.ShapeDtypeStruct`.

        Raises:
          InputError: if the checkpoint is not there, cannot be read, or holds other
            arrays than asked for.
        """
        path = self.directory / str(step)
        if step not in self.steps:
            raise InputError(
                f"There is no checkpoint of step {step} in {self.directory}; it has "
                f"{', '.join(map(str, self.steps)) or 'none'}."
            )
        wanted = {name: _flat(tree) for name, tree in parts.items()}
        try:
            stored = self._orbax.checkpointables_metadata(step).metadata
        except Exception as error:  # whatever a damaged file makes Orbax raise
            raise self._unreadable(path, error) from error
        for name, leaves in wanted.items():
            if not stored.get(name):  # Orbax: None
                raise self._unreadable(path, f"its part {name!r} is damaged or gone")
            _compare(path, stored[name], leaves)
        try:
            loaded = self._orbax.load_checkpointables(step, wanted)
        except Exception as error:
            raise self._unreadable(path, _root(error)) from error
        return {
            name: jax.tree.unflatten(
                jax.tree.structure(tree), [loaded[name][key] for key in _flat(tree)]
            )
            for name, tree in parts.items()
        }

    def close(self) -> None:
        """Waits for what is being saved."""
        self._orbax.close()


def _root(error: BaseException) -> BaseException:
    """What it all began with."""
    while before := error.__cause__ or error.__context__:
        error = before
    return error


def _compare(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Orbax casts dtypes silently and words shape errors for itself; we compare."""
    missing, extra = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    if missing or extra:
        raise InputError(
            f"The checkpoint {path} belongs to another configuration: it lacks "
            f"{sorted(missing)[:3]} and has {sorted(extra)[:3]} besides."
        )
    for name, leaf in wanted.items():
        got = (tuple(stored[name].shape), np.dtype(stored[name].dtype))
        if got != (tuple(leaf.shape), np.dtype(leaf.dtype)):
            raise InputError(
                f"The checkpoint {path} belongs to another configuration: {name} is "
                f"{got[1]} {list(got[0])}, and {np.dtype(leaf.dtype)} "
                f"{list(leaf.shape)} was expected."
            )


def load_language_model(
    run: str | os.PathLike[str], step: int | None = None
) -> tuple[RunRecord, Vocabulary | None, Params]:
    """The record, vocabulary and parameter tree (with head) of a checkpoint.

    The arrays lie on the first device, wherever they were trained.
    """
    run = Path(run)
    record = read_record(run)
    vocabulary = _read_vocabulary(run, record)
    checkpoints = open_existing(run)
    step = checkpoints.steps[-1] if step is None else step
    lm = language_model(record)
    here = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        jax.eval_shape(lm.init, jax.random.key(0)),
    )
    try:
        return record, vocabulary, checkpoints.load(step, params=shapes)["params"]
    finally:
        checkpoints.close()


def open_existing(run: Path) -> Checkpoints:
    """The checkpoints of a run that must have some."""
    if not (run / "checkpoints").is_dir() or not (found := Checkpoints(run)).steps:
        raise InputError(
            f"{run} has no checkpoint yet; let `elmojax pretrain` reach its first one."
        )
    return found


def restore(
    run_directory: str | os.PathLike[str], step: int | None = None
) -> ElmoParams:
    """`ElmoParams` of a pretraining run, ready for `embed`.

    Args:
      run_directory: the --workdir of `elmojax pretrain`.
      step: which checkpoint; None = the newest.

    Raises:
      InputError: if it is not a run directory, or the checkpoint is missing, damaged
        or of another configuration.
    """
    record, _, tree = load_language_model(run_directory, step)
    return from_tree(record.train.model, tree)

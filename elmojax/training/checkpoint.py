"""Run directories: config, vocabulary, metrics, and Orbax checkpoints.

    config.json      RunRecord: what was trained, on which text
    vocabulary.txt   the words of the softmax, in bilm-tf's format
    metrics.jsonl    one line of numbers a logged step
    checkpoints/N/   state after step N: `params`, and `training` for going on

It is all that `evaluate`, `embed` and `restore` need. Only this module knows Orbax.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams, from_tree
from elmojax.model.casting import Precision, cast
from elmojax.shapes import Params
from elmojax.text.vocabulary import Vocabulary
from elmojax.training import perplexities
from elmojax.training.damage import DamagedCheckpoint, SaveFailed, damaged_or_busy
from elmojax.training.digest import digests
from elmojax.training.memory import return_freed_memory
from elmojax.training.processes import is_first, joined
from elmojax.training.record import (
    RunRecord,
    checkpoint_steps,
    language_model,
    read_record,
    read_vocabulary,
)
from elmojax.training.sharding import path_name

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails, we say ourselves

GONE = ".deleted"
"""Ending of the name of a checkpoint that is being deleted."""
SUMS = "sums"
"""Part of a checkpoint that holds the digests of its other parts."""


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of a run: saved without waiting, newest N and best kept."""

    def __init__(self, run: Path, keep: int = 3, clean: bool = False) -> None:
        """Finds what is there; `clean` removes what a killed run left unfinished."""
        self.directory, self._keep = run.absolute() / "checkpoints", keep
        self._saving: int | None = None
        self._unfinished: set[int] = set()
        there = checkpoint_steps(run)
        perplexities.check(self.directory, there)
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory, cleanup_tmp_directories=clean
            )
            self.steps = [c.step for c in self._orbax.checkpoints]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.directory} cannot be read ({' '.join(str(error).split())}); "
                "restore it from a copy."
            ) from error
        # A damaged checkpoint must never read as no checkpoint at all.
        hidden = sorted(set(there) - set(self.steps))
        if hidden:
            path = self.directory / str(hidden[-1])
            raise DamagedCheckpoint(path, "its metadata is missing or cut short")

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return max(self.steps, default=None)

    @property
    def best(self) -> tuple[float, int] | None:
        """The lowest held-out perplexity and the step of its checkpoint, if known."""
        name = perplexities.NAME
        scored = [
            (c.metrics[name], c.step) for c in self._orbax.checkpoints if c.metrics
        ]
        return min(scored, default=None)

    def scored(self, step: int) -> bool:
        """Whether a checkpoint was saved with its held-out perplexity."""
        return any(c.step == step and c.metrics for c in self._orbax.checkpoints)

    def score(self, step: int, perplexity: float) -> None:
        """Adds the held-out perplexity to a checkpoint that has none."""
        perplexities.add(self.directory / str(step), perplexity)
        self._orbax.reload()

    def save(
        self, step: int, params: Any, training: Any, perplexity: float | None = None
    ) -> None:
        """Starts to save; the arrays may be given away when this returns.

        `training` is what else going on needs, None for a model that is only used;
        `perplexity` the held-out one, where it was measured.

        Raises:
          SaveFailed: where this save, or the one before, came to nothing.
        """
        self.settle()
        self._unfinished.discard(step)
        parts = {"params": _flat(params)}
        if training is not None:
            parts["training"] = _flat(training)
        parts[SUMS] = {name: digests(leaves) for name, leaves in parts.items()}
        metrics = None if perplexity is None else perplexities.stored(perplexity)
        self._saving = step
        try:
            self._orbax.save_checkpointables_async(
                step, parts, metrics=metrics, force=True, overwrite=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error
        self.steps = sorted({*self.steps, step})

    def settle(self, wait: bool = True) -> None:
        """Sees that what is being saved is saved; without `wait`, if it is done.

        Raises:
          SaveFailed: if it is not.
        """
        if self._saving is None:
            return
        if not wait and (joined() or self._orbax.is_saving_in_progress()):
            return  # several processes look together, when they must
        try:
            self._orbax.wait()
        except Exception as error:  # whatever the writer's thread came to
            raise self._failed(error) from error
        self._saving = None
        self.prune()
        return_freed_memory()

    def prune(self) -> None:
        """Deletes all but the newest `keep` and the best.

        What goes loses its name at once and its files after that, so that no moment
        leaves half a checkpoint.
        """
        if not is_first():
            return
        best = self.best
        kept = {*self.steps[-self._keep :], *(() if best is None else best[1:])}
        for step in set(self.steps) - kept:
            path = self.directory / str(step)
            with contextlib.suppress(OSError):  # another time, then
                os.replace(path, path.with_suffix(GONE))
        self.steps = [step for step in self.steps if step in kept]
        for path in self.directory.glob(f"*{GONE}"):
            shutil.rmtree(path, ignore_errors=True)

    def _failed(self, error: BaseException) -> SaveFailed:
        """Clears away what a save left, which may be what fills the disk."""
        step, self._saving = self._saving, None
        assert step is not None
        self.steps = [other for other in self.steps if other != step]
        self._unfinished.add(step)
        self._clear_away()
        return SaveFailed(step, self.latest, error)

    def _clear_away(self) -> None:
        """Removes what failed saves left, into which threads may write for a while."""
        for _ in range(20):
            partial = [
                path
                for step in self._unfinished
                for path in self.directory.glob(f"{step}.*")
            ]
            if not partial:
                return
            for path in partial:
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.1)

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
            raise damaged_or_busy(path, error) from error
        for name, leaves in wanted.items():
            if not stored.get(name):  # Orbax: None
                raise DamagedCheckpoint(path, f"its part {name!r} is damaged or gone")
            _compare(path, stored[name], leaves)
        if has_sums := SUMS in stored:  # earlier versions wrote none
            if not stored[SUMS]:
                raise DamagedCheckpoint(path, f"its part {SUMS!r} is damaged")
            wanted[SUMS] = _on_one_device(dict(stored[SUMS]))
        try:
            loaded = self._orbax.load_checkpointables(step, wanted)
        except Exception as error:
            raise damaged_or_busy(path, error) from error
        for name in parts if has_sums else ():
            if not np.array_equal(digests(loaded[name]), loaded[SUMS][name]):
                what = f"the numbers of its part {name!r} are not those that were saved"
                raise DamagedCheckpoint(path, what)
        return {
            name: jax.tree.unflatten(
                jax.tree.structure(tree), [loaded[name][key] for key in _flat(tree)]
            )
            for name, tree in parts.items()
        }

    def close(self) -> None:
        """Waits for what is being saved; raises `SaveFailed` as `settle` does."""
        try:
            self.settle()
        finally:
            self._orbax.close()
        self._clear_away()


def _on_one_device(tree: Any) -> Any:
    """Shapes of a tree, to be read onto the first device of this process."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
    )


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
    vocabulary = read_vocabulary(run, record)
    checkpoints = open_existing(run)
    step = checkpoints.steps[-1] if step is None else step
    lm = language_model(record)
    shapes = _on_one_device(jax.eval_shape(lm.init, jax.random.key(0)))
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
    run_directory: str | os.PathLike[str],
    step: int | None = None,
    *,
    precision: Precision = "float32",
) -> ElmoParams:
    """`ElmoParams` of a pretraining run, ready for `embed`.

    Args:
      run_directory: the --workdir of `elmojax pretrain`.
      step: which checkpoint; None = the newest.
      precision: of matrix products, "float32" or "bf16"; see `cast`.

    Raises:
      InputError: if it is not a run directory, or the checkpoint is missing, damaged
        or of another configuration.
    """
    record, _, tree = load_language_model(run_directory, step)
    return cast(from_tree(record.train.model, tree), precision)

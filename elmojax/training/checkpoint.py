"""Run directories: config, vocabulary, metrics, and Orbax checkpoints.

    config.json      RunRecord: what was trained, on which text
    vocabulary.txt   the words of the softmax, in bilm-tf's format
    metrics.jsonl    one line of numbers a logged step
    checkpoints/N/   state after step N: `params`, and `training` for going on

It is all that `evaluate`, `embed` and `restore` need. Only this module knows Orbax;
it saves as `CheckpointManager` does, so that Orbax's plainest calls read a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from elmojax.arguments import checked
from elmojax.config import TrainConfig, from_json, to_json
from elmojax.errors import InputError, one_line
from elmojax.model.bilm import ElmoParams, Placement, from_tree, placements
from elmojax.model.ops import Precision, cast, outside_meshes
from elmojax.shapes import Params
from elmojax.text.vocabulary import Vocabulary
from elmojax.training.damage import (
    DamagedCheckpoint,
    SaveFailed,
    damaged_or_busy,
    digests,
)
from elmojax.training.distributed import is_first, is_multiprocess
from elmojax.training.memory import return_freed_memory
from elmojax.training.metrics import MEASURE, evaluations, read_metrics
from elmojax.training.record import (
    FIXED,
    MODEL,
    RunRecord,
    checkpoint_steps,
    difference,
    fixed_fields,
    language_model,
    read_record,
    read_vocabulary,
)
from elmojax.training.remote import bring_model
from elmojax.training.sharding import path_name, sharded_shapes

GONE = ".deleted"
"""Ending of the name of a checkpoint that is being deleted."""
SUMS = "sums"
"""Part of a checkpoint that holds the digests of its other parts."""
CONFIG = "config"
"""What is beside the digests: the run's configuration, as far as it must not change."""
BODY = ("encoder", "lstm")
"""The parameters without the softmax."""


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of a run: saved without waiting, newest N and best kept."""

    def __init__(
        self,
        run: Path,
        config: TrainConfig | None = None,
        clean: bool = False,
    ) -> None:
        """Finds what is there.

        Args:
          config: of the run, as config.json has it. What is saved is bound to it, and
            what is read must have been saved under such a one.
          clean: removes what a killed run left unfinished.
        """
        self.directory = run.absolute() / "checkpoints"
        self._config, self._keep = config, (config or TrainConfig()).keep
        self._saving: int | None = None
        self._unfinished: set[int] = set()
        there = checkpoint_steps(run)
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=clean)
        try:
            self._orbax = ocp.CheckpointManager(self.directory, options=options)
            # Orbax takes names for steps that are none of ours, such as 007.
            self.steps = sorted({*self._orbax.all_steps()} & {*there})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.directory} cannot be read ({one_line(error)}); "
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

    @cached_property
    def perplexities(self) -> dict[int, float]:
        """The held-out perplexities of the run by step, as far as it has checkpoints;
        whoever evaluates adds to them."""
        known = evaluations(read_metrics(self.directory.with_name("metrics.jsonl")))
        scored = ((step, known[step].get(MEASURE)) for step in known)
        return {n: value for n, value in scored if n in self.steps and value}

    @property
    def best(self) -> tuple[float, int] | None:
        """The lowest held-out perplexity and the step of its checkpoint, if known."""
        known = self.perplexities
        return min(((known[n], n) for n in self.steps if n in known), default=None)

    def save(self, step: int, params: Any, training: Any) -> None:
        """Starts to save; the arrays may be donated once this returns.

        `training` is the rest of a `TrainState`, which a run needs to go on; None for a
        model that is only used.

        Raises:
          SaveFailed: where this save, or the one before, came to nothing.
        """
        self.settle()
        self._unfinished.discard(step)
        parts = {"params": _flat(params)}
        if training is not None:
            parts["training"] = _flat(training)
        parts[SUMS] = {name: digests(leaves) for name, leaves in parts.items()}
        if self._config is not None:
            parts[SUMS][CONFIG] = _with_digest(to_json(fixed_fields(self._config)))
        items = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        self._saving = step
        try:
            with contextlib.suppress(FileNotFoundError):
                self._orbax.delete(step)
            self._orbax.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error
        self.steps = sorted({*self.steps, step})

    def settle(self, wait: bool = True) -> bool:
        """Sees that what is being saved is saved; without `wait`, if it is done.

        Returns whether a checkpoint has become whole.

        Raises:
          SaveFailed: if it is not.
        """
        if self._saving is None:
            return False
        if not wait and (is_multiprocess() or self._orbax.is_saving_in_progress()):
            return False  # several processes look together, when they must
        try:
            self._orbax.wait_until_finished()
        except Exception as error:  # whatever the writer's thread came to
            raise self._failed(error) from error
        self._saving = None
        self.prune()
        return_freed_memory()
        return True

    def prune(self) -> None:
        """Deletes all but the newest `keep` and the best.

        Orbax would take the files away while the checkpoint has its name. Here it loses
        that first, so that no moment leaves half a checkpoint.
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

    def load(
        self, step: int, only: Iterable[str] | None = None, **parts: Any
    ) -> dict[str, Any]:
        """Reads parts of a checkpoint into the shapes and shardings given.

        An array with a sharding is read straight to where it lies. Without one it is
        uncommitted: it goes where the arrays go that it is used with.

        Args:
          only: read no more than what these keys of each part hold; None = all.
          parts: `params=` or `training=` with a tree of `jax.ShapeDtypeStruct`.

        Raises:
          InputError: if the checkpoint is not there, cannot be read, or holds other
            arrays than those given.
        """
        path = self.directory / str(step)
        if step not in self.steps:
            raise InputError(
                f"There is no checkpoint of step {step} in {self.directory}; it has "
                f"{', '.join(map(str, self.steps)) or 'none'}."
            )
        sums = _read_sums(path)
        if sums is not None and CONFIG in sums:  # earlier versions wrote none
            names = FIXED if "training" in parts else MODEL
            self._check_config(path, sums[CONFIG], names)
        for name, tree in parts.items():
            arrays = _compare(path, name, _flat(tree))
            if only is not None:
                tree = {key: tree[key] for key in only}
            leaves = _read_arrays(path / name, _flat(tree))
            if sums is not None:  # earlier versions wrote none
                saved = sums.get(name, np.zeros(0))
                rows = [arrays.index(leaf) for leaf in sorted(leaves)]
                whole = saved.shape == (len(arrays), 2)
                if not whole or not np.array_equal(digests(leaves), saved[rows]):
                    what = f"the numbers of its part {name!r} are not those"
                    raise DamagedCheckpoint(path, f"{what} that were saved")
            structure = jax.tree.structure(tree)
            parts[name] = jax.tree.unflatten(structure, leaves.values())
        return parts

    def _check_config(
        self, path: Path, sealed: np.ndarray, names: Sequence[str]
    ) -> None:
        """config.json decides what the arrays mean; it must not have been edited."""
        if self._config is None:
            return
        text = sealed[32:].tobytes().decode("utf-8", "replace")
        if not np.array_equal(sealed, _with_digest(text)):
            raise DamagedCheckpoint(path, "its configuration is not as it was saved")
        other = difference(from_json(TrainConfig, text, path), self._config, names)
        if other is not None:
            name, was, now = other
            raise InputError(
                f"The checkpoint {path} belongs to another configuration: it was "
                f"trained with {name} = {was}, and config.json says {now}; put the "
                "config.json back that it was trained with."
            )

    def close(self) -> None:
        """Waits for what is being saved; raises `SaveFailed` as `settle` does."""
        try:
            self.settle()
        finally:
            self._orbax.close()
        self._clear_away()


def _with_digest(text: str) -> np.ndarray:
    """uint8: the SHA-256 of a text, and the text."""
    data = text.encode("utf-8", "replace")
    return np.frombuffer(hashlib.sha256(data).digest() + data, np.uint8)


def _stored_arrays(path: Path, part: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays of a part, by name."""
    if not (path / part).is_dir():
        raise DamagedCheckpoint(path, f"its part {part!r} is gone")
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(path / part).tree
        return {
            n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for n, leaf in tree.items()
        }
    except Exception as error:  # whatever a damaged file makes Orbax raise
        raise damaged_or_busy(path, error) from error


def _read_arrays(
    part: Path, wanted: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Some arrays of a part, in the order in which they are named.

    One after the other: of several that fail together, Orbax leaves reads behind that
    print tracebacks of their own.
    """
    handler, found = ocp.PyTreeCheckpointHandler(), {}
    for name, leaf in wanted.items():
        how = ocp.RestoreArgs(restore_type=np.ndarray)
        if leaf.sharding is not None:
            how = ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)
        one = {name: leaf}, {name: how}
        asked = ocp.args.PyTreeRestore(*one, partial_restore=True)
        try:
            found[name] = _uncommitted(handler.restore(part, args=asked)[name])
        except Exception as error:  # whatever a damaged file makes Orbax raise
            raise damaged_or_busy(part.parent, error) from error
    return found


def _uncommitted(array: Any) -> jax.Array:
    """An array of JAX as it is; one of NumPy where the user wants arrays to begin."""
    return array if isinstance(array, jax.Array) else jax.device_put(array)


def _read_sums(path: Path) -> dict[str, np.ndarray] | None:
    """The digests of the parts of a checkpoint, if it has them."""
    if not (path / SUMS).is_dir():
        return None
    sums = _read_arrays(path / SUMS, _stored_arrays(path, SUMS))
    return {name: np.asarray(each) for name, each in sums.items()}


def _compare(path: Path, part: str, wanted: dict[str, Any]) -> list[str]:
    """Orbax casts dtypes silently and words shape errors for itself; we compare.

    Returns the names of all arrays of the part, in their order.
    """
    found = _stored_arrays(path, part)
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or extra:
        raise InputError(
            f"The checkpoint {path} belongs to another configuration: it lacks "
            f"{sorted(missing)[:3]} and has {sorted(extra)[:3]} besides."
        )
    for name, leaf in wanted.items():
        there = found[name]
        if (there.shape, there.dtype) != (leaf.shape, leaf.dtype):
            raise InputError(
                f"The checkpoint {path} belongs to another configuration: {name} is "
                f"{there.dtype} {list(there.shape)}, and {leaf.dtype} "
                f"{list(leaf.shape)} was expected."
            )
    return sorted(found)


def read_run(
    run: str | os.PathLike[str],
    step: int | None = None,
    *,
    head: bool = True,
    sharding: Placement = None,
) -> tuple[RunRecord, Vocabulary | None, Params]:
    """The record, vocabulary and parameter tree of a checkpoint.

    Without `head` the softmax is not read. The arrays go to `sharding` (the softmax to
    no place in particular), wherever they were trained; see `restore`.
    """
    run = bring_model(run, step)
    record = read_record(run)
    vocabulary = read_vocabulary(run, record)
    wanted = placements(record.train.model, sharding)
    checkpoints = open_existing(run, record.train)
    try:
        step = checkpoints.steps[-1] if step is None else step
        lm = language_model(record)
        shapes = jax.eval_shape(lm.init, jax.random.key(0))
        shapes = {
            part: sharded_shapes(tree, wanted.get(part))
            for part, tree in shapes.items()
        }
        only = None if head else BODY
        return record, vocabulary, checkpoints.load(step, only, params=shapes)["params"]
    finally:
        checkpoints.close()


def open_existing(run: Path, config: TrainConfig | None = None) -> Checkpoints:
    """The checkpoints of a run that must have some."""
    there = (run / "checkpoints").is_dir()
    if not there or not (found := Checkpoints(run, config)).steps:
        raise InputError(
            f"{run} has no checkpoint yet; let `elmojax pretrain` reach its first one."
        )
    return found


@checked
@outside_meshes
def restore(
    run_directory: str | os.PathLike[str],
    step: int | None = None,
    *,
    sharding: Placement = None,
    precision: Precision = "float32",
) -> ElmoParams:
    """`ElmoParams` of a pretraining run, ready for `embed`.

    Args:
      run_directory: the --workdir of `elmojax pretrain`; it may be on gs:// or s3://.
      step: which checkpoint; None = the newest.
      sharding: where the arrays go, on any devices: one `jax.sharding.Sharding` or
        device for all, or a pytree of them like the ElmoParams (or a prefix of it), as
        `jax.device_put` takes it. Each device reads its share. None = uncommitted: on
        the default device, until they are used with arrays on others or in a mesh.
      precision: of matrix products, "float32" or "bf16"; see `cast`.

    Raises:
      InputError: if it is not a run directory, the checkpoint is missing, damaged or
        of another configuration, or `sharding` does not fit.
    """
    record, _, tree = read_run(run_directory, step, head=False, sharding=sharding)
    return cast(from_tree(record.train.model, tree), precision)

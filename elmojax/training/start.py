"""The start of a run, in this order, before the first step:

(1) the mesh, (2) text and vocabulary, (3) the record: every choice made, compared with
the run that is already in the directory, (4) abstract state and its shardings, which
refuses what does not divide, (5) the run directory and its lock, (6) the state: the
newest whole checkpoint of the run, else fresh. Of several processes the first one
writes, and the others wait until they find what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.config import TrainConfig
from elmojax.disk import Lock
from elmojax.errors import InputError, TryAgain
from elmojax.shapes import Params
from elmojax.text.batches import TrainingText
from elmojax.text.corpus import Corpus
from elmojax.text.prepare import sample_corpora
from elmojax.training import record as records
from elmojax.training.checkpoint import Checkpoints
from elmojax.training.choices import (
    changes,
    check_same,
    check_use,
    complete,
    product_dtype,
    schedule_news,
    scheduled,
)
from elmojax.training.damage import DamagedCheckpoint
from elmojax.training.distributed import (
    in_turn,
    is_first,
    is_multiprocess,
    wait_for_all,
)
from elmojax.training.evaluate import Evaluator
from elmojax.training.memory import explain_out_of_memory, require_room
from elmojax.training.optim import make_optimizer, make_schedule
from elmojax.training.record import RunRecord
from elmojax.training.remote import just_begun
from elmojax.training.sharding import (
    local_shards,
    make_mesh,
    memory_layouts,
    sharded_shapes,
    shardings,
)
from elmojax.training.sizes import training_text
from elmojax.training.step import LanguageModel, TrainState, init_state

LOCK_PATIENCE = 120
"""Seconds in which the lock of a run that was lost on another machine must end."""

Initialize = Callable[[Params], Params]


@dataclass(frozen=True)
class Run:
    """A run that is ready for its next step."""

    record: RunRecord
    lm: LanguageModel
    text: TrainingText
    optimizer: optax.GradientTransformation
    steps: int
    """Length of the whole run."""
    rate: optax.Schedule
    """Learning rate by the number of steps done."""
    state: TrainState
    step: int
    """Steps already done: 0 in a fresh run."""
    checkpoints: Checkpoints
    evaluator: Evaluator | None
    notes: tuple[str, ...]
    """What was found damaged or is not as it was, in sentences for people."""
    lock: Lock | None
    """Held by the first process."""


def start(
    config: TrainConfig, version: str, initialize: Initialize | None = None
) -> Run:
    """Builds or resumes the run of a configuration.

    Args:
      version: of elmojax, for the record.
      initialize: changes the parameters of a fresh run, for example word vectors.

    Raises:
      InputError: for whatever the user can put right; a fresh run directory is made
        only after everything else was found good.
    """
    mesh = make_mesh(config.mesh)
    fresh = not (config.workdir / "config.json").exists()
    before = None if fresh else records.read_record(config.workdir)
    if before is not None:  # gone or edited, it makes the run useless
        records.read_vocabulary(config.workdir, before)
    wait_for_all()  # all see the directory as it was
    corpus, heldout = in_turn(partial(open_corpora, config, before))
    record = complete(config, corpus, version, before)
    config = record.train
    if before is not None:
        check_same(before, record)
    check_use(config, mesh.shape["data"], heldout)
    dtype = product_dtype(config, jax.default_backend())
    lm = records.language_model(record, dropout=config.dropout, dtype=dtype, mesh=mesh)
    text = training_text(config, corpus, mesh.shape["data"], local_shards(mesh))
    steps = config.steps or text.steps(config.epochs)
    horizon = config.schedule_steps or steps
    optimizer = make_optimizer(config.optimizer, horizon, config.freeze_steps)
    create = partial(init_state, lm, optimizer, config.rows, config.seed)
    shapes, sampled = jax.eval_shape(create), lm.head.kind == "sampled"
    wanted = shardings(mesh, shapes, sampled=sampled)
    require_room(config, shapes, mesh.shape["data"])
    patience = LOCK_PATIENCE if is_multiprocess() else 0
    lock = records.lock_run(config.workdir, patience) if is_first() else None
    try:
        if fresh:
            if is_first():
                _create(config, record, corpus)
            wait_for_all()
        with explain_out_of_memory(config, lambda: "while the state was made"):
            checkpoints, step, state, notes = _resume(config, shapes, wanted)
            if state is None:
                state = jax.jit(create, out_shardings=wanted)()
                if initialize is not None:
                    params = _initialized(initialize, state.params, wanted.params)
                    state = state.replace(params=params)
            state = jax.device_put(state, memory_layouts(state), donate=True)
        if before is not None and step < steps:
            notes = (*notes, *_going_on(before, record, corpus, step, steps))
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return Run(
        record,
        lm,
        text,
        optimizer,
        steps,
        make_schedule(config.optimizer, horizon),
        state,
        step,
        checkpoints,
        None if heldout is None else Evaluator(lm, heldout, corpus.vocabulary),
        notes,
        lock,
    )


def _going_on(
    before: RunRecord, record: RunRecord, corpus: Corpus, step: int, steps: int
) -> list[str]:
    """What to say of a run that goes on otherwise than it began.

    Another schedule of the learning rate is now the run's own.
    """
    was, now = scheduled(before.train, corpus), record.train.schedule_steps
    if was != now and is_first():
        train = replace(before.train, schedule_steps=now)
        records.write_record(record.train.workdir, replace(before, train=train))
    news = schedule_news(record.train, was, step, steps)
    return [*filter(None, [news]), *(changes(before, record) if step else ())]


def _create(config: TrainConfig, record: RunRecord, corpus: Corpus) -> None:
    if (config.workdir / "config.json").exists():
        raise just_begun(config.workdir)
    records.create_run(config.workdir, record, corpus.vocabulary)


def _initialized(initialize: Initialize, params: Params, wanted: Params) -> Params:
    """What `initialize` makes of parameters, with the shardings `wanted`."""
    one = jax.tree.leaves(wanted)[0]
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(one.mesh, P()))
    here = jax.tree.map(lambda leaf: leaf.addressable_data(0), whole(params))

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(put, initialize(here), wanted)


def _resume(
    config: TrainConfig, shapes: TrainState, wanted: TrainState
) -> tuple[Checkpoints, int, TrainState | None, tuple[str, ...]]:
    """The newest whole checkpoint, step and state; damaged ones are set aside."""
    notes: list[str] = []
    doubted: dict[Path, str] = {}
    while True:
        try:
            checkpoints, step, state = _newest(config, shapes, wanted)
            break
        except DamagedCheckpoint as error:
            if error.path not in doubted and not is_multiprocess():
                # Once may be the machine's fault: look again.
                what = f"The checkpoint {error.path} could not be read at first"
                doubted[error.path] = f"{what} ({error.why})."
                continue
            doubted.pop(error.path, None)
            what = f"The checkpoint {error.path} is damaged ({error.why}); it is now "
            what += str(error.set_aside())
            if is_multiprocess():  # the others may not have seen it
                raise TryAgain(
                    f"{what}; give the same command again to go on from the one before "
                    "it."
                ) from error
            notes.append(f"{what}, and the one before it is used.")
    if notes and state is None:
        raise InputError(
            f"No whole checkpoint is left in {config.workdir}: {len(notes)} are "
            f"damaged, and now in {config.workdir / 'damaged'}. Restore one from a "
            "copy, or give another --workdir."
        )
    return checkpoints, step, state, (*notes, *doubted.values())


def _newest(
    config: TrainConfig, shapes: TrainState, wanted: TrainState
) -> tuple[Checkpoints, int, TrainState | None]:
    """The checkpoints of a run, and step and state of the newest; 0 and None without.

    Raises `DamagedCheckpoint`.
    """
    checkpoints = Checkpoints(config.workdir, config, clean=True)
    step = checkpoints.latest
    if step is None:
        return checkpoints, 0, None
    sharded = sharded_shapes(shapes, wanted)
    rest = sharded.replace(params={})
    try:
        parts = checkpoints.load(step, params=sharded.params, training=rest)
    except DamagedCheckpoint:
        checkpoints.close()
        raise
    checkpoints.prune()
    return checkpoints, step, parts["training"].replace(params=parts["params"])


def open_corpora(
    config: TrainConfig, before: RunRecord | None = None
) -> tuple[Corpus, Corpus | None]:
    """Training and held-out text: as given, or the sample, prepared in the workdir."""
    other = InputError(
        f"{config.workdir} was trained on another corpus than "
        f"{config.data or 'the sample text'}; give the same --data, or another "
        "--workdir for a new run."
    )
    heldout = Corpus.open(config.heldout) if config.heldout else None
    if config.data is not None:
        train = Corpus.open(config.data)
    elif before is not None and before.train.data is not None:
        raise other
    else:
        train, sample = sample_corpora(config.workdir)
        heldout = heldout or sample
    if before is not None and before.corpus != train.fingerprint:
        raise other
    return train, heldout

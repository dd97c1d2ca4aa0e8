"""The start of a run, in this order, before the first step:

(1) the mesh, (2) text and vocabulary, (3) the record: every choice made, compared with
the run that is already in the directory, (4) abstract state and its shardings, which
refuses what does not divide, (5) the run directory and its lock, (6) the state: the
newest whole checkpoint of the run, else fresh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from elmojax.config import CharCnnConfig, TrainConfig, WordTableConfig
from elmojax.errors import InputError
from elmojax.shapes import Params
from elmojax.text.batches import TrainingText, Words
from elmojax.text.prepared import Corpus
from elmojax.text.sample import sample_corpora
from elmojax.training import record as records
from elmojax.training.checkpoint import Checkpoints, DamagedCheckpoint
from elmojax.training.cutoffs import automatic_cutoffs
from elmojax.training.evaluate import Evaluator
from elmojax.training.lock import RunLock
from elmojax.training.optim import make_optimizer
from elmojax.training.record import RunRecord
from elmojax.training.sharding import make_mesh, shardings
from elmojax.training.step import LanguageModel, TrainState, init_state

FIXED = (
    "encoder",
    "model",
    "head",
    "optimizer",
    "rows",
    "window",
    "dropout",
    "seed",
    "freeze_steps",
)
"""What must not change when a run goes on."""

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
    state: TrainState
    step: int
    """Steps already done: 0 in a fresh run."""
    checkpoints: Checkpoints
    evaluator: Evaluator | None
    notes: tuple[str, ...]
    """What was found damaged, in sentences for people."""
    lock: RunLock


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
    corpus, heldout = open_corpora(config, before)
    record = _record(config, corpus, version, before)
    config = record.train
    if before is not None:
        _check_same(before, record)
    _check_use(config, mesh.shape["data"], heldout)
    lm = records.language_model(
        record, dropout=config.dropout, dtype=_dtype(config), mesh=mesh
    )
    words = Words(corpus, corpus.vocabulary, config.model, mesh.shape["data"])
    samples = config.head.samples if config.head.kind == "sampled" else 0
    shape = (config.rows, config.window)
    text = TrainingText(corpus, words, *shape, config.seed, samples)
    steps = config.steps or text.steps(config.epochs)
    optimizer = make_optimizer(config.optimizer, steps, config.freeze_steps)
    create = partial(init_state, lm, optimizer, config.rows, config.seed)
    places = shardings(mesh, shapes := jax.eval_shape(create))
    lock = RunLock(config.workdir)
    try:
        if fresh and (config.workdir / "config.json").exists():
            raise InputError(
                f"Another run has just begun in {config.workdir}; give the command "
                "again to go on with it, or another --workdir."
            )
        if fresh:
            records.create_run(config.workdir, record, corpus.vocabulary)
        checkpoints, step, state, notes = _resume(config, shapes, places)
        if state is None:
            state = jax.jit(create, out_shardings=places)()
            if initialize is not None:
                params = jax.device_put(initialize(state.params), places.params)
                state = state.replace(params=params)
    except BaseException:
        lock.release()
        raise
    evaluator = None if heldout is None else Evaluator(lm, heldout, corpus.vocabulary)
    return Run(
        record,
        lm,
        text,
        optimizer,
        steps,
        state,
        step,
        checkpoints,
        evaluator,
        notes,
        lock,
    )


def _resume(
    config: TrainConfig, shapes: TrainState, places: TrainState
) -> tuple[Checkpoints, int, TrainState | None, tuple[str, ...]]:
    """The newest whole checkpoint, step and state; damaged ones are set aside."""
    notes: list[str] = []
    while True:
        checkpoints = None
        try:
            checkpoints = Checkpoints(config.workdir, config.keep, clean=True)
            step = checkpoints.latest
            if step is not None:
                state = _load(checkpoints, step, shapes, places)
                return checkpoints, step, state, tuple(notes)
        except DamagedCheckpoint as error:
            if checkpoints is not None:
                checkpoints.close()
            moved = error.set_aside()
            notes.append(
                f"The checkpoint {error.path} is damaged ({error.why}); it is now "
                f"{moved}, and the one before it is used."
            )
            continue
        if notes:
            raise InputError(
                f"No whole checkpoint is left in {config.workdir}: {len(notes)} are "
                f"damaged, and now in {config.workdir / 'damaged'}. Restore one from a "
                "copy, or give another --workdir."
            )
        return checkpoints, 0, None, ()


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


def _dtype(config: TrainConfig) -> Any:
    if config.precision == "auto":
        on_cpu = jax.default_backend() == "cpu"
        return jnp.float32 if on_cpu else jnp.bfloat16
    return jnp.float32 if config.precision == "float32" else jnp.bfloat16


def _record(
    config: TrainConfig, corpus: Corpus, version: str, before: RunRecord | None
) -> RunRecord:
    """The configuration with nothing left automatic."""
    vocabulary = corpus.vocabulary
    model, head = config.model, config.head
    if config.encoder == "words" and isinstance(model.encoder, CharCnnConfig):
        encoder = before and before.train.model.encoder
        if not isinstance(encoder, WordTableConfig):  # else as wide as it was
            encoder = WordTableConfig(len(vocabulary), model.lstm.projection)
        model = replace(model, encoder=encoder)
    if head.kind != "adaptive" and head.cutoffs:
        raise InputError(
            f"A {head.kind} softmax has no cutoffs; leave --head.cutoffs out."
        )
    if head.kind == "sampled" and config.optimizer.name == "adafactor":
        raise InputError(
            "Adafactor has no moments of single rows, which a sampled softmax needs; "
            "take --optimizer.name adagrad or adamw."
        )
    if head.kind != "full" and not config.allow_unsorted_vocabulary:
        vocabulary.check_sorted(corpus.target_counts(vocabulary, marks=False))
    if head.kind == "adaptive" and not head.cutoffs:
        counts, dim = corpus.target_counts(vocabulary), model.lstm.projection
        cutoffs = automatic_cutoffs(counts, dim, head.div_value)
        head = replace(head, cutoffs=cutoffs)
    train = replace(config, model=model, head=head)
    return RunRecord(
        train=train,
        corpus=corpus.fingerprint,
        vocabulary=len(vocabulary),
        words=records.fingerprint(vocabulary),
        elmojax=version,
    )


def _check_use(config: TrainConfig, data: int, heldout: Corpus | None) -> None:
    """Refuses settings that do not go together."""
    if config.rows % data:
        raise InputError(
            f"--rows {config.rows} cannot be split evenly over {data} devices along "
            f"`data`; make it a multiple of {data}, or set --mesh.data."
        )
    if config.evaluate_every and heldout is None:
        raise InputError(
            "--evaluate-every needs --heldout DIRECTORY, a prepared corpus to "
            "evaluate on."
        )


def _check_same(before: RunRecord, record: RunRecord) -> None:
    """A run goes on only as what it was."""
    run = record.train.workdir
    for name in FIXED:
        was, now = getattr(before.train, name), getattr(record.train, name)
        if was != now:
            what, old, new = _difference(name, was, now)
            raise InputError(
                f"{run} was started with {what} = {old}, and now it is {new}; leave "
                "it out to go on, or give another --workdir for a new run."
            )


def _difference(name: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    if dataclasses.is_dataclass(was) and type(was) is type(now):
        for field in dataclasses.fields(was):
            one, other = getattr(was, field.name), getattr(now, field.name)
            if one != other:
                return _difference(f"{name}.{field.name}", one, other)
    return name, was, now


def _load(
    checkpoints: Checkpoints, step: int, shapes: TrainState, places: TrainState
) -> TrainState:
    wanted = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        shapes,
        places,
    )
    rest = wanted.replace(params={})
    parts = checkpoints.load(step, params=wanted.params, training=rest)
    return parts["training"].replace(params=parts["params"])

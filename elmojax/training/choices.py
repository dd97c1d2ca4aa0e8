"""What a run is to be: every choice made, and nothing that contradicts itself."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from elmojax.config import CharCnnConfig, TrainConfig, WordTableConfig
from elmojax.errors import InputError
from elmojax.text.prepared import Corpus
from elmojax.training.cutoffs import automatic_cutoffs
from elmojax.training.record import RunRecord, fingerprint

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


def complete(
    config: TrainConfig, corpus: Corpus, version: str, before: RunRecord | None
) -> RunRecord:
    """The configuration with nothing left automatic, and what it belongs to."""
    vocabulary = corpus.vocabulary
    counts = corpus.target_counts(vocabulary)
    train = completed(config, counts, before)
    if train.head.kind != "full" and not config.allow_unsorted_vocabulary:
        vocabulary.check_sorted(counts)
    return RunRecord(
        train=train,
        corpus=corpus.fingerprint,
        vocabulary=len(vocabulary),
        words=fingerprint(vocabulary),
        elmojax=version,
    )


def completed(
    config: TrainConfig, counts: np.ndarray, before: RunRecord | None = None
) -> TrainConfig:
    """The configuration with nothing left automatic.

    Args:
      counts: how often each word of the vocabulary is a target, by rank.
    """
    model, head = config.model, config.head
    if config.encoder == "words" and isinstance(model.encoder, CharCnnConfig):
        encoder = before and before.train.model.encoder
        if not isinstance(encoder, WordTableConfig):  # else as wide as it was
            encoder = WordTableConfig(len(counts), model.lstm.projection)
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
    if head.kind == "adaptive" and not head.cutoffs:
        dim = model.lstm.projection
        cutoffs = automatic_cutoffs(counts, dim, head.div_value)
        head = replace(head, cutoffs=cutoffs)
    return replace(config, model=model, head=head)


def product_dtype(config: TrainConfig, platform: str) -> Any:
    """The dtype of matrix products on `cpu`, `gpu` or `tpu`."""
    if config.precision == "auto":
        return jnp.float32 if platform == "cpu" else jnp.bfloat16
    return jnp.float32 if config.precision == "float32" else jnp.bfloat16


def check_use(config: TrainConfig, data: int, heldout: Corpus | None) -> None:
    """Refuses settings that do not go together."""
    check_rows(config, data)
    if config.evaluate_every and heldout is None:
        raise InputError(
            "--evaluate-every needs --heldout DIRECTORY, a prepared corpus to "
            "evaluate on."
        )
    if config.patience and not config.evaluate_every:
        raise InputError(
            "--patience counts evaluations; give --evaluate-every N, and --heldout."
        )


def check_rows(config: TrainConfig, data: int) -> None:
    """Refuses rows that do not split evenly over devices and pieces."""
    if config.rows % data:
        raise InputError(
            f"--rows {config.rows} cannot be split evenly over {data} devices along "
            f"`data`; make it a multiple of {data}, or set --mesh.data."
        )
    parts = data * config.accumulate
    if config.rows % parts:
        raise InputError(
            f"--rows {config.rows} cannot be split evenly into --accumulate "
            f"{config.accumulate} pieces on {data} devices along `data`; make it a "
            f"multiple of {parts}."
        )


def check_same(before: RunRecord, record: RunRecord) -> None:
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

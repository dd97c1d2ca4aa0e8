"""What a run is to be: every choice made, and nothing that contradicts itself."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import jax
import numpy as np

from elmojax.config import (
    CharCnnConfig,
    ElmoConfig,
    TrainConfig,
    UnicodeCnnConfig,
    WordTableConfig,
)
from elmojax.errors import InputError
from elmojax.model.ops import DTYPES
from elmojax.text.batches import ORDER, steps_of
from elmojax.text.corpus import Corpus
from elmojax.training.optim import make_schedule
from elmojax.training.record import FIXED, RunRecord, difference, fingerprint

SMALL = 2000
"""Vocabularies up to here get no clusters: one product is as fast."""
LOGIT_COST = 64
"""Cost of one logit besides its products, in multiply-adds: on a CPU core forward and
backward pass took 4, 6, 14 and 31 ns a logit at widths 8, 32, 128 and 512."""
FLOOR = 8 / 2560
"""Least share of the positions that a cluster costs: a block of a step of 64 rows."""


def automatic_cutoffs(
    counts: np.ndarray, dim: int, div_value: float
) -> tuple[int, ...]:
    """The cutoffs, at most three, with the least expected work a position.

    The cost model of Grave et al. 2017 (equation 4): the shortlist is computed for
    every position, a tail for its share of them and at least for a floor, and the time
    of a product is linear in its size. Rising; () for a small vocabulary.

    Args:
      counts: how often each word of the vocabulary is a target, by rank.
      dim: width of the hidden vectors; div_value: narrowing from cluster to cluster.
    """
    size = len(counts)
    if size <= SMALL:
        return ()
    share = np.concatenate([[0.0], np.cumsum(counts) / np.sum(counts)])
    grid = sorted({int(c) for c in np.geomspace(500, size * 0.8, 20)})

    def cost(cutoffs: tuple[int, ...]) -> float:
        edges = (*cutoffs, size)
        total = (edges[0] + len(cutoffs)) * (dim + LOGIT_COST)
        for k, (low, high) in enumerate(pairwise(edges)):
            narrow = max(1, int(dim // div_value ** (k + 1)))
            work = dim * narrow + (high - low) * (narrow + LOGIT_COST)
            total += max(share[high] - share[low], FLOOR) * work
        return float(total)

    choices = (c for n in range(4) for c in combinations(grid, n))
    return min(choices, key=cost)


def complete(
    config: TrainConfig, corpus: Corpus, version: str, before: RunRecord | None
) -> RunRecord:
    """The configuration with nothing left automatic, and what it belongs to."""
    vocabulary = corpus.vocabulary
    counts = corpus.target_counts(vocabulary)
    train = resolved(config, counts, before)
    if before is not None and train.schedule_steps is None:
        train = replace(train, schedule_steps=scheduled(before.train, corpus))
    train = replace(train, schedule_steps=scheduled(train, corpus))
    if train.head.kind != "full" and not config.allow_unsorted_vocabulary:
        vocabulary.check_sorted(counts)
    return RunRecord(
        train=train,
        corpus=corpus.fingerprint,
        vocabulary=len(vocabulary),
        words=fingerprint(vocabulary),
        elmojax=version,
        jax=jax.__version__,
        numpy=np.__version__,
        order=ORDER,
        jax_threefry_partitionable=bool(jax.threefry_partitionable.value),
        devices=_devices(),
    )


def _devices() -> str:
    """What JAX computes on: "4 x NVIDIA H100", "cpu (2 cores)"."""
    kinds = Counter(device.device_kind for device in jax.devices())
    named = (f"{n} x {kind}" if n > 1 else kind for kind, n in sorted(kinds.items()))
    cores = f" ({os.cpu_count()} cores)" if jax.default_backend() == "cpu" else ""
    return ", ".join(named) + cores


def scheduled(config: TrainConfig, corpus: Corpus) -> int | None:
    """The steps in which the learning rate falls; None where it does not.

    Records of earlier versions do not name them: it was the length of the run.
    """
    if config.optimizer.decay == "constant" or config.schedule_steps is not None:
        return config.schedule_steps
    positions = len(corpus.words) + len(corpus.offsets) - 1
    epochs = steps_of(positions, config.rows, config.window, config.epochs)
    return config.steps or epochs


def require_trainable(model: ElmoConfig) -> None:
    """`InputError` for models that are only read."""
    if isinstance(model.encoder, UnicodeCnnConfig):
        raise InputError(
            "Models of ELMoForManyLangs are read and not trained; train one that reads "
            "bytes, which serves any language: leave --init-from out."
        )


def resolved(
    config: TrainConfig, counts: np.ndarray, before: RunRecord | None = None
) -> TrainConfig:
    """The configuration with nothing left automatic.

    Args:
      counts: how often each word of the vocabulary is a target, by rank.
    """
    model, head = config.model, config.head
    require_trainable(model)
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
        return DTYPES["float32" if platform == "cpu" else "bf16"]
    return DTYPES[config.precision]


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
    if config.schedule_steps and config.optimizer.decay == "constant":
        raise InputError(
            "--schedule-steps is how long the learning rate falls, and with "
            "--optimizer.decay constant it does not; leave one of them out."
        )


def check_rows(config: TrainConfig, data: int) -> None:
    """Refuses rows that do not split evenly over devices and microbatches."""
    if config.rows % data:
        raise InputError(
            f"--rows {config.rows} cannot be split evenly over {data} devices along "
            f"`data`; make it a multiple of {data}, or set --mesh.data."
        )
    parts = data * config.accumulate
    if config.rows % parts:
        raise InputError(
            f"--rows {config.rows} cannot be split evenly into --accumulate "
            f"{config.accumulate} microbatches on {data} devices along `data`; make it "
            f"a multiple of {parts}."
        )


def check_same(before: RunRecord, record: RunRecord) -> None:
    """A run goes on only as what it was."""
    run = record.train.workdir
    if other := difference(before.train, record.train, FIXED):
        what, old, new = other
        raise InputError(
            f"{run} was started with {what} = {old}, and now it is {new}; leave "
            "it out to go on, or give another --workdir for a new run."
        )
    was, now = before.jax_threefry_partitionable, record.jax_threefry_partitionable
    if was is not None and was != now:
        raise InputError(
            f"{run} was started with JAX's switch jax_threefry_partitionable = {was}, "
            f"and now it is {now}, which draws other random numbers; set "
            f"JAX_THREEFRY_PARTITIONABLE={int(was)} in the environment to go on, or "
            "give another --workdir for a new run."
        )


def schedule_news(train: TrainConfig, was: int | None, step: int, steps: int) -> str:
    """A sentence on the learning rate of a run that goes on, where one is due.

    Args:
      was: steps in which it fell until now.
      step: the last one done.
      steps: length of the run.
    """
    now, next_one = train.schedule_steps, f"step {step + 1}"
    if was is None or now is None or was == now == steps:
        return ""

    def rate(steps: int) -> str:
        return f"{float(make_schedule(train.optimizer, steps)(step)):.3g}"

    if was != now:
        return (
            f"The learning rate falls in {now} steps from here on, and no longer in "
            f"{was}: it is {rate(now)} in {next_one}, where it was to be {rate(was)}."
        )
    return (
        f"The learning rate falls in {now} steps, as this run began, and not in the "
        f"{steps} that it now has: it is {rate(now)} in {next_one}. With "
        f"--schedule-steps {steps} it would go on at {rate(steps)}."
    )


def changes(before: RunRecord, record: RunRecord) -> list[str]:
    """What is not as a run began, and yet does not keep it from going on."""
    run, found = record.train.workdir, []
    names = ("elmojax", "jax", "numpy")
    versions = [(n, getattr(before, n), getattr(record, n)) for n in names]
    others = [(n, old, new) for n, old, new in versions if old and new and old != new]
    if others:
        old, new = (", ".join(f"{n[0]} {n[i]}" for n in others) for i in (1, 2))
        found.append(
            f"{run} was started with {old} and goes on with {new}: its last digits are "
            "not those of a run with one version."
        )
    if before.order != record.order:
        found.append(
            f"{run} was started by an elmojax that shuffled sentences in another way; "
            "it goes on in the order of this one, and every later epoch is whole."
        )
    return found

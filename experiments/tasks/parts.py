"""The parts of a task: examples of train, dev and test, their batches and scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import jax
import numpy as np
from batching import plan
from fitting import Batch, Loss, Params, fit
from task_options import TrainingOptions
from task_report import Outcome

from elmojax import InputError
from elmojax.config import Count

Example = TypeVar("Example")
Scores: TypeAlias = dict[str, float]
"""By their names, in per cent; the first is the one that dev is to raise."""


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """Where the examples of a task are."""

    train: Path
    test: Path
    dev: Path | None = None
    """Chooses the epoch to keep; none = the last examples of the training file."""
    held_out: Count = 1000
    """Examples of the training file that are dev where there is no dev."""
    examples: Count | None = None
    """Examples of the training file to use, from its start; none = all."""


def read_parts(
    options: PartOptions, read: Callable[[Path], Sequence[Example]]
) -> list[Sequence[Example]]:
    """Train, dev and test.

    Args:
      options: where they are.
      read: gives the examples of a file.

    Raises:
      InputError: for files that `read` refuses, and if nothing is left to train on.
    """
    train = read(options.train)[: options.examples]
    if options.dev is not None:
        return [train, read(options.dev), read(options.test)]
    if len(train) <= options.held_out:
        raise InputError(
            f"{options.train} has {len(train)} examples and --held-out is "
            f"{options.held_out}; hold out fewer, or give --dev."
        )
    held_out = -options.held_out
    return [train[:held_out], train[held_out:], read(options.test)]


@dataclass(frozen=True)
class Part(Generic[Example]):
    """Examples, and how they become batches."""

    examples: Sequence[Example]
    lengths: Sequence[int]
    """Words of each example: those of about one length come together."""
    make: Callable[[Sequence[Example]], Batch]
    """The batch of at most `rows` examples."""
    rows: int

    def groups(self, random: np.random.Generator | None = None) -> list[np.ndarray]:
        """Numbers of the examples of each batch."""
        return plan(self.lengths, self.rows, random)

    def batch(self, group: Sequence[int] | np.ndarray) -> Batch:
        return self.make([self.examples[number] for number in group])

    def batches(self, random: np.random.Generator | None = None) -> Iterator[Batch]:
        return map(self.batch, self.groups(random))

    def outputs(self, function: Callable[[Batch], Any]) -> list[np.ndarray]:
        """The row of each example in what the function gives for its batch."""
        rows: list[np.ndarray] = [np.zeros(0)] * len(self.examples)
        for group in self.groups():
            given = np.asarray(function(self.batch(group)))
            for number, row in zip(group, given, strict=False):
                rows[number] = row
        return rows


def train_seeds(
    parts: Sequence[Part],
    init: Callable[[Any, Batch], Params],
    loss: Loss,
    score: Callable[[Params, Part], Scores],
    options: TrainingOptions,
    rates: Callable[[Params, int], Params] | None = None,
) -> list[Outcome]:
    """`train_and_test` with every seed, from what `init` makes of its key and the first
    batch of the training part."""
    first = parts[0].batch(parts[0].groups()[0])
    start = jax.jit(init)
    return [
        train_and_test(
            *(parts, start(jax.random.key(seed), first), loss, score, options, seed),
            rates,
        )
        for seed in options.seeds
    ]


def train_and_test(
    parts: Sequence[Part],
    params: Params,
    loss: Loss,
    score: Callable[[Params, Part], Scores],
    options: TrainingOptions,
    seed: int,
    rates: Callable[[Params, int], Params] | None = None,
) -> Outcome:
    """Trains with one seed, and scores on test.

    Args:
      parts: train, dev and test.
      params, loss, options, seed, rates: as for `fit`.
      score: of a part.
    """
    train, dev, test = parts
    started = time.perf_counter()

    def on_dev(params: Params) -> float:
        return next(iter(score(params, dev).values()))

    fitted = fit(params, loss, train.batches, on_dev, options, seed, rates)
    first, *more = score(fitted.params, test).items()
    begin = time.perf_counter()
    score(fitted.params, test)
    end = time.perf_counter()
    each = 1000 * (end - begin) / len(test.examples)
    return Outcome(first[1], fitted, end - started, each, dict(more) or None)

"""Senses of words in context: nearest neighbours in each layer, and a linear probe.

    python experiments/tasks/senses.py --train train.tsv --test test.tsv

Files are tables of tabs whose first line is word, sense, target_index, sentence. A use
of a word is the vector of that word in its sentence. Neighbours: the `--neighbours`
uses of the same word in the training file whose vectors have the largest cosine (as
they are, and once "standardized" for each word); their most frequent sense is the
answer, and of several that are as frequent the one whose cosines add up to more. Probe:
one linear map from the mix of layers to the senses of a word, trained on nine tenths of
the training file; the rest chooses the epoch. Its vectors are standardized for each
word. Both are held against the majority sense of the training file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from features import Features, make_features, parameters
from fitting import Params, fit
from heads import with_features
from jax import Array
from task_files import Use, read_senses
from task_options import Rate, ReportOptions, TrainingOptions, command
from task_report import Outcome, Report, summary

from elmojax import InputError
from elmojax.config import Count, Positive

DRAWS = 1000
"""Of test uses, with replacement, for the deviation of an accuracy."""


@dataclass(frozen=True, kw_only=True)
class SensesOptions(TrainingOptions, ReportOptions):
    """Tells the senses of words by their vectors, and scores it."""

    train: Path
    test: Path
    neighbours: Count = 5
    rows: Count = 128
    """Uses of a batch."""
    epochs: Count = 60
    learning_rate: Positive = 0.01
    elmo_dropout: Rate = 0.2


def read_uses(options: SensesOptions) -> tuple[list[Use], list[Use]]:
    """Uses of train and test.

    Raises:
      InputError: for files that `read_senses` refuses, and a word whose senses cannot
        be told apart: of one sense in train, or not there.
    """
    train, test = read_senses(options.train), read_senses(options.test)
    senses: dict[str, set[str]] = {}
    for use in train:
        senses.setdefault(use.word, set()).add(use.sense)
    for use in test:
        known = senses.get(use.word, set())
        if use.sense not in known:
            raise InputError(
                f"{options.test} has the sense {use.sense!r} of {use.word!r}, and "
                f"{options.train} no use of it; give every sense some."
            )
    for word, known in senses.items():
        if len(known) < 2:
            raise InputError(
                f"{options.train} has one sense of {word!r} alone, {min(known)!r}; "
                "there is nothing to tell apart."
            )
    return train, test


# --- neighbours ----------------------------------------------------------------------


def nearest_senses(
    train: np.ndarray, senses: Sequence[str], test: np.ndarray, count: int
) -> list[str]:
    """The sense of each test use by its nearest uses in train.

    Args:
      train: [uses, vector].
      senses: of the uses in train.
      test: [uses, vector].
      count: neighbours that vote.
    """
    cosines = _unit(test) @ _unit(train).T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    found = []
    for row, places in zip(cosines, nearest, strict=True):
        votes: dict[str, tuple[int, float]] = {}
        for place in places:
            number, total = votes.get(senses[place], (0, 0.0))
            votes[senses[place]] = (number + 1, total + float(row[place]))
        found.append(max(votes, key=votes.__getitem__))
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


def by_word(uses: Sequence[Use]) -> dict[str, np.ndarray]:
    """Numbers of the uses of each word."""
    words = np.array([use.word for use in uses])
    return {str(word): np.flatnonzero(words == word) for word in np.unique(words)}


def neighbour_hits(
    train: Sequence[Use],
    of_train: np.ndarray,
    test: Sequence[Use],
    of_test: np.ndarray,
    count: int,
) -> np.ndarray:
    """Whether the neighbours [uses, vector] give each test use its sense, bool."""
    hits = np.zeros(len(test), bool)
    places, all_train = by_word(test), by_word(train)
    for word, here in places.items():
        there = all_train[word]
        senses = [train[number].sense for number in there]
        found = nearest_senses(of_train[there], senses, of_test[here], count)
        hits[here] = [
            test[number].sense == sense
            for number, sense in zip(here, found, strict=True)
        ]
    return hits


def majority_hits(train: Sequence[Use], test: Sequence[Use]) -> np.ndarray:
    """Whether each test use has the sense that its word has most often in train."""
    most = {
        word: Counter(train[number].sense for number in numbers).most_common(1)[0][0]
        for word, numbers in by_word(train).items()
    }
    return np.array([most[use.word] == use.sense for use in test])


def accuracy(test: Sequence[Use], hits: np.ndarray) -> dict[str, Any]:
    """Accuracy in per cent, its deviation in draws of test uses, and of each word."""
    draws = np.random.default_rng(0).integers(0, len(hits), (DRAWS, len(hits)))
    return {
        "accuracy": round(100 * float(hits.mean()), 2),
        "deviation": round(100 * float(hits[draws].mean(axis=1).std()), 2),
        "words": {
            word: round(100 * float(hits[here].mean()), 2)
            for word, here in by_word(test).items()
        },
    }


def readings(features: Features, uses: Sequence[Use]) -> dict[str, np.ndarray]:
    """Vectors of uses [uses, vector] in each layer and in several together.

    In several, each layer is brought to length 1. `window` is the mean of layer 0 over
    the word and the five on each side: what static vectors know of a context.
    """
    at = features.at([use.place for use in uses])
    layers = at.shape[1]
    found = {f"layer {layer}": at[:, layer] for layer in range(layers)}
    unit = _unit(at)
    if layers > 2:
        higher = range(1, layers)
        name = "layers " + " and ".join(map(str, higher))
        found[name] = np.concatenate([unit[:, layer] for layer in higher], axis=1)
    if layers > 1:
        found["all layers"] = unit.reshape(len(unit), -1)
    windows = []
    for use, (start, end) in zip(uses, pairwise(features.starts), strict=True):
        first = max(start, start + use.place - 5)
        last = min(end, start + use.place + 6)
        windows.append(features.vectors[first:last, 0].astype(np.float32).mean(axis=0))
    return found | {"window": np.stack(windows)}


# --- probe ---------------------------------------------------------------------------


class Batch(NamedTuple):
    """Uses of words; rows past the end do not count."""

    layers: np.ndarray
    """float32 [batch, layers, 1, vector]."""
    senses: np.ndarray
    """int32 [batch]."""
    possible: np.ndarray
    """bool [batch, senses]: those of the word."""
    counts: np.ndarray
    """bool [batch]."""


class Probe(nn.Module):
    """A mix of layers, and one linear map to the senses of all words."""

    senses: int
    options: SensesOptions

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool) -> Array:
        """Scores [batch, senses]; those of another word are out of the question."""
        mask = jnp.ones((len(batch.senses), 1), bool)
        given = (batch.layers, mask, self.options, deterministic)
        x = with_features(None, "input", *given)[:, 0]
        return jnp.where(batch.possible, nn.Dense(self.senses)(x), -1e9)


@dataclass(frozen=True)
class Uses:
    """Uses of words and their vectors, as batches."""

    uses: Sequence[Use]
    vectors: np.ndarray
    """float32 [uses, layers, vector]."""
    senses: Mapping[tuple[str, str], int]
    """Numbers of the senses of all words."""
    rows: int

    def batches(
        self, numbers: np.ndarray, random: np.random.Generator | None = None
    ) -> Iterator[Batch]:
        """Of the uses of these numbers, in an order that `random` draws."""
        if random is not None:
            numbers = random.permutation(numbers)
        owners = np.array([word for word, _ in self.senses])
        for at in range(0, len(numbers), self.rows):
            some = numbers[at : at + self.rows]
            filled = np.resize(some, self.rows)  # what is past the end counts nothing
            uses = [self.uses[number] for number in filled]
            yield Batch(
                self.vectors[filled][:, :, None],
                np.array([self.senses[use.word, use.sense] for use in uses], np.int32),
                np.stack([owners == use.word for use in uses]),
                np.arange(self.rows) < len(some),
            )


def standardized(
    train: Sequence[Use], of_train: np.ndarray, test: Sequence[Use], of_test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [uses, layers, vector] of which each value has, over the uses of a word
    in train, the mean 0 and the deviation 1 (0 if it is always the same)."""
    moved = np.zeros_like(of_train), np.zeros_like(of_test)
    before, after = by_word(train), by_word(test)
    for word, here in before.items():
        mean, deviation = of_train[here].mean(axis=0), of_train[here].std(axis=0)
        rate = np.where(deviation > 1e-3, 1 / np.maximum(deviation, 1e-3), 0.0)
        there = after.get(word, np.zeros(0, np.int64))
        moved[0][here] = (of_train[here] - mean) * rate
        moved[1][there] = (of_test[there] - mean) * rate
    return moved


def train_probe(train: Uses, test: Uses, options: SensesOptions, seed: int) -> Outcome:
    """Trains the probe with one seed, and scores it on test."""
    started = time.perf_counter()
    order = np.random.default_rng(seed).permutation(len(train.uses))
    dev, kept = np.split(order, [max(len(order) // 10, 1)])
    network = Probe(len(train.senses), options)
    first = next(train.batches(kept))
    params = network.init(jax.random.key(seed), first, True)["params"]

    def loss(params: Params, batch: Batch, key: Array) -> Array:
        given, rngs = {"params": params}, {"dropout": key}
        scores = network.apply(given, batch, False, rngs=rngs)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, batch.senses)
        return each.mean(where=batch.counts)

    @jax.jit
    def right(params: Params, batch: Batch) -> Array:
        scores = network.apply({"params": params}, batch, True)
        hits = scores.argmax(axis=-1) == batch.senses
        return hits.sum(where=batch.counts)

    def evaluate(part: Uses, numbers: np.ndarray, params: Params) -> float:
        hits = [float(right(params, batch)) for batch in part.batches(numbers)]
        return 100 * sum(hits) / len(numbers)

    batches, score_dev = partial(train.batches, kept), partial(evaluate, train, dev)
    fitted = fit(params, loss, batches, score_dev, options, seed)
    begin = time.perf_counter()
    scored = evaluate(test, np.arange(len(test.uses)), fitted.params)
    end = time.perf_counter()
    each = 1000 * (end - begin) / len(test.uses)
    return Outcome(scored, fitted, end - started, each)


def run(options: SensesOptions) -> Report:
    """Neighbours in each layer, and the probe with every seed.

    Raises:
      InputError: for files and models that do not fit.
    """
    if options.features == "none" or options.place != "input":
        raise InputError("Senses are told by features alone, at --place input.")
    train, test = read_uses(options)
    made = make_features(
        options, [[use.words for use in part] for part in (train, test)]
    )
    assert made is not None
    before, after = (
        readings(features, part)
        for features, part in zip(made, (train, test), strict=True)
    )
    senses = sorted({(use.word, use.sense) for use in train})
    numbers = {sense: number for number, sense in enumerate(senses)}
    of_train, of_test = standardized(
        *(train, made[0].at([use.place for use in train])),
        *(test, made[1].at([use.place for use in test])),
    )
    before["standardized"] = of_train.reshape(len(train), -1)
    after["standardized"] = of_test.reshape(len(test), -1)
    found = {
        name: accuracy(
            test,
            neighbour_hits(train, before[name], test, after[name], options.neighbours),
        )
        for name in before
    }
    parts = [
        Uses(part, vectors, numbers, options.rows)
        for part, vectors in ((train, of_train), (test, of_test))
    ]
    outcomes = [train_probe(*parts, options, seed) for seed in options.seeds]
    return summary(
        *("senses", "accuracy", options, made, outcomes),
        neighbours=found,
        majority=accuracy(test, majority_hits(train, test)),
        parameters=parameters(outcomes[0].fitted.params),
        sentences=[len(train), len(test)],
    )


def main(argv: Sequence[str] | None = None) -> None:
    command("senses", SensesOptions, run, argv)


if __name__ == "__main__":
    main()

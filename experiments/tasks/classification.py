"""One class for a text, or for a pair of texts: what sentiment and entailment share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from features import parameters
from fitting import Params
from jax import Array
from parts import Part, PartOptions, Scores, read_parts, train_seeds
from task_options import FineTuningOptions
from task_report import Report, summary
from texts import (
    Text,
    TextNetwork,
    TextOptions,
    Texts,
    Tokens,
    as_rows,
    features_of,
    make_texts,
)

from elmojax import InputError
from elmojax.config import Width


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(PartOptions, TextOptions, FineTuningOptions):
    """Trains a classifier on vectors of words and scores it."""

    hidden: Width = 128
    """Of each direction of the LSTM, and of the layer before the classes."""


class Example(NamedTuple):
    """A text, or several that belong together, and their class."""

    label: str
    texts: tuple[Tokens, ...]
    line: int
    """Where it stands in its file, from 1."""


class Batch(NamedTuple):
    """Arrays of one step."""

    text: Text
    """[texts * batch, time]: the first text of all examples, then the second."""
    labels: Any
    """int32 [batch]; -1 where there is no example."""


Network = Callable[[int, int, Any], nn.Module]
"""Of the number of words, of classes, and the options; it maps a `Text` and
`deterministic` to scores [batch, classes]."""


def pooled(h: Array, mask: Array) -> Array:
    """The largest and the mean of each value over the words, [batch, 2 * width].

    0 for a row without words.
    """
    here = mask[..., None]
    count = jnp.maximum(here.sum(axis=1), 1).astype(h.dtype)
    largest = jnp.where(here, h, -1e9).max(axis=1)
    largest = jnp.where(here.any(axis=1), largest, 0.0)
    return jnp.concatenate([largest, jnp.where(here, h, 0.0).sum(axis=1) / count], -1)


class Decision(nn.Module):
    """A hidden layer and the classes: [batch, width] to scores [batch, classes]."""

    classes: int
    options: ClassificationOptions

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        def drop(x: Array) -> Array:
            return nn.Dropout(self.options.dropout)(x, deterministic=deterministic)

        x = nn.relu(nn.Dense(self.options.hidden)(drop(x)))
        return nn.Dense(self.classes)(drop(x))


def read_examples(
    options: PartOptions, read: Callable[[Path], Sequence[Example]]
) -> list[Sequence[Example]]:
    """Train, dev and test; every class of the others has examples in train.

    Raises:
      InputError: as `read_parts` does, for a class without examples in train, and for
        one class alone.
    """
    parts = read_parts(options, read)
    count = Counter(example.label for example in parts[0])
    if len(count) < 2:
        raise InputError(
            f"{options.train} has examples of one class alone, {min(count)!r}; "
            "a classifier needs two."
        )
    paths = (options.train, options.dev or options.train, options.test)
    for path, part in zip(paths, parts, strict=True):
        for example in part:
            if example.label not in count:
                raise InputError(
                    f"{path}, line {example.line} has the class {example.label!r}, of "
                    f"which {options.train} has no example that is trained on; its "
                    f"classes are {', '.join(sorted(count)[:9])}."
                )
    return parts


def make_part(
    examples: Sequence[Example], texts: Texts, labels: Sequence[str], rows: int
) -> Part[Example]:
    """Examples with their batches."""
    place = {label: number for number, label in enumerate(labels)}

    def make(some: Sequence[Example]) -> Batch:
        time = max(len(text) for example in some for text in example.texts)
        columns = zip(*(example.texts for example in some), strict=True)
        numbers = np.full(rows, -1, np.int32)
        numbers[: len(some)] = [place[example.label] for example in some]
        of_columns = [texts.batch(column, rows, time) for column in columns]
        return Batch(as_rows(of_columns), numbers)

    lengths = [max(map(len, example.texts)) for example in examples]
    return Part(examples, lengths, make, rows)


def make_loss(network: TextNetwork) -> Callable[[Params, Batch, Array], Array]:
    """The mean negative logarithm of the probability of the right class."""

    def loss(params: Params, batch: Batch, key: Array) -> Array:
        scores, here = network.apply(params, batch.text, key), batch.labels >= 0
        each = optax.softmax_cross_entropy_with_integer_labels(
            scores, jnp.maximum(batch.labels, 0)
        )
        return each.mean(where=here)

    return loss


def accuracy(
    network: TextNetwork, labels: Sequence[str]
) -> Callable[[Params, Part[Example]], Scores]:
    """A function that gives the per cent of examples whose class is found."""
    best = jax.jit(lambda params, text: network.apply(params, text).argmax(axis=-1))

    def score(params: Params, part: Part[Example]) -> Scores:
        found = part.outputs(lambda batch: best(params, batch.text))
        right = [
            labels[number] == example.label
            for number, example in zip(found, part.examples, strict=True)
        ]
        return {"accuracy": 100 * float(np.mean(right))}

    return score


def run(
    task: str,
    read: Callable[[Path], Sequence[Example]],
    make_network: Network,
    options: ClassificationOptions,
) -> Report:
    """Trains with every seed; the report of a task.

    Args:
      task: its name.
      read: gives the examples of a file.
      make_network: gives the network.
      options: flags.

    Raises:
      InputError: for files and models that do not fit.
    """
    examples = read_examples(options, read)
    spelt = [[text for example in part for text in example.texts] for part in examples]
    texts = make_texts(options, spelt)
    labels = sorted({example.label for example in examples[0]})
    parts = [
        make_part(part, of_part, labels, options.rows)
        for part, of_part in zip(examples, texts, strict=True)
    ]
    network = TextNetwork(
        make_network(texts[0].words.size, len(labels), options), texts[0].tuning
    )
    given = parts, network.init, make_loss(network), accuracy(network, labels)
    outcomes = train_seeds(*given, options, network.rates)
    count = Counter(example.label for example in examples[2])
    return summary(
        *(task, "accuracy", options, features_of(texts), outcomes),
        variant=options.variant,
        classes={label: count[label] for label in labels},
        parameters=parameters(outcomes[0].fitted.params),
        examples=[len(part) for part in examples],
    )

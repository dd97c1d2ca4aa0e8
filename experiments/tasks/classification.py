"""One class for a text, or for a pair of texts: what sentiment and entailment share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from features import parameters
from fine_tuning import LSTM, FineTuning
from fitting import Params
from jax import Array
from parts import Part, PartOptions, Scores, read_parts, train_seeds
from task_report import Report, summary
from texts import Text, TextOptions, Texts, Tokens, as_rows, features_of, make_texts

from elmojax import InputError
from elmojax.config import CountOrZero, Positive, Width


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(PartOptions, TextOptions):
    """Trains a classifier on vectors of words and scores it."""

    hidden: Width = 128
    """Of each direction of the LSTM, and of the layer before the classes."""
    unfreeze: CountOrZero = 0
    """Epoch after which the biLM is trained, too: its top layer, and after each later
    epoch one more; 0 = never."""
    unfreeze_speed: Positive = 0.1
    """Learning rate of the biLM, over that of the network."""


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


@dataclass(frozen=True)
class Classifier:
    """A network that is trained to tell classes."""

    network: nn.Module
    labels: Sequence[str]
    tuning: FineTuning | None
    """The biLM that is trained too; None = it is frozen."""

    def scores(self, params: Params, text: Text, key: Array | None = None) -> Array:
        """[batch, classes]; with dropout if there is a key for it."""
        if self.tuning is not None:
            layers = self.tuning.layers(params[LSTM], text.tokens)
            text = text._replace(layers=layers)
        rngs = None if key is None else {"dropout": key}
        return self.network.apply({"params": params}, text, key is None, rngs=rngs)

    def init(self, key: Array, batch: Batch) -> Params:
        """Parameters of the network, and of the biLM where it is trained too."""
        text = batch.text
        if self.tuning is None:
            return self.network.init(key, text, True)["params"]
        start = {LSTM: self.tuning.start()}
        layers = self.tuning.layers(start[LSTM], text.tokens)
        text = text._replace(layers=layers)
        return start | self.network.init(key, text, True)["params"]

    def loss(self, params: Params, batch: Batch, key: Array) -> Array:
        """The mean negative logarithm of the probability of the right class."""
        scores, here = self.scores(params, batch.text, key), batch.labels >= 0
        each = optax.softmax_cross_entropy_with_integer_labels(
            scores, jnp.maximum(batch.labels, 0)
        )
        return each.mean(where=here)

    def accuracy(self) -> Callable[[Params, Part[Example]], Scores]:
        """A function that gives the per cent of examples whose class is found."""
        best = jax.jit(lambda params, text: self.scores(params, text).argmax(axis=-1))

        def score(params: Params, part: Part[Example]) -> Scores:
            found = part.outputs(lambda batch: best(params, batch.text))
            right = [
                self.labels[number] == example.label
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
    tuning = None
    if options.unfreeze:
        scale = np.ones(1) if texts[0].features is None else texts[0].features.scale
        when = options.unfreeze, options.unfreeze_speed
        tuning = FineTuning.of(options, list(chain(*spelt)), scale, *when)
        texts = [replace(part, tuning=tuning) for part in texts]
    labels = sorted({example.label for example in examples[0]})
    parts = [
        make_part(part, of_part, labels, options.rows)
        for part, of_part in zip(examples, texts, strict=True)
    ]
    network = make_network(texts[0].words.size, len(labels), options)
    classifier = Classifier(network, labels, tuning)
    rates = None if tuning is None else tuning.rates
    given = (parts, classifier.init, classifier.loss, classifier.accuracy())
    outcomes = train_seeds(*given, options, rates)
    count = Counter(example.label for example in examples[2])
    return summary(
        *(task, "accuracy", options, features_of(texts), outcomes),
        variant=f"unfrozen after {options.unfreeze} epochs" if tuning else None,
        classes={label: count[label] for label in labels},
        parameters=parameters(outcomes[0].fitted.params),
        examples=[len(part) for part in examples],
    )

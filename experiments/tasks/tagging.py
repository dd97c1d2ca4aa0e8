"""A tag for each word: chunks, entities, parts of speech, in one network.

As Peters et al. 2018 do it (sections 3.2 and 3.3): the biLM is frozen; the task's
network reads [x_k; ELMo_k], and its output may become [h_k; ELMo_k], each with a mix of
its own, dropout on both, an L2 penalty on the weights of the mixes. x_k is a learned
word vector and what a convolution makes of the word's letters; a bidirectional LSTM
follows, and a CRF or a softmax for each word. chunking.py, ner.py and pos.py are its
commands.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from batching import padded_length
from crf import Transitions, log_likelihood, viterbi
from features import Features, make_features, parameters
from fine_tuning import LSTM, FineTuning
from fitting import Params
from heads import PADDING, BiLstm, Spelling, Words, letter_ids, with_features
from jax import Array
from parts import Part, PartOptions, Scores, read_parts, train_seeds
from task_files import Sentence, read_columns
from task_options import ReportOptions, TrainingOptions
from task_report import Outcome, Report, summary

from elmojax import InputError
from elmojax.config import CountOrZero, Positive, Width

Metric = Literal["F1", "accuracy"]


@dataclass(frozen=True, kw_only=True)
class TaggingOptions(PartOptions, TrainingOptions, ReportOptions):
    """Trains a tagger on vectors of words and scores it."""

    column: int = -1
    """Column of the tag, from 0 (the word is column 0); -1 = the last."""
    crf: bool = True
    """A conditional random field over the tags; else a softmax for each word."""
    word_width: Width = 100
    """Of the learned word vectors."""
    filters: CountOrZero = 30
    """Of the convolution over letters; 0 = none."""
    hidden: Width = 100
    """Of each direction of the LSTM."""
    unfreeze: CountOrZero = 0
    """Epoch after which the biLM is trained, too: its top layer, and after each later
    epoch one more; 0 = never."""
    unfreeze_speed: Positive = 0.1
    """Learning rate of the biLM, over that of the network."""


class Batch(NamedTuple):
    """Arrays of one step; rows and positions past the end hold 0."""

    words: np.ndarray
    """int32 [batch, time]."""
    letters: np.ndarray
    """uint16 [batch, time, letters]."""
    tags: np.ndarray
    """int32 [batch, time]."""
    layers: Any
    """float16 [batch, layers, time, vector]; None without features."""
    tokens: np.ndarray | None
    """int32 [batch, time] of `FineTuning.tokens`, of which `layers` are made; None for
    a frozen biLM."""

    @property
    def mask(self) -> Any:
        """bool [batch, time]."""
        return self.words != PADDING


class Tagger(nn.Module):
    """Words and layers of features to scores of tags and of their transitions."""

    words: int
    tags: int
    options: TaggingOptions

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool) -> tuple[Array, Transitions]:
        """Scores [batch, time, tags]; `deterministic` is False while training."""
        options, mask = self.options, batch.mask

        def drop(x: Array) -> Array:
            return nn.Dropout(options.dropout)(x, deterministic=deterministic)

        def join(x: Array, place: str) -> Array:
            given = (batch.layers, mask, options, deterministic)
            return with_features(x, place, *given)

        x = nn.Embed(self.words, options.word_width)(batch.words)
        if options.filters:
            spelling = Spelling(options.filters)(batch.letters)
            x = jnp.concatenate([x, spelling], axis=-1)
        h = BiLstm(options.hidden)(join(drop(x), "input"), mask)
        scores = nn.Dense(self.tags)(join(drop(h), "output"))
        zeros, count = nn.initializers.zeros, self.tags
        return scores, Transitions(
            self.param("steps", zeros, (count, count)),
            self.param("first", zeros, (count,)),
            self.param("last", zeros, (count,)),
        )


Numbered: TypeAlias = tuple[int, Sentence]
"""A sentence, with its number among those of its part."""


def make_part(
    sentences: Sequence[Sentence],
    features: Features | None,
    words: Words,
    tags: Sequence[str],
    rows: int,
    tuning: FineTuning | None = None,
) -> Part[Numbered]:
    """Sentences with their batches. A tag that the training text lacks is 0: only
    scores may read it."""
    place = {tag: number for number, tag in enumerate(tags)}

    def make(some: Sequence[Numbered]) -> Batch:
        spelt = [sentence.words for _, sentence in some]
        shape = rows, padded_length(max(map(len, spelt)))
        numbers = np.zeros(shape, np.int32)
        for row, (_, sentence) in zip(numbers, some, strict=False):
            row[: len(sentence.tags)] = [place.get(tag, 0) for tag in sentence.tags]
        layers = tokens = None
        if tuning is not None:
            tokens = tuning.tokens(spelt, *shape)
        elif features is not None:
            layers = features.batch([number for number, _ in some], *shape)
        ids, letters = words.ids(spelt, *shape), letter_ids(spelt, *shape)
        return Batch(ids, letters, numbers, layers, tokens)

    lengths = [len(sentence.words) for sentence in sentences]
    return Part(list(enumerate(sentences)), lengths, make, rows)


def score(
    gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]], metric: Metric
) -> float:
    """Per cent of tags that are right, or F1 of chunks as conlleval counts them."""
    if metric == "accuracy":
        pairs = zip(chain(*gold), chain(*found), strict=True)
        return 100 * float(np.mean([wanted == got for wanted, got in pairs]))
    from seqeval.metrics import f1_score

    with warnings.catch_warnings():  # of files without any chunk
        warnings.simplefilter("ignore")
        return 100 * float(f1_score(list(map(list, gold)), list(map(list, found))))


def read_sentences(options: TaggingOptions, metric: Metric) -> list[Sequence[Sentence]]:
    """Train, dev and test.

    Raises:
      InputError: for files that `read_columns` refuses, for tags of another kind than
        the metric's, and without seqeval where it is needed.
    """
    if metric == "F1" and importlib.util.find_spec("seqeval") is None:
        raise InputError("F1 of chunks needs seqeval: pip install seqeval.")
    if options.column == 0:
        raise InputError("--column is 0, the word; the tag's column is 1 or more.")
    read = partial(read_columns, column=options.column)
    train, dev, test = read_parts(options, read)
    for path, part in ((options.train, train), (options.test, test)):
        tags = {tag for sentence in part for tag in sentence.tags}
        other = sorted(
            tag for tag in tags if tag != "O" and tag[:2] not in ("B-", "I-")
        )
        if metric == "F1" and (other or tags == {"O"}):
            what = f"the tag {other[0]!r}" if other else "no tag but O"
            raise InputError(
                f"{path} has {what} in column {options.column}; chunks are tagged B-, "
                "I- and O. --column names their column."
            )
        if metric == "accuracy" and len(tags) < 2:
            raise InputError(
                f"{path} has one tag alone, {min(tags)!r}, in column {options.column}; "
                "--column names the tags' column."
            )
    return [train, dev, test]


def train_tagger(
    network: Tagger,
    parts: Sequence[Part[Numbered]],
    tags: Sequence[str],
    metric: Metric,
    tuning: FineTuning | None,
) -> list[Outcome]:
    """Trains with every seed, and scores on test."""
    options = network.options

    def init(key: Array, batch: Batch) -> Params:
        start = {} if tuning is None else {LSTM: tuning.start()}
        return start | network.init(key, ready(start, batch, tuning), True)["params"]

    def loss(params: Params, batch: Batch, key: Array) -> Array:
        given, rngs = {"params": params}, {"dropout": key}
        batch = ready(params, batch, tuning)
        scores, transitions = network.apply(given, batch, False, rngs=rngs)
        words = batch.mask.sum().astype(jnp.float32)
        if options.crf:
            each = log_likelihood(scores, batch.tags, batch.mask, transitions)
            return -each.sum(where=batch.mask[:, 0]) / words
        each = optax.softmax_cross_entropy_with_integer_labels(scores, batch.tags)
        return each.sum(where=batch.mask) / words

    predict = predictor(network, tags, tuning)

    def scored(params: Params, part: Part[Numbered]) -> Scores:
        gold = [sentence.tags for _, sentence in part.examples]
        return {metric: score(gold, predict(params, part), metric)}

    rates = None if tuning is None else tuning.rates
    return train_seeds(parts, init, loss, scored, options, rates)


def ready(params: Params, batch: Batch, tuning: FineTuning | None) -> Batch:
    """The batch with layers of the biLM as it is now, where it is trained."""
    if tuning is None:
        return batch
    return batch._replace(layers=tuning.layers(params[LSTM], batch.tokens))


def predictor(
    network: Tagger, tags: Sequence[str], tuning: FineTuning | None
) -> Callable[[Params, Part[Numbered]], list[list[str]]]:
    """A function that gives the tags of all sentences of a part."""

    @jax.jit
    def best(params: Params, batch: Batch) -> Array:
        batch = ready(params, batch, tuning)
        scores, transitions = network.apply({"params": params}, batch, True)
        if network.options.crf:
            return viterbi(scores, batch.mask, transitions)
        return scores.argmax(axis=-1)

    def predict(params: Params, part: Part[Numbered]) -> list[list[str]]:
        rows = part.outputs(partial(best, params))
        return [
            [tags[tag] for tag in row[: len(sentence.words)]]
            for (_, sentence), row in zip(part.examples, rows, strict=True)
        ]

    return predict


def run(task: str, metric: Metric, options: TaggingOptions) -> Report:
    """Trains with every seed; the report of a task.

    Args:
      task: its name.
      metric: F1 of chunks, or accuracy of tags.
      options: flags.

    Raises:
      InputError: for files and models that do not fit.
    """
    read = read_sentences(options, metric)
    spelt = [[sentence.words for sentence in part] for part in read]
    features = make_features(options, spelt)
    tuning = None
    if options.unfreeze:
        scale = np.ones(1) if features is None else features[0].scale
        when = options.unfreeze, options.unfreeze_speed
        tuning = FineTuning.of(options, list(chain(*spelt)), scale, *when)
    words = Words.of(spelt[0])
    tags = sorted({tag for sentence in read[0] for tag in sentence.tags})
    parts = [
        make_part(part, of_part, words, tags, options.rows, tuning)
        for part, of_part in zip(read, features or [None] * 3, strict=True)
    ]
    network = Tagger(words.size, len(tags), options)
    outcomes = train_tagger(network, parts, tags, metric, tuning)
    return summary(
        *(task, metric, options, features, outcomes),
        parameters=parameters(outcomes[0].fitted.params),
        variant=f"unfrozen after {options.unfreeze} epochs" if tuning else None,
        sentences=[len(part) for part in read],
    )

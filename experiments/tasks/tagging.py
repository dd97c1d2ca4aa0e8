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
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from crf import Transitions, log_likelihood, viterbi
from features import parameters
from fitting import Loss, Params
from heads import BiLstm, Spelling, with_features
from jax import Array
from parts import Part, PartOptions, Scores, read_parts, train_seeds
from task_files import Sentence, read_columns
from task_options import FineTuningOptions
from task_report import Report, summary
from texts import Text, TextNetwork, TextOptions, Texts, features_of, make_texts

from elmojax import InputError
from elmojax.config import CountOrZero, Width

Metric = Literal["F1", "accuracy"]


@dataclass(frozen=True, kw_only=True)
class TaggingOptions(PartOptions, TextOptions, FineTuningOptions):
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


class Batch(NamedTuple):
    """Arrays of one step."""

    text: Text
    tags: Any
    """int32 [batch, time]; 0 past the ends of sentences."""


class Tagger(nn.Module):
    """Words and layers of features to scores of tags and of their transitions."""

    words: int
    tags: int
    options: TaggingOptions

    @nn.compact
    def __call__(self, text: Text, deterministic: bool) -> tuple[Array, Transitions]:
        """Scores [batch, time, tags]; `deterministic` is False while training."""
        options, mask = self.options, text.mask

        def drop(x: Array) -> Array:
            return nn.Dropout(options.dropout)(x, deterministic=deterministic)

        def join(x: Array, place: str) -> Array:
            given = (text.layers, mask, options, deterministic)
            return with_features(x, place, *given)

        x = nn.Embed(self.words, options.word_width)(text.words)
        if options.filters:
            spelling = Spelling(options.filters)(text.letters)
            x = jnp.concatenate([x, spelling], axis=-1)
        h = BiLstm(options.hidden)(join(drop(x), "input"), mask)
        scores = nn.Dense(self.tags)(join(drop(h), "output"))
        zeros, count = nn.initializers.zeros, self.tags
        return scores, Transitions(
            self.param("steps", zeros, (count, count)),
            self.param("first", zeros, (count,)),
            self.param("last", zeros, (count,)),
        )


def make_part(
    sentences: Sequence[Sentence], texts: Texts, tags: Sequence[str], rows: int
) -> Part[Sentence]:
    """Sentences with their batches. A tag that the training text lacks is 0: only
    scores may read it."""
    place = {tag: number for number, tag in enumerate(tags)}

    def make(some: Sequence[Sentence]) -> Batch:
        text = texts.batch([sentence.words for sentence in some], rows)
        numbers = np.zeros(text.words.shape, np.int32)
        for row, sentence in zip(numbers, some, strict=False):
            row[: len(sentence.tags)] = [place.get(tag, 0) for tag in sentence.tags]
        return Batch(text, numbers)

    lengths = [len(sentence.words) for sentence in sentences]
    return Part(sentences, lengths, make, rows)


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
        the metric's or none that train has, and without seqeval where it is needed.
    """
    if metric == "F1" and importlib.util.find_spec("seqeval") is None:
        raise InputError("F1 of chunks needs seqeval: pip install seqeval.")
    if options.column == 0:
        raise InputError("--column is 0, the word; the tag's column is 1 or more.")
    read = partial(read_columns, column=options.column)
    train, dev, test = read_parts(options, read)
    known = {tag for sentence in train for tag in sentence.tags}
    given = [(options.train, train), (options.test, test)]
    if options.dev is not None:
        given.append((options.dev, dev))
    for path, part in given:
        tags = {tag for sentence in part for tag in sentence.tags}
        other = sorted(
            tag for tag in tags if tag != "O" and tag[:2] not in ("B-", "I-")
        )
        if metric == "F1" and (other or tags == {"O"}):
            what = f"the tag {other[0]!r:.60}" if other else "no tag but O"
            raise InputError(
                f"{path} has {what} in column {options.column}; chunks are tagged B-, "
                "I- and O. --column names their column."
            )
        if metric == "accuracy" and len(tags) < 2:
            raise InputError(
                f"{path} has one tag alone, {min(tags)!r:.60}, in column "
                f"{options.column}; --column names the tags' column."
            )
        if not tags & known - {"O"}:
            raise InputError(
                f"{path} has none of the tags of {options.train} in column "
                f"{options.column}, but {min(tags - {'O'})!r:.60}; give files of one "
                "task."
            )
    return [train, dev, test]


def make_loss(network: TextNetwork, crf: bool) -> Loss:
    """The mean negative logarithm of the probability of the right tags, a word."""

    def loss(params: Params, batch: Batch, key: Array) -> Array:
        scores, transitions = network.apply(params, batch.text, key)
        mask = batch.text.mask
        words = mask.sum().astype(jnp.float32)
        if crf:
            each = log_likelihood(scores, batch.tags, mask, transitions)
            return -each.sum(where=mask[:, 0]) / words
        each = optax.softmax_cross_entropy_with_integer_labels(scores, batch.tags)
        return each.sum(where=mask) / words

    return loss


def predictor(
    network: TextNetwork, tags: Sequence[str], crf: bool
) -> Callable[[Params, Part[Sentence]], list[list[str]]]:
    """A function that gives the tags of all sentences of a part."""

    @jax.jit
    def best(params: Params, text: Text) -> Array:
        scores, transitions = network.apply(params, text)
        if crf:
            return viterbi(scores, text.mask, transitions)
        return scores.argmax(axis=-1)

    def predict(params: Params, part: Part[Sentence]) -> list[list[str]]:
        rows = part.outputs(lambda batch: best(params, batch.text))
        return [
            [tags[tag] for tag in row[: len(sentence.words)]]
            for sentence, row in zip(part.examples, rows, strict=True)
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
    texts = make_texts(options, spelt, letters=True)
    tags = sorted({tag for sentence in read[0] for tag in sentence.tags})
    parts = [
        make_part(part, of_part, tags, options.rows)
        for part, of_part in zip(read, texts, strict=True)
    ]
    tagger = Tagger(texts[0].words.size, len(tags), options)
    network = TextNetwork(tagger, texts[0].tuning)
    predict = predictor(network, tags, options.crf)

    def scored(params: Params, part: Part[Sentence]) -> Scores:
        gold = [sentence.tags for sentence in part.examples]
        return {metric: score(gold, predict(params, part), metric)}

    loss = make_loss(network, options.crf)
    given = parts, network.init, loss, scored, options
    outcomes = train_seeds(*given, network.rates)
    return summary(
        *(task, metric, options, features_of(texts), outcomes),
        parameters=parameters(outcomes[0].fitted.params),
        variant=options.variant,
        sentences=[len(part) for part in read],
    )

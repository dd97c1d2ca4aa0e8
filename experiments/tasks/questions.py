"""Answers to questions, cut out of a paragraph (SQuAD): F1 and exact match.

    python experiments/tasks/questions.py --train train-v1.1.json --test dev-v1.1.json

Files are JSON in the format of SQuAD 1.1 or 2.0. Without --dev, the last 1,000
questions of the training file choose the epoch. --answers writes what was found, as the
scripts of SQuAD read it.
"""

from __future__ import annotations

import json
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
from heads import BiLstm, with_features
from jax import Array
from parts import Part, PartOptions, Scores, read_parts, train_seeds
from squad import Question, read_squad, squad_scores
from task_options import command
from task_report import Report, summary, write_text
from texts import Text, TextOptions, Texts, features_of, input_vectors, make_texts

from elmojax import InputError
from elmojax.config import Count, Width

NEVER = -1e9
"""The score of what cannot be."""


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(PartOptions, TextOptions):
    """Trains a network that finds answers in paragraphs, and scores it."""

    hidden: Width = 100
    """Of each direction of the LSTMs."""
    longest_answer: Count = 30
    """Words of the longest answer that is looked for."""
    longest_context: Count = 512
    """Longer paragraphs are not trained on; they are read whole in dev and test."""
    answers: Path | None = None
    """Where to write the answers to test with the last seed, as JSON."""


class Batch(NamedTuple):
    """Arrays of one step."""

    question: Text
    passage: Text
    first: Any
    """int32 [batch]: position of the first word of the answer; 0 = no answer, the words
    of the passage are from 1 on; -1 where there is no question."""
    last: Any
    """int32 [batch]: of the last word."""


class QuestionNetwork(nn.Module):
    """Question and passage read by one BiLSTM; words of the passage beside what they
    are likest to in the question; a second BiLSTM; scores of first and last word.

    A small relative of the bidirectional attention flow of Seo et al. 2017, that Peters
    et al. 2018 read ELMo with. "No answer" has a score of its own, at position 0.
    """

    words: int
    options: QuestionOptions

    @nn.compact
    def __call__(
        self, question: Text, passage: Text, deterministic: bool
    ) -> tuple[Array, Array]:
        """Scores of the first and of the last word, each [batch, 1 + time]."""
        options, mask = self.options, passage.mask
        both = side_by_side(question, passage)
        x = input_vectors(self.words, both, options, deterministic)
        time = question.words.shape[1]
        read = BiLstm(options.hidden)
        q, p = read(x[:, :time], question.mask), read(x[:, time:], mask)
        attended = attend(p, q, question.mask, self.param)
        x = jnp.concatenate([p, attended, p * attended], axis=-1)
        x = nn.Dropout(options.dropout)(x, deterministic=deterministic)
        h = BiLstm(options.hidden)(x, mask)
        given = (passage.layers, mask, options, deterministic)
        h = with_features(h, "output", *given)
        h = nn.Dropout(options.dropout)(h, deterministic=deterministic)
        whole = jnp.where(mask[..., None], h, NEVER).max(axis=1)
        none = nn.Dense(2)(jnp.where(mask.any(axis=1)[:, None], whole, 0.0))
        scores = jnp.where(mask[..., None], nn.Dense(2)(h), NEVER)
        scores = jnp.concatenate([none[:, None], scores], axis=1)
        return scores[..., 0], scores[..., 1]


def side_by_side(question: Text, passage: Text) -> Text:
    """Both in one text, the passage after the positions of the question."""
    words = jnp.concatenate([question.words, passage.words], axis=1)
    if question.layers is None:
        return Text(words, None)
    layers = jnp.concatenate([question.layers, passage.layers], axis=2)
    return Text(words, layers)


def attend(p: Array, q: Array, mask: Array, param: Callable[..., Array]) -> Array:
    """For each word of the passage the mean of the question, weighted by likeness.

    Likeness is a learned product of values, plus what each word of the question counts
    for.

    Args:
      p: [batch, time, width] of the passage.
      q: [batch, words, width] of the question.
      mask: bool [batch, words] of the question.
      param: of the network.

    Returns:
      [batch, time, width].
    """
    width = q.shape[-1]
    product = param("product", nn.initializers.ones, (width,))
    weight = param("weight", nn.initializers.zeros, (width,))
    likeness = jnp.einsum("btk,bqk,k->btq", p, q, product) / np.float32(np.sqrt(width))
    likeness += jnp.einsum("bqk,k->bq", q, weight)[:, None]
    likeness = jnp.where(mask[:, None], likeness, NEVER)
    return jnp.einsum("btq,bqk->btk", nn.softmax(likeness, axis=-1), q)


def best_spans(first: Array, last: Array, longest: int, may_be_none: bool) -> Array:
    """The pairs of positions with the largest sum of scores, int32 [batch, 2].

    Args:
      first, last: [batch, 1 + time]; position 0 is "no answer".
      longest: words of an answer at most.
      may_be_none: whether "no answer", the pair (0, 0), is one of them.
    """
    sums = first[:, :, None] + last[:, None]
    start, end = jnp.indices(sums.shape[1:])
    allowed = (start >= 1) & (start <= end) & (end < start + longest)
    if may_be_none:
        allowed |= (start == 0) & (end == 0)
    flat = jnp.where(allowed[None], sums, 2 * NEVER).reshape(len(sums), -1)
    return jnp.stack(jnp.divmod(flat.argmax(axis=-1), sums.shape[2]), axis=-1)


def make_part(questions: Sequence[Question], texts: Texts, rows: int) -> Part[Question]:
    """Questions with their batches."""

    def make(some: Sequence[Question]) -> Batch:
        places = np.full((2, rows), -1, np.int32)
        for number, question in enumerate(some):
            first, last = question.span or (-1, -1)
            places[:, number] = first + 1, last + 1
        return Batch(
            texts.batch([question.words for question in some], rows),
            texts.batch([question.context.words for question in some], rows),
            *places,
        )

    lengths = [len(question.context.words) for question in questions]
    return Part(questions, lengths, make, rows)


def make_loss(network: QuestionNetwork) -> Callable[[Params, Batch, Array], Array]:
    """The mean negative logarithm of the probability of the first and last word."""

    def loss(params: Params, batch: Batch, key: Array) -> Array:
        given, rngs = {"params": params}, {"dropout": key}
        scores = network.apply(given, batch.question, batch.passage, False, rngs=rngs)
        here = batch.first >= 0
        total = jnp.zeros(here.shape)
        for of_place, place in zip(scores, (batch.first, batch.last), strict=True):
            total += optax.softmax_cross_entropy_with_integer_labels(
                of_place, jnp.maximum(place, 0)
            )
        return total.mean(where=here)

    return loss


def answerer(
    network: QuestionNetwork, may_be_none: bool
) -> Callable[[Params, Part[Question]], list[str]]:
    """A function that gives the answers to all questions of a part, "" for none."""

    @jax.jit
    def best(params: Params, batch: Batch) -> Array:
        scores = network.apply({"params": params}, batch.question, batch.passage, True)
        return best_spans(*scores, network.options.longest_answer, may_be_none)

    def answers(params: Params, part: Part[Question]) -> list[str]:
        spans = part.outputs(lambda batch: best(params, batch))
        return [
            question.context.cut(first - 1, last - 1) if first else ""
            for question, (first, last) in zip(part.examples, spans, strict=True)
        ]

    return answers


def run(options: QuestionOptions) -> Report:
    """Trains with every seed; the report.

    Raises:
      InputError: for files and models that do not fit.
    """
    train, dev, test = read_parts(options, read_squad)
    short = [q for q in train if len(q.context.words) <= options.longest_context]
    if not short:
        raise InputError(
            f"All contexts of {options.train} have more than "
            f"{options.longest_context} words; raise --longest-context."
        )
    questions = [short, dev, test]
    texts = make_texts(
        options,
        [
            [
                text
                for question in part
                for text in (question.words, question.context.words)
            ]
            for part in questions
        ],
    )
    parts = [
        make_part(part, of_part, options.rows)
        for part, of_part in zip(questions, texts, strict=True)
    ]
    network = QuestionNetwork(texts[0].words.size, options)
    answers = answerer(network, any(question.span is None for question in short))

    def score(params: Params, part: Part[Question]) -> Scores:
        return squad_scores(answers(params, part), part.examples)

    def init(key: Array, batch: Batch) -> Params:
        return network.init(key, batch.question, batch.passage, True)["params"]

    outcomes = train_seeds(parts, init, make_loss(network), score, options)
    if options.answers is not None:
        found = answers(outcomes[-1].fitted.params, parts[2])
        named = {
            question.name: text for question, text in zip(test, found, strict=True)
        }
        write_text(options.answers, json.dumps(named, ensure_ascii=False) + "\n")
    return summary(
        *("questions", "F1", options, features_of(texts), outcomes),
        parameters=parameters(outcomes[0].fitted.params),
        examples=[len(part) for part in questions],
    )


def main(argv: Sequence[str] | None = None) -> None:
    command("questions", QuestionOptions, run, argv)


if __name__ == "__main__":
    main()

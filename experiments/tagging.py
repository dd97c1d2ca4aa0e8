"""ELMo in a task: a tagger with mixes of layers at its input and at its output.

    python experiments/tagging.py --model MODEL --train FILE --dev FILE --test FILE

As Peters et al. 2018 do it (sections 3.2 and 3.3): the biLM is frozen; the task's RNN
reads [x_k; ELMo_k] and its output becomes [h_k; ELMo_k], each with a mix of its own;
dropout on both ELMo vectors; an L2 penalty on the weights of the mixes. The RNN is one
bidirectional LSTM over learned word vectors, with a softmax for each word: smaller
than the paper's taggers, so that all of it can be read here. Files have a word a line
and columns; tags like B-NP and I-NP are scored as chunks (F1), others as accuracy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import Array
from tagging_data import (
    UNKNOWN,
    Batch,
    Numbering,
    Sentence,
    grain_batches,
    numpy_batches,
    plan,
    read_columns,
    score,
)
from tagging_options import Options

import elmojax
from elmojax import InputError
from elmojax.embedding.words import WordIndex

Params: TypeAlias = Any


class Tagger(nn.Module):
    """Words and the layers of a biLM to scores of tags."""

    words: int
    tags: int
    options: Options

    @nn.compact
    def __call__(
        self, words: Array, layers: Array | None, mask: Array, deterministic: bool
    ) -> Array:
        """Scores [batch, time, tags].

        Args:
          words: int32 [batch, time].
          layers: [batch, layers + 1, time, vector] from `encode`; None without ELMo.
          mask: bool [batch, time].
          deterministic: False while training.
        """
        options = self.options

        def drop(x: Array) -> Array:
            return nn.Dropout(options.dropout)(x, deterministic=deterministic)

        def with_elmo(x: Array, place: str) -> Array:
            if layers is None or options.elmo not in (place, "both"):
                return x
            mix = elmojax.ScalarMix(dropout=options.elmo_dropout, name=f"mix_{place}")
            return jnp.concatenate([x, mix(layers, mask, deterministic)], axis=-1)

        x = with_elmo(drop(nn.Embed(self.words, options.width)(words)), "input")
        forward, backward = (
            nn.RNN(nn.OptimizedLSTMCell(options.hidden)) for _ in range(2)
        )
        h = nn.Bidirectional(forward, backward)(x, seq_lengths=mask.sum(axis=1))
        return nn.Dense(self.tags)(with_elmo(drop(h), "output"))


@dataclass(frozen=True)
class Trainer:
    """The tagger, the frozen biLM, and how batches are made."""

    tagger: Tagger
    elmo: elmojax.ElmoParams | None
    numbering: Numbering
    options: Options

    def layers(self, batch: Batch) -> Array | None:
        """One pass of the biLM for both mixes, outside any gradient: it is frozen."""
        if self.elmo is None:
            return None
        return elmojax.encode(self.elmo, batch.tokens).layers

    def batches(self, groups: Sequence[list[Sentence]]) -> Iterator[Batch]:
        load = grain_batches if self.options.loader == "grain" else numpy_batches
        return load(groups, partial(self.numbering.batch, rows=self.options.rows))

    def init(self, batch: Batch) -> Params:
        init = jax.jit(partial(self.tagger.init, deterministic=True))
        key = jax.random.key(self.options.seed)
        return init(key, batch.words, self.layers(batch), batch.mask)["params"]

    def loss(
        self, params: Params, batch: Batch, layers: Array | None, key: Array
    ) -> tuple[Array, Array]:
        """Cross entropy a word and the penalty on the mixes; the first alone."""
        scores = self.tagger.apply(
            {"params": params},
            *(batch.words, layers, batch.mask, False),
            rngs={"dropout": key},
        )
        each = optax.softmax_cross_entropy_with_integer_labels(scores, batch.tags)
        loss = each.mean(where=batch.mask)
        mixes = [name for name in params if name.startswith("mix_")]
        weight = self.options.penalty
        penalty = sum(elmojax.mix_penalty(params[name], weight) for name in mixes)
        return loss + penalty, loss

    def step(self, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
        @jax.jit
        def step(
            params: Params, state: Any, batch: Batch, layers: Array | None, key: Array
        ) -> tuple[Params, Any, Array]:
            slopes, loss = jax.grad(self.loss, has_aux=True)(params, batch, layers, key)
            updates, state = optimizer.update(slopes, state, params)
            return optax.apply_updates(params, updates), state, loss

        return step

    def scorer(self, chunks: bool) -> Callable[[Params, Sequence[Sentence]], float]:
        """A function that scores parameters on sentences, in per cent."""

        @jax.jit
        def predict(params: Params, batch: Batch, layers: Array | None) -> Array:
            arguments = (batch.words, layers, batch.mask, True)
            return self.tagger.apply({"params": params}, *arguments).argmax(axis=-1)

        def evaluate(params: Params, sentences: Sequence[Sentence]) -> float:
            gold, found = [], []
            groups = plan(sentences, self.options.rows)
            for group, batch in zip(groups, self.batches(groups), strict=True):
                tags = np.asarray(predict(params, batch, self.layers(batch)))
                for sentence, row in zip(group, tags, strict=False):
                    gold.append(sentence.tags)
                    of_row = row[: len(sentence.tags)]
                    found.append([self.numbering.tags[tag] for tag in of_row])
            return score(gold, found, chunks)

        return evaluate


def train(
    trainer: Trainer,
    sentences: Sequence[Sentence],
    evaluate: Callable[[Params], float],
) -> tuple[Params, list[dict[str, float]]]:
    """The parameters of the epoch that is best on dev, and what each epoch gave."""
    options = trainer.options
    params = best = trainer.init(next(trainer.batches(plan(sentences, options.rows))))
    optimizer = optax.chain(
        optax.clip_by_global_norm(options.gradient_norm),
        optax.adam(options.learning_rate),
    )
    state, step = optimizer.init(params), trainer.step(optimizer)
    key, epochs, top = jax.random.key(options.seed + 1), [], -1.0
    for epoch in range(options.epochs):
        random = np.random.default_rng((options.seed, epoch))
        losses = []
        for batch in trainer.batches(plan(sentences, options.rows, random)):
            key, now = jax.random.split(key)
            params, state, loss = step(params, state, batch, trainer.layers(batch), now)
            losses.append(loss)
        dev = evaluate(params)
        epochs.append({"loss": float(jnp.mean(jnp.stack(losses))), "dev": dev})
        print(f"epoch {epoch}: {epochs[-1]}", file=sys.stderr)
        if dev > top:
            top, best = dev, params
        scores = [entry["dev"] for entry in epochs]
        if epoch - int(np.argmax(scores)) >= options.patience:
            break
    return best, epochs


def prepare(options: Options) -> tuple[Trainer, list[list[Sentence]]]:
    """Reads files and biLM; every word of the files is encoded once, by its letters."""
    options.check()
    files = (options.train, options.dev, options.test)
    parts = [read_columns(path, options.column) for path in files]
    parts[0] = parts[0][: options.sentences]
    elmo = index = None
    if options.elmo != "none":
        words = {word for part in parts for sentence in part for word in sentence.words}
        index = WordIndex(tuple(sorted(words)))
        elmo = elmojax.cache_words(elmojax.load(options.model), index)
    numbering = Numbering.of(parts[0], index)
    words = UNKNOWN + 1 + len(numbering.words)
    tagger = Tagger(words, len(numbering.tags), options)
    return Trainer(tagger, elmo, numbering, options), parts


def run(options: Options) -> dict[str, Any]:
    """Trains, and reports scores, losses and the mixes that were learned."""
    started = time.perf_counter()
    trainer, (sentences, dev, test) = prepare(options)
    chunks = all(
        tag == "O" or tag[:2] in ("B-", "I-") for tag in trainer.numbering.tags
    )
    score_of = trainer.scorer(chunks)
    params, epochs = train(trainer, sentences, lambda params: score_of(params, dev))
    mixes = {
        name: {
            "weights": [round(float(w), 4) for w in jax.nn.softmax(mix["s"])],
            "gamma": round(float(mix["gamma"]), 4),
        }
        for name, mix in params.items()
        if name.startswith("mix_")
    }
    return {
        "elmo": options.elmo,
        "sentences": len(sentences),
        "score": "F1" if chunks else "accuracy",
        "dev": max(entry["dev"] for entry in epochs),
        "test": score_of(params, test),
        "mixes": mixes,
        "losses": [entry["loss"] for entry in epochs],
        "seconds": round(time.perf_counter() - started, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    try:
        report = run(options := tyro.cli(Options, args=argv))
    except InputError as error:
        print(f"tagging: {error}", file=sys.stderr)
        sys.exit(2)
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:10} {value}")


if __name__ == "__main__":
    main()

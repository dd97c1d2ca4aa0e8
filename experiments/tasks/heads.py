"""Parts of the networks of tasks: the mix of layers, words by number and by letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from fitting import MIX
from jax import Array
from task_options import TrainingOptions

import elmojax

PADDING, UNKNOWN = 0, 1
"""Ids of the task's own words; the others follow."""
LETTERS = 16
"""Bytes of a word that a network sees: the first and the last of them."""


def with_features(
    x: Array | None,
    place: str,
    layers: Array | None,
    mask: Array,
    options: TrainingOptions,
    deterministic: bool,
) -> Array:
    """[x; mix of layers] where the task reads features at this place, else x.

    Called in the `nn.compact` method of a network, whose parameters get the mix as
    `mix_input` or `mix_output`.

    Args:
      x: [batch, time, width]; None where features are all there is.
      place: "input" or "output".
      layers: [batch, layers, time, vector] of `Features.batch`; None without features.
      mask: bool [batch, time].
      options: places, dropout.
      deterministic: False while training.
    """
    if layers is None or options.place not in (place, "both"):
        assert x is not None, "neither words nor features"
        return x
    mix = elmojax.ScalarMix(dropout=options.elmo_dropout, name=f"{MIX}{place}")
    mixed = mix(jnp.asarray(layers, jnp.float32), mask, deterministic)
    return mixed if x is None else jnp.concatenate([x, mixed], axis=-1)


class BiLstm(nn.Module):
    """A bidirectional LSTM: [batch, time, width] to [batch, time, 2 * hidden]."""

    hidden: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        forward, backward = (
            nn.RNN(nn.OptimizedLSTMCell(self.hidden)) for _ in range(2)
        )
        return nn.Bidirectional(forward, backward)(x, seq_lengths=mask.sum(axis=1))


class Spelling(nn.Module):
    """Words as letters: convolutions of width 3, the largest value of each filter."""

    filters: int
    width: int = 25

    @nn.compact
    def __call__(self, letters: Array) -> Array:
        """Letters [batch, time, LETTERS], bytes + 1, to [batch, time, filters]."""
        x = nn.Embed(257, self.width)(letters)
        x = jnp.where((letters > 0)[..., None], x, 0.0)
        x = nn.Conv(self.filters, (3,))(x)
        return nn.relu(x).max(axis=-2)


@dataclass(frozen=True)
class Words:
    """The words of a training text by number, and the letters of any word."""

    numbers: dict[str, int]

    @classmethod
    def of(cls, train: Iterable[Sequence[str]], least: int = 2) -> Words:
        """Words that are read less often stay unknown, so that the unknown is trained.

        Their lower-cased forms count: spelling is what `letters` are for.
        """
        count = Counter(word.lower() for words in train for word in words)
        known = sorted(word for word, times in count.items() if times >= least)
        return cls({word: number for number, word in enumerate(known, UNKNOWN + 1)})

    @property
    def size(self) -> int:
        return UNKNOWN + 1 + len(self.numbers)

    def ids(
        self, sentences: Sequence[Sequence[str]], rows: int, time: int
    ) -> np.ndarray:
        """int32 [rows, time], PADDING past the ends of sentences."""
        ids = np.full((rows, time), PADDING, np.int32)
        for row, words in zip(ids, sentences, strict=False):
            row[: len(words)] = [
                self.numbers.get(word.lower(), UNKNOWN) for word in words
            ]
        return ids


def letter_ids(sentences: Sequence[Sequence[str]], rows: int, time: int) -> np.ndarray:
    """uint16 [rows, time, LETTERS]: bytes + 1, 0 past the end of a word."""
    ids = np.zeros((rows, time, LETTERS), np.uint16)
    for row, words in zip(ids, sentences, strict=False):
        for place, word in enumerate(words):
            seen = word.encode("utf-8", "replace")
            if len(seen) > LETTERS:
                seen = seen[: LETTERS // 2] + seen[-LETTERS // 2 :]
            row[place, : len(seen)] = np.frombuffer(seen, np.uint8)
            row[place, : len(seen)] += 1
    return ids

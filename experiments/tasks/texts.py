"""Texts of words as a network reads them: numbers of words, and their features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from batching import padded_length
from features import Features, make_features
from fine_tuning import LSTM, FineTuning
from fitting import Params
from heads import PADDING, BiLstm, Words, letter_ids, with_features
from jax import Array
from task_options import FineTuningOptions, ReportOptions, TrainingOptions

from elmojax import InputError
from elmojax.config import CountOrZero

Tokens = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TextOptions(TrainingOptions, ReportOptions):
    """What a network that reads whole texts knows of their words."""

    word_width: CountOrZero = 100
    """Of the learned word vectors beside the features; 0 = none."""


class Text(NamedTuple):
    """Some texts, as arrays that hold 0 past the ends."""

    words: Any
    """int32 [batch, time]."""
    layers: Any
    """float16 [batch, layers, time, vector]; None without features."""
    tokens: Any = None
    """int32 [batch, time] of `FineTuning.tokens`, of which `layers` are made; None for
    a frozen biLM."""
    letters: Any = None
    """uint16 [batch, time, letters]; None for a network that reads none."""

    @property
    def mask(self) -> Any:
        """bool [batch, time]."""
        return self.words != PADDING


@dataclass(frozen=True)
class Texts:
    """The distinct texts of a part of a task."""

    words: Words
    texts: Sequence[Tokens]
    features: Features | None
    tuning: FineTuning | None
    """A biLM that is trained too; None = it is frozen."""
    letters: bool
    """Whether batches have the letters of words."""
    _place: dict[Tokens, int] = field(init=False)

    def __post_init__(self) -> None:
        place = {text: number for number, text in enumerate(self.texts)}
        object.__setattr__(self, "_place", place)

    def batch(self, texts: Sequence[Tokens], rows: int, time: int = 1) -> Text:
        """Texts of this part as so many rows, with positions for the longest of them
        and for `time` at least."""
        longest = max([time, *map(len, texts)])
        shape = rows, padded_length(longest)
        layers = tokens = None
        if self.tuning is not None:
            tokens = self.tuning.tokens(texts, *shape)
        elif self.features is not None:
            numbers = [self._place[text] for text in texts]
            layers = self.features.batch(numbers, *shape)
        letters = letter_ids(texts, *shape) if self.letters else None
        return Text(self.words.ids(texts, *shape), layers, tokens, letters)


def make_texts(
    options: TextOptions, parts: Sequence[Iterable[Tokens]], letters: bool = False
) -> list[Texts]:
    """The texts of train, dev and test with their features.

    Args:
      options: which features.
      parts: texts of each part; what comes again is kept once.
      letters: whether the network reads them.

    Raises:
      InputError: as `make_features` and `FineTuning.of` do, and if nothing is left at
        the input.
    """
    if not options.word_width and (
        options.features == "none" or options.place == "output"
    ):
        raise InputError(
            "Nothing is left to read at the input: with --features none and with "
            "--place output, --word-width must be 1 or more."
        )
    distinct = [list(dict.fromkeys(part)) for part in parts]
    features = make_features(options, distinct) or [None] * len(parts)
    tuning = None
    if isinstance(options, FineTuningOptions) and options.unfreeze:
        scale = np.ones(1) if features[0] is None else features[0].scale
        tuning = FineTuning.of(options, chain(*distinct), scale)
    words = Words.of(distinct[0])
    return [
        Texts(words, *of_part, tuning, letters)
        for of_part in zip(distinct, features, strict=True)
    ]


def features_of(texts: Sequence[Texts]) -> list[Features] | None:
    """The features of some parts; None without."""
    made = [part.features for part in texts if part.features is not None]
    return made or None


@dataclass(frozen=True)
class TextNetwork:
    """A network that reads a `Text`, with the biLM below it where that is trained."""

    network: nn.Module
    tuning: FineTuning | None

    @property
    def rates(self) -> Callable[[Params, int], Params] | None:
        """Of the learning, as `fit` takes them."""
        return None if self.tuning is None else self.tuning.rates

    def init(self, key: Array, batch: Any) -> Params:
        """Parameters of the network, and of the biLM where it is trained too.

        Args:
          key: to draw them.
          batch: one with a `text`.
        """
        start = {} if self.tuning is None else {LSTM: self.tuning.start()}
        text = self._read(start, batch.text)
        return start | self.network.init(key, text, True)["params"]

    def apply(self, params: Params, text: Text, key: Array | None = None) -> Any:
        """What the network gives; with dropout if there is a key for it."""
        text = self._read(params, text)
        rngs = None if key is None else {"dropout": key}
        return self.network.apply({"params": params}, text, key is None, rngs=rngs)

    def _read(self, params: Params, text: Text) -> Text:
        """The text with layers of the biLM as it is now."""
        if self.tuning is None:
            return text
        return text._replace(layers=self.tuning.layers(params[LSTM], text.tokens))


def input_vectors(
    words: int, text: Text, options: TextOptions, deterministic: bool
) -> Array:
    """[learned vectors of words; mix of layers] as float32 [batch, time, width].

    Called once in the `nn.compact` method of a network, whose parameters get `word`
    and `mix_input`.

    Args:
      words: that the task knows.
      text: to read.
      options: widths, places, dropout.
      deterministic: False while training.
    """
    learned = None
    if options.word_width:
        learned = nn.Embed(words, options.word_width, name="word")(text.words)
        learned = nn.Dropout(options.dropout)(learned, deterministic=deterministic)
    given = (text.layers, text.mask, options, deterministic)
    return with_features(learned, "input", *given)


def read_text(
    words: int, text: Text, options: TextOptions, hidden: int, deterministic: bool
) -> Array:
    """What a bidirectional LSTM makes of `input_vectors`, and a mix of layers beside it
    where the task reads one at the output; float32 [batch, time, width].

    Called in the `nn.compact` method of a network, as `input_vectors` is.
    """
    x = input_vectors(words, text, options, deterministic)
    h = BiLstm(hidden)(x, text.mask)
    given = (text.layers, text.mask, options, deterministic)
    return with_features(h, "output", *given)


def as_rows(texts: Sequence[Text]) -> Text:
    """Texts of the same times, the rows of one after those of the other."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *texts)

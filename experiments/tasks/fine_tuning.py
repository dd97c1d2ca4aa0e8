"""A biLM that is trained with the task: its layers thaw one after the other, from the
top (Howard and Ruder 2018, gradual unfreezing).

The vectors of words (layer 0) stay frozen: words are encoded once, and the LSTM reads
them from a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from fitting import Params
from jax import Array
from task_options import FineTuningOptions

import elmojax
from elmojax import InputError
from elmojax.embedding.words import WordIndex

LSTM = "lstm"
"""The biLM's LSTM among the parameters of a task."""


@dataclass(frozen=True)
class FineTuning:
    """A biLM whose LSTM is a part of what the task trains."""

    params: elmojax.ElmoParams
    """With a table of the words of all files."""
    index: WordIndex
    scale: np.ndarray
    """float32 [layers + 1]: what each layer is divided by."""
    options: FineTuningOptions
    """When layers thaw, and the learning rate."""

    @classmethod
    def of(
        cls,
        options: FineTuningOptions,
        sentences: Iterable[Sequence[str]],
        scale: np.ndarray,
    ) -> FineTuning:
        """Raises `InputError` for features that are no biLM's, or one layer of it."""
        if options.features != "elmo" or options.layer is not None:
            raise InputError(
                "--unfreeze trains a biLM: give --features elmo, and no --layer."
            )
        words = {word for sentence in sentences for word in sentence}
        index = WordIndex(tuple(sorted(words)))
        params = elmojax.cache_words(elmojax.load(options.model), index)
        return cls(params, index, scale, options)

    def start(self) -> Params:
        """The LSTM as it was pretrained."""
        return dict(self.params.lstm)

    def tokens(
        self, sentences: Sequence[Sequence[str]], rows: int, time: int
    ) -> np.ndarray:
        """int32 [rows, time]: places in the table, 0 past the ends of sentences."""
        tokens = np.zeros((rows, time), np.int32)
        ids = np.asarray(elmojax.word_ids(self.index, sentences))
        tokens[: ids.shape[0], : ids.shape[1]] = ids
        return tokens

    def layers(self, lstm: Params, tokens: Array) -> Array:
        """[batch, layers + 1, time, vector], of the LSTM as it is now."""
        encoded = elmojax.encode(self.params.replace(lstm=lstm), tokens)
        return encoded.layers / self.scale[None, :, None, None]

    def rates(self, params: Params, epoch: int) -> Params:
        """What the learning rate of each parameter is multiplied with: 0 = frozen."""
        top = self.params.config.lstm.layers - 1
        lowest = top - (epoch - self.options.unfreeze)

        def rate(path: Any, _: Array) -> float:
            names = [getattr(key, "key", "") for key in path]
            if names[0] != LSTM:
                return 1.0
            layer = int(names[1].rpartition("_")[2])
            return self.options.unfreeze_speed if layer >= lowest else 0.0

        return jax.tree_util.tree_map_with_path(rate, params)

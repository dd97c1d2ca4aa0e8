"""Vectors for any number of sentences: few compiled shapes, every word encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elmojax.config import CharCnnConfig
from elmojax.embedding.functions import contextualize, encode_words
from elmojax.embedding.words import WordIndex
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams
from elmojax.text.batches import padded_size
from elmojax.text.characters import encode_words as character_ids
from elmojax.text.vocabulary import SPECIALS, Vocabulary

CHUNK = 2048
"""Sentences that are sorted by length and encoded together."""
SHORTEST = 8
"""Words of the shortest length that sentences are padded to."""
WORD_BLOCK = 512
"""Distinct words that go through the encoder at once."""


class Embedder:
    """A biLM ready for sentences of words.

    Sentences are read in chunks; the distinct words of a chunk are encoded once, and
    its sentences run through the LSTM by length, padded to one of a short list of
    lengths, so that few shapes are compiled whatever the text.
    """

    def __init__(
        self,
        params: ElmoParams,
        vocabulary: Vocabulary | WordIndex | None = None,
        batch_tokens: int = 2048,
    ) -> None:
        """`vocabulary` is for models with a word table (of `cache_words`: the
        WordIndex); `batch_tokens` bounds the positions, padding included, of one run
        of the LSTM."""
        if batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}; it must be above 0.")
        if not isinstance(params.config.encoder, CharCnnConfig) and vocabulary is None:
            raise InputError(
                "This model reads word ids, so its vocabulary is needed: give the run "
                "directory it was trained in."
            )
        self.params, self._vocabulary = params, vocabulary
        self._batch_tokens = batch_tokens
        self._encode = jax.jit(encode_words)
        self._layers = jax.jit(_layers)

    def layers(self, sentences: Iterable[Sequence[str]]) -> Iterator[np.ndarray]:
        """All layers of each sentence, in order: float32 [layers + 1, words, vector].

        A sentence without words gives [layers + 1, 0, vector]. Every sentence starts
        from `params.initial_state`, so vectors depend on the sentence alone.
        """
        sentences = iter(sentences)
        while chunk := [list(sentence) for sentence in islice(sentences, CHUNK)]:
            yield from self._chunk(chunk)

    def _chunk(self, sentences: list[list[str]]) -> list[np.ndarray]:
        table, rows = self._table(sentences)
        lstm = self.params.config.lstm
        empty = np.zeros((lstm.layers + 1, 0, 2 * lstm.projection), np.float32)
        results = [empty] * len(sentences)
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        order = [i for i in order if sentences[i]]
        while order:
            time = padded_size(len(sentences[order[0]]), SHORTEST)
            size = max(1, self._batch_tokens // time)
            fits = [i for i in order[:size] if len(sentences[i]) <= time]
            order = order[len(fits) :]
            for i, layers in zip(
                fits, self._run(table, rows, fits, size, time), strict=False
            ):
                results[i] = layers
        return results

    def _table(self, sentences: list[list[str]]) -> tuple[Array, list[np.ndarray]]:
        """Vectors of `<S>`, `</S>` and the distinct words; their rows by sentence."""
        known = {word: i for i, word in enumerate(SPECIALS[:2])}
        rows = [
            np.array([known.setdefault(w, len(known)) for w in sentence], np.int32)
            for sentence in sentences
        ]
        words = list(known)
        words += [SPECIALS[0]] * (-len(words) % WORD_BLOCK)
        config = self.params.config.encoder
        if isinstance(config, CharCnnConfig):
            ids = character_ids(words, config.max_characters)
        else:
            assert self._vocabulary is not None
            ids = self._vocabulary.ids(words) + 1
        blocks = range(0, len(words), WORD_BLOCK)
        encode = partial(self._encode, self.params)
        return jnp.concatenate([encode(ids[b : b + WORD_BLOCK]) for b in blocks]), rows

    def _run(
        self,
        table: Array,
        rows: list[np.ndarray],
        which: list[int],
        size: int,
        time: int,
    ) -> Iterator[np.ndarray]:
        index = np.zeros((size, time + 2), np.int32)
        lengths = np.zeros(size, np.int32)
        for row, i in enumerate(which):
            lengths[row] = len(rows[i])
            index[row, 1 : lengths[row] + 1] = rows[i]
            index[row, lengths[row] + 1] = 1
        layers = np.asarray(self._layers(self.params, table, index, lengths))
        for row in range(len(which)):
            yield layers[row, :, : lengths[row]]


def _layers(params: ElmoParams, table: Array, index: Array, lengths: Array) -> Array:
    mask = jnp.arange(index.shape[1] - 2)[None] < lengths[:, None]
    return contextualize(params, table[index], mask).layers

"""Vectors of words, and what is near: in context, and without it.

Layer 0 sees the letters of a word and never its sentence, so there all uses of a word
are the same; the layers above it are what context adds. `mean_vectors` makes one
vector a word of those, as Bommasani et al. (2020) pool them, with the mean over uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from elmojax.embedding.embedder import Embedder
from elmojax.errors import InputError
from elmojax.text.uses import Use


class UseVectors(NamedTuple):
    """Vectors of uses of words; float32."""

    context: np.ndarray
    """[uses, vector]: of one layer, or the mean of layers 1 and up."""
    static: np.ndarray
    """[uses, vector]: of layer 0, which knows no context."""


def use_vectors(
    embedder: Embedder, uses: Sequence[Use], layer: int | None = None
) -> UseVectors:
    """The vectors of words in their sentences, each sentence read once.

    Args:
      embedder: one that keeps all layers, as it does by default.
      uses: those of one sentence stand together.
      layer: of the vectors in context; None = the mean of layers 1 and up.

    Raises:
      InputError: if the model has no such layer.
    """
    top = embedder.params.config.lstm.layers
    if layer is not None and not 0 <= layer <= top:
        raise InputError(f"--layer is {layer}, and the model has layers 0 to {top}.")
    groups = [list(group) for _, group in groupby(uses, lambda use: use.words)]
    sentences = (group[0].words for group in groups)
    context, static = [], []
    for group, vectors in zip(groups, embedder.embed_sentences(sentences), strict=True):
        here = vectors[:, [use.position for use in group]]
        context.append(here[1:].mean(axis=0) if layer is None else here[layer])
        static.append(here[0])
    return UseVectors(np.concatenate(context), np.concatenate(static))


def word_vectors(embedder: Embedder, words: Sequence[str]) -> np.ndarray:
    """Layer 0 of words, which no sentence changes: float32 [words, vector].

    `embedder` keeps all layers, as it does by default.
    """
    lists = (words[start : start + 100] for start in range(0, len(words), 100))
    return np.concatenate([each[0] for each in embedder.embed_sentences(lists)])


def mean_vectors(
    embedder: Embedder, sentences: Iterable[Sequence[str]], words: Sequence[str]
) -> np.ndarray:
    """The mean vector of each word over its places in sentences: float64 [words,
    vector]; NaN for one that is nowhere.

    Memory is that of the result and a few batches, whatever the number of sentences.

    Args:
      embedder: with layers "top" or "mix".
      sentences: lists of words, read once.
      words: each once.
    """
    place = {word: number for number, word in enumerate(words)}
    width = 2 * embedder.params.config.lstm.projection
    sums, counts = np.zeros((len(words), width)), np.zeros(len(words), np.int64)
    ahead: list[int] = []  # of words that were read and have no vectors yet

    def read() -> Iterator[Sequence[str]]:
        for sentence in sentences:
            ahead.extend(place.get(word, -1) for word in sentence)
            yield sentence

    for block in embedder.blocks(read()):
        total = sum(block.sizes)
        ids = np.array(ahead[:total], np.int64)
        del ahead[:total]
        order = np.argsort(ids, kind="stable")
        order = order[np.searchsorted(ids[order], 0) :]
        if len(order):
            here, first, times = np.unique(
                ids[order], return_index=True, return_counts=True
            )
            vectors = block.vectors[order]
            sums[here] += np.add.reduceat(vectors, first, axis=0, dtype=np.float64)
            counts[here] += times
    with np.errstate(invalid="ignore"):
        sums /= counts[:, None]
    return sums


def cosines(vector: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Of a vector [vector] with each of [n, vector]: float64 [n]; 0 for zeros."""
    one, others = vector.astype(np.float64), vectors.astype(np.float64)
    lengths = np.linalg.norm(others, axis=-1) * np.linalg.norm(one)
    return (others @ one) / np.where(lengths == 0, 1, lengths)


class Neighbour(NamedTuple):
    """Something that is near."""

    place: int
    """Its number among what was compared."""
    cosine: float


def nearest(vector: np.ndarray, vectors: np.ndarray, k: int) -> list[Neighbour]:
    """The up to `k` of [n, vector] with the greatest cosines, the greatest first."""
    each = cosines(vector, vectors)
    order = np.argsort(-each, kind="stable")[:k]
    return [Neighbour(int(index), float(each[index])) for index in order]

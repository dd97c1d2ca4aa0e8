"""Static vectors: each word of a text by the mean of its vectors in context.

As Bommasani et al. (2020) pool contextual vectors, with the mean over uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from elmojax.embedding.embedder import Embedder
from elmojax.text.vocabulary import order_by_count


def frequent_words(
    counts: Counter[str], min_count: int = 1, most: int | None = None
) -> list[str]:
    """The words that occur so often or more, at most so many of them, by falling count,
    equal counts by code point. Words that hold a space are left out: files of word
    vectors have no place for them."""
    words = [word for word, n in counts.items() if n >= min_count and " " not in word]
    order = order_by_count(words, [counts[word] for word in words])
    return [words[index] for index in order[:most]]


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

"""Tables of the distinct words of a batch: what an encoder takes, in few sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from elmojax.config import CharCnnConfig, ElmoConfig
from elmojax.text.characters import byte_lengths, encode_words
from elmojax.text.prepared import Corpus
from elmojax.text.vocabulary import Vocabulary

COLUMNS = (16, 32)
"""Character columns a batch may be cut to, besides all of them."""

SMALLEST = 256
"""Rows of the smallest table of words."""

STEPS = 4
"""Sizes of a table between one and its double."""

SORT_BELOW = 128
"""Types a position above which the distinct ones are found by sorting positions."""

Sizes = Callable[[int, int], tuple[int, int]]
"""The words and columns that a table must hold, out of what this process needs."""


def own_sizes(words: int, columns: int) -> tuple[int, int]:
    """Nobody else has a say in the sizes of a table."""
    return words, columns


class Words:
    """What an encoder takes for the word types of a corpus, in fixed sizes.

    The table of a batch has a number of rows and of columns out of a short list, so
    that few shapes are compiled; its values are those of the full width (windows of
    nothing but padding are all alike, so one is enough for a maximum).
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        model: ElmoConfig,
        shards: int = 1,
        every: bool = False,
    ) -> None:
        """`every`: a row for every position, repeated words too; to measure by."""
        self.every = every
        self.targets = corpus.targets(vocabulary)
        self.vocabulary = len(vocabulary)
        self.shards = shards
        if isinstance(model.encoder, CharCnnConfig):
            most = model.encoder.max_characters
            self._ids = encode_words(corpus.types, most).astype(np.uint16)
            widest = max(width for width, _ in model.encoder.filters)
            self._columns = byte_lengths(corpus.types) + 2 + widest
            self._buckets = (*(c for c in COLUMNS if c < most), most)
        else:
            self._ids = (self.targets + 1).astype(np.int32)

    def unique(
        self, types: Sequence[np.ndarray], least: int = 0, sizes: Sizes = own_sizes
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """The tables of distinct words of each shard's `types`, and the row of each.

        Tables are [shards, words, ...], with at least `least` words; rows without a
        word are 0. `sizes` may ask for larger ones, as those of another process.
        """
        find = _every if self.every else _distinct
        pairs = [find(shard, len(self._ids)) for shard in types]
        most = max(len(distinct) for distinct, _ in pairs)
        needed = 0
        if self._ids.ndim == 2:
            needed = max(int(self._columns[distinct].max()) for distinct, _ in pairs)
        most, needed = sizes(most, needed)
        most = max(most, least)
        size: tuple[int, ...] = (most if self.every else table_rows(most),)
        if self._ids.ndim == 2:
            larger = (c for c in self._buckets if c >= needed)
            size = (*size, next(larger, self._buckets[-1]))
        tables = np.zeros((len(pairs), *size), np.int32)
        for table, (distinct, _) in zip(tables, pairs, strict=True):
            table[: len(distinct)] = self._ids[distinct][..., : table.shape[-1]]
        return tables, [rows for _, rows in pairs]


def _distinct(types: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ones of some types below `count`, rising, and each one's place.

    What `np.unique` says, by marks in a table of all types, which is several times as
    fast unless there are few positions and very many types.
    """
    if count > SORT_BELOW * types.size:
        distinct, places = np.unique(types, return_inverse=True)
        return distinct, places.reshape(types.shape).astype(np.int32)
    marked = np.zeros(count, bool)
    marked[types] = True
    distinct = np.flatnonzero(marked)
    places = np.empty(count, np.int32)
    places[distinct] = np.arange(len(distinct), dtype=np.int32)
    return distinct, places[types]


def _every(types: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """All types as they come, and each one's place."""
    return types.ravel(), np.arange(types.size, dtype=np.int32).reshape(types.shape)


def table_rows(words: int) -> int:
    """Rows of the table of so many distinct words."""
    return padded_size(words, SMALLEST, STEPS)


def padded_size(count: int, least: int, steps: int = 2) -> int:
    """The first size that holds `count`, of `steps` between doublings of `least`.

    Both are powers of two: with 2 steps least, 1.5 least, 2 least, 3 least ... Few
    sizes, so few shapes to compile, and at most 1 / (1 + steps) of an array is filling.
    """
    size = least
    while 2 * size < count:
        size *= 2
    return (
        size
        if count <= size
        else size + -(-(count - size) * steps // size) * size // steps
    )

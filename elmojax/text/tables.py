"""Tables of the distinct words of a batch: what an encoder takes, in fixed sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from elmojax.config import CharCnnConfig, ElmoConfig, HeadConfig
from elmojax.text.capacity import Frequencies, shown
from elmojax.text.characters import byte_lengths, encode_words
from elmojax.text.prepared import Corpus
from elmojax.text.vocabulary import Vocabulary

SHORT = 11
"""UTF-8 bytes of the longest words in the table of short words."""

SORT_BELOW = 128
"""Types a position above which the distinct ones are found by sorting positions."""


def columns_of(encoder: CharCnnConfig) -> tuple[int, int]:
    """Columns of the table of short words and of that of long ones.

    A word has two marks. One window of nothing but padding is as good for a maximum as
    many, so columns past it say nothing.
    """
    widest = max(width for width, _ in encoder.filters)
    return min(SHORT + 2 + widest, encoder.max_characters), encoder.max_characters


class Members(NamedTuple):
    """The targets in one tail cluster of an adaptive softmax.

    Position (time * 2 + direction) * rows + row of a shard has that number.
    """

    positions: np.ndarray
    """int32 [shards, capacity]: positions of the shard with a target in the cluster,
    rising; then the number of all its positions."""
    targets: np.ndarray
    """int32 [shards, capacity]: the target's number in the cluster; 0 for filling."""


class WordTables:
    """What encoder and softmax take for the word types of a corpus, in fixed sizes.

    Short and long words have tables of their own, so that a long one does not make all
    words wide. A text without long words has one table, and so have whole words.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        model: ElmoConfig,
        shards: int = 1,
        every: bool = False,
        head: HeadConfig | None = None,
        split: int = 1,
        any_text: bool = False,
    ) -> None:
        """What a corpus needs.

        Args:
          every: a row for every position, repeated words too; to measure by.
          head: the softmax, of which the tail clusters count; None = one without.
          split: devices along `model`, over which the rows of a table are split.
          any_text: a table of long words even where there are none, for the same shapes
            whatever the text.
        """
        self.corpus, self.every = corpus, every
        self.targets = corpus.targets(vocabulary)
        self.vocabulary = len(vocabulary)
        self.shards = shards
        self.edges = (head or HeadConfig()).edges(self.vocabulary)
        self.split = split
        self._long = np.zeros(len(corpus.types), bool)
        self.columns: tuple[int, ...] = (0,)
        self._ids: tuple[np.ndarray, ...] = ((self.targets + 1).astype(np.int32),)
        if not isinstance(model.encoder, CharCnnConfig):
            return
        short, most = columns_of(model.encoder)
        wide = encode_words(corpus.types, most).astype(np.uint16)
        long = byte_lengths(corpus.types) > SHORT
        if every or short == most:
            self.columns, self._ids = (most,), (wide,)
            return
        self.columns, self._ids = (short,), (wide[:, :short].copy(),)
        if any_text or long.any():
            self.columns, self._ids = (short, most), (*self._ids, wide[long])
            self._long, self._row = long, np.cumsum(long, dtype=np.int32) - 1

    def frequencies(self, window: int) -> Frequencies:
        """Of the text in the corpus."""
        corpus, sentences = self.corpus, len(self.corpus.offsets) - 1
        counts = np.asarray(corpus.counts, np.float64).copy()
        counts[:2] += sentences / 2  # a mark begins a sentence, one in each direction
        shares = counts / counts.sum()
        heard = np.bincount(self.targets, shares, minlength=self.vocabulary)
        tables = range(len(self.columns))
        words = tuple(shares[self._long == table] for table in tables)
        return Frequencies(words, heard, shown(corpus.offsets, window))

    def distinct(self, types: np.ndarray) -> tuple[np.ndarray, ...]:
        """The distinct ones of some types, those of each table, rising.

        What `np.unique` says, by marks in a table of all types, which is several times
        as fast unless there are few positions and very many types.
        """
        if self.every:
            return (types.ravel(),)
        if len(self.targets) > SORT_BELOW * types.size:
            found = np.unique(types)
        else:
            marked = np.zeros(len(self.targets), bool)
            marked[types] = True
            found = np.flatnonzero(marked)
        if len(self.columns) == 1:
            return (found,)
        long = self._long[found]
        return found[~long], found[long]

    def rows(
        self, types: np.ndarray, found: Sequence[np.ndarray], sizes: Sequence[int]
    ) -> np.ndarray:
        """The row of each of `types` in its shard's tables, one after the other.

        Args:
          found: what `distinct` says of `types`; sizes: rows of the tables.
        """
        if self.every:
            return np.arange(types.size, dtype=np.int32).reshape(types.shape)
        places = [
            begin + np.arange(len(some), dtype=np.int32)
            for begin, some in zip(np.cumsum([0, *sizes]), found, strict=False)
        ]
        if len(self.targets) > SORT_BELOW * types.size:
            among, row = np.concatenate(found), np.concatenate(places)
            order = np.argsort(among)
            return row[order][np.searchsorted(among[order], types)].astype(np.int32)
        row = np.empty(len(self.targets), np.int32)
        for some, here in zip(found, places, strict=True):
            row[some] = here
        return row[types]

    def tables(
        self, found: Sequence[Sequence[np.ndarray]], sizes: Sequence[int]
    ) -> tuple[np.ndarray, ...]:
        """The tables of some shards, [shards, rows, columns]; 0 where there is no word.

        Args:
          found: of each shard what `distinct` says.
        """
        tables = []
        for number, (ids, size) in enumerate(zip(self._ids, sizes, strict=True)):
            table = np.zeros((len(found), size, *ids.shape[1:]), np.int32)
            for rows, shard in zip(table, found, strict=True):
                some = shard[number]
                rows[: len(some)] = ids[self._row[some] if number else some]
            tables.append(table)
        return tuple(tables)

    def members(self, targets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions and targets of each tail cluster, of a shard's targets.

        Args:
          targets: vocabulary ids [two, rows, window].
        """
        if len(self.edges) == 1:
            return []
        line = targets.transpose(2, 0, 1).ravel()
        places = (line >= self.edges[0]).nonzero()[0]
        rest = line[places]
        clusters = []
        for low, high in pairwise(self.edges):
            here = ((rest >= low) & (rest < high)).nonzero()[0]
            clusters.append((places[here], rest[here] - low))
        return clusters

"""Tables of the distinct words of a batch, in sizes that are fixed for a whole run.

Words are taken to be drawn at random, each as often as the text has it. A step then
holds so many of them on average, and hardly ever more than some deviations above that.
A step that does takes arrays of twice the size, or as large as needed: none is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from elmojax.config import CharCnnConfig, ElmoConfig, HeadConfig
from elmojax.text.characters import byte_lengths, character_ids, narrow_columns
from elmojax.text.corpus import Corpus
from elmojax.text.negatives import expected_names
from elmojax.text.vocabulary import Vocabulary

RARE = 1e-5
"""Share of the steps that may need larger arrays, if words were drawn at random."""
SENTENCES = 100_000
"""Sentences of a text whose lengths are looked at."""


class Sizes(NamedTuple):
    """Rows of the arrays of a batch, of one shard and microbatch."""

    words: tuple[int, ...]
    """Distinct words of each table."""
    members: tuple[int, ...] = ()
    """Positions in each tail cluster of the softmax."""
    names: int = 0
    """Words that a sampled softmax names, those of all shards."""

    def rounded(self, split: int = 1) -> Sizes:
        """Up, for arrays that divide well; tables over so many devices."""
        words = (_even(size, split) for size in self.words)
        members = map(_even, self.members)
        return Sizes(tuple(words), tuple(members), up(self.names, 128))


def each_size(function: Callable[..., int], *sizes: Sizes) -> Sizes:
    """A function of what several have for the same array."""
    words, members, names = zip(*sizes, strict=True)
    of_words, of_members = (tuple(map(function, *each)) for each in (words, members))
    return Sizes(of_words, of_members, function(*names))


def up(size: int, multiple: int) -> int:
    """The next multiple."""
    return multiple * -(-size // multiple)


def _even(size: int, split: int = 1) -> int:
    """The next multiple of `split` and of a power of two, from 8 to 128, that is an
    eighth to a sixteenth of the size."""
    power = 8
    while power < 128 and size >= 16 * power:
        power *= 2
    return up(max(size, 1), math.lcm(power, split))


class Capacities(NamedTuple):
    """The sizes of all steps of a run."""

    usual: Sizes
    limit: Sizes
    """What no step can exceed."""

    def at(self, level: int) -> Sizes:
        """The usual sizes, doubled so many times."""
        if not level:
            return self.usual
        times = 2**level
        return each_size(lambda u, most: min(times * u, most), self.usual, self.limit)

    def level(self, wanted: Sizes, least: int = 0) -> int:
        """The first that holds what is wanted, from `least` on."""
        while each_size(max, sizes := self.at(least), wanted) != sizes:
            assert sizes != self.limit, f"{wanted} is more than {self.limit}"
            least += 1
        return least


@dataclass(frozen=True, eq=False)
class Frequencies:
    """How often words occur in a text, as shares of its positions."""

    words: tuple[np.ndarray, ...]
    """Those of each table."""
    targets: np.ndarray
    """Those of the vocabulary, as targets."""
    seen_share: float = 1.0
    """Distinct positions that either direction reads, per position of the window."""

    def distinct(self, positions: float) -> tuple[float, ...]:
        """How many distinct words of each table so many positions hold, on average."""
        draws = positions * self.seen_share
        return tuple(float(_chances(table, draws).sum()) for table in self.words)

    def capacities(
        self,
        rows: int,
        window: int,
        parts: int = 1,
        edges: Sequence[int] = (),
        split: int = 1,
        each_position: bool = False,
        samples: int = 0,
        seed: int = 0,
    ) -> Capacities:
        """Of a step.

        Args:
          rows: of all parts.
          parts: shards times microbatches.
          edges: where tail clusters of the softmax begin and end.
          split: devices along `model`.
          each_position: tables have a row for each, also of a word seen before.
          samples, seed: of a sampled softmax.
        """
        positions = rows * window // parts
        draws, both = positions * self.seen_share, 2 * positions
        tables, tails = [], []
        for table in self.words:
            chances = _chances(table, draws)
            variance = float((chances * (1 - chances)).sum())
            tables.append(bound(float(chances.sum()), variance, parts))
        for low, high in pairwise(edges):
            # Both directions have nearly the same targets: they count as one, twice.
            tail = float(self.targets[low:high].sum())
            mean = positions * tail
            tails.append(2 * bound(mean, mean * (1 - tail), parts))
        names, all_names = 0, 0
        if samples:
            found = expected_names(self.targets, samples, draws * parts, seed)
            names = bound(*found, 1)
            all_names = min(len(self.targets), 2 * (samples + rows * window))
        usual = Sizes(tuple(tables), tuple(tails), names).rounded(split)
        words = tuple(min(len(table), both) for table in self.words)
        limit = Sizes(words, (both,) * len(tails), all_names).rounded(split)
        if each_position:
            whole = (up(both, split),)
            usual, limit = (s._replace(words=whole) for s in (usual, limit))
        return Capacities(each_size(min, usual, limit), limit)


def _chances(frequencies: np.ndarray, draws: float) -> np.ndarray:
    """The chance of each word to be among so many."""
    return -np.expm1(draws * np.log1p(-np.minimum(frequencies, 0.999)))


def bound(mean: float, variance: float, counts: int) -> int:
    """What the largest of some independent counts exceeds in a share `RARE` of steps.

    Of a normal distribution, with the first term of Cornish and Fisher's expansion for
    the skew of small counts.
    """
    deviations = NormalDist().inv_cdf(1 - RARE / counts)
    return math.ceil(mean + deviations * math.sqrt(variance) + deviations**2 / 6)


def positions_seen(offsets: np.ndarray, window: int) -> float:
    """Distinct positions that either direction reads, per position of the window.

    From 1 to 2: the directions read a sentence from its two ends. Of a whole sentence
    they see the same positions, of a part mirrored ones: of `a b c d` a window of two
    positions shows `a b` forward and `d c` backward.

    Args:
      offsets: where each sentence begins, and the end.
    """
    stride = max(1, (len(offsets) - 1) // SENTENCES)
    lengths = offsets[1::stride] - offsets[:-1:stride] + 1
    total = seen = 0.0
    for length, times in zip(*np.unique(lengths, return_counts=True), strict=True):
        begin = np.arange(1 - window, length)
        low, high = np.maximum(begin, 0), np.minimum(begin + window, length)
        # What [low, high) has in common with its mirror image.
        both = np.minimum(high, length - low) - np.maximum(low, length - high)
        total += times * (high - low).sum()
        seen += times * (2 * (high - low) - np.maximum(both, 0)).sum()
    return float(seen / total)


SHORT = 11
"""UTF-8 bytes of the longest words in the table of short words."""

SORT_BELOW = 128
"""Types a position above which the distinct ones are found by sorting positions."""


def table_columns(encoder: CharCnnConfig) -> tuple[int, int]:
    """Columns of the table of short words and of that of long ones."""
    return narrow_columns(encoder, SHORT + 2), encoder.max_characters


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
        each_position: bool = False,
        head: HeadConfig | None = None,
        split: int = 1,
        any_text: bool = False,
    ) -> None:
        """What a corpus needs.

        Args:
          each_position: a row for each, repeated words too; to measure by.
          head: the softmax, of which the tail clusters count; None = one without.
          split: devices along `model`, over which the rows of a table are split.
          any_text: a table of long words even where there are none, for the same shapes
            whatever the text.
        """
        self.corpus, self.each_position = corpus, each_position
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
        short, full = table_columns(model.encoder)
        wide = character_ids(corpus.types, full).astype(np.uint16)
        long = byte_lengths(corpus.types) > SHORT
        if each_position or short == full:
            self.columns, self._ids = (full,), (wide,)
            return
        self.columns, self._ids = (short,), (wide[:, :short].copy(),)
        if any_text or long.any():
            self.columns, self._ids = (short, full), (*self._ids, wide[long])
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
        return Frequencies(words, heard, positions_seen(corpus.offsets, window))

    def distinct(self, types: np.ndarray) -> tuple[np.ndarray, ...]:
        """The distinct ones of some types, those of each table, rising.

        What `np.unique` says, by marks in a table of all types, which is several times
        as fast unless there are few positions and very many types.
        """
        if self.each_position:
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
        if self.each_position:
            return np.arange(types.size, dtype=np.int32).reshape(types.shape)
        numbers = [
            begin + np.arange(len(some), dtype=np.int32)
            for begin, some in zip(np.cumsum([0, *sizes]), found, strict=False)
        ]
        if len(self.targets) > SORT_BELOW * types.size:
            among, row = np.concatenate(found), np.concatenate(numbers)
            order = np.argsort(among)
            return row[order][np.searchsorted(among[order], types)].astype(np.int32)
        row = np.empty(len(self.targets), np.int32)
        for some, here in zip(found, numbers, strict=True):
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
        tail = (line >= self.edges[0]).nonzero()[0]
        rest = line[tail]
        clusters = []
        for low, high in pairwise(self.edges):
            here = ((rest >= low) & (rest < high)).nonzero()[0]
            clusters.append((tail[here], rest[here] - low))
        return clusters

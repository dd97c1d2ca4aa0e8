"""Sizes of what a step takes from its text, be it a real or an assumed one.

Where there is no text, words are assumed to fall off as 1 / rank up to rank 10,000 and
as 1 / rank**2 after it: the two regimes of Ferrer i Cancho and Sole 2001 ("Two regimes
in the frequency of words and the origins of complex lexicons"). A bare 1 / rank would
give the rare words of a large vocabulary several times their share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from elmojax.config import CharCnnConfig, HeadConfig, TrainConfig
from elmojax.text.batches import Batch, TrainingText
from elmojax.text.corpus import Corpus
from elmojax.text.negatives import Negatives, check_samples
from elmojax.text.tables import Frequencies, Members, Sizes, WordTables, table_columns

BENCHMARK_WORDS = 793_471
BENCHMARK_POSITIONS = 768_648_884
"""Vocabulary and positions of the One Billion Word Benchmark, as bilm-tf reads it."""

KNEE = 10_000
"""Rank from which words fall off faster."""

LONG_AFTER, LONG_EVERY = 1000, 15
"""Of the words past that rank one in so many is long, as in English prose."""


@dataclass(frozen=True, eq=False)
class TextStatistics:
    """A text, as far as sizes depend on it."""

    source: str
    counts: np.ndarray
    """How often each word of the vocabulary is a target, by rank."""
    types: np.ndarray
    """Share of each distinct word of the text."""
    positions: int
    """Of a pass over the text."""
    corpus: Corpus | None = None

    @property
    def vocabulary(self) -> int:
        return len(self.counts)

    def shares(self, head: HeadConfig) -> tuple[float, ...]:
        """Share of the targets in each tail cluster."""
        counts = np.asarray(self.counts, np.float64)
        rising = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
        edges = (*head.cutoffs, self.vocabulary)
        return tuple(float(rising[high] - rising[low]) for low, high in pairwise(edges))


def statistics_of(corpus: Corpus, source: str) -> TextStatistics:
    """A prepared corpus."""
    sentences = len(corpus.offsets) - 1
    types = np.asarray(corpus.counts, np.float64).copy()
    types[:2] += sentences
    counts = corpus.target_counts(corpus.vocabulary)
    positions = len(corpus.words) + sentences
    return TextStatistics(source, counts, types / types.sum(), positions, corpus)


def assumed_text(vocabulary: int, positions: int) -> TextStatistics:
    """A text of so many words and positions that nobody has at hand."""
    rank = np.arange(1.0, vocabulary + 1)
    share = np.where(rank < KNEE, 1 / rank, KNEE / rank**2)
    share /= share.sum()
    name = "an assumed text"
    if (vocabulary, positions) == (BENCHMARK_WORDS, BENCHMARK_POSITIONS):
        name = "an assumed text of the One Billion Word Benchmark's size"
    return TextStatistics(name, share * positions, share, positions)


@dataclass(frozen=True)
class StepSizes:
    """What one step reads."""

    batch: Batch
    """Shapes and dtypes in place of arrays."""
    sizes: Sizes
    """Of its arrays, a shard and piece."""
    tables: tuple[int, ...]
    """Columns of characters of each table; 0 for an encoder of whole words."""
    words: float
    """Distinct words that are encoded, of all shards and microbatches together."""
    columns: float
    """Columns of characters that a word takes, on average."""


def step_sizes(
    statistics: TextStatistics, config: TrainConfig, data: int, rows: int
) -> StepSizes:
    """What is expected of a step on `data` devices along `data`.

    All devices of the run read `rows`, which can be more than `config.rows`. Raises
    `InputError` where a sampled softmax draws more words than there are.
    """
    if config.head.kind == "sampled":
        check_samples(config.head.samples, statistics.vocabulary)
    frequencies, tables = _frequencies(statistics, config)
    parts = data * config.accumulate
    sizes = frequencies.capacities(
        rows,
        config.window,
        parts=parts * rows // config.rows,
        edges=config.head.edges(statistics.vocabulary),
        split=config.mesh.model,
        each_position=not config.unique_words,
        samples=_samples(config),
        seed=config.seed,
    ).usual
    words = frequencies.distinct(config.rows * config.window / parts)
    if not config.unique_words:
        words = tuple(map(float, sizes.words))
    columns = float(np.average(tables, weights=words))
    batch = batch_shapes(config, sizes, tables, data)
    return StepSizes(batch, sizes, tables, parts * sum(words), columns)


def training_text(
    config: TrainConfig, corpus: Corpus, data: int, local: Sequence[int] | None = None
) -> TrainingText:
    """The rows of a run on `data` devices along `data`; `local`: of these shards."""
    return TrainingText(
        corpus,
        _word_tables(config, corpus, data),
        config.rows,
        config.window,
        config.seed,
        samples=_samples(config),
        microbatches=config.accumulate,
        local=local,
    )


def _word_tables(config: TrainConfig, corpus: Corpus, data: int) -> WordTables:
    return WordTables(
        corpus,
        corpus.vocabulary,
        config.model,
        shards=data,
        each_position=not config.unique_words,
        head=config.head,
        split=config.mesh.model,
    )


def _samples(config: TrainConfig) -> int:
    """Negative samples of a direction; 0 for an exact softmax."""
    return config.head.samples if config.head.kind == "sampled" else 0


def _frequencies(
    statistics: TextStatistics, config: TrainConfig
) -> tuple[Frequencies, tuple[int, ...]]:
    """How often words occur, those of each table, and columns of the tables."""
    if statistics.corpus is not None:
        words = _word_tables(config, statistics.corpus, 1)
        return words.frequencies(config.window), words.columns
    targets = np.asarray(statistics.counts, np.float64) / np.sum(statistics.counts)
    encoder = config.model.encoder
    if not isinstance(encoder, CharCnnConfig):
        return Frequencies((statistics.types,), targets), (0,)
    tables = table_columns(encoder)
    rank = np.arange(len(statistics.types))
    long = (rank >= LONG_AFTER) & (rank % LONG_EVERY == 0)
    if not (config.unique_words and long.any() and tables[0] < tables[1]):
        return Frequencies((statistics.types,), targets), tables[1:]
    return Frequencies(
        (statistics.types[~long], statistics.types[long]), targets
    ), tables


def batch_shapes(
    config: TrainConfig, sizes: Sizes, tables: Sequence[int], shards: int
) -> Batch:
    """Shapes and dtypes of a batch of all shards.

    Args:
      sizes: of its arrays, a shard and piece.
      tables: columns of characters of each table; 0 for ids of whole words.
    """
    microbatches, head = config.accumulate, config.head
    lead = (microbatches,) if microbatches > 1 else ()

    def array(*shape: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), np.dtype(dtype))

    rows = config.rows // microbatches
    both, drawn = array(2, rows, config.window), None
    if head.kind == "sampled":
        expected = array(2, sizes.names, dtype=np.float32)
        drawn = Negatives(array(sizes.names), both, array(2, head.samples), expected)
    words = (
        array(shards * size, columns) if columns else array(shards * size)
        for size, columns in zip(sizes.words, tables, strict=True)
    )
    tails = (Members(*2 * (array(shards, size),)) for size in sizes.members)
    weights = array(rows, config.window, dtype=np.float32)
    return Batch(tuple(words), both, both, weights, tuple(tails), drawn)

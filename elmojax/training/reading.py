"""What the steps of a run take from its text: sizes, of a real text or an assumed one.

Where there is no text, words are assumed to fall off as 1 / rank up to rank 10,000 and
as 1 / rank**2 after it: the two regimes of Ferrer i Cancho and Sole 2001 ("Two regimes
in the frequency of words and the origins of complex lexicons"). A bare 1 / rank would
give the rare words of a large vocabulary several times their share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from elmojax.config import CharCnnConfig, HeadConfig, TrainConfig
from elmojax.text.batches import Batch, TrainingText
from elmojax.text.negatives import SMALLEST as SMALLEST_TAKEN
from elmojax.text.negatives import Negatives, check_samples, log_uniform
from elmojax.text.prepared import Corpus
from elmojax.text.tables import COLUMNS, Words, table_rows

BENCHMARK_WORDS = 793_471
BENCHMARK_POSITIONS = 768_648_884
"""Vocabulary and positions of the One Billion Word Benchmark, as bilm-tf reads it."""

KNEE = 10_000
"""Rank from which words fall off faster."""

STEPS = 8
"""First steps of a run whose batches are looked at; the largest one counts."""

MOST = 1 << 21
"""Positions of a step above which its words are expected, not looked at."""


@dataclass(frozen=True, eq=False)
class Reading:
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


def reading_of(corpus: Corpus, source: str) -> Reading:
    """A prepared corpus."""
    sentences = len(corpus.offsets) - 1
    types = np.asarray(corpus.counts, np.float64).copy()
    types[:2] += sentences
    counts = corpus.target_counts(corpus.vocabulary)
    positions = len(corpus.words) + sentences
    return Reading(source, counts, types / types.sum(), positions, corpus)


def assumed(vocabulary: int, positions: int) -> Reading:
    """A text of so many words and positions that nobody has at hand."""
    rank = np.arange(1.0, vocabulary + 1)
    share = np.where(rank < KNEE, 1 / rank, KNEE / rank**2)
    share /= share.sum()
    name = "an assumed text"
    if (vocabulary, positions) == (BENCHMARK_WORDS, BENCHMARK_POSITIONS):
        name = "an assumed text of the One Billion Word Benchmark's size"
    return Reading(name, share * positions, share, positions)


@dataclass(frozen=True)
class StepSizes:
    """What one step reads."""

    batch: Batch
    """Shapes and dtypes in place of arrays."""
    words: float
    """Distinct words that are encoded, of all shards and pieces together."""
    columns: int
    """Columns of characters; 0 for an encoder of whole words."""


def step_sizes(
    reading: Reading, config: TrainConfig, data: int, rows: int
) -> StepSizes:
    """The batch of a step on `data` devices along `data`.

    The largest of the first steps where there is a text, else what is expected. All
    devices of the run read `rows`, which can be more than `config.rows`. Raises
    `InputError` where a sampled softmax draws more words than there are.
    """
    if config.head.kind == "sampled":
        check_samples(config.head.samples, reading.vocabulary)
    corpus = reading.corpus
    if corpus is None or config.rows * config.window > MOST:
        return _expected(reading, config, data, rows)
    text = training_text(config, corpus, data)
    found = [_sizes_of(text.batch(step)) for step in range(STEPS)]
    largest = max(found, key=lambda sizes: math.prod(sizes.batch.words.shape))
    mean = float(np.mean([sizes.words for sizes in found]))
    return replace(largest, words=mean)


def training_text(
    config: TrainConfig, corpus: Corpus, data: int, local: Sequence[int] | None = None
) -> TrainingText:
    """The rows of a run on `data` devices along `data`; `local`: of these shards."""
    every = not config.unique_words
    words = Words(corpus, corpus.vocabulary, config.model, data, every)
    samples = config.head.samples if config.head.kind == "sampled" else 0
    sizes = (config.rows, config.window, config.seed, samples, config.accumulate)
    return TrainingText(corpus, words, *sizes, local)


def _sizes_of(batch: Batch) -> StepSizes:
    ids, columns = batch.words[..., None], 0
    if batch.words.ndim == batch.weights.ndim:  # else whole words, without characters
        ids, columns = batch.words, batch.words.shape[-1]
    used = ids.any(axis=-1).sum()
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
    return StepSizes(shapes, float(used), columns)


def _expected(
    reading: Reading, config: TrainConfig, data: int, all_rows: int
) -> StepSizes:
    """What a step reads where words are drawn by their shares alone.

    Both directions read the same text, so its positions are drawn once.
    """
    rows, window, pieces = config.rows, config.window, config.accumulate
    tables = data * pieces
    if config.unique_words:
        distinct = expected_distinct(reading.types, rows * window / tables)
        height = table_rows(math.ceil(distinct))
    else:  # every position of both directions
        distinct = height = 2 * rows * window // tables
    encoder, columns = config.model.encoder, 0
    table: tuple[int, ...] = (data * height,)
    if isinstance(encoder, CharCnnConfig):
        columns = min(COLUMNS[-1], encoder.max_characters)
        table = (*table, columns)
    taken = 0
    if config.head.kind == "sampled":
        taken = _expected_taken(reading, config, all_rows * window)
    batch = batch_shapes(config, rows // pieces, table, taken, pieces)
    return StepSizes(batch, float(distinct * tables), columns)


def batch_shapes(
    config: TrainConfig,
    rows: int,
    table: tuple[int, ...],
    taken: int = 0,
    pieces: int = 1,
) -> Batch:
    """Shapes and dtypes of a batch.

    Args:
      rows: of one piece.
      table: [words] of one piece, or [words, characters].
      taken: rows that a sampled softmax takes of its table.
      pieces: above 1, all arrays have one axis more, before all others.
    """
    lead = (pieces,) if pieces > 1 else ()

    def array(*shape: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), np.dtype(dtype))

    both, negatives = array(2, rows, config.window), None
    if config.head.kind == "sampled":
        drawn = array(2, config.head.samples)
        expected = array(2, taken, dtype=np.float32)
        negatives = Negatives(array(taken), both, drawn, expected)
    weights = array(rows, config.window, dtype=np.float32)
    return Batch(array(*table), both, both, weights, negatives=negatives)


def expected_distinct(shares: np.ndarray, positions: float) -> float:
    """How many distinct words so many positions hold, on average."""
    return float(-np.expm1(positions * np.log1p(-np.minimum(shares, 0.999))).sum())


def _expected_taken(reading: Reading, config: TrainConfig, positions: int) -> int:
    """Rows of the table of words that a step of so many positions takes."""
    size, samples = reading.vocabulary, config.head.samples
    bits = np.random.Philox(config.seed)
    drawn = [log_uniform(bits, size, samples)[0] for _ in range(2)]
    shares = np.asarray(reading.counts, np.float64) / reading.counts.sum()
    shares[np.unique(np.concatenate(drawn))] = 0
    others = expected_distinct(shares, positions)
    taken = len(np.unique(np.concatenate(drawn))) + math.ceil(others)
    return SMALLEST_TAKEN * -(-taken // SMALLEST_TAKEN)

"""Prepared corpora to training batches: continuous rows, words encoded once.

A sentence of n words is n + 1 positions. Forward, the inputs are `<S> w1 .. wn` and
the targets `w1 .. wn </S>`; backward, the mirror image: inputs `</S> wn .. w1`, targets
`wn .. w1 <S>`. Sentences are packed without padding, and a row is one stream of them
that is cut into windows (as bilm-tf trains). Both directions of a row read the same
sentences at the same step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from elmojax.config import CharCnnConfig, ElmoConfig
from elmojax.text.characters import byte_lengths, encode_words
from elmojax.text.negatives import Negatives, check_samples, negatives
from elmojax.text.prepared import Corpus
from elmojax.text.vocabulary import Vocabulary

BEGIN, END = 0, 1
"""Types (and vocabulary ids) of `<S>` and `</S>`."""

COLUMNS = (16, 32)
"""Character columns a batch may be cut to, besides all of them."""


SMALLEST = 256
"""Rows of the smallest table of words."""


class Batch(NamedTuple):
    """One step of all rows, for both directions: 0 forward, 1 backward."""

    words: np.ndarray
    """Distinct words of the batch: int32 [words, characters], or ids [words]."""
    inputs: np.ndarray
    """int32 [two, rows, window]: row of `words` at each position."""
    targets: np.ndarray
    """int32 [two, rows, window]: vocabulary id to predict."""
    weights: np.ndarray
    """float32 [rows, window]: 1 where the position counts, 0 where it is filling."""
    negatives: Negatives | None = None
    """Words drawn at random, where the softmax is sampled."""


class Words:
    """What an encoder takes for the word types of a corpus, in fixed sizes.

    The table of a batch has a number of rows and of columns out of a short list, so
    that few shapes are compiled; its values are those of the full width (windows of
    nothing but padding are all alike, so one is enough for a maximum).
    """

    def __init__(
        self, corpus: Corpus, vocabulary: Vocabulary, model: ElmoConfig, multiple: int
    ) -> None:
        self.targets = corpus.targets(vocabulary)
        self.vocabulary = len(vocabulary)
        self._multiple = multiple
        if isinstance(model.encoder, CharCnnConfig):
            most = model.encoder.max_characters
            self._ids = encode_words(corpus.types, most).astype(np.uint16)
            widest = max(width for width, _ in model.encoder.filters)
            self._columns = byte_lengths(corpus.types) + 2 + widest
            self._buckets = (*(c for c in COLUMNS if c < most), most)
        else:
            self._ids = (self.targets + 1).astype(np.int32)

    def unique(
        self, types: np.ndarray, least: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The table of distinct words of `types`, and the row of each.

        The table has at least `least` rows; rows without a word are 0.
        """
        distinct, rows = np.unique(types, return_inverse=True)
        size = padded_size(max(len(distinct), least), SMALLEST)
        size = -(-size // self._multiple) * self._multiple
        if self._ids.ndim == 1:
            table = np.zeros(size, np.int32)
            table[: len(distinct)] = self._ids[distinct]
        else:
            needed = self._columns[distinct].max()
            columns = next((c for c in self._buckets if c >= needed), self._buckets[-1])
            table = np.zeros((size, columns), np.int32)
            table[: len(distinct)] = self._ids[distinct, :columns]
        return table, rows.reshape(types.shape).astype(np.int32)


def padded_size(count: int, least: int) -> int:
    """The first of least, 1.5 least, 2 least, 3 least, 4 least ... that holds `count`.

    `least` is a power of two. Few sizes, so few shapes to compile, and at most half
    of an array is filling.
    """
    size = least
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


class _Order(NamedTuple):
    """Sentences in the order they are read, and the position each begins at."""

    sentences: np.ndarray
    starts: np.ndarray


def _order(corpus: Corpus, sentences: np.ndarray) -> _Order:
    lengths = np.diff(corpus.offsets)[sentences] + 1
    return _Order(sentences, np.concatenate([[0], np.cumsum(lengths)]))


def _read(corpus: Corpus, order: _Order, where: np.ndarray) -> np.ndarray:
    """Types at positions `where`: [inputs or targets, two, *where.shape]."""
    number = np.searchsorted(order.starts, where, side="right") - 1
    at = where - order.starts[number]
    sentence = order.sentences[number]
    begin, end = corpus.offsets[sentence], corpus.offsets[sentence + 1]
    first, last = at == 0, at == end - begin
    words, limit = corpus.words, len(corpus.words) - 1

    def word(index: np.ndarray) -> np.ndarray:
        return words[np.clip(index, 0, limit)]

    return np.stack(
        [
            np.where(first, BEGIN, word(begin + at - 1)),
            np.where(first, END, word(end - at)),
            np.where(last, END, word(begin + at)),
            np.where(last, BEGIN, word(end - at - 1)),
        ]
    ).reshape(2, 2, *where.shape)


class TrainingText:
    """Endless rows for training; `batch(step)` is a pure function of its arguments.

    In each epoch all sentences are shuffled and laid end to end, and the line is cut
    into `rows` equal pieces; the stream of a row is its piece of epoch 0, of epoch 1,
    and so on. Which text a row reads depends on (seed, epoch, row) alone. The last
    piece is filled up with the first positions of the line, fewer than `rows` in all.
    With `samples`, each batch has that many words drawn at random a direction.
    """

    def __init__(
        self,
        corpus: Corpus,
        words: Words,
        rows: int,
        window: int,
        seed: int,
        samples: int = 0,
    ) -> None:
        self.corpus, self.words = corpus, words
        self.rows, self.window, self.seed = rows, window, seed
        self.samples = samples
        if samples:
            check_samples(samples, words.vocabulary)
        self.positions = len(corpus.words) + len(corpus.offsets) - 1
        self.piece = -(-self.positions // rows)
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def steps(self, epochs: float) -> int:
        """Steps in which every row has read `epochs` times its piece."""
        return max(1, round(-(-epochs * self.piece // self.window)))

    def epoch(self, step: int) -> float:
        """Epochs read before `step`."""
        return step * self.window / self.piece

    def batch(self, step: int) -> Batch:
        """The windows of all rows at `step`, counted from 0."""
        stream = step * self.window + np.arange(self.window)
        row = np.arange(self.rows)[:, None] * self.piece
        types = np.empty((2, 2, self.rows, self.window), np.int32)
        for epoch in range(stream[0] // self.piece, stream[-1] // self.piece + 1):
            now = stream // self.piece == epoch
            where = (row + stream[now] % self.piece) % self.positions
            types[..., now] = _read(self.corpus, self._epoch(int(epoch)), where)
        ones = np.ones((self.rows, self.window), np.float32)
        batch = _batch(self.words, types, ones)
        if not self.samples:
            return batch
        size = self.words.vocabulary
        drawn = negatives(batch.targets, size, self.samples, self.seed, step)
        return batch._replace(negatives=drawn)

    def _shuffle(self, epoch: int) -> _Order:
        bits = np.random.Philox(key=[self.seed, epoch])
        sentences = len(self.corpus.offsets) - 1
        return _order(self.corpus, np.random.Generator(bits).permutation(sentences))


class Places(NamedTuple):
    """Where the positions of a held-out batch come from; [rows, window]."""

    counts: np.ndarray
    """bool: whether it is a position of the text, and no filling."""
    sentence: np.ndarray
    """Number of its sentence."""
    at: np.ndarray
    """Position in its sentence, from 0."""


def heldout_batches(
    corpus: Corpus, words: Words, rows: int, window: int
) -> Iterator[Batch]:
    """All positions once, in file order: whole sentences, dealt to rows in stretches.

    Rows end at different steps; positions past the end of a row weigh 0.
    """
    for batch, _ in located_batches(corpus, words, rows, window):
        yield batch


def located_batches(
    corpus: Corpus, words: Words, rows: int, window: int
) -> Iterator[tuple[Batch, Places]]:
    """`heldout_batches`, and where each position comes from."""
    sentences = len(corpus.offsets) - 1
    order = _order(corpus, np.arange(sentences))
    marks = np.arange(rows + 1) * order.starts[-1] // rows
    bounds = order.starts[np.searchsorted(order.starts, marks)]
    least = 0  # the few words of the last windows need no shape of their own
    for start in range(0, int(np.diff(bounds).max()), window):
        where = bounds[:-1, None] + start + np.arange(window)
        counts = where < bounds[1:, None]
        where = np.where(counts, where, 0)
        types = _read(corpus, order, where)
        batch = _batch(words, types, counts.astype(np.float32), least)
        least = least or len(batch.words)
        sentence = np.searchsorted(order.starts, where, side="right") - 1
        yield batch, Places(counts, sentence, where - order.starts[sentence])


def _batch(
    words: Words, types: np.ndarray, weights: np.ndarray, least: int = 0
) -> Batch:
    table, inputs = words.unique(types[0], least)
    return Batch(table, inputs, words.targets[types[1]].astype(np.int32), weights)

"""Prepared corpora to training batches: continuous rows, words encoded once.

A sentence of n words is n + 1 positions. Forward, the inputs are `<S> w1 .. wn` and
the targets `w1 .. wn </S>`; backward, the mirror image: inputs `</S> wn .. w1`, targets
`wn .. w1 <S>`. Sentences are packed without padding, and a row is one stream of them
that is cut into windows (as bilm-tf trains). Both directions of a row read the same
sentences at the same step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from elmojax.text.corpus import Corpus
from elmojax.text.negatives import Negatives, check_samples, negatives, pad_words
from elmojax.text.tables import Members, Sizes, WordTables, each_size
from elmojax.text.vocabulary import BEGIN_ID, END_ID

ORDER = 1
"""Version of the order of sentences and of the negatives, in config.json of a run."""


class Batch(NamedTuple):
    """One step of all rows, for both directions: of two, 0 is forward, 1 backward.

    The rows are split into shards, one for each place of the mesh axis `data`. A shard
    has tables of the distinct words that its rows read, and `inputs` names a word by
    its row in them. With microbatches, every array has one more axis before all others.
    """

    words: tuple[np.ndarray, ...]
    """Tables of distinct words, short words first: character ids int32 [shards * words,
    characters], or word ids [shards * words]. Of each, all shards have as many rows."""
    inputs: np.ndarray
    """int32 [two, rows, window]: the word at each position; rows of the second table
    are counted on from those of the first."""
    targets: np.ndarray
    """int32 [two, rows, window]: vocabulary id to predict."""
    weights: np.ndarray
    """float32 [rows, window]: 1 where the position counts, 0 where it is filling."""
    members: tuple[Members, ...] = ()
    """Where the targets in each tail cluster of an adaptive softmax are."""
    negatives: Negatives | None = None
    """Words drawn at random, where the softmax is sampled."""


class _Order(NamedTuple):
    """Sentences in the order they are read, and the position each begins at."""

    sentences: np.ndarray
    starts: np.ndarray


def _order(corpus: Corpus, sentences: np.ndarray) -> _Order:
    lengths = np.diff(corpus.offsets)[sentences] + 1
    return _Order(sentences, np.concatenate([[0], np.cumsum(lengths)]))


def _types_at(corpus: Corpus, order: _Order, where: np.ndarray) -> np.ndarray:
    """Types at positions `where`: [inputs or targets, two, rows, window].

    Positions of a row follow on each other, except that a sentence may begin anywhere.
    """
    wider = np.concatenate([np.maximum(where[:, :1] - 1, 0), where], axis=1)
    number = np.searchsorted(order.starts, wider, side="right") - 1
    at = wider - order.starts[number]
    sentence = order.sentences[number]
    begin, end = corpus.offsets[sentence], corpus.offsets[sentence + 1]
    last = at == end - begin
    types = np.empty((2, 2, *where.shape), np.int32)
    for n, words, marks in (
        (0, begin + at, (BEGIN_ID, END_ID)),
        (1, end - at - 1, (END_ID, BEGIN_ID)),
    ):
        words[last] = 0  # there is no word
        targets = np.where(last, marks[1], corpus.words[words])
        # A position reads what the one before it was to predict.
        types[0, n] = np.where(at[:, 1:] == 0, marks[0], targets[:, :-1])
        types[1, n] = targets[:, 1:]
    return types


class TrainingText:
    """Endless rows for training; `batch(step)` is a pure function of its arguments.

    In each epoch all sentences are shuffled and laid end to end, and the line is cut
    into `rows` equal parts; the stream of a row is its part of epoch 0, of epoch 1, and
    so on. Which text a row reads depends on (seed, epoch, row) alone. The last part is
    filled up with the first positions of the line, fewer than `rows` in all.
    With `samples`, each batch has that many words drawn at random a direction.

    Shard number s of n holds the rows from s / n to (s + 1) / n of all; a
    microbatch holds the same share of each shard.
    """

    def __init__(
        self,
        corpus: Corpus,
        words: WordTables,
        rows: int,
        window: int,
        seed: int,
        samples: int = 0,
        microbatches: int = 1,
        local: Sequence[int] | None = None,
    ) -> None:
        """`local`: the shards whose rows are read here; None = all."""
        self.corpus, self.words = corpus, words
        self.rows, self.window, self.seed = rows, window, seed
        self.samples, self.microbatches = samples, microbatches
        shards = np.arange(rows).reshape(words.shards, -1)
        self.local = shards[slice(None) if local is None else list(local)]
        if samples:
            check_samples(samples, words.vocabulary)
        self.positions = len(corpus.words) + len(corpus.offsets) - 1
        self.row_positions = -(-self.positions // rows)
        self._epoch = lru_cache(maxsize=2)(self._shuffle)
        self.capacities = words.frequencies(window).capacities(
            rows,
            window,
            parts=words.shards * microbatches,
            edges=words.edges,
            split=words.split,
            each_position=words.each_position,
            samples=samples,
            seed=seed,
        )

    def steps(self, epochs: float) -> int:
        """Steps in which every row has read `epochs` times its part."""
        return steps_of(self.positions, self.rows, self.window, epochs)

    def epoch(self, step: int) -> float:
        """Epochs read before `step`."""
        return step * self.window / self.row_positions

    def batch(self, step: int) -> Batch:
        """The windows of the rows of `local` at `step`, counted from 0."""
        return self.batch_at_level(step)[1]

    def batch_at_level(self, step: int, least: int = 0) -> tuple[int, Batch]:
        """A batch in the first sizes that hold it, of level `least` or above."""
        local = self.local.ravel()
        # Which words a sampled softmax takes is decided by the targets of all rows.
        types = self._types(step, np.arange(self.rows) if self.samples else local)
        drawn = None
        if self.samples:
            targets = self.words.targets[types[1]]
            size = self.words.vocabulary
            drawn = negatives(targets, size, self.samples, self.seed, step)
            drawn = drawn._replace(targets=drawn.targets[:, local])
            types = types[:, :, local]
        weights = np.ones((len(local), self.window), np.float32)
        text = _StepText(
            self.words, types, weights, len(self.local), self.microbatches, drawn
        )
        level = self.capacities.level(text.needed, least)
        return level, text.batch(self.capacities.at(level))

    def _types(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Word types of some rows: [inputs or targets, two, rows, window]."""
        stream = step * self.window + np.arange(self.window)
        begin = rows[:, None] * self.row_positions
        types = np.empty((2, 2, len(rows), self.window), np.int32)
        for epoch in range(
            stream[0] // self.row_positions, stream[-1] // self.row_positions + 1
        ):
            now = stream // self.row_positions == epoch
            where = (begin + stream[now] % self.row_positions) % self.positions
            types[..., now] = _types_at(self.corpus, self._epoch(int(epoch)), where)
        return types

    def _shuffle(self, epoch: int) -> _Order:
        bits = np.random.Philox(key=[self.seed, epoch])
        return _order(self.corpus, shuffled(len(self.corpus.offsets) - 1, bits))


def shuffled(count: int, bits: np.random.Philox) -> np.ndarray:
    """int64 [count]: the numbers below `count` in the order of random keys.

    The same with every NumPy, which promises the bits of its generators for ever, but
    not the permutations that it makes of them. Each key ends with its number: no two
    are the same, and any way to sort gives one order, in the memory of the keys.
    """
    keys, low = bits.random_raw(count), np.uint64(count.bit_length())
    keys >>= low
    keys <<= low
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << low) - np.uint64(1)
    return keys.view(np.int64)


def steps_of(positions: int, rows: int, window: int, epochs: float) -> int:
    """Steps in which rows read so many positions `epochs` times."""
    row_positions = -(-positions // rows)
    return max(1, round(-(-epochs * row_positions // window)))


class HeldoutPositions(NamedTuple):
    """Where the positions of a held-out batch come from; [rows, window]."""

    real: np.ndarray
    """bool: whether it is a position of the text, and no filling."""
    sentence: np.ndarray
    """Number of its sentence."""
    position: np.ndarray
    """In its sentence, from 0."""


def heldout_batches(
    corpus: Corpus,
    words: WordTables,
    rows: int,
    window: int,
    sizes: Sizes | None = None,
) -> Iterator[tuple[Batch, HeldoutPositions]]:
    """All positions once, in file order: whole sentences, dealt to rows in stretches.

    Rows end at different steps; positions past the end of a row weigh 0. Arrays have
    the sizes of `heldout_sizes`, unless larger ones are given.
    """
    sizes = sizes or heldout_sizes(corpus, words, rows, window)
    for text, positions in _heldout(corpus, words, rows, window):
        yield text.batch(sizes), positions


def heldout_sizes(corpus: Corpus, words: WordTables, rows: int, window: int) -> Sizes:
    """The most that a held-out batch needs; it takes a reading of the text."""
    needed = (text.needed for text, _ in _heldout(corpus, words, rows, window))
    return reduce(partial(each_size, max), needed).rounded(words.split)


def _heldout(
    corpus: Corpus, words: WordTables, rows: int, window: int
) -> Iterator[tuple[_StepText, HeldoutPositions]]:
    sentences = len(corpus.offsets) - 1
    order = _order(corpus, np.arange(sentences))
    marks = np.arange(rows + 1) * order.starts[-1] // rows
    bounds = order.starts[np.searchsorted(order.starts, marks)]
    for start in range(0, int(np.diff(bounds).max()), window):
        where = bounds[:-1, None] + start + np.arange(window)
        counts = where < bounds[1:, None]
        where = np.where(counts, where, 0)
        # Filling reads and predicts a mark, which no tail cluster has.
        types = np.where(counts, _types_at(corpus, order, where), BEGIN_ID)
        text = _StepText(words, types, counts.astype(np.float32), words.shards)
        sentence = np.searchsorted(order.starts, where, side="right") - 1
        yield text, HeldoutPositions(counts, sentence, where - order.starts[sentence])


class _StepText:
    """The text of a step, before its arrays have a size.

    Each microbatch of each shard is a piece, with tables of its own words: `needed`
    says how large those must be, `batch` makes them.
    """

    def __init__(
        self,
        words: WordTables,
        types: np.ndarray,
        weights: np.ndarray,
        shards: int,
        microbatches: int = 1,
        drawn: Negatives | None = None,
    ) -> None:
        """
        Args:
          types: word types [inputs or targets, two, rows, window].
          weights: float32 [rows, window].
          drawn: the negatives of the step, with the targets of these rows.
        """
        self.words, self.drawn = words, drawn
        self._split = (shards, microbatches)
        self.weights = split_rows(weights, 0, *self._split)
        types = split_rows(types, 2, *self._split)
        self.targets = words.targets[types[:, 1]].astype(np.int32, copy=False)
        self._inputs = _pieces(types[:, 0], shards)
        self._distinct = [words.distinct(piece) for piece in self._inputs]
        self._members = [words.members(t) for t in _pieces(self.targets, shards)]

    @property
    def needed(self) -> Sizes:
        """What its largest piece takes."""
        words = zip(*self._distinct, strict=True)
        tails = zip(*self._members, strict=True)
        return Sizes(
            tuple(max(map(len, table)) for table in words),
            tuple(max(len(positions) for positions, _ in tail) for tail in tails),
            0 if self.drawn is None else len(self.drawn.words),
        )

    def batch(self, sizes: Sizes) -> Batch:
        """In arrays of some sizes, which hold it."""
        shards, microbatches = self._split
        lead = (microbatches,) if microbatches > 1 else ()
        pairs = zip(self._inputs, self._distinct, strict=True)
        rows = [self.words.rows(piece, found, sizes.words) for piece, found in pairs]
        tables = self.words.tables(self._distinct, sizes.words)
        inputs = np.stack(rows).reshape(microbatches, shards, *rows[0].shape)
        shape = (*lead, *self.targets.shape[1:])
        clusters = zip(zip(*self._members, strict=True), sizes.members, strict=True)
        return Batch(
            tuple(t.reshape(*lead, -1, *t.shape[2:]) for t in tables),
            inputs.swapaxes(1, 2).reshape(shape),
            self.targets.reshape(shape),
            self.weights.reshape(*lead, *self.weights.shape[1:]),
            tuple(self._cluster(*one, (*lead, shards)) for one in clusters),
            self._negatives(sizes.names, lead, shape),
        )

    def _cluster(
        self,
        pieces: Sequence[tuple[np.ndarray, np.ndarray]],
        size: int,
        shape: tuple[int, ...],
    ) -> Members:
        """One tail cluster of all pieces, which have this shape."""
        positions = np.full((len(pieces), size), self._inputs[0].size, np.int32)
        targets = np.zeros((len(pieces), size), np.int32)
        for piece, (here, names) in enumerate(pieces):
            positions[piece, : len(here)] = here
            targets[piece, : len(here)] = names
        return Members(*(a.reshape(*shape, size) for a in (positions, targets)))

    def _negatives(
        self, size: int, lead: tuple[int, ...], shape: tuple[int, ...]
    ) -> Negatives | None:
        """The same drawn words for all microbatches, and the targets of each."""
        if self.drawn is None:
            return None
        drawn = pad_words(self.drawn, self.words.vocabulary, size)
        same = (np.broadcast_to(array, (*lead, *array.shape)) for array in drawn)
        targets = split_rows(drawn.targets, 1, *self._split).reshape(shape)
        return Negatives(*same)._replace(targets=targets)


def _pieces(array: np.ndarray, shards: int) -> np.ndarray:
    """[microbatches, two, rows, window] as [pieces, two, rows of a piece, window]; the
    shards of a microbatch follow on each other."""
    split = np.stack(np.split(array, shards, axis=2), axis=1)
    return split.reshape(-1, *split.shape[2:])


def distinct_words(batch: Batch) -> int:
    """Words in the tables of a batch, of all shards and microbatches that it holds."""
    axis = batch.weights.ndim - 1  # of characters, where there are some
    tables = (t[..., 0] if t.ndim > axis else t for t in batch.words)
    return int(sum(np.count_nonzero(table) for table in tables))


A = TypeVar("A", bound=Any)


def split_rows(array: A, axis: int, shards: int, microbatches: int) -> A:
    """[..., rows, ...] -> [microbatches, ..., rows / microbatches, ...].

    Each piece has its share of every shard, the shards in their order. For arrays of
    NumPy and of JAX.
    """
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    split = array.reshape(*before, shards, microbatches, -1, *after)
    order = [axis + 1, *range(axis + 1), *range(axis + 2, split.ndim)]
    return cast(A, split.transpose(order).reshape(microbatches, *before, -1, *after))


def join_rows(array: A, axis: int, shards: int) -> A:
    """What `split_rows` took apart, at its place in one piece."""
    before, after = array.shape[1 : axis + 1], array.shape[axis + 2 :]
    split = array.reshape(array.shape[0], *before, shards, -1, *after)
    order = [*range(1, axis + 2), 0, *range(axis + 2, split.ndim)]
    return cast(A, split.transpose(order).reshape(*before, -1, *after))

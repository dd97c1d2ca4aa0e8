"""Log-probabilities of the words of sentences, each in its own context, both ways."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.arguments import sentence_words
from elmojax.errors import InputError
from elmojax.model import softmax
from elmojax.model.lstm import LstmState
from elmojax.model.ops import Dtype, require_own_process
from elmojax.model.recurrence import STEP_COST, Reset
from elmojax.shapes import Params
from elmojax.text.batches import Batch, heldout_batches, heldout_sizes
from elmojax.text.corpus import Corpus
from elmojax.text.tables import Capacities, Sizes, WordTables
from elmojax.text.vocabulary import (
    BEGIN_ID,
    END_ID,
    SPECIALS,
    UNKNOWN_ID,
    Vocabulary,
)
from elmojax.training.evaluate import compile_evaluation_step, not_a_number
from elmojax.training.sharding import put_on_mesh
from elmojax.training.step import LanguageModel

BLOCK = 32_768
"""Positions that a device scores together."""
SHAPES = (64, 20), (8, 20), (1, 160)
"""Rows of a device and their window: for many sentences, for few, for one that is long.
Few shapes, as each is compiled."""
CARRYING = 1, 160
"""Where one sentence begins with the state after another."""
TABLES = 256, 64
"""Rows of the smallest tables of short and of long words."""
LOGITS = 1 << 24
"""Log-probabilities of a direction that a device has in memory at once."""
POSITIONS = 1024
"""Positions that a device takes at once, where the vocabulary is small."""


class Best(NamedTuple):
    """The k most probable words of each position, falling."""

    words: list[list[str]]
    """[words][k]."""
    log_probs: np.ndarray
    """[words, k]."""


class Substitutes(NamedTuple):
    """The words that a model finds most probable in the place of each word."""

    forward: Best
    """After the words before it."""
    backward: Best
    """Before the words after it."""
    both: Best
    """By the product of the two, divided by its sum over the vocabulary."""


class Score(NamedTuple):
    """What a model gives a sentence; natural logarithms, float32."""

    words: list[str]
    forward: np.ndarray
    """[words + 1]: of each word after those before it; last, that the sentence ends."""
    backward: np.ndarray
    """[words + 1]: of each word before those after it; last, that it begins there."""
    known: np.ndarray
    """bool [words]: whether the word is in the vocabulary; others are `<UNK>`."""
    forward_entropy: np.ndarray | None = None
    """[words + 1]: of the distribution that gave each of `forward`; if asked for."""
    backward_entropy: np.ndarray | None = None
    """[words + 1]: of the one that gave each of `backward`."""
    forward_rank: np.ndarray | None = None
    """int32 [words + 1]: 1 where nothing else was more probable; with the entropy."""
    backward_rank: np.ndarray | None = None
    """int32 [words + 1]."""
    substitutes: Substitutes | None = None
    """If asked for."""

    @property
    def forward_sum(self) -> float:
        """Log-probability of the sentence, read forward."""
        return float(self.forward.sum(dtype=np.float64))

    @property
    def backward_sum(self) -> float:
        """Log-probability of the sentence, read backward."""
        return float(self.backward.sum(dtype=np.float64))


class Measures(NamedTuple):
    """What is wanted beside the log-probabilities, and how sentences follow."""

    entropy: bool = False
    """Entropy of each distribution, and the rank of what is there."""
    top_k: int = 0
    """Substitutes of each word."""
    carry: bool = False
    """A sentence begins with the state that each direction ended the one before with,
    as in training; the first one from the initial state."""


PLAIN = Measures()


class Scorer:
    """A model ready to score sentences."""

    def __init__(
        self,
        lm: LanguageModel,
        params: Params,
        vocabulary: Vocabulary,
        initial_state: LstmState,
    ) -> None:
        require_own_process()
        self.lm, self.params, self.vocabulary = lm, params, vocabulary
        self.initial_state = initial_state
        self._devices = 1 if lm.mesh is None else lm.mesh.shape["data"]
        self._step = cache(self._compile)

    def __call__(
        self,
        sentences: Iterable[Sequence[str]],
        progress: Callable[[int], Any] = lambda tokens: None,
        measures: Measures = PLAIN,
    ) -> Iterator[Score]:
        """One `Score` a sentence, in order; memory is bounded by the longest one.

        Every sentence begins from the same state, unless it is carried, which is the
        work of one device. `progress` is told the tokens of each batch: words and
        sentences.
        """
        self.check(measures)
        state = self.initial_state.for_batch(1) if measures.carry else None
        most = min(BLOCK * self._devices, LOGITS // max(1, measures.top_k))
        for block in _blocks(sentences, most):
            state = yield from self._score_block(block, progress, measures, state)

    def _compile(self, rows: int, hidden: bool) -> Any:
        step = partial(_score, hidden=hidden)
        return compile_evaluation_step(self.lm, rows, step)

    def check(self, measures: Measures) -> None:
        """Raises `InputError` where the vocabulary has too few words for `top_k`."""
        words = self.lm.vocabulary - len(SPECIALS)
        if measures.top_k > words:
            raise InputError(
                f"The vocabulary has {words:,} words, so the {measures.top_k:,} most "
                f"probable ones cannot be given; choose at most {words:,}."
            )
        if measures.carry and self._devices > 1:
            raise ValueError("a scorer that carries its state has no mesh")

    def _score_block(
        self,
        sentences: list[list[str]],
        progress: Callable[[int], Any],
        measures: Measures,
        state: LstmState | None,
    ) -> Generator[Score, None, LstmState | None]:
        """Scores, and the state after the last sentence if there was one before."""
        corpus = _corpus(sentences, self.vocabulary)
        lm, devices = self.lm, self._devices
        words = WordTables(corpus, self.vocabulary, lm.config, devices, any_text=True)
        starts = corpus.offsets[:-1] + np.arange(len(sentences))
        positions = int(corpus.offsets[-1]) + len(sentences)
        lengths = np.diff(starts, append=positions)
        rows, window = CARRYING if state is not None else _best_shape(lengths, devices)
        carry = state
        if carry is None:
            carry = put_on_mesh(
                lm.mesh, LstmState.zeros(lm.config.lstm, rows), "carry."
            )
        more = measures.entropy or measures.top_k > 0
        flat = np.zeros((2, positions), np.float32)
        width = lm.config.lstm.projection if more else 0
        hidden = np.zeros((2, positions, width), np.float32)
        step, sizes = self._step(rows, more), _sizes(corpus, words, rows, window)
        for batch, origin in heldout_batches(corpus, words, rows, window, sizes):
            real = origin.real
            here = None if state is not None else (origin.position == 0) & real
            batch = put_on_mesh(lm.mesh, batch, "batch.")
            (each, top), carry = step(
                self.params, carry, batch, here, self.initial_state
            )
            where = (starts[origin.sentence] + origin.position)[real]
            flat[:, where] = np.asarray(each)[:, real]
            if more:
                hidden[:, where] = np.asarray(top)[:, real]
            else:
                progress(len(where))
        if not np.isfinite(flat).all():
            raise not_a_number("a sentence")
        turned = _backward_order(starts, lengths)
        flat[1] = flat[1, turned]
        ids = words.targets[corpus.words[: corpus.offsets[-1]]]
        numbers, top_k = {"": flat}, measures.top_k
        if more:
            hidden[1] = hidden[1, turned]
            ends = (np.insert(ids, corpus.offsets[1:], n) for n in (END_ID, BEGIN_ID))
            targets = np.stack([*ends]).astype(np.int32)
            head = self.params["head"]
            found = predictions(lm, head, hidden, targets, top_k, progress)
        if measures.entropy:
            numbers |= {"_entropy": found.entropy, "_rank": found.rank}
        begins = corpus.offsets[:-1]
        for sentence, begin, at in zip(sentences, begins, starts, strict=True):
            here, end = slice(at, at + len(sentence) + 1), begin + len(sentence)
            each = {
                f"{way}{name}": values[n, here].copy()
                for name, values in numbers.items()
                for n, way in enumerate(("forward", "backward"))
            }
            best = self._substitutes(found, at, len(sentence)) if top_k else None
            known = ids[begin:end] != UNKNOWN_ID
            yield Score(sentence, known=known, substitutes=best, **each)
        return None if state is None else carry

    def _substitutes(self, found: Predictions, at: int, words: int) -> Substitutes:
        """Of so many words, the first of them at a position."""
        name, here = self.vocabulary.words, slice(at, at + words)
        both = zip(found.ids[:, here], found.log_probs[:, here], strict=True)
        return Substitutes(
            *(
                Best([[name[i] for i in row] for row in ids.tolist()], log_probs.copy())
                for ids, log_probs in both
            )
        )


def _blocks(sentences: Iterable[Sequence[str]], most: int) -> Iterator[list[list[str]]]:
    """Successive sentences of so many positions, at least one."""
    block: list[list[str]] = []
    positions = 0
    for sentence in sentence_words(sentences):
        block.append(sentence)
        positions += len(block[-1]) + 1
        if positions >= most:
            yield block
            block, positions = [], 0
    if block:
        yield block


def _backward_order(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where the backward direction has each position: the words of a sentence from
    the last one to the first, then its beginning."""
    start, length = (np.repeat(each, lengths) for each in (starts, lengths))
    at = np.arange(len(start)) - start
    return start + np.where(at == length - 1, at, length - 2 - at)


def _best_shape(positions: np.ndarray, devices: int) -> tuple[int, int]:
    """Rows of all devices and their window in which sentences take least time."""

    def cost(shape: tuple[int, int]) -> int:
        rows, window = shape
        steps = max(int(positions.max()), -(-int(positions.sum()) // (rows * devices)))
        return -(-steps // window) * window * (rows + STEP_COST)

    rows, window = min(SHAPES, key=cost)
    return rows * devices, window


def _sizes(corpus: Corpus, words: WordTables, rows: int, window: int) -> Sizes:
    """Out of few, that few programs serve any sentences."""
    tables = len(words.columns)
    most = Sizes((2 * rows // words.shards * window,) * tables).rounded()
    sizes = Capacities(Sizes(TABLES[:tables]), most)
    return sizes.at(sizes.level(heldout_sizes(corpus, words, rows, window)))


def _score(
    lm: LanguageModel,
    params: Params,
    carry: LstmState,
    batch: Batch,
    here: Array | None,
    initial_state: LstmState,
    hidden: bool,
) -> tuple[tuple[Array, Array | None], LstmState]:
    """Of a batch, log-probabilities [two, rows, window] and, with `hidden`, the top
    layer [two, rows, window, projection]; the new carry. With `here` sentences begin
    there anew."""
    reset = lengths = None
    if here is None:
        lengths = batch.weights.sum(1).astype(jnp.int32)
    else:
        reset = Reset(jnp.repeat(here.T[:, None], 2, axis=1), initial_state)
    top, carry = lm.top_layer(params, carry, batch, None, reset, lengths)
    _, each = lm.nll(params["head"], top, batch, train=False)
    turned = top.transpose(1, 2, 0, 3) if hidden else None
    return (-each.transpose(1, 2, 0), turned), carry


def _corpus(sentences: list[list[str]], vocabulary: Vocabulary) -> Corpus:
    """Sentences in memory, as a prepared corpus has them on disk."""
    types = [*SPECIALS, *sorted(set(chain(*sentences)) - set(SPECIALS))]
    row_of = {word: number for number, word in enumerate(types)}
    running = np.fromiter(map(row_of.__getitem__, chain(*sentences)), np.int32)
    lengths = [len(sentence) for sentence in sentences]
    return Corpus(
        directory=Path("memory"),
        info={},
        fingerprint="",
        vocabulary=vocabulary,
        types=types,
        counts=np.zeros(len(types), np.int64),
        # Where all sentences are empty there must be a word to look at, though unused.
        words=running if len(running) else np.zeros(1, np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


class Predictions(NamedTuple):
    """Of positions, from both sides: 0 forward, 1 backward; natural logarithms."""

    entropy: np.ndarray
    """float32 [two, positions]: -sum p log p, over the whole vocabulary."""
    rank: np.ndarray
    """int32 [two, positions]: 1 + how many entries are more probable than the target.
    """
    ids: np.ndarray
    """int32 [three, positions, k]: the most probable words by forward, by backward, and
    by the product of both, falling; equal ones by id. <S>, </S>, <UNK> are no words."""
    log_probs: np.ndarray
    """float32 [three, positions, k]: theirs. The product is divided by its sum, like
    the two others over the whole vocabulary."""


def predictions(
    lm: LanguageModel,
    head: Params,
    hidden: np.ndarray,
    targets: np.ndarray,
    k: int,
    progress: Callable[[int], Any] = lambda positions: None,
) -> Predictions:
    """Exact for any head, a block of positions at a time.

    Args:
      hidden: [two, positions, projection], of which both directions predict a position.
      targets: int32 [two, positions].
      k: how many words; 0 = none.
      progress: is told the positions of each block.
    """
    count, devices = targets.shape[1], 1
    put: Any = jax.device_put
    if lm.mesh is not None:
        devices = lm.mesh.shape["data"]
        put = partial(jax.device_put, device=NamedSharding(lm.mesh, P(None, "data")))
    size = devices * max(1, min(LOGITS // lm.vocabulary, POSITIONS))
    found = []
    for start in range(0, count, size):
        block = [array[:, start : start + size] for array in (hidden, targets)]
        here = block[1].shape[1]
        missing = ((0, 0), (0, size - here), (0, 0))
        block = [np.pad(array, missing[: array.ndim]) for array in block]
        found.append(jax.device_get(_predict(lm.dtype, k, head, *map(put, block))))
        progress(here)
    joined = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return Predictions(*(array[:, :count] for array in joined))


@partial(jax.jit, static_argnums=(0, 1))
def _predict(
    dtype: Dtype, k: int, head: Params, hidden: Array, targets: Array
) -> tuple[Array, ...]:
    both = [softmax.log_prob_all(head, hidden[way], dtype) for way in range(2)]
    entropy, rank = [], []
    for log_probs, target in zip(both, targets, strict=True):
        entropy.append(-(jnp.exp(log_probs) * log_probs).sum(-1))
        there = jnp.take_along_axis(log_probs, target[:, None], axis=-1)
        rank.append(1 + (log_probs > there).sum(-1, dtype=jnp.int32))
    every = [*both, jax.nn.log_softmax(both[0] + both[1])] if k else both
    first = len(SPECIALS)
    best = [lax.top_k(log_probs[:, first:], k) for log_probs in every]
    log_probs, ids = (jnp.stack(parts) for parts in zip(*best, strict=True))
    return jnp.stack(entropy), jnp.stack(rank), ids + first, log_probs

"""Log-probabilities of the words of sentences, each in its own context, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from elmojax.arguments import sentence_words
from elmojax.model.lstm import STEP_COST, Reset
from elmojax.model.ops import require_own_process
from elmojax.model.state import LstmState
from elmojax.shapes import Params
from elmojax.text.batches import Batch, heldout_sizes, located_batches
from elmojax.text.corpus import Corpus
from elmojax.text.tables import Capacities, Sizes, WordTables
from elmojax.text.vocabulary import SPECIALS, UNKNOWN_ID, Vocabulary
from elmojax.training.evaluate import compile_evaluation_step, not_a_number
from elmojax.training.sharding import place
from elmojax.training.step import LanguageModel

BLOCK = 32_768
"""Positions that a device scores together."""
SHAPES = (64, 20), (8, 20), (1, 160)
"""Rows of a device and their window: for many sentences, for few, for one that is long.
Few shapes, as each is compiled."""
TABLES = 256, 64
"""Rows of the smallest tables of short and of long words."""


class Score(NamedTuple):
    """What a model gives a sentence; natural logarithms, float32."""

    words: list[str]
    forward: np.ndarray
    """[words + 1]: of each word after those before it; last, that the sentence ends."""
    backward: np.ndarray
    """[words + 1]: of each word before those after it; last, that it begins there."""
    known: np.ndarray
    """bool [words]: whether the word is in the vocabulary; others are `<UNK>`."""

    @property
    def forward_sum(self) -> float:
        """Log-probability of the sentence, read forward."""
        return float(self.forward.sum(dtype=np.float64))

    @property
    def backward_sum(self) -> float:
        """Log-probability of the sentence, read backward."""
        return float(self.backward.sum(dtype=np.float64))


class Scorer:
    """A model ready to score sentences; every sentence begins from the same state."""

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
        self._step = cache(partial(compile_evaluation_step, lm, step=_score))

    def __call__(
        self,
        sentences: Iterable[Sequence[str]],
        progress: Callable[[int], Any] = lambda tokens: None,
    ) -> Iterator[Score]:
        """One `Score` a sentence, in order; memory is bounded by the longest one.

        `progress` is told the tokens of each batch: words and sentences.
        """
        block: list[list[str]] = []
        positions = 0
        for sentence in sentence_words(sentences):
            block.append(sentence)
            positions += len(block[-1]) + 1
            if positions >= BLOCK * self._devices:
                yield from self._score_block(block, progress)
                block, positions = [], 0
        if block:
            yield from self._score_block(block, progress)

    def _score_block(
        self, sentences: list[list[str]], progress: Callable[[int], Any]
    ) -> Iterator[Score]:
        corpus = _corpus(sentences, self.vocabulary)
        lm, devices = self.lm, self._devices
        words = WordTables(corpus, self.vocabulary, lm.config, devices, any_text=True)
        flat = np.zeros((2, int(corpus.offsets[-1]) + len(sentences)), np.float32)
        starts = corpus.offsets[:-1] + np.arange(len(sentences))
        rows, window = _best_shape(np.diff(starts, append=flat.shape[1]), devices)
        step = self._step(rows)
        carry = place(lm.mesh, LstmState.zeros(lm.config.lstm, rows), "carry.")
        sizes = _sizes(corpus, words, rows, window)
        for batch, places in located_batches(corpus, words, rows, window, sizes):
            here = (places.at == 0) & places.counts
            batch = place(lm.mesh, batch, "batch.")
            each, carry = step(self.params, carry, batch, here, self.initial_state)
            where = (starts[places.sentence] + places.at)[places.counts]
            flat[:, where] = np.asarray(each)[:, places.counts]
            progress(len(where))
        if not np.isfinite(flat).all():
            raise not_a_number("a sentence")
        known = words.targets[corpus.words[: corpus.offsets[-1]]] != UNKNOWN_ID
        for number, sentence in enumerate(sentences):
            begin, end = corpus.offsets[number], corpus.offsets[number + 1]
            at = starts[number]
            forward, backward = flat[:, at : at + len(sentence) + 1]
            backward = np.concatenate([backward[:-1][::-1], backward[-1:]])
            yield Score(sentence, forward.copy(), backward, known[begin:end])


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
    here: Array,
    initial_state: LstmState,
) -> tuple[Array, LstmState]:
    """Log-probabilities [two, rows, window] of a batch, and the new carry."""
    begins = jnp.repeat(here.T[:, None], 2, axis=1)
    reset = Reset(begins, initial_state)
    top, carry = lm.outputs(params, carry, batch, None, reset)
    _, each = lm.nll(params["head"], top, batch, train=False)
    return -each.transpose(1, 2, 0), carry


def _corpus(sentences: list[list[str]], vocabulary: Vocabulary) -> Corpus:
    """Sentences in memory, as a prepared corpus has them on disk."""
    types = [*SPECIALS, *sorted(set(chain(*sentences)) - set(SPECIALS))]
    place = {word: number for number, word in enumerate(types)}
    running = np.fromiter(map(place.__getitem__, chain(*sentences)), np.int32)
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

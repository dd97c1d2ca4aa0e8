"""GloVe (Pennington et al. 2014): vectors whose products are logarithms of counts.

A word at a distance d of another adds 1/d to the count X of the pair. Vectors w, v and
biases b, c are such that w_i v_j + b_i + c_j comes near log X_ij, pairs being weighted
by min(1, (X_ij / 100)^0.75); AdaGrad, some pairs at a time. A word's vector is w + v.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

CHUNK = 4_000_000
"""Words that are counted at a time."""
BATCH = 8192
"""Pairs of a step."""
STEPS = 256
"""Steps of a program."""
MOST, POWER = 100.0, 0.75
"""Of the weights."""


class GloveOptions(NamedTuple):
    """How pairs are counted and vectors trained."""

    width: int
    window: int
    epochs: int
    learning_rate: float = 0.05
    least: float = 1.0
    """Pairs of a lower count are left out; they are most of the pairs and little of
    the loss."""
    seed: int = 1


class Pairs(NamedTuple):
    """The pairs of words with their counts; both orders of a pair are there."""

    words: np.ndarray
    """int32 [pairs]."""
    contexts: np.ndarray
    """int32 [pairs]."""
    counts: np.ndarray
    """float32 [pairs]."""


def count_pairs(
    sentences: Iterable[np.ndarray], words: int, options: GloveOptions
) -> Pairs:
    """Counts of pairs within `window` words of a sentence.

    Args:
      sentences: ids of the words of each, int32.
      words: of the vocabulary.
      options: window and least count.
    """
    from scipy.sparse import coo_array, csr_array

    total = csr_array((words, words), dtype=np.float32)
    for chunk in _chunks(sentences, options.window):
        found = csr_array((words, words), dtype=np.float32)
        for distance in range(1, options.window + 1):
            left, right = chunk[:-distance], chunk[distance:]
            here = (left >= 0) & (right >= 0)
            left, right = left[here], right[here]
            weights = np.full(len(left), 1 / distance, np.float32)
            found = found + coo_array((weights, (left, right)), (words, words)).tocsr()
        total = total + found
    total = (total + total.T).tocoo()
    kept = total.data >= options.least
    row, column = (axis[kept].astype(np.int32) for axis in total.coords)
    return Pairs(row, column, total.data[kept])


def _chunks(sentences: Iterable[np.ndarray], window: int) -> Iterator[np.ndarray]:
    """Ids of many sentences, `window` times -1 between two."""
    gap, parts, size = np.full(window, -1, np.int32), [], 0
    for ids in sentences:
        parts += [ids, gap]
        size += len(ids)
        if size >= CHUNK:
            yield np.concatenate(parts)
            parts, size = [], 0
    if parts:
        yield np.concatenate(parts)


class State(NamedTuple):
    """Of the words [2, words, width + 1] (w, v; the last value is the bias), and the
    sums of squares of AdaGrad."""

    table: Array
    squares: Array


def train_glove(pairs: Pairs, words: int, options: GloveOptions) -> np.ndarray:
    """Vectors float32 [words, width]."""
    random = np.random.default_rng(options.seed)
    start = (random.random((2, words, options.width + 1), np.float32) - 0.5) / (
        options.width
    )
    state = State(jnp.asarray(start), jnp.ones(start.shape, jnp.float32))
    take = STEPS * BATCH
    for _ in range(options.epochs):
        order = random.permutation(len(pairs.counts))
        order = np.resize(order, -(-len(order) // BATCH) * BATCH)
        for at in range(0, len(order), take):
            some = [array[order[at : at + take]].reshape(-1, BATCH) for array in pairs]
            state = _steps(state, *some, options.learning_rate)
    vectors = np.asarray(state.table)[..., :-1]
    return vectors[0] + vectors[1]


@jax.jit
def _steps(
    state: State, words: Array, contexts: Array, counts: Array, rate: float
) -> State:
    """Steps [steps, pairs] one after the other."""

    def step(state: State, now: tuple[Array, Array, Array]) -> tuple[State, None]:
        rows, columns, count = now
        sides, ids = jnp.arange(2)[:, None], jnp.stack([rows, columns])
        values = state.table[sides, ids]
        vectors, biases = values[..., :-1], values[..., -1]
        error = (vectors[0] * vectors[1]).sum(axis=-1) + biases.sum(axis=0)
        error = (error - jnp.log(count)) * jnp.minimum(1, (count / MOST) ** POWER)
        slopes = jnp.concatenate([vectors[::-1], jnp.ones_like(biases)[..., None]], -1)
        slopes = error[None, :, None] * slopes
        squares = state.squares.at[sides, ids].add(slopes**2)
        change = rate * slopes / jnp.sqrt(squares[sides, ids])
        return State(state.table.at[sides, ids].add(-change), squares), None

    return jax.lax.scan(step, state, (words, contexts, counts))[0]

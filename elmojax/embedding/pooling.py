"""One vector a sentence: masked pooling of the vectors of its words."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from elmojax.arguments import checked
from elmojax.errors import InputError


class Block(NamedTuple):
    """Vectors of some words of the text, in order."""

    sizes: tuple[int, ...]
    """Words of each sentence, or part of one, that it holds (0 for a blank line)."""
    vectors: Any
    """[words, layers + 1, vector], or [words, vector] for one mix or the top;
    NumPy, or JAX while they are on the device."""
    more: bool
    """Its last sentence goes on in the next block."""


Pooling = Literal["mean", "max", "first-last"]


@checked
def pool(vectors: Array, mask: Array, how: Pooling) -> Array:
    """Sentence vectors from the vectors of words, padding left out.

    Pure, for `jax.jit`, `vmap` and `grad`.

    Args:
      vectors: [..., batch, time, vector], as `embed` returns them.
      mask: bool [batch, time], True where there is a word: `Encoded.mask`, or
        `(tokens > 0).any(-1)`.
      how: "mean" or "max" over the words, or "first-last": the forward half of the
        last word beside the backward half of the first, the two places where a
        direction has read the whole sentence.

    Returns:
      [..., batch, vector]; zeros for a sentence without words.

    Raises:
      InputError: for another `how`, or a mask that does not fit the vectors.
    """
    vectors, mask = jnp.asarray(vectors), jnp.asarray(mask).astype(bool)
    if (
        not 0 < mask.ndim < vectors.ndim
        or mask.shape != vectors.shape[-1 - mask.ndim : -1]
    ):
        raise InputError(
            f"mask has shape {mask.shape} and vectors {vectors.shape}; give a mask "
            "[batch, time] of vectors [batch, time, vector]."
        )
    here = jnp.broadcast_to(mask, vectors.shape[:-1])[..., None]
    count = here.sum(axis=-2)
    if how == "mean":
        total = jnp.where(here, vectors, 0).sum(axis=-2)
        return total / jnp.maximum(count, 1).astype(vectors.dtype)
    if how == "max":
        most = jnp.where(here, vectors, -jnp.inf).max(axis=-2, initial=-jnp.inf)
        return jnp.where(count > 0, most, 0)
    # One position of padding, so that there is a first and a last of no words too.
    vectors = jnp.pad(vectors, [(0, 0)] * (vectors.ndim - 2) + [(0, 1), (0, 0)])
    half = vectors.shape[-1] // 2
    last = jnp.maximum(count - 1, 0)[..., None]
    forward = jnp.take_along_axis(vectors[..., :half], last, axis=-2)[..., 0, :]
    both = jnp.concatenate([forward, vectors[..., 0, half:]], axis=-1)
    return jnp.where(count > 0, both, 0)


class Pooler:
    """`pool` for a stream of blocks, in which a sentence may go on for many.

    Sums and maxima are float32 whatever the vectors are, and depend on the sentence
    and the places where blocks part it, not on what came before.
    """

    @checked
    def __init__(self, how: Pooling) -> None:
        """Raises `InputError` for another `how`."""
        self._how, self._count = how, 0
        self._part: np.ndarray = np.zeros(())

    def push(self, block: Block) -> Block:
        """The sentences that end in this block.

        Returns:
          Their sizes in words, and vectors float32 [sentences, ..., vector].
        """
        sizes, rows = np.array(block.sizes, np.int64), np.array(block.sizes, np.int64)
        vectors = np.asarray(block.vectors, np.float32)
        if self._count:  # what was pooled of a sentence counts as one more word of it
            vectors = np.concatenate([self._part[None], vectors])
            sizes[0], rows[0] = sizes[0] + self._count, rows[0] + 1
        pooled = np.zeros((len(sizes), *vectors.shape[1:]), np.float32)
        full = rows > 0
        if full.any():
            starts = (np.cumsum(rows) - rows)[full]
            pooled[full] = self._pooled(vectors, starts, rows[full])
        self._count = 0
        if block.more:
            self._part, self._count = pooled[-1].copy(), int(sizes[-1])
            pooled, sizes = pooled[:-1], sizes[:-1]
        if self._how == "mean":
            count = np.maximum(sizes, 1).astype(np.float32)
            pooled /= count.reshape(-1, *[1] * (pooled.ndim - 1))
        return Block(tuple(sizes.tolist()), pooled, False)

    def _pooled(
        self, vectors: np.ndarray, starts: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Sums, maxima or ends of sentences that have words."""
        if self._how == "mean":
            return np.add.reduceat(vectors, starts, axis=0)
        if self._how == "max":
            return np.maximum.reduceat(vectors, starts, axis=0)
        half = vectors.shape[-1] // 2
        ends = vectors[starts + sizes - 1][..., :half], vectors[starts][..., half:]
        return np.concatenate(ends, axis=-1)

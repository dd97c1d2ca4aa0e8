"""What a model expects at each position: entropy, rank of what is there, best words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.errors import InputError
from elmojax.model import softmax
from elmojax.model.ops import Dtype
from elmojax.shapes import Params
from elmojax.text.vocabulary import SPECIALS
from elmojax.training.step import LanguageModel

LOGITS = 1 << 24
"""Log-probabilities of a direction that a device has in memory at once."""
POSITIONS = 1024
"""Positions that a device takes at once, where the vocabulary is small."""


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


def check_top_k(vocabulary: int, k: int) -> None:
    """Raises `InputError` if there are not so many words beside the special ones."""
    words = vocabulary - len(SPECIALS)
    if k > words:
        raise InputError(
            f"The vocabulary has {words:,} words, so the {k:,} most probable ones "
            f"cannot be given; choose at most {words:,}."
        )


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
        block = [_filled(array, size - here) for array in block]
        found.append(jax.device_get(_predict(lm.dtype, k, head, *map(put, block))))
        progress(here)
    joined = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return Predictions(*(array[:, :count] for array in joined))


def _filled(array: np.ndarray, missing: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, missing), (0, 0))[: array.ndim])


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

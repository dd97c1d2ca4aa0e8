"""A linear-chain conditional random field (Lafferty et al. 2001).

The score of a sequence of tags is the sum of the scores of its tags, of the steps from
each tag to the next, and of its first and last tag. Sentences are rows of a batch;
their words come first in a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Transitions(NamedTuple):
    """Scores of what follows what."""

    steps: Array
    """[tags, tags]: from the tag of the row to that of the column."""
    first: Array
    """[tags]: of the first word."""
    last: Array
    """[tags]: of the last word."""


def log_likelihood(
    scores: Array, tags: Array, mask: Array, transitions: Transitions
) -> Array:
    """The logarithm of the probability of the tags, [batch].

    Args:
      scores: [batch, time, tags].
      tags: int32 [batch, time].
      mask: bool [batch, time], with at least one word in a row that counts.
      transitions: of the tags.
    """
    return sequence_score(scores, tags, mask, transitions) - log_partition(
        scores, mask, transitions
    )


def sequence_score(
    scores: Array, tags: Array, mask: Array, transitions: Transitions
) -> Array:
    """The score of one sequence of tags a row, [batch]."""
    of_words = jnp.take_along_axis(scores, tags[..., None], axis=-1)[..., 0]
    steps = transitions.steps[tags[:, :-1], tags[:, 1:]]
    at_end = jnp.maximum(mask.sum(axis=1) - 1, 0)[:, None]
    last = jnp.take_along_axis(tags, at_end, axis=1)[:, 0]
    return (
        of_words.sum(axis=1, where=mask)
        + steps.sum(axis=1, where=mask[:, 1:])
        + transitions.first[tags[:, 0]]
        + transitions.last[last]
    )


def log_partition(scores: Array, mask: Array, transitions: Transitions) -> Array:
    """The logarithm of the sum over all sequences of exp(score), [batch]."""

    def step(alpha: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        scores, here = now
        paths = alpha[:, :, None] + transitions.steps[None] + scores[:, None, :]
        new = jax.nn.logsumexp(paths, axis=1)
        return jnp.where(here[:, None], new, alpha), None

    alpha = transitions.first[None] + scores[:, 0]
    rest = (scores[:, 1:].swapaxes(0, 1), mask[:, 1:].T)
    alpha, _ = jax.lax.scan(step, alpha, rest)
    return jax.nn.logsumexp(alpha + transitions.last[None], axis=-1)


def viterbi(scores: Array, mask: Array, transitions: Transitions) -> Array:
    """The best sequence of each row, int32 [batch, time]; past its end it repeats the
    last tag."""
    stay = jnp.arange(scores.shape[-1])

    def step(best: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        scores, here = now
        paths = best[:, :, None] + transitions.steps[None]
        new, origin = paths.max(axis=1) + scores, paths.argmax(axis=1)
        kept = here[:, None]
        return jnp.where(kept, new, best), jnp.where(kept, origin, stay[None])

    best = transitions.first[None] + scores[:, 0]
    rest = (scores[:, 1:].swapaxes(0, 1), mask[:, 1:].T)
    best, origins = jax.lax.scan(step, best, rest)
    last = (best + transitions.last[None]).argmax(axis=-1)

    def back(tag: Array, origin: Array) -> tuple[Array, Array]:
        before = jnp.take_along_axis(origin, tag[:, None], axis=1)[:, 0]
        return before, before

    _, before = jax.lax.scan(back, last, origins, reverse=True)
    return jnp.concatenate([before, last[None]]).T.astype(jnp.int32)

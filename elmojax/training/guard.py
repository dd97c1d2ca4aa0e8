"""Updates that must not be made: numbers that are not finite, losses that leap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

MEMORY = 0.99
"""Weight of the past in the mean of the losses: about the last hundred steps."""


@dataclass(frozen=True)
class Guard:
    """What counts as a bad update, and how many may be skipped before a run stops."""

    skip: int = 0
    spike: float = 0.0
    """A loss above this many times the mean of the last ones is bad; 0 = never."""


@flax.struct.dataclass
class Watch:
    """What a run remembers of its losses."""

    skipped: Any
    """int32: bad updates so far."""
    mean_loss: Any
    """float32: running mean of the good ones; 0 before the first."""

    @classmethod
    def start(cls) -> Watch:
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))


def check_update(
    guard: Guard, watch: Watch, loss: Array, gradient_norm: Array
) -> tuple[Array, Watch]:
    """Whether an update is bad, and what to remember after it."""
    bad = ~jnp.isfinite(loss + gradient_norm)
    if guard.spike:
        begun = watch.mean_loss > 0
        bad = bad | (begun & (loss > guard.spike * watch.mean_loss))
    mean = MEMORY * watch.mean_loss + (1 - MEMORY) * loss
    mean = jnp.where(watch.mean_loss > 0, mean, loss)
    mean = jnp.where(bad, watch.mean_loss, mean)
    return bad, Watch(watch.skipped + bad.astype(jnp.int32), mean)


def skip_update(guard: Guard, bad: Array, new: Any, old: Any) -> Any:
    """`new`, or `old` after a bad update; where none may be skipped the run ends."""
    if not guard.skip:
        return new
    return jax.tree.map(lambda one, other: jnp.where(bad, other, one), new, old)


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number of a tree is."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()

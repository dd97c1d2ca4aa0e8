"""Training of a task's network: Adam, early stopping on dev, a penalty on the mixes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from task_options import TrainingOptions

import elmojax

Params: TypeAlias = Any
Batch: TypeAlias = Any
Loss: TypeAlias = Callable[[Params, Batch, Array], Array]
"""Of parameters, a batch and the key of dropout: a number."""
MIX = "mix_"
"""How the names of mixes begin."""


@dataclass(frozen=True)
class Fitted:
    """What training gave."""

    params: Params
    """Of the epoch that is best on dev."""
    epochs: list[dict[str, float]]
    """loss and dev of each epoch."""

    @property
    def dev(self) -> float:
        return max(epoch["dev"] for epoch in self.epochs)


def fit(
    params: Params,
    loss: Loss,
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    evaluate: Callable[[Params], float],
    options: TrainingOptions,
    seed: int,
    rates: Callable[[Params, int], Params] | None = None,
) -> Fitted:
    """Trains until dev gets no better.

    Args:
      params: to start from; the mixes of layers are called `mix_...`.
      loss: without the penalty on the mixes, which is added here.
      batches: those of an epoch, in an order that the generator draws.
      evaluate: the score on dev; more is better.
      options: epochs, patience, rates.
      seed: of dropout and order.
      rates: of parameters and an epoch, what the learning rate of each parameter is
        multiplied with; one of 0 is frozen. None = 1 for all.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(options.gradient_norm),
        optax.inject_hyperparams(optax.adam)(options.learning_rate),
    )

    @jax.jit
    def step(
        params: Params, state: Any, batch: Batch, key: Array, rates: Params
    ) -> tuple[Params, Any, Array]:
        def objective(params: Params) -> tuple[Array, Array]:
            value = loss(params, batch, key)
            return value + mix_penalties(params, options.penalty), value

        slopes, value = jax.grad(objective, has_aux=True)(params)
        if rates is not None:
            slopes = jax.tree.map(
                lambda slope, rate: jnp.where(rate > 0, slope, 0.0), slopes, rates
            )
        updates, state = optimizer.update(slopes, state, params)
        if rates is not None:
            updates = jax.tree.map(jnp.multiply, updates, rates)
        return optax.apply_updates(params, updates), state, value

    state, key = optimizer.init(params), jax.random.key(seed + 1)
    best, top, since = params, -np.inf, 0
    epochs: list[dict[str, float]] = []
    for epoch in range(options.epochs):
        losses = []
        now_rates = None if rates is None else rates(params, epoch)
        for batch in batches(np.random.default_rng((seed, epoch))):
            key, now = jax.random.split(key)
            params, state, value = step(params, state, batch, now, now_rates)
            losses.append(value)
        dev = evaluate(params)
        epochs.append({"loss": float(jnp.mean(jnp.stack(losses))), "dev": dev})
        print(f"seed {seed}, epoch {epoch}: {epochs[-1]}", file=sys.stderr, flush=True)
        since = 0 if dev > top else since + 1
        if not since:
            top, best = dev, params
        elif since >= options.patience:
            break
        else:
            state[1].hyperparams["learning_rate"] *= 0.5
    return Fitted(best, epochs)


def mixes(params: Params) -> dict[str, Params]:
    """The mixes among the parameters of a network, by their places."""
    return {
        name.removeprefix(MIX): params[name] for name in params if name.startswith(MIX)
    }


def mix_penalties(params: Params, weight: float) -> Array | float:
    """The L2 penalty on the weights of all mixes."""
    return sum(elmojax.mix_penalty(mix, weight) for mix in mixes(params).values())

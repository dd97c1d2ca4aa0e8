"""Time by part of a training step, for `training.py --parts`.

Each part is compiled and run alone, forward and backward, on the arrays of a real
batch; "step" is the whole. Parts alone add up to about the step on a CPU; on an
accelerator the difference is what overlaps or waits between them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from elmojax.model.bilm import BiLM
from elmojax.model.ops import row_keys
from elmojax.training.step import LanguageModel, TrainState, loss


def programs(
    lm: LanguageModel, optimizer: optax.GradientTransformation, state: TrainState
) -> dict[str, tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]]]]:
    """Name of each part: its function, and its arguments from (parameters, batch)."""
    model = BiLM(lm.config, dtype=lm.dtype, platform=lm.platform)

    def encoder(params: Any, tables: Any) -> Any:
        def total(p: Any) -> Any:
            return model.apply({"params": p}, tables, method="encode_words").sum()

        return jax.grad(total)(params)

    def lstm(params: Any, x: Any) -> Any:
        def total(p: Any, x: Any) -> Any:
            read = {"params": p}, x, state.carry
            return model.apply(*read, method="contextualize")[0][-1].sum()

        return jax.grad(total, (0, 1))(params, x)

    def softmax(head: Any, x: Any, batch: Any) -> Any:
        def total(h: Any, x: Any) -> Any:
            return lm.nll(h, x, batch, train=True)[0]

        return jax.grad(total, (0, 1))(head, x)

    def gradient(params: Any, batch: Any) -> Any:
        keys = row_keys(jax.random.key(0), jnp.arange(state.carry.cell.shape[2]))
        return jax.grad(lambda p: loss(lm, p, state.carry, batch, keys)[0])(params)

    def update(params: Any, moments: Any) -> Any:
        changes, moments = optimizer.update(params, moments, params)
        return optax.apply_updates(params, changes), moments

    def vectors(batch: Any) -> Any:
        two, rows, window = batch.inputs.shape
        shape = (window, two, rows, lm.config.lstm.projection)
        return jax.random.normal(jax.random.key(0), shape, jnp.float32) / 10

    return {
        "encoder": (encoder, lambda batch: (state.params, batch.words)),
        "LSTM": (lstm, lambda batch: (state.params, vectors(batch))),
        "softmax": (
            softmax,
            lambda batch: (state.params["head"], vectors(batch), batch),
        ),
        "loss and gradient": (gradient, lambda batch: (state.params, batch)),
        "update": (update, lambda _: (state.params, state.optimizer)),
    }


def seconds_by_part(
    lm: LanguageModel,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Any,
    rounds: int,
) -> dict[str, float]:
    """Median seconds of each part, after a warm-up."""
    found = {}
    for name, (function, arguments) in programs(lm, optimizer, state).items():
        run = partial(jax.jit(function), *arguments(batch))
        jax.block_until_ready(run())
        seconds = []
        for _ in range(rounds):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - begin)
        found[name] = statistics.median(seconds)
    return found

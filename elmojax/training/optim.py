"""Optimisers: the paper's Adagrad, and AdamW and Adafactor with warm-up."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from elmojax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant or half a cosine."""
    peak = config.learning_rate
    rest = max(1, steps - config.warmup_steps)
    after = (
        optax.cosine_decay_schedule(peak, rest, alpha=0.1)
        if config.decay == "cosine"
        else optax.constant_schedule(peak)
    )
    if config.warmup_steps:
        rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
        after = optax.join_schedules([rise, after], [config.warmup_steps])
    # Of an integer, rates would be float64 under x64.
    return lambda step: after(jnp.asarray(step, jnp.float32))


def make_optimizer(
    config: OptimizerConfig, steps: int, freeze_steps: int = 0
) -> optax.GradientTransformation:
    """Clipping by global norm, then the rule.

    Args:
      steps: length of the run.
      freeze_steps: steps in which only the head moves; the moments of the rest are
        gathered meanwhile.
    """
    rate = make_schedule(config, steps)
    if config.name == "adagrad":
        rule = optax.adagrad(rate, config.initial_accumulator)
    elif config.name == "adamw":
        rule = optax.adamw(
            rate, b2=0.99, weight_decay=config.weight_decay, mask=_matrices
        )
    else:
        rule = optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)
    parts = [optax.clip_by_global_norm(config.gradient_norm), rule]
    if freeze_steps:
        thaw = optax.scale_by_schedule(
            lambda step: (step >= freeze_steps).astype(jnp.float32)
        )
        parts.append(optax.masked(thaw, _body))
    return optax.chain(*parts)


def _body(params: Any) -> Any:
    """All but the head."""
    return {
        part: jax.tree.map(lambda _: part != "head", tree)  # noqa: B023
        for part, tree in params.items()
    }


def _matrices(params: Any) -> Any:
    """Weight decay acts on matrices, not on biases."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return "bias" not in jax.tree_util.keystr(path)

    return jax.tree_util.tree_map_with_path(decays, params)

"""Optimisers: the paper's Adagrad, and AdamW and Adafactor with warm-up."""

from __future__ import annotations

from typing import Any

import jax
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
    if not config.warmup_steps:
        return after
    rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([rise, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then the rule; `steps` is the length of the run."""
    rate = make_schedule(config, steps)
    if config.name == "adagrad":
        rule = optax.adagrad(rate, config.initial_accumulator)
    elif config.name == "adamw":
        rule = optax.adamw(
            rate, b2=0.99, weight_decay=config.weight_decay, mask=_matrices
        )
    else:
        rule = optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)
    return optax.chain(optax.clip_by_global_norm(config.gradient_norm), rule)


def _matrices(params: Any) -> Any:
    """Weight decay acts on matrices, not on biases."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return "bias" not in jax.tree_util.keystr(path)

    return jax.tree_util.tree_map_with_path(decays, params)

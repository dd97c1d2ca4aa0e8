"""Optimisers: the paper's Adagrad, and AdamW and Adafactor with warm-up."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from elmojax.config import OptimizerConfig
from elmojax.model.ops import is_bias
from elmojax.shapes import Params


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
      steps: in which the learning rate falls.
      freeze_steps: steps in which only the head moves, above 0: it and the rest have
        states of their own, and the rest has its first update after these steps.
    """
    rate = make_schedule(config, steps)
    rule = _rule(config, rate)
    if freeze_steps:
        late = _rule(config, lambda count: rate(count + freeze_steps))
        rule = _head_and_rest(rule, late)
    return optax.chain(optax.clip_by_global_norm(config.gradient_norm), rule)


def _rule(
    config: OptimizerConfig, rate: optax.Schedule
) -> optax.GradientTransformation:
    if config.name == "adagrad":
        return optax.adagrad(rate, config.initial_accumulator)
    if config.name == "adamw":
        decay = config.weight_decay
        return optax.adamw(rate, b2=0.99, weight_decay=decay, mask=_matrices)
    return optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)


def _head_and_rest(
    head: optax.GradientTransformation, rest: optax.GradientTransformation
) -> optax.GradientTransformation:
    """A rule for the head and one for the rest, whose state waits for its gradients."""
    rules = {"head": head, "rest": rest}

    def part(tree: Params, which: str) -> Params:
        return {k: v for k, v in tree.items() if (k == "head") == (which == "head")}

    def init(params: Params) -> dict[str, Any]:
        return {which: rule.init(part(params, which)) for which, rule in rules.items()}

    def update(
        gradient: Params, state: dict[str, Any], params: Params
    ) -> tuple[Params, dict[str, Any]]:
        updates: Params = {}
        after = dict(state)
        for which, rule in rules.items():
            if own := part(gradient, which):
                new, after[which] = rule.update(own, state[which], part(params, which))
                updates |= new
        return updates, after

    return optax.GradientTransformation(init, update)


def _matrices(params: Any) -> Any:
    """Weight decay acts on matrices, not on biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_bias(path), params)

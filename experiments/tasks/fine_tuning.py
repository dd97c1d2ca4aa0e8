"""A biLM that is trained with the task: from the top down, one more part each epoch.

As Howard and Ruder 2018 (ULMFiT) do it: in the first epoch the biLM is frozen, then
its top layer learns, then the layers below, last the word encoder; each part at a lower
rate than the one above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from features import Features
from fitting import Params
from jax import Array
from task_options import FeatureOptions
from texts import Text

import elmojax
from elmojax import ElmoParams, InputError
from elmojax.arguments import Range

BILM = "bilm"
"""Where the parameters of the biLM are among those of a task."""
BELOW = 2.6
"""A part learns at the rate of the one above divided by this (Howard and Ruder)."""
Share = Annotated[float, Range(1e-6, 1)]


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    """Whether the biLM learns too."""

    fine_tune: bool = False
    """Train the biLM too, one more layer each epoch from the top; else it is frozen."""
    bilm_rate: Share = 0.1
    """Learning rate of its top layer, as a share of --learning-rate."""


def check_fine_tuning(tuning: FineTuningOptions, options: FeatureOptions) -> None:
    """Raises `InputError` for features that no biLM is behind."""
    if tuning.fine_tune and (options.features != "elmo" or options.layer is not None):
        raise InputError(
            "--fine-tune trains all layers of a biLM; it goes with --features elmo "
            "and without --layer."
        )


def gradual_unfreezing(
    params: Params, steps: int, share: float
) -> optax.GradientTransformation:
    """The scale of updates: 1 for the task, for each part of the biLM 0 at first.

    Args:
      params: of the task, and under BILM those of a biLM.
      steps: of an epoch; the part number n from the top, from 1, learns after n of
        them.
      share: rate of the top layer, 1 = that of the task.
    """
    parts = sorted({*jax.tree.leaves(_part_names(params[BILM]))})
    from_top = [*(part for part in reversed(parts) if part != "encoder"), "encoder"]

    def scale(number: int) -> optax.GradientTransformation:
        def now(step: Array) -> Array:
            rate = share / BELOW ** (number - 1)
            return jnp.where(step >= number * steps, rate, 0.0).astype(jnp.float32)

        return optax.scale_by_schedule(now)

    scales = {part: scale(number) for number, part in enumerate(from_top, start=1)}
    places = {name: "task" for name in params if name != BILM}
    places[BILM] = _part_names(params[BILM])
    return optax.multi_transform({"task": optax.identity(), **scales}, places)


def _part_names(tree: Params) -> Params:
    """For each array of a biLM the part that it belongs to: encoder, layer_0 ..."""
    return {
        "encoder": dict.fromkeys(tree["encoder"], "encoder"),
        "lstm": {
            name: f"layer_{int(name.split('_')[-1]):02d}" for name in tree["lstm"]
        },
    }


def with_layers(elmo: ElmoParams, tree: Params, features: Features, text: Text) -> Text:
    """A text whose layers the biLM makes now, at the scale of the features.

    Args:
      elmo: the biLM before training.
      tree: its parameters now.
      features: made before training.
      text: with characters.
    """
    now: Any = elmo.replace(encoder=tree["encoder"], lstm=tree["lstm"])
    layers = elmojax.encode(now, text.characters).layers
    return text._replace(layers=layers / features.scale[None, :, None, None])

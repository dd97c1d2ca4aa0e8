"""Mixing the layers of a biLM into one vector a word (Peters et al. 2018, eq. 1)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from elmojax.arguments import checked
from elmojax.errors import InputError
from elmojax.shapes import Gammas, Layers, Mask, Mix, Numbers


@checked
def mix_weights(s: Numbers, gamma: Numbers = 1.0) -> Array:
    """gamma * softmax(s): the paper's weights in the form that `embed` takes.

    Args:
      s: unnormalised weights [layers] or [mixes, layers].
      gamma: scale, a number or [mixes].

    Returns:
      Weights of the shape of `s`.

    Raises:
      InputError: if they have other shapes.
    """
    s, gamma = jnp.asarray(s, jnp.float32), jnp.asarray(gamma, jnp.float32)
    if not s.ndim or gamma.shape not in ((), s.shape[:-1]):
        raise InputError(
            f"s has shape {s.shape} and gamma {gamma.shape}; give s [layers] with one "
            "gamma, or s [mixes, layers] with one or with [mixes]."
        )
    weights = jax.nn.softmax(s, axis=-1)
    scale = jnp.broadcast_to(gamma, weights.shape[:-1])
    return scale[..., None] * weights


def mix_layers(layers: Layers, gammas: Gammas, bias: ArrayLike = 0.0) -> Mix:
    """sum_j gammas_j * layer_j + bias: one mix, or one for each row of `gammas`."""
    # A plain sum of products: a matrix product would round on some accelerators, and
    # picking one layer with a one-hot gamma must give that layer exactly.
    if gammas.ndim == 2:
        bias = jnp.broadcast_to(jnp.asarray(bias), gammas.shape[:1])
        return jax.vmap(mix_layers, (None, 0, 0))(layers, gammas, bias)
    mixed = (gammas[None, :, None, None] * layers).sum(axis=-3)
    return mixed + jnp.asarray(bias, mixed.dtype)


class ScalarMix(nn.Module):
    """The trainable mix of a task: gamma * sum_j softmax(s)_j * layer_j.

    Parameters: `s` [layers], zeros; `gamma` [], one. With `layer_norm`, each layer is
    first normalised by one mean and one variance over all words that the mask keeps
    (as AllenNLP does). `dropout` needs an rng "dropout" and `deterministic=False`.
    Take one ScalarMix for the input of a task model and another for its output; both
    read the same `encode(...)`.
    """

    layer_norm: bool = False
    dropout: float = 0.0

    @nn.compact
    @checked
    def __call__(
        self,
        layers: Layers | np.ndarray,
        mask: Mask | np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Array:
        """layers [batch, layers, time, vector] -> [batch, time, vector].

        Raises:
          InputError: if `layer_norm` is asked for without a mask, or shapes do not
            fit.
        """
        layers = jnp.asarray(layers)
        if layers.ndim != 4:
            raise InputError(
                f"layers have shape {layers.shape}; give [batch, layers, time, vector]."
            )
        count, start = layers.shape[-3], nn.initializers
        s = self.param("s", start.zeros, (count,), jnp.float32)
        gamma = self.param("gamma", start.ones, (), jnp.float32)
        if self.layer_norm:
            if mask is None:
                raise InputError("ScalarMix(layer_norm=True) needs the mask of words.")
            mask = jnp.asarray(mask).astype(bool)
            if mask.shape != (layers.shape[0], layers.shape[2]):
                raise InputError(
                    f"mask has shape {mask.shape} and layers {layers.shape}; give "
                    "[batch, time]."
                )
            layers = normalize_layers(layers, mask)
        mixed = mix_layers(layers, mix_weights(s, gamma))
        # The mask apart: it may lie otherwise on a mesh than what is mixed.
        kept = jnp.ones(mixed.shape, mixed.dtype)
        rate: Any = np.float32(self.dropout)  # as in `ops.apply_dropout`
        return mixed * nn.Dropout(rate)(kept, deterministic=deterministic)


def normalize_layers(layers: Layers, mask: Mask) -> Layers:
    """Each layer less its mean, over its deviation, both over all unmasked words;
    zeros where there is no word at all."""
    kept = mask[:, None, :, None].astype(layers.dtype)
    count = jnp.maximum(mask.sum(), 1).astype(layers.dtype) * layers.shape[-1]
    axes = (-4, -2, -1)
    mean = (layers * kept).sum(axes, keepdims=True) / count
    centred = (layers - mean) * kept
    variance = (centred**2).sum(axes, keepdims=True) / count
    return jnp.where(mask.any(), (layers - mean) / jnp.sqrt(variance + 1e-12), 0.0)


@checked
def mix_penalty(params: dict, weight: Numbers) -> Array:
    """weight * |s|^2, the L2 penalty that pulls a `ScalarMix` to the plain average.

    Args:
      params: the parameters of one ScalarMix, {"s": ..., "gamma": ...}.
      weight: the lambda of the paper; 0.001 hardly acts, 1 nearly averages.

    Raises:
      InputError: for other parameters.
    """
    if "s" not in params:
        raise InputError(f"params has {sorted(params)}; give those of one ScalarMix.")
    total = jnp.sum(params["s"] ** 2)
    return jnp.asarray(weight, total.dtype) * total

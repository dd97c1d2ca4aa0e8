"""The published equations in NumPy: float64, loops, one word at a time.

And the softmax written out in JAX, with all words of all positions, for gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from elmojax.model.softmax import log_prob_all

Tree = dict[str, Any]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def char_cnn(params: Tree, ids: np.ndarray, widths: Sequence[int], activation: str):
    """Character ids [words, characters] -> [words, projection]."""
    params = {name: np.float64(leaf) for name, leaf in params.items()}
    highways = sum("carry_kernel" in name for name in params)
    squash = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[activation]
    vectors = []
    for word in ids:
        letters = params["embedding"][word - 1]
        features = []
        for number, width in enumerate(widths):
            kernel = params[f"convolution_{number}_kernel"]
            bias = params[f"convolution_{number}_bias"]
            responses = [
                np.einsum("wc,wcf->f", letters[at : at + width], kernel) + bias
                for at in range(len(letters) - width + 1)
            ]
            features.append(squash(np.max(responses, axis=0)))
        x = np.concatenate(features)
        for number in range(highways):
            name = f"highway_{number}"
            carry = sigmoid(
                x @ params[f"{name}_carry_kernel"] + params[f"{name}_carry_bias"]
            )
            transform = np.maximum(
                x @ params[f"{name}_transform_kernel"]
                + params[f"{name}_transform_bias"],
                0,
            )
            x = carry * transform + (1 - carry) * x
        vectors.append(x @ params["projection_kernel"] + params["projection_bias"])
    return np.stack(vectors)


def lstm_step(x, cell, hidden, kernel, bias, projection, clips):
    """One position of one direction; kernel [inputs + projection, 4 * dim], bias."""
    z = np.concatenate([x, hidden]) @ kernel + bias
    i, j, f, o = np.split(z, 4)
    cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(j)
    cell = np.clip(cell, -clips[0], clips[0])
    hidden = (sigmoid(o) * np.tanh(cell)) @ projection
    return cell, np.clip(hidden, -clips[1], clips[1])


class Stream:
    """All layers of one direction of one stream, with the state it carries."""

    def __init__(self, params: Tree, config: Any, direction: int) -> None:
        self.config = config
        self.weights = [
            [
                np.float64(params[f"{name}_{layer}"][direction])
                for name in ("kernel", "bias", "projection")
            ]
            for layer in range(config.layers)
        ]
        self.cells = np.zeros((config.layers, config.dim))
        self.hiddens = np.zeros((config.layers, config.projection))

    def read(self, x: np.ndarray) -> np.ndarray:
        """The next word vector -> outputs of all layers, [layers, projection]."""
        clips = (self.config.cell_clip, self.config.projection_clip)
        outputs = []
        for layer, (kernel, bias, projection) in enumerate(self.weights):
            flat = (kernel.reshape(len(kernel), -1), bias.reshape(-1), projection)
            state = (self.cells[layer], self.hiddens[layer])
            cell, hidden = lstm_step(x, *state, *flat, clips)
            self.cells[layer], self.hiddens[layer] = cell, hidden
            x = hidden + x if layer and self.config.skip_connections else hidden
            outputs.append(x)
        return np.stack(outputs)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def log_prob(head: Tree, hidden: np.ndarray, target: int) -> float:
    """log p(target) of an adaptive softmax: its cluster in the head, then inside."""
    head = {name: np.float64(leaf) for name, leaf in head.items()}
    tails = [len(head[f"up_{k}"]) for k in range(sum("up_" in name for name in head))]
    first = len(head["kernel"]) - len(tails)
    top = log_softmax(head["kernel"] @ hidden + head.get("bias", 0))
    if target < first:
        return top[target]
    target -= first
    for k, size in enumerate(tails):
        if target < size:
            inside = head[f"up_{k}"] @ (hidden @ head[f"down_{k}"])
            return top[first + k] + log_softmax(inside)[target]
        target -= size
    raise AssertionError("no such word")


def log_prob_of_all(params, hidden, targets, dtype=None):
    """Log-probability of targets, out of that of all words; NaN for no word."""
    every = log_prob_all(params, hidden, dtype)
    valid = (targets >= 0) & (targets < every.shape[-1])
    at = jnp.where(valid, targets, 0)[:, None]
    # A factor, so that the gradient is NaN too.
    found = jnp.take_along_axis(every, at, axis=-1)[:, 0]
    return found * jnp.where(valid, 1, jnp.nan)


def negative_log_likelihood(params, hidden, targets, weights):
    """Weighted sum of -log p, and each of them."""
    each = -log_prob_of_all(params, hidden, targets)
    return (each * weights).sum(), each

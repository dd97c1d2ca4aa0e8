"""The published equations: in NumPy, float64, loops, one word at a time; and forms
that JAX differentiates, short and slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elmojax.model.ops import contract
from elmojax.model.recurrence import State
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


def first_largest(table: np.ndarray, kernels: Sequence[np.ndarray], ids: np.ndarray):
    """Largest response of each filter in each word, and the first window with it."""
    best, where = [], []
    for kernel in kernels:
        windows = ids.shape[1] - len(kernel) + 1
        terms = [table[ids[:, k : k + windows]] @ kernel[k] for k in range(len(kernel))]
        responses = np.sum(terms, axis=0)
        best.append(responses.max(axis=1))
        where.append(responses.argmax(axis=1))
    return np.concatenate(best, axis=1), np.concatenate(where, axis=1)


def gradient_of_largest(table, kernels, ids, where, d_best):
    """Gradients by table and kernels of what `first_largest` found, in loops."""
    d_table, d_kernels, before = np.zeros_like(table), [], 0
    for kernel in kernels:
        d_kernels.append(np.zeros_like(kernel))
        for word, filter_ in np.ndindex(len(ids), kernel.shape[2]):
            at, d = where[word, before + filter_], d_best[word, before + filter_]
            for k in range(len(kernel)):
                d_kernels[-1][k, :, filter_] += d * table[ids[word, at + k]]
                d_table[ids[word, at + k]] += d * kernel[k, :, filter_]
        before += kernel.shape[2]
    return d_table, tuple(d_kernels)


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


def recurrence(options, inputs, weights, state, lengths=None, reset=None):
    """`elmojax.model.lstm.recurrence` as a scan that JAX differentiates."""
    dtype = options.dtype
    two, width = weights.kernel.shape[:2]
    kernel = weights.kernel.reshape(two, width, -1)
    bias = weights.bias.reshape(two, 1, -1).astype(jnp.float32)
    clips = options[:2]

    def step(before, now):
        (x, t), state = now, before
        if reset is not None:
            here = reset.here[t][..., None]
            pairs = zip(reset.start, state, strict=True)
            state = State(*(jnp.where(here, a[:, None], b) for a, b in pairs))
        read = jnp.concatenate([x, state.hidden], axis=-1)
        z = contract("nbi,nig->nbg", read, kernel, dtype) + bias
        z = z.astype(dtype).astype(jnp.float32)
        i, j, f, o = jnp.split(z, 4, axis=-1)
        sigmoid = jax.nn.sigmoid
        cell = sigmoid(f + 1) * state.cell + sigmoid(i) * jnp.tanh(j)
        cell = jnp.clip(cell, -clips[0], clips[0])
        m = sigmoid(o) * jnp.tanh(cell)
        hidden = contract("nbd,ndp->nbp", m, weights.projection, dtype)
        new = State(cell, jnp.clip(hidden, -clips[1], clips[1]))
        if lengths is not None:
            real = (t < lengths)[None, :, None]
            new = jax.tree.map(lambda a, b: jnp.where(real, a, b), new, before)
        return new, new.hidden

    times = jnp.arange(len(inputs), dtype=jnp.int32)
    state, outputs = jax.lax.scan(step, state, (inputs, times))
    return outputs, state


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

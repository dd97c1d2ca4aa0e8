"""The recurrence of one layer with a gradient of its own: little memory, few products.

Inside, the batch is the last axis and weights are the left factor of every product. A
product of a large matrix and few columns reads the matrix as it lies; with the matrix
on the right it would be packed anew at every position, which on a CPU took twice the
time at 16 rows. So `kernel` is turned around once for the way forward, and taken as it
lies for the way back. What is kept for the way back are the gates before activation
and the states, gates in the dtype of the products; weight gradients are one product
each, after the loop, and float32 as they leave it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.cell import Options, State, Weights, activated
from elmojax.model.platforms import Platform, by_platform
from elmojax.model.precision import contract, sum_over
from elmojax.shapes import Inputs


class Saved(NamedTuple):
    """What the way back takes; the batch is the last axis, except in `first`."""

    inputs: Array
    weights: Weights
    first: State
    gates: Array
    """[time, two, gates, batch], before activation."""
    cells: Array
    hidden: Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def lean(
    options: Options, inputs: Inputs, weights: Weights, state: State
) -> tuple[Array, Array, Array]:
    """Outputs [time, two, batch, projection], and the last cell and hidden state."""
    return _forward(options, inputs, weights, state)[0]


def _turned(array: Array) -> Array:
    return jnp.swapaxes(array, -1, -2)


def _forward(
    options: Options, inputs: Array, weights: Weights, state: State
) -> tuple[tuple[Array, Array, Array], Saved]:
    half = options.dtype
    kernel = _turned(weights.kernel.astype(half))
    projection = _turned(weights.projection.astype(half))
    bias = weights.bias[:, :, None].astype(jnp.float32)

    def step(state: State, x: Array) -> tuple[State, tuple[Array, State]]:
        read = jnp.concatenate([x, state.hidden], axis=1)
        z = contract("ngi,nib->ngb", kernel, read, half) + bias
        i, j, f, o = activated(z, axis=1)
        limit = options.cell_clip
        cell = jnp.clip(f * state.cell + i * j, -limit, limit)
        m = o * jnp.tanh(cell)
        hidden = contract("npd,ndb->npb", projection, m, half)
        if options.axis is not None:
            hidden = sum_over(options.axis, hidden)
        limit = options.projection_clip
        state = State(cell, jnp.clip(hidden, -limit, limit))
        return state, (z.astype(half), state)

    columns = _turned(inputs)
    last, (gates, states) = lax.scan(step, State(*map(_turned, state)), columns)
    saved = Saved(columns, weights, state, gates, states.cell, states.hidden)
    results = (_turned(states.hidden), _turned(last.cell), _turned(last.hidden))
    return results, saved


def _backward(
    options: Options, saved: Saved, cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Weights, State]:
    inputs, half = saved.inputs, options.dtype
    kernel, projection = (saved.weights[n].astype(half) for n in (0, 2))
    first = State(*map(_turned, saved.first))
    d_outputs, *d_last = map(_turned, cotangents)

    def step(carry: State, t: Array) -> tuple[State, tuple[Array, ...]]:
        d_cell, d_hidden = carry
        i, j, f, o = activated(saved.gates[t].astype(jnp.float32), axis=1)
        cell, hidden = saved.cells[t], saved.hidden[t]
        before = jnp.where(t > 0, saved.cells[t - 1], first.cell)
        squashed = jnp.tanh(cell)
        d_total = d_hidden + d_outputs[t]
        if options.axis is not None:  # each device of the axis holds a share of it
            d_total = sum_over(options.axis, d_total)
        free = jnp.abs(hidden) < options.projection_clip
        d_product = jnp.where(free, d_total, 0.0)
        d_m = contract("ndp,npb->ndb", projection, d_product, half)
        d_cell = d_cell + d_m * o * (1 - squashed**2)
        d_cell = jnp.where(jnp.abs(cell) < options.cell_clip, d_cell, 0.0)
        d_gates = _joined(
            options.platform,
            d_cell * j * i * (1 - i),
            d_cell * i * (1 - j**2),
            d_cell * before * f * (1 - f),
            d_m * squashed * o * (1 - o),
        )
        both = contract("nig,ngb->nib", kernel, d_gates, half)
        d_x, d_hidden = jnp.split(both, [inputs.shape[2]], axis=1)
        later = (array.astype(half) for array in (d_gates, d_product, o * squashed))
        return State(d_cell * f, d_hidden), (d_x, *later)

    times = jnp.arange(len(inputs), dtype=jnp.int32)
    d_state, (d_x, d_gates, d_products, m) = lax.scan(
        step, State(*d_last), times, reverse=True
    )
    hidden = jnp.concatenate([first.hidden[None], saved.hidden[:-1]])
    read = jnp.concatenate([inputs, hidden], axis=2)
    d_weights = Weights(
        _product_over_positions(read, d_gates, half),
        d_gates.astype(jnp.float32).sum(axis=(0, 3)),
        _product_over_positions(m, d_products, half),
    )
    like = zip(d_weights, saved.weights, strict=True)
    d_weights = Weights(*(d_leaf.astype(leaf.dtype) for d_leaf, leaf in like))
    return _turned(d_x), d_weights, State(*map(_turned, d_state))


lean.defvjp(_forward, _backward)


def _joined(platform: Platform, *parts: Array) -> Array:
    """The gates one after the other on axis 1.

    On a CPU each is written to its place by a loop of its own; as one loop over all
    four, XLA does not vectorise it, and the way back took 1.4 times as long.
    """

    def written(*parts: Array) -> Array:
        two, dim, batch = parts[0].shape
        whole = jnp.zeros((two, len(parts) * dim, batch), parts[0].dtype)
        for number, part in enumerate(parts):
            whole = lax.dynamic_update_slice(whole, part, (0, number * dim, 0))
        return whole

    def at_once(*parts: Array) -> Array:
        return jnp.concatenate(parts, axis=1)

    return cast(Array, by_platform(platform, *parts, cpu=written, accelerator=at_once))


def _product_over_positions(left: Array, right: Array, dtype: jnp.dtype) -> Array:
    """Sum over time and batch: [time, two, i, batch], [..., g, ...] -> [two, i, g]."""

    def by_position(array: Array) -> Array:
        _, two, width, _ = array.shape
        return array.transpose(1, 0, 3, 2).reshape(two, -1, width)

    return contract("nki,nkg->nig", by_position(left), by_position(right), dtype)

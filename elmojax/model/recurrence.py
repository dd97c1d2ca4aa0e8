"""The recurrence of one bidirectional LSTM layer: a reference scan and a lean one.

Both directions run in one loop over time. Per step and direction (Sak et al. 2014, as
TensorFlow's LSTMCell computes it, with one matrix for inputs and hidden state):

    i, j, f, o = [x, h] @ kernel + bias
    c = clip(sigmoid(f + 1) * c + sigmoid(i) * tanh(j), cell_clip)
    h = clip((sigmoid(o) * tanh(c)) @ projection, projection_clip)

Cells, gates and clips are float32; products run in the dtype of the weights. Time is
the first axis of what is scanned, because a scan reads and stacks it there.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.precision import contract
from elmojax.shapes import Cell, Hidden, Inputs, Valid

FORGET_BIAS = 1.0
"""Added to the forget gate when it is computed, never stored (as in TensorFlow)."""


class Backend(enum.Enum):
    """How the recurrence is computed; the values are the same."""

    REFERENCE = "reference"
    """`lax.scan` differentiated by JAX: short, and the truth for tests."""
    LEAN = "lean"
    """Own gradient: gates overwritten in place, weight gradients after the loop."""


class State(NamedTuple):
    """What a layer carries from one position to the next."""

    cell: Cell
    hidden: Hidden


class Restarts(NamedTuple):
    """Where a new sentence begins in a row, and the state it begins with."""

    here: Array
    """bool [time, two, batch]."""
    start: State
    """[two, dim] and [two, projection]: the same for every sentence."""


class Weights(NamedTuple):
    """One layer: kernel [two, inputs + projection, gates], bias [two, gates],
    projection [two, dim, projection]."""

    kernel: Array
    bias: Array
    projection: Array


class Options(NamedTuple):
    """What does not change while a program runs."""

    cell_clip: float
    projection_clip: float
    axis: str | None = None
    """Mesh axis over which `dim` is split; the projection is summed over it."""
    backend: Backend = Backend.LEAN


def recurrence(
    inputs: Inputs,
    weights: Weights,
    state: State,
    options: Options,
    valid: Valid | None = None,
    restarts: Restarts | None = None,
) -> tuple[Array, State]:
    """Runs both directions over time.

    Args:
      inputs: [time, two, batch, inputs].
      state: state before the first position.
      valid: [time, batch]; where False the state passes through and the output is 0.
      restarts: where the state is set back before a position is read, so that a row
        can hold sentences one after the other.

    Returns:
      outputs [time, two, batch, projection] in float32, and the state after the last
      position.
    """
    if options.backend is Backend.LEAN and valid is None and restarts is None:
        outputs, *last = _lean(options, inputs, weights, state)
        return outputs, State(*last)
    return _reference(options, inputs, weights, state, valid, restarts)


def _activate(z: Array) -> tuple[Array, Array, Array, Array]:
    i, j, f, o = jnp.split(z, 4, axis=-1)
    sigmoid = jax.nn.sigmoid
    return sigmoid(i), jnp.tanh(j), sigmoid(f + FORGET_BIAS), sigmoid(o)


def _step(
    options: Options, x: Array, weights: Weights, state: State
) -> tuple[Array, State]:
    kernel, bias, projection = weights
    z = contract(
        "nbi,nig->nbg", jnp.concatenate([x, state.hidden], -1), kernel, kernel.dtype
    )
    z += bias[:, None].astype(jnp.float32)
    i, j, f, o = _activate(z)
    limit = options.cell_clip
    cell = jnp.clip(f * state.cell + i * j, -limit, limit)
    m = o * jnp.tanh(cell)
    hidden = contract("nbd,ndp->nbp", m, projection, projection.dtype)
    if options.axis is not None:
        hidden = lax.psum(hidden, options.axis)
    limit = options.projection_clip
    return z, State(cell, jnp.clip(hidden, -limit, limit))


def _reference(
    options: Options,
    inputs: Array,
    weights: Weights,
    state: State,
    valid: Array | None,
    restarts: Restarts | None,
) -> tuple[Array, State]:
    def step(
        state: State, now: tuple[Array, Array | None, Array | None]
    ) -> tuple[State, Array]:
        x, real, again = now
        if restarts is not None and again is not None:
            state = State(*map(partial(_choose, again), restarts.start, state))
        _, new = _step(options, x, weights, state)
        if real is None:
            return new, new.hidden
        here = real[None, :, None]
        cell = jnp.where(here, new.cell, state.cell)
        hidden = jnp.where(here, new.hidden, state.hidden)
        return State(cell, hidden), jnp.where(here, new.hidden, 0.0)

    again = None if restarts is None else restarts.here
    state, outputs = lax.scan(step, state, (inputs, valid, again))
    return outputs, state


def _choose(again: Array, start: Array, going: Array) -> Array:
    """`start` [two, dim] in the rows that begin again, elsewhere what goes on."""
    return jnp.where(again[..., None], start[:, None], going)


Saved: TypeAlias = tuple[Array, Weights, State, Array, State]
"""Inputs, weights, first state; gates before activation and states of every step."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lean(
    options: Options, inputs: Array, weights: Weights, state: State
) -> tuple[Array, Array, Array]:
    return _lean_forward(options, inputs, weights, state)[0]


def _lean_forward(
    options: Options, inputs: Array, weights: Weights, state: State
) -> tuple[tuple[Array, Array, Array], Saved]:
    def step(state: State, x: Array) -> tuple[State, tuple[Array, State]]:
        z, state = _step(options, x, weights, state)
        return state, (z, state)

    last, (gates, states) = lax.scan(step, state, inputs)
    results = (states.hidden, last.cell, last.hidden)
    return results, (inputs, weights, state, gates, states)


def _lean_backward(
    options: Options, saved: Saved, cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Weights, State]:
    """Back through time with two products a step; weight gradients in one product."""
    inputs, weights, first, gates, states = saved
    d_outputs, d_cell, d_hidden = cotangents
    kernel, _, projection = weights

    def step(carry: State, t: Array) -> tuple[State, tuple[Array, ...]]:
        d_cell, d_hidden = carry
        i, j, f, o = _activate(gates[t])
        cell, hidden = states.cell[t], states.hidden[t]
        before = jnp.where(t > 0, states.cell[t - 1], first.cell)
        squashed = jnp.tanh(cell)
        d_total = d_hidden + d_outputs[t]
        if options.axis is not None:  # each device of the axis holds a share of it
            d_total = lax.psum(d_total, options.axis)
        free = jnp.abs(hidden) < options.projection_clip
        d_product = jnp.where(free, d_total, 0.0)
        d_m = contract("nbp,ndp->nbd", d_product, projection, projection.dtype)
        d_cell = d_cell + d_m * o * (1 - squashed**2)
        d_cell = jnp.where(jnp.abs(cell) < options.cell_clip, d_cell, 0.0)
        d_gates = jnp.concatenate(
            [
                d_cell * j * i * (1 - i),
                d_cell * i * (1 - j**2),
                d_cell * before * f * (1 - f),
                d_m * squashed * o * (1 - o),
            ],
            axis=-1,
        )
        both = contract("nbg,nig->nbi", d_gates, kernel, kernel.dtype)
        d_x, d_hidden = jnp.split(both, [inputs.shape[-1]], axis=-1)
        return State(d_cell * f, d_hidden), (d_x, d_gates, d_product, o * squashed)

    times = jnp.arange(inputs.shape[0])
    d_state, (d_x, d_gates, d_products, m) = lax.scan(
        step, State(d_cell, d_hidden), times, reverse=True
    )
    hidden = jnp.concatenate([first.hidden[None], states.hidden[:-1]])
    read = jnp.concatenate([inputs, hidden], axis=-1)
    d_weights = Weights(
        contract("tnbi,tnbg->nig", read, d_gates, kernel.dtype),
        d_gates.sum(axis=(0, 2)),
        contract("tnbd,tnbp->ndp", m, d_products, projection.dtype),
    )
    like_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
    return d_x, like_weights, d_state


_lean.defvjp(_lean_forward, _lean_backward)

"""The recurrence of one bidirectional LSTM layer: a reference scan and a lean one.

Both directions run in one loop over time. Per step and direction (Sak et al. 2014, as
TensorFlow's LSTMCell computes it, with one matrix for inputs and hidden state):

    i, j, f, o = [x, h] @ kernel + bias
    c = clip(sigmoid(f + 1) * c + sigmoid(i) * tanh(j), cell_clip)
    h = clip((sigmoid(o) * tanh(c)) @ projection, projection_clip)

Cells, gates and clips are float32; products run in `Options.dtype`. Time is
the first axis of what is scanned, because a scan reads and stacks it there.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.cell import Backend, Options, State, Weights, activated
from elmojax.model.lean import lean
from elmojax.model.precision import contract
from elmojax.shapes import Inputs, Valid


class Restarts(NamedTuple):
    """Where a new sentence begins in a row, and the state it begins with."""

    here: Array
    """bool [time, two, batch]."""
    start: State
    """[two, dim] and [two, projection]: the same for every sentence."""


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
        outputs, *last = lean(options, inputs, weights, state)
        return outputs, State(*last)
    return _reference(options, inputs, weights, state, valid, restarts)


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
        new = _step(options, x, weights, state)
        if real is None:
            return new, new.hidden
        here = real[None, :, None]
        cell = jnp.where(here, new.cell, state.cell)
        hidden = jnp.where(here, new.hidden, state.hidden)
        return State(cell, hidden), jnp.where(here, new.hidden, 0.0)

    again = None if restarts is None else restarts.here
    state, outputs = lax.scan(step, state, (inputs, valid, again))
    return outputs, state


def _step(options: Options, x: Array, weights: Weights, state: State) -> State:
    kernel, bias, projection = weights
    read = jnp.concatenate([x, state.hidden], axis=-1)
    z = contract("nbi,nig->nbg", read, kernel, options.dtype)
    i, j, f, o = activated(z + bias[:, None].astype(jnp.float32), axis=-1)
    limit = options.cell_clip
    cell = jnp.clip(f * state.cell + i * j, -limit, limit)
    m = o * jnp.tanh(cell)
    hidden = contract("nbd,ndp->nbp", m, projection, options.dtype)
    if options.axis is not None:
        hidden = lax.psum(hidden, options.axis)
    limit = options.projection_clip
    return State(cell, jnp.clip(hidden, -limit, limit))


def _choose(again: Array, start: Array, going: Array) -> Array:
    """`start` [two, dim] in the rows that begin again, elsewhere what goes on."""
    return jnp.where(again[..., None], start[:, None], going)

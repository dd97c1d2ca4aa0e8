"""One layer of the bidirectional LSTM with projection: a loop over time.

Both directions are stacked on a leading axis of size two, 0 forward and 1 backward, and
run in one loop over time; callers hand over both inputs in reading order. At each
position and direction (Sak et al. 2014, as TensorFlow's LSTMCell computes it, with one
matrix for inputs and hidden state):

    i, j, f, o = [x, h] @ kernel + bias
    c = clip(sigmoid(f + 1) * c + sigmoid(i) * tanh(j), cell_clip)
    h = clip((sigmoid(o) * tanh(c)) @ projection, projection_clip)

Products run in `LayerOptions.dtype`, and pre-activations are rounded to it once; gates,
cells and clips are float32. The gradient is the loop's own: pre-activations and cells
are kept, in the dtype of products, and weight gradients are one product each over all
positions, float32 as they leave it. A column of ones among the inputs of that product
makes its last row the gradient of the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from elmojax.model.ops import (
    Dtype,
    Platform,
    alike,
    by_platform,
    contract,
    sum_over,
    varying_as,
)
from elmojax.shapes import Cell, Hidden, Inputs, Lengths

FORGET_BIAS = 1.0
"""Added to the forget gate when it is computed, never stored (as in TensorFlow)."""
STEP_COST = 24
"""What a step of the loop costs besides its rows, in rows: it reads all weights."""


class State(NamedTuple):
    """What a layer carries from one position to the next, float32."""

    cell: Cell
    hidden: Hidden


class Weights(NamedTuple):
    """One layer: kernel [two, inputs + projection, 4, dim], bias [two, 4, dim],
    projection [two, dim, projection]."""

    kernel: Array
    bias: Array
    projection: Array


class Reset(NamedTuple):
    """Where a row begins anew, so that it can hold one sentence after the other."""

    here: Array
    """bool [time, two, batch]: take `start` for the state before this position."""
    start: Any
    """`State` of a layer, or `LstmState` of all layers, without a batch axis; a
    constant, to which no gradient flows."""


class GateLayout(NamedTuple):
    """How the arrays of a position lie; it changes the speed and no number."""

    features: int
    """Axis of features in [two, ., .]; the other one is the batch."""
    products: int
    """4: a matrix product for each gate; 1: one for all gates."""
    split_kernel: bool = True
    """Whether the kernel is cut into those of its products before the forward loop."""


GPU_LAYOUT = GateLayout(-1, 4)
"""The product of each gate is fused with what follows it."""
TPU_LAYOUT = GateLayout(-1, 4, split_kernel=False)
"""The same; a TPU's compiler reads each part of the kernel where it lies."""
CPU_LAYOUT = GateLayout(-2, 1)
"""Weights are the left factor of a product, and are read as they lie."""


class LayerOptions(NamedTuple):
    """What does not change while a program runs."""

    cell_clip: float
    projection_clip: float
    dtype: Dtype = jnp.float32
    """Of matrix products."""
    axis: str | None = None
    """Mesh axis over which `dim` is split; the projection is summed over it."""
    platform: Platform = None


class Saved(NamedTuple):
    """What the backward pass takes; gates and cells in the dtype of products."""

    inputs: Array
    weights: Weights
    first: State
    lengths: Array | None
    reset: Reset | None
    gates: list[Array]
    """Before activation: four of [time, two, batch, dim]."""
    cells: Array
    hidden: Array


def recurrence(
    options: LayerOptions,
    inputs: Inputs,
    weights: Weights,
    state: State,
    lengths: Lengths | None = None,
    reset: Reset | None = None,
) -> tuple[Array, State]:
    """One layer, both directions, over time.

    Args:
      inputs: [time, two, batch, inputs].
      state: before the first position.
      lengths: int32 [batch], positions of each row; what the outputs hold past them
        means nothing. None = all.
      reset: where rows begin anew.

    Returns:
      outputs [time, two, batch, projection], float32, and the state after the last
      position of each row.
    """
    inputs, weights, state = alike((inputs.astype(jnp.float32), weights, state))
    return _recurrence(options, inputs, weights, state, lengths, reset)


def _in_layout(run: Callable[..., Any], options: LayerOptions, *arguments: Any) -> Any:
    cpu, accelerator, tpu = (
        partial(run, options, layout) for layout in (CPU_LAYOUT, GPU_LAYOUT, TPU_LAYOUT)
    )
    own = {"cpu": cpu, "accelerator": accelerator, "tpu": tpu}
    return by_platform(options.platform, *arguments, **own)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(options: LayerOptions, *arguments: Any) -> tuple[Array, State]:
    return _save(options, *arguments)[0]


def _save(options: LayerOptions, *arguments: Any) -> tuple[tuple[Array, State], Saved]:
    return _in_layout(_forward, options, *arguments)


def _gradient(options: LayerOptions, saved: Saved, cotangents: Any) -> tuple[Any, ...]:
    gradients = _in_layout(_backward, options, saved, cotangents)
    return *gradients, None, None


_recurrence.defvjp(_save, _gradient)


def _forward(
    options: LayerOptions,
    layout: GateLayout,
    inputs: Array,
    weights: Weights,
    state: State,
    lengths: Array | None,
    reset: Reset | None,
) -> tuple[tuple[Array, State], Saved]:
    dtype, transpose = options.dtype, partial(_transposed, layout)
    cell_clip, projection_clip = options.cell_clip, options.projection_clip
    parts = _parts(layout, weights.kernel).astype(dtype)
    kernels = transpose(list(parts) if layout.split_kernel else parts)
    biases = [_row(layout, part) for part in _parts(layout, weights.bias)]
    inputs, projection = inputs.astype(dtype), weights.projection.astype(dtype)
    x, projection, first = transpose((inputs, projection, state))
    ends = None if lengths is None else _mask(layout, lengths[None])
    # The backward pass tells by the rounded cell whether it was clipped: one that was
    # not must not round up to the clip, or it would have no gradient.
    below = np.nextafter(np.array(cell_clip, dtype), np.array(0, dtype))

    def step(carry: Any, t: Array) -> tuple[Any, None]:
        state, last, stacks = carry
        state = _reset_rows(layout, reset, t, state)
        read = jnp.concatenate([x[t], state.hidden.astype(dtype)], layout.features)
        pairs = zip(kernels, biases, strict=True)
        z = [_times(layout, read, kernel, dtype) + bias for kernel, bias in pairs]
        gates = [gate for part in z for gate in _split(layout, part.astype(dtype))]
        i, j, f, o = _activated(gates)
        cell = jnp.clip(f * state.cell + i * j, -cell_clip, cell_clip)
        hidden = _times(layout, o * jnp.tanh(cell), projection, dtype)
        if options.axis is not None:
            hidden = sum_over(options.axis, hidden)
        hidden = jnp.clip(hidden, -projection_clip, projection_clip)
        rounded = cell.astype(dtype)
        inside = jnp.clip(rounded, -below, below)
        rounded = jnp.where(jnp.abs(cell) < cell_clip, inside, rounded)
        state = State(cell, hidden)
        if ends is not None:
            last = _choose(ends == t + 1, state, last)
        return (state, last, _put(stacks, (gates, rounded, hidden), t)), None

    dim, out = weights.projection.shape[1:]
    empty = partial(_empty, layout, x)
    gates, cells = [empty(dim, dtype) for _ in range(4)], empty(dim, dtype)
    last = None if ends is None else first
    carry: Any = (first, last, (gates, cells, empty(out, jnp.float32)))
    (after, last, stacks), _ = lax.scan(step, carry, _numbers(x))
    gates, cells, hidden = transpose(stacks)
    saved = Saved(inputs, weights, state, lengths, reset, gates, cells, hidden)
    return (hidden, transpose(after if last is None else last)), saved


def _backward(
    options: LayerOptions,
    layout: GateLayout,
    saved: Saved,
    cotangents: tuple[Array, State],
) -> tuple[Array, Weights, State]:
    dtype, transpose, reset = options.dtype, partial(_transposed, layout), saved.reset
    cell_clip, projection_clip = (
        np.array(options.cell_clip, dtype),
        options.projection_clip,
    )
    kernels = list(_parts(layout, saved.weights.kernel).astype(dtype))
    projection = saved.weights.projection.astype(dtype)
    x, first = transpose((saved.inputs, saved.first))
    gates, cells, hidden = transpose((saved.gates, saved.cells, saved.hidden))
    d_outputs, d_last = transpose(cotangents)
    zeros, lengths = jax.tree.map(jnp.zeros_like, d_last), saved.lengths
    ends = None if lengths is None else _mask(layout, lengths[None])

    def step(carry: Any, t: Array) -> tuple[Any, None]:
        (d_cell, d_hidden), stacks = carry
        if ends is not None:
            added = _choose(ends == t + 1, d_last, zeros)
            d_cell, d_hidden = d_cell + added.cell, d_hidden + added.hidden
        i, j, f, o = _activated([gate[t] for gate in gates])
        before = cells[jnp.maximum(t - 1, 0)].astype(jnp.float32)
        before = jnp.where(t > 0, before, first.cell)
        before = _reset_rows(layout, reset, t, State(before, first.hidden)).cell
        squashed = jnp.tanh(cells[t].astype(jnp.float32))
        d_hidden = d_hidden + d_outputs[t]
        if options.axis is not None:  # each device of the axis holds a share of it
            d_hidden = sum_over(options.axis, d_hidden)
        free = jnp.abs(hidden[t]) < projection_clip
        d_product = jnp.where(free, d_hidden, 0.0).astype(dtype)
        d_m = _times_transposed(layout, d_product, projection, dtype)
        d_cell = d_cell + d_m * o * (1 - squashed**2)
        d_cell = jnp.where(jnp.abs(cells[t]) < cell_clip, d_cell, 0.0)
        d_gates = (
            d_cell * j * i * (1 - i),
            d_cell * i * (1 - j**2),
            d_cell * before * f * (1 - f),
            d_m * squashed * o * (1 - o),
        )
        dz = _in_one(layout, [gate.astype(dtype) for gate in d_gates])
        pairs = zip(dz, kernels, strict=True)
        both = sum(
            _times_transposed(layout, part, kernel, dtype) for part, kernel in pairs
        )
        d_x, d_hidden = jnp.split(both, [x.shape[layout.features]], layout.features)
        d_state = State(d_cell * f, d_hidden)
        if reset is not None:
            d_state = _choose(_mask(layout, reset.here[t]), zeros, d_state)
        return (d_state, _put(stacks, (dz, d_product, d_x), t)), None

    (_, dim, out), inputs = projection.shape, saved.inputs.shape[-1]
    empty = partial(_empty, layout, d_outputs)
    dz = [empty(4 * dim // len(kernels), dtype) for _ in kernels]
    stacks = (dz, empty(out, dtype), empty(inputs, jnp.float32))
    carry = (d_last if ends is None else zeros, stacks)
    (d_state, stacks), _ = lax.scan(step, carry, _numbers(x), reverse=True)
    dz, d_products, d_x = stacks
    if ends is not None:  # of rows without a position
        d_state = jax.tree.map(jnp.add, d_state, _choose(ends == 0, d_last, zeros))
    over = partial(_over_positions, layout, dtype=dtype)
    read = _read_by_products(layout, x, hidden, first, reset)
    d_kernels = [over(read, d_product) for d_product in dz]
    d_kernel = jnp.stack([d_gate[:, : inputs + out] for d_gate in d_kernels], 2)
    d_kernel = d_kernel.reshape(saved.weights.kernel.shape)
    d_bias = jnp.stack([d_gate[:, inputs + out] for d_gate in d_kernels], 1)
    d_bias = d_bias.reshape(saved.weights.bias.shape)
    *_, o = _activated(gates)
    m = (o * jnp.tanh(cells.astype(jnp.float32))).astype(dtype)
    d_weights = (d_kernel, d_bias, over(m, d_products))
    like = zip(d_weights, saved.weights, strict=True)
    d_weights = Weights(*(d_leaf.astype(leaf.dtype) for d_leaf, leaf in like))
    return transpose(d_x), d_weights, transpose(d_state)


def _numbers(x: Array) -> Array:
    return jnp.arange(x.shape[0], dtype=jnp.int32)


def _transposed(layout: GateLayout, tree: Any) -> Any:
    """Arrays [..., batch, features] in the layout, and back; weights [..., in, out]
    too."""
    if layout.features == -1:
        return tree
    return jax.tree.map(lambda array: jnp.swapaxes(array, -1, -2), tree)


def _mask(layout: GateLayout, of_rows: Array) -> Array:
    """[two or 1, batch] beside [two, batch, features] in the layout."""
    return jnp.expand_dims(of_rows, layout.features)


def _row(layout: GateLayout, features: Array) -> Array:
    """[two, features] beside [two, batch, features] in the layout, float32."""
    return jnp.expand_dims(features.astype(jnp.float32), -3 - layout.features)


def _parts(layout: GateLayout, leaf: Array) -> Array:
    """[..., 4, dim] as each product takes it: [products, ..., 4 * dim / products]."""
    split = leaf.reshape(*leaf.shape[:-2], layout.products, -1)
    return jnp.moveaxis(split, -2, 0)


def _split(layout: GateLayout, z: Array) -> list[Array]:
    """The gates that one product makes."""
    return jnp.split(z, 4 // layout.products, layout.features)


def _activated(gates: Sequence[Array]) -> tuple[Array, ...]:
    """i, j, f and o in float32, of what they are before activation."""
    i, j, f, o = (gate.astype(jnp.float32) for gate in gates)
    sigmoid = jax.nn.sigmoid
    return sigmoid(i), jnp.tanh(j), sigmoid(f + FORGET_BIAS), sigmoid(o)


def _in_one(layout: GateLayout, gates: list[Array]) -> list[Array]:
    """The four gates, one array a product: all in one only in `CPU_LAYOUT`.

    Each is written to its place by a loop of its own: one loop over all four is not
    vectorised on a CPU, and the backward pass took 1.4 times as long.
    """
    if layout.products == len(gates):
        return gates
    (two, dim, batch), dtype = gates[0].shape, gates[0].dtype
    whole = varying_as(gates[0], jnp.zeros((two, 4 * dim, batch), dtype))
    for number, gate in enumerate(gates):
        start = (0, number * dim, 0)
        whole = lax.dynamic_update_slice(whole, gate, start)
    return [whole]


def _times(layout: GateLayout, x: Array, weights: Array, dtype: Dtype) -> Array:
    """x times weights [two, in, out], which the layout has transposed."""
    if layout.features == -1:
        return contract("nbi,nio->nbo", x, weights, dtype)
    return contract("noi,nib->nob", weights, x, dtype)


def _times_transposed(
    layout: GateLayout, x: Array, weights: Array, dtype: Dtype
) -> Array:
    """x [.., out] times weights [two, in, out] as they lie."""
    if layout.features == -1:
        return contract("nbo,nio->nbi", x, weights, dtype)
    return contract("nio,nob->nib", weights, x, dtype)


def _over_positions(
    layout: GateLayout, left: Array, right: Array, dtype: Dtype
) -> Array:
    """Sum over time and batch of left times right: [two, left, right], float32."""
    if layout.features == -1:
        return contract("tnbi,tnbo->nio", left, right, dtype)

    def by_position(array: Array) -> Array:
        rows = array.transpose(1, 0, 3, 2)
        return rows.reshape(rows.shape[0], -1, rows.shape[3])

    # A CPU is slow to contract two axes at once.
    return contract("nki,nko->nio", by_position(left), by_position(right), dtype)


def _reset_rows(
    layout: GateLayout, reset: Reset | None, t: Array, state: State
) -> State:
    """`state`, set back in the rows that begin anew at position t."""
    if reset is None:
        return state
    start = State(*(_row(layout, leaf) for leaf in reset.start))
    return _choose(_mask(layout, reset.here[t]), start, state)


def _choose(mask: Array, yes: State, no: State) -> State:
    return State(*(jnp.where(mask, a, b) for a, b in zip(yes, no, strict=True)))


def _empty(layout: GateLayout, like: Array, width: int, dtype: Dtype) -> Array:
    """For a value at each position; each is written before it is read."""
    shape = list(like.shape)
    shape[layout.features] = width
    known = all(isinstance(size, int) for size in shape)  # else a symbolic dimension
    sharding = jax.typeof(like).sharding
    sharding = sharding if sharding.mesh.explicit_axes else None
    make = partial(
        lax.empty if known else jnp.zeros, dtype=dtype, out_sharding=sharding
    )

    @jax.custom_batching.custom_vmap  # in jax 0.10 `empty` is mapped where nothing is
    def empty(like: Array) -> Array:
        return make(tuple(shape))

    @empty.def_vmap
    def _(size: int, mapped: Any, like: Array) -> tuple[Array, bool]:
        return make((size, *shape)), True

    return varying_as(like, empty(like))


def _put(stacks: Any, values: Any, t: Array) -> Any:
    def put(stack: Array, value: Array) -> Array:
        return lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), t, 0)

    return jax.tree.map(put, stacks, values)


def _read_by_products(
    layout: GateLayout, x: Array, hidden: Array, first: State, reset: Reset | None
) -> Array:
    """What each position read, inputs and hidden state, and a 1."""
    before = jnp.concatenate([first.hidden[None], hidden[:-1]])
    if reset is not None:
        start = _row(layout, reset.start.hidden)
        before = jnp.where(_mask(layout, reset.here), start, before)
    one = jnp.ones_like(jnp.split(x, [1], layout.features)[0])
    return jnp.concatenate([x, before.astype(x.dtype), one], layout.features)

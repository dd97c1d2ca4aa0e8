"""The lean recurrence against the reference scan and against plain NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads
from toys import drawn

from elmojax.model.cell import Backend, Options, State, Weights
from elmojax.model.recurrence import recurrence

TIME, BATCH, DIM, PROJECTION, INPUTS = 7, 3, 6, 4, 5
LOW, SOME, NO = (0.5, 0.4), (3.0, 3.0), (1e9, 1e9)
"""Clips: so low that many act, as published, and none."""


def problem(scale=0.8):
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    shapes = (
        shape(TIME, 2, BATCH, INPUTS),
        Weights(
            shape(2, INPUTS + PROJECTION, 4 * DIM),
            shape(2, 4 * DIM),
            shape(2, DIM, PROJECTION),
        ),
        State(shape(2, BATCH, DIM), shape(2, BATCH, PROJECTION)),
    )
    return drawn(shapes, scale=scale)


@partial(jax.jit, static_argnums=(0, 1))
def run(backend, clips, problem, valid=None):
    return recurrence(*problem, Options(*clips, None, backend), valid)


def numpy_lstm(problem, clips, valid=None):
    inputs, weights, state = jax.tree.map(np.float64, problem)
    outputs = np.zeros((TIME, 2, BATCH, PROJECTION))
    for n in range(2):
        layer = [leaf[n] for leaf in weights]
        for b in range(BATCH):
            c, h = state.cell[n, b], state.hidden[n, b]
            for t in range(TIME):
                if valid is None or valid[t, b]:
                    c, h = reference.lstm_step(inputs[t, n, b], c, h, *layer, clips)
                    outputs[t, n, b] = h
            state.cell[n, b], state.hidden[n, b] = c, h
    return outputs, *state


RAGGED = np.arange(TIME)[:, None] < np.array([7, 0, 4])


@pytest.mark.parametrize("valid", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("backend", Backend)
def test_values_are_the_published_equations(backend, valid):
    outputs, state = run(backend, LOW, problem(), valid)
    expected = numpy_lstm(problem(), LOW, valid)
    assert (np.abs(expected[0]) == LOW[1]).mean() > 0.1, "no clip is active"
    assert (np.abs(expected[1]) == LOW[0]).mean() > 0.1, "no clip is active"
    for got, wanted in zip((outputs, *state), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@partial(jax.jit, static_argnums=0)
def gradients(options, problem):
    """Of a loss that reads every output and the last state, each differently."""
    weights = jnp.sin(jnp.arange(TIME * 2 * BATCH * PROJECTION, dtype=jnp.float32))

    def loss(problem):
        outputs, state = recurrence(*problem, options)
        last = jnp.sin(state.cell).sum() + (state.hidden**2).sum()
        return jnp.vdot(weights, outputs.reshape(-1)) + last

    return jax.grad(loss)(problem)


@pytest.mark.parametrize("platform", ["cpu", "accelerator"])
@pytest.mark.parametrize(
    ("clips", "dtype"),
    [(LOW, "float32"), (SOME, "float32"), (NO, "float32"), (LOW, "bfloat16")],
    ids=str,
)
def test_lean_gradients_equal_those_of_the_reference(clips, dtype, platform):
    """In bfloat16 both round the same factors; the lean form also keeps gates rounded,
    by up to 2**-9 of each, and the gradient moves by no more than a few of that."""
    lean, plain = (
        gradients(
            Options(*clips, None, backend, jnp.dtype(dtype), platform), problem(0.7)
        )
        for backend in (Backend.LEAN, Backend.REFERENCE)
    )
    for got, wanted in zip(*map(jax.tree.leaves, (lean, plain)), strict=True):
        assert np.abs(wanted).max() > 1e-3 and got.dtype == jnp.float32
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert error < (2e-6 if dtype == "float32" else 4 * 2**-9)


def test_gradients_equal_finite_differences():
    @jax.jit
    def of(problem):
        return jnp.sin(run(Backend.LEAN, SOME, problem)[0]).sum()

    check_grads(of, (problem(0.3),), 1, ["rev"], 2e-2, 2e-2)


def test_carrying_the_state_equals_one_pass():
    inputs, weights, state = problem()
    whole, end = run(Backend.LEAN, LOW, (inputs, weights, state))
    outputs = []
    for t in range(TIME):
        y, state = run(Backend.LEAN, LOW, (inputs[t : t + 1], weights, state))
        outputs.append(y[0])
    np.testing.assert_allclose(np.stack(outputs), whole, atol=1e-6)
    for got, wanted in zip(state, end, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_half_width_products_keep_a_float32_cell():
    """Whether the products are told so, or the weights are of that kind."""
    inputs, weights, state = problem(0.7)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    options = Options(*SOME, dtype=jnp.bfloat16)
    outputs, last = jax.jit(recurrence, static_argnums=3)(inputs, half, state, options)
    exact, _ = run(Backend.LEAN, SOME, (inputs, weights, state))
    assert last.cell.dtype == outputs.dtype == jnp.float32
    error = np.abs(outputs - exact).max()
    assert 0 < error < 0.05

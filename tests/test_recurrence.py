"""The lean recurrence against the reference scan and against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from elmojax.model.recurrence import Backend, Options, State, Weights, recurrence

TIME, BATCH, DIM, PROJECTION = 7, 3, 6, 4


INPUTS = 5


def problem(seed=0, scale=0.8):
    keys = iter(jax.random.split(jax.random.key(seed), 6))

    def draw(*shape):
        return scale * jax.random.normal(next(keys), shape)

    inputs = draw(TIME, 2, BATCH, INPUTS)
    kernel, bias = draw(2, INPUTS + PROJECTION, 4 * DIM), draw(2, 4 * DIM)
    weights = Weights(kernel, bias, draw(2, DIM, PROJECTION))
    return inputs, weights, State(draw(2, BATCH, DIM), draw(2, BATCH, PROJECTION))


def run(backend, clips, problem, valid=None):
    return recurrence(*problem, Options(*clips, None, backend), valid)


def numpy_lstm(problem, clips, valid=None):
    """The published equations, one number at a time, in float64."""
    inputs, weights, state = problem
    kernel, bias, projection = (np.float64(w) for w in weights)
    cell, hidden = (np.float64(s) for s in state)
    outputs = np.zeros((TIME, 2, BATCH, PROJECTION))
    for n in range(2):
        for b in range(BATCH):
            c, h = cell[n, b], hidden[n, b]
            for t in range(TIME):
                if valid is not None and not valid[t, b]:
                    continue
                z = np.concatenate([inputs[t, n, b], h]) @ kernel[n] + bias[n]
                i, j, f, o = np.split(z, 4)
                i, f, o = (1 / (1 + np.exp(-x)) for x in (i, f + 1, o))
                c = np.clip(f * c + i * np.tanh(j), -clips[0], clips[0])
                h = (o * np.tanh(c)) @ projection[n]
                h = np.clip(h, -clips[1], clips[1])
                outputs[t, n, b] = h
            cell[n, b], hidden[n, b] = c, h
    return outputs, cell, hidden


RAGGED = np.arange(TIME)[:, None] < np.array([7, 0, 4])


@pytest.mark.parametrize("valid", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("backend", Backend)
def test_values_are_the_published_equations(backend, valid):
    clips = (0.5, 0.4)
    outputs, state = run(backend, clips, problem(), valid)
    expected = numpy_lstm(problem(), clips, valid)
    assert (np.abs(expected[0]) == clips[1]).mean() > 0.1, "no clip is active"
    for got, wanted in zip((outputs, *state), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("clips", [(0.5, 0.4), (3.0, 3.0), (1e9, 1e9)])
def test_lean_gradients_equal_those_of_the_reference(clips):
    weights = jax.random.normal(jax.random.key(9), (TIME, 2, BATCH, PROJECTION))

    def loss(backend):
        def of(problem):
            outputs, state = run(backend, clips, problem)
            last = jnp.sin(state.cell).sum() + (state.hidden**2).sum()
            return (weights * outputs).sum() + last

        return jax.grad(of)(problem(scale=0.7))

    lean, reference = loss(Backend.LEAN), loss(Backend.REFERENCE)
    leaves = zip(*map(jax.tree.leaves, (lean, reference)), strict=True)
    for got, wanted in leaves:
        assert np.abs(wanted).max() > 1e-3
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert error < 2e-6


def test_gradients_equal_finite_differences():
    clips = (3.0, 3.0)

    def of(problem):
        return jnp.sin(run(Backend.LEAN, clips, problem)[0]).sum()

    check_grads(of, (problem(scale=0.3),), 1, ["rev"], 2e-2, 2e-2)


def test_carrying_the_state_equals_one_pass():
    clips = (0.5, 0.4)
    inputs, weights, state = problem()
    whole, end = run(Backend.LEAN, clips, (inputs, weights, state))
    first, middle = run(Backend.LEAN, clips, (inputs[:3], weights, state))
    second, last = run(Backend.LEAN, clips, (inputs[3:], weights, middle))
    np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=1e-6)
    np.testing.assert_allclose(last.cell, end.cell, atol=1e-6)


def test_half_width_products_keep_a_float32_cell():
    inputs, weights, state = problem(scale=0.7)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    clips = (3.0, 3.0)
    outputs, last = run(Backend.LEAN, clips, (inputs, half, state))
    exact, _ = run(Backend.LEAN, clips, (inputs, weights, state))
    assert last.cell.dtype == outputs.dtype == jnp.float32
    error = np.abs(outputs - exact).max()
    assert 0 < error < 0.05

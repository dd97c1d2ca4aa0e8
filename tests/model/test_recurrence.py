"""The recurrence against a plain scan that JAX differentiates, and against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads
from toys import drawn

from elmojax.model.recurrence import LayerOptions, Reset, State, Weights, recurrence

pytestmark = pytest.mark.usefixtures("quick_compilation")

TIME, BATCH, DIM, PROJECTION, INPUTS = 7, 3, 6, 4, 5
LOW, SOME, NO = (0.5, 0.4), (3.0, 3.0), (1e9, 1e9)
"""Clips: so low that many act, as published, and none."""
LENGTHS = np.array([7, 0, 4], np.int32)
BEGINS = np.zeros((TIME, 2, BATCH), bool)
BEGINS[[0, 3, 6], :, [0, 0, 2]] = True
BEGINS[5, 1, 1] = True
"""In both directions, and in one."""


def problem(scale=0.8, batch=BATCH):
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    shapes = (
        shape(TIME, 2, batch, INPUTS),
        Weights(
            shape(2, INPUTS + PROJECTION, 4, DIM),
            shape(2, 4, DIM),
            shape(2, DIM, PROJECTION),
        ),
        State(shape(2, batch, DIM), shape(2, batch, PROJECTION)),
    )
    return drawn(shapes, scale=scale)


def starts():
    shapes = State(
        *(jax.ShapeDtypeStruct((2, n), jnp.float32) for n in (DIM, PROJECTION))
    )
    return Reset(BEGINS, drawn(shapes, seed=5))


ROWS = {
    "full": {},
    "ragged": {"lengths": LENGTHS},
    "begun": {"reset": starts()},
    "both": {"lengths": LENGTHS, "reset": starts()},
}


@partial(jax.jit, static_argnums=(0, 1))
def run(options, form, problem, rows):
    return form(options, *problem, **rows)


def numpy_lstm(problem, clips, lengths=None, reset=None):
    inputs, weights, state = jax.tree.map(np.float64, problem)
    outputs = np.zeros((TIME, 2, BATCH, PROJECTION))
    for n in range(2):
        kernel, bias, projection = (leaf[n] for leaf in weights)
        layer = kernel.reshape(len(kernel), -1), bias.ravel(), projection
        for b in range(BATCH):
            c, h = state.cell[n, b], state.hidden[n, b]
            for t in range(TIME if lengths is None else lengths[b]):
                if reset is not None and reset.here[t, n, b]:
                    c, h = reset.start.cell[n], reset.start.hidden[n]
                c, h = reference.lstm_step(inputs[t, n, b], c, h, *layer, clips)
                outputs[t, n, b] = h
            state.cell[n, b], state.hidden[n, b] = c, h
    return outputs, *state


def real(rows):
    """What the outputs mean: 1 at the positions of a row, else 0."""
    lengths = rows.get("lengths", np.full(BATCH, TIME))
    return (np.arange(TIME)[:, None] < lengths[None])[:, None, :, None]


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("platform", ["cpu", "accelerator"])
def test_values_are_the_published_equations(platform, rows):
    options = LayerOptions(*LOW, platform=platform)
    outputs, state = run(options, recurrence, problem(), rows)
    expected = numpy_lstm(problem(), LOW, **rows)
    assert (np.abs(expected[0]) == LOW[1]).mean() > 0.1, "no clip is active"
    assert (np.abs(expected[1]) == LOW[0]).mean() > 0.1, "no clip is active"
    found = (np.where(real(rows), outputs, 0), *state)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@partial(jax.jit, static_argnums=(0, 1))
def gradients(options, form, problem, rows):
    """Of a loss that reads every output and the last state, each differently."""
    weights = jnp.sin(jnp.arange(TIME * 2 * BATCH * PROJECTION, dtype=jnp.float32))

    def loss(problem):
        outputs, state = form(options, *problem, **rows)
        last = jnp.sin(state.cell).sum() + (state.hidden**2).sum()
        outputs = jnp.where(real(rows), outputs, 0.0)
        return jnp.vdot(weights, outputs.reshape(-1)) + last

    return jax.grad(loss)(problem)


@pytest.mark.parametrize("rows", [{}, ROWS["both"]], ids=["full", "both"])
@pytest.mark.parametrize("platform", ["cpu", "accelerator"])
@pytest.mark.parametrize(
    ("clips", "dtype"),
    [(LOW, "float32"), (SOME, "float32"), (NO, "float32"), (LOW, "bfloat16")],
    ids=str,
)
def test_gradients_equal_those_of_a_plain_scan(clips, dtype, platform, rows):
    """In bfloat16 both round the same factors; for the way back cells are kept rounded,
    by up to 2**-9 of each, and the gradient moves by no more than a few of that."""
    options = LayerOptions(*clips, jnp.dtype(dtype), platform=platform)
    forms = (recurrence, reference.recurrence)
    own, plain = (gradients(options, form, problem(0.7), rows) for form in forms)
    for got, wanted in zip(*map(jax.tree.leaves, (own, plain)), strict=True):
        assert np.abs(wanted).max() > 1e-3 and got.dtype == jnp.float32
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert error < (2e-6 if dtype == "float32" else 4 * 2**-9)


def test_gradients_equal_finite_differences():
    @jax.jit
    def of(problem):
        return jnp.sin(run(LayerOptions(*SOME), recurrence, problem, {})[0]).sum()

    check_grads(of, (problem(0.3),), 1, ["rev"], 2e-2, 2e-2)


def test_carrying_the_state_equals_one_pass():
    inputs, weights, state = problem()
    step = partial(run, LayerOptions(*LOW), recurrence)
    whole, end = step((inputs, weights, state), {})
    outputs = []
    for t in range(TIME):
        y, state = step((inputs[t : t + 1], weights, state), {})
        outputs.append(y[0])
    np.testing.assert_allclose(np.stack(outputs), whole, atol=1e-6)
    for got, wanted in zip(state, end, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_half_width_products_keep_a_float32_cell():
    """Whether the products are told so, or the weights are of that kind."""
    inputs, weights, state = problem(0.7)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    options = LayerOptions(*SOME, jnp.bfloat16)
    outputs, last = run(options, recurrence, (inputs, half, state), {})
    exact, _ = run(LayerOptions(*SOME), recurrence, (inputs, weights, state), {})
    assert last.cell.dtype == outputs.dtype == jnp.float32
    error = np.abs(outputs - exact).max()
    assert 0 < error < 0.05


def test_a_cell_just_below_its_clip_is_not_clipped_for_the_way_back():
    """bfloat16 rounds 2.999 to 3; the gradient still passes."""
    inputs, weights, state = problem(0.0, 1)
    still = Weights(weights.kernel, weights.bias.at[:, 2].set(30.0), weights.projection)
    options = LayerOptions(*SOME, jnp.bfloat16)

    def last_cell(cell):
        begin = State(jnp.full_like(state.cell, cell), state.hidden)
        return recurrence(options, inputs[:1], still, begin)[1].cell.sum()

    assert jax.grad(last_cell)(2.999) == pytest.approx(2 * DIM, rel=1e-5)
    assert jax.grad(last_cell)(3.001) == 0


def test_every_element_of_what_is_kept_is_written():
    """The stacks begin as memory that nobody cleared; on a CPU that is zeros, so this
    fills them with NaN."""
    import elmojax.model.recurrence as module

    def filled(layout, like, width, dtype):
        return jnp.full_like(given_empty(layout, like, width, dtype), jnp.nan)

    given_empty = module._empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_empty", filled)
        for platform in ("cpu", "accelerator"):
            options = LayerOptions(*SOME, jnp.bfloat16, platform=platform)
            found = jax.jit(partial(gradients.__wrapped__, options, recurrence))(
                problem(0.7), ROWS["both"]
            )
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))

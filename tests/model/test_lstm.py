"""Carried state: batch after batch, other batch sizes, and the converged start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elmojax
from elmojax.config import CharCnnConfig, ElmoConfig, LstmConfig
from elmojax.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

encode = jax.jit(elmojax.encode)
SENTENCES = [["The", "river", "bank"], ["Hi"], ["a", "b", "c", "d"], []]


@pytest.fixture(scope="module")
def params():
    encoder = CharCnnConfig(((1, 4), (2, 4)), 4, 1)
    return elmojax.init(ElmoConfig(encoder, LstmConfig(12, 6)), jax.random.key(0))


def tokens(*which):
    return jnp.asarray(elmojax.batch_to_ids([SENTENCES[i] for i in which]))


def test_rows_beyond_a_smaller_batch_keep_their_state(params):
    first = encode(params, tokens(0, 1, 2)).state
    second = encode(params, tokens(2), first).state
    assert second.cell.shape[2] == 3
    for now, before in zip(*map(jax.tree.leaves, (second, first)), strict=True):
        np.testing.assert_array_equal(now[:, :, 1:], before[:, :, 1:])
        assert np.abs(now[:, :, 0] - before[:, :, 0]).max() > 1e-4


def test_rows_that_the_state_lacks_start_afresh(params):
    first = encode(params, tokens(0)).state
    both = encode(params, tokens(1, 2), first)
    carried = encode(params, tokens(1), first)
    fresh = encode(params, tokens(2))
    np.testing.assert_allclose(both.layers[0, :, :1], carried.layers[0], atol=1e-6)
    np.testing.assert_allclose(both.layers[1], fresh.layers[0], atol=1e-6)
    assert both.state.cell.shape[2] == 2


def test_an_empty_sentence_moves_the_state(params):
    state = encode(params, tokens(0)).state
    after = encode(params, tokens(3), state).state
    assert np.abs(after.cell - state.cell).max() > 1e-4


def test_sentence_marks_can_be_kept(params):
    batch = tokens(0, 1, 3)
    plain, marked = encode(params, batch), elmojax.encode(params, batch, None, True)
    assert marked.layers.shape[2] == batch.shape[1] + 2
    np.testing.assert_array_equal(marked.mask.sum(1), plain.mask.sum(1) + 2)
    np.testing.assert_array_equal(marked.layers[0, :, 1:-1], plain.layers[0])
    np.testing.assert_array_equal(marked.layers[1, :, 3:], 0.0)
    assert np.abs(marked.layers[2, :, :2]).max() > 0.01


def test_warm_starts_where_reading_on_changes_nothing(params):
    text = tokens(0, 1)
    warmed = elmojax.warm(params, text, tolerance=1e-6)
    again = elmojax.warm(params, text, tolerance=1e-6)
    for one, other in zip(
        *map(jax.tree.leaves, (warmed.initial_state, again.initial_state)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    state = warmed.initial_state.for_batch(1)
    for i in (0, 1):
        state = encode(params, tokens(i), state).state
    np.testing.assert_allclose(
        state.cell[:, :, 0], warmed.initial_state.cell, atol=2e-6
    )
    cold, hot = (encode(p, text).layers for p in (params, warmed))
    assert np.abs(cold - hot).max() > 1e-3
    np.testing.assert_array_equal(cold[:, 0], hot[:, 0])


def test_warm_equals_carrying_the_state_for_long(params):
    """What a user of bilm-tf sees after reading the same sentence many times."""
    state = None
    for _ in range(60):
        carried = encode(params, tokens(0), state)
        state = carried.state
    warmed = encode(elmojax.warm(params, tokens(0), tolerance=1e-6), tokens(0))
    np.testing.assert_allclose(warmed.layers, carried.layers, atol=1e-5)


def test_warm_gives_up_with_a_sentence(params):
    with pytest.raises(InputError, match="still changes"):
        elmojax.warm(params, limit=1)

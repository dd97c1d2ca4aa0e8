"""What the biLM may see, how many parameters it has, and its other encoder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from toys import TINY, drawn, tiny_params

import elmojax
from elmojax import ElmoConfig, LstmState
from elmojax.config import CharCnnConfig, LstmConfig, WordTableConfig
from elmojax.embedding.functions import contextualize
from elmojax.model.bilm import BiLM, init_tree

pytestmark = pytest.mark.usefixtures("quick_compilation")

DEEP = replace(
    TINY, lstm=LstmConfig(dim=5, projection=3, layers=3, skip_connections=True)
)
TIME, WIDTH = 5, 3


@pytest.fixture(scope="module")
def deep():
    return tiny_params(DEEP)


def test_forward_sees_no_future_and_backward_no_past(deep):
    """Derivatives of every layer by the vector of every word.

    Sentence 1 has two words less, which the backward direction must leap over.
    """
    lengths = np.array([TIME, TIME - 2])
    mask = jnp.asarray(np.arange(TIME)[None] < lengths[:, None])
    words = drawn(jax.ShapeDtypeStruct((2, TIME, WIDTH), jnp.float32), seed=5)

    @jax.jit
    @jax.jacrev
    def jacobian(words):
        return contextualize(deep, words, mask).layers

    # batch, layer, t, vector, batch, s, word vector
    sees = np.abs(jacobian(words)).max(axis=-1)
    for b, length in enumerate(lengths):
        assert not np.any(sees[b, ..., 1 - b, :]), "sentences see each other"
        assert not np.any(sees[b, :, length:]), "padding sees something"
        for layer in range(4):
            forward, backward = np.split(sees[b, layer], 2, axis=1)
            for t in range(length):
                f, g = forward[t, :, b], backward[t, :, b]  # [vector, s]
                here, after = t, length
                if layer == 0:
                    assert np.all(f.max(axis=0)[here] > 0)
                    assert not np.any(np.delete(f, here, axis=1))
                    assert not np.any(np.delete(g, here, axis=1))
                    continue
                assert not np.any(f[:, here + 1 :]), "forward sees the future"
                assert not np.any(g[:, :here]), "backward sees the past"
                assert not np.any(g[:, after:]), "backward sees padding"
                assert np.all(f[:, : here + 1] != 0), "forward misses its past"
                assert np.all(g[:, here:after] != 0), "backward misses its future"


def test_training_reads_each_direction_apart(deep):
    """The same for the recurrence that trains: no mask, its own gradient."""
    inputs = drawn(jax.ShapeDtypeStruct((TIME, 2, 2, WIDTH), jnp.float32), seed=5)
    state = drawn(LstmState.zeros(DEEP.lstm, 2), seed=6)

    @jax.jit
    @jax.jacrev
    def jacobian(inputs):
        tree = {"params": deep.tree}
        return BiLM(DEEP).apply(tree, inputs, state, method="contextualize")[0]

    # layer, t, direction, row, vector, s, direction, row, word vector
    sees = np.abs(jacobian(inputs)).max(axis=-1)
    for direction in range(2):
        for row in range(2):
            one = sees[:, :, direction, row]
            assert not np.any(one[..., 1 - direction, :]), "directions see each other"
            assert not np.any(one[..., 1 - row]), "rows see each other"
            allowed = np.tri(TIME, dtype=bool)[None, :, None]  # s <= t
            seen = one[..., direction, row] != 0
            np.testing.assert_array_equal(seen, np.broadcast_to(allowed, seen.shape))


def test_all_layers_are_the_published_equations():
    """Skip connections from the second layer on, clips active, in NumPy."""
    config = replace(DEEP, lstm=replace(DEEP.lstm, cell_clip=0.5, projection_clip=0.3))
    params = tiny_params(config, scale=0.8)
    inputs = drawn(jax.ShapeDtypeStruct((TIME, 2, 2, WIDTH), jnp.float32), seed=5)
    state = LstmState.zeros(config.lstm, 2)
    run = jax.jit(partial(BiLM(config).apply, method="contextualize"))
    outputs, after = run({"params": params.tree}, inputs, state)
    for direction in range(2):
        for row in range(2):
            stream = reference.Stream(params.lstm, config.lstm, direction)
            wanted = [stream.read(np.float64(x[direction, row])) for x in inputs]
            got = outputs[:, :, direction, row].swapaxes(0, 1)
            np.testing.assert_allclose(got, np.stack(wanted), atol=2e-6)
            for state, theirs in (
                (after.cell, stream.cells),
                (after.hidden, stream.hiddens),
            ):
                np.testing.assert_allclose(state[:, direction, row], theirs, atol=2e-6)


PRESETS = {
    "mini": (1_356_944, 1.4),
    "small": (13_593_296, 13.6),
    "medium": (28_027_728, 28.0),
    "original": (93_600_848, 93.6),
}
"""Parameters without the softmax, and the millions of allennlp.org's table."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    config = ElmoConfig.preset(name)
    tree = jax.eval_shape(lambda: init_tree(config, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert (count, round(count / 1e6, 1)) == PRESETS[name]


@pytest.mark.parametrize("dim", [4, 6], ids=["projected", "direct"])
def test_a_table_of_words_instead_of_characters(dim):
    size, width = 10, TINY.lstm.projection
    config = replace(TINY, encoder=WordTableConfig(size, dim))
    params = tiny_params(config)
    assert set(params.encoder) == {"embedding"} | (
        {"projection_kernel"} if dim != width else set()
    )
    ids = np.array([[4, 10, 0], [3, 3, 7]], np.int32)
    encoded = jax.jit(elmojax.encode)(params, ids)
    np.testing.assert_array_equal(encoded.mask, ids > 0)

    # Row id - 1 of the table; a vocabulary begins with <S> and </S>.
    table = np.float64(params.encoder["embedding"])
    table = table @ np.float64(params.encoder.get("projection_kernel", np.eye(dim)))
    for row, sentence in enumerate(([3, 9], [2, 2, 6])):
        marked = [0, *sentence, 1]
        directions = []
        for direction, order in enumerate((marked, marked[::-1])):
            stream = reference.Stream(params.lstm, config.lstm, direction)
            layers = np.stack([stream.read(table[word]) for word in order], axis=1)
            directions.append(layers[:, :: 1 - 2 * direction][:, 1:-1])
        words = table[sentence]
        token_layer = np.concatenate([words, words], axis=-1)[None]
        wanted = np.concatenate([token_layer, np.concatenate(directions, axis=-1)])
        got = encoded.layers[row, :, : len(sentence)]
        np.testing.assert_allclose(got, wanted, atol=3e-6)


def test_half_width_parameters_give_float32_vectors():
    params = tiny_params()
    tokens = elmojax.batch_to_ids([["a", "river", "bank"], ["Hi"]], 12)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    half = half.replace(initial_state=params.initial_state)
    embed = jax.jit(elmojax.embed)
    gammas = np.full(3, 1 / 3, np.float32)
    exact, got = embed(params, tokens, gammas), embed(half, tokens, gammas)
    assert got.dtype == jnp.float32
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.03


def test_the_initial_values_are_those_of_bilm_tf():
    """Spread of each kind of parameter, at sizes where chance is small."""
    config = ElmoConfig(
        CharCnnConfig(((1, 32), (3, 64)), highway_layers=1, max_characters=10),
        LstmConfig(64, 32),
    )
    params = elmojax.init(config, jax.random.key(0))
    encoder, lstm = params.encoder, params.lstm

    def uniform(leaf, bound):
        assert bound * 0.98 < np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.05)

    uniform(encoder["embedding"], 1.0)
    uniform(encoder["convolution_1_kernel"], 0.05)
    uniform(lstm["kernel_0"], (6 / (64 + 4 * 64)) ** 0.5)
    uniform(lstm["projection_0"], (6 / (64 + 32)) ** 0.5)
    assert np.std(encoder["projection_kernel"]) == pytest.approx(96**-0.5, rel=0.05)
    np.testing.assert_array_equal(encoder["highway_0_carry_bias"], -2)
    zeros = ("convolution_0_bias", "highway_0_transform_bias", "projection_bias")
    assert not any(np.any(encoder[name]) for name in zeros)
    assert not np.any(lstm["bias_0"])
    forward, backward = lstm["kernel_0"]
    assert np.abs(forward - backward).max() > 0.1, "the directions start alike"

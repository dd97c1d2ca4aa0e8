"""The character CNN against loops in NumPy and against `lax.conv`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from toys import drawn

from elmojax.config import CharCnnConfig, MeshConfig, WordTableConfig
from elmojax.model import char_cnn
from elmojax.model.char_cnn import CharCnn, WordTable
from elmojax.text.characters import character_ids
from elmojax.training.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

FILTERS = ((1, 3), (2, 4), (4, 6))
WORDS = ["a", "", "<S>", "word", "日本", "seventeen-letters", "No", "no"]
SIZE, PROJECTION = 20, 5


def config(activation="relu", highway_layers=1):
    return CharCnnConfig(FILTERS, 4, highway_layers, activation, SIZE)


def parameters(config, seed=0):
    ids = jnp.ones((1, SIZE), jnp.int32)
    module = CharCnn(config, PROJECTION)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    return drawn(shapes, seed)


@partial(jax.jit, static_argnums=0)
def vectors(config, params, ids):
    return CharCnn(config, PROJECTION).apply({"params": params}, ids)


IDS = character_ids(WORDS, SIZE)


@pytest.mark.parametrize("highway_layers", [0, 1, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_equals_loops_in_numpy(activation, highway_layers):
    made = config(activation, highway_layers)
    params = parameters(made)
    widths = [width for width, _ in FILTERS]
    wanted = reference.char_cnn(params, IDS, widths, activation)
    got = vectors(made, params, IDS)
    assert got.dtype == jnp.float32 and np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(got, wanted, atol=3e-6)
    assert len(np.unique(wanted.round(3), axis=0)) == len(WORDS)


def test_columns_of_padding_change_nothing():
    """One window of padding for the widest filter is as good as many."""
    params = parameters(config())
    short = [i for i, word in enumerate(WORDS) if len(word.encode()) <= 6]
    whole = vectors(config(), params, IDS)
    cut = vectors(config(), params, IDS[short, : 6 + 2 + 4])
    np.testing.assert_allclose(cut, whole[np.array(short)], atol=1e-6)


def by_convolution(params, ids, activation):
    """The same with XLA's convolution, summed and differentiated by JAX."""
    letters = params["embedding"][ids - 1]
    features = []
    for number in range(len(FILTERS)):
        kernel = params[f"convolution_{number}_kernel"]
        responses = jax.lax.conv_general_dilated(
            letters, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        bias = params[f"convolution_{number}_bias"]
        features.append((responses + bias[None, None]).max(axis=1))
    x = getattr(jax.nn, activation)(jnp.concatenate(features, axis=-1))

    def linear(name, x):
        return x @ params[f"{name}_kernel"] + params[f"{name}_bias"][None]

    carry = jax.nn.sigmoid(linear("highway_0_carry", x))
    x = carry * jax.nn.relu(linear("highway_0_transform", x)) + (1 - carry) * x
    return linear("projection", x)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_equal_those_of_a_convolution(activation):
    made = config(activation)
    params = parameters(made)
    weights = np.random.default_rng(1).standard_normal((len(WORDS), PROJECTION))
    weights = jnp.asarray(weights, jnp.float32)

    @jax.jit
    def both(params):
        ours = jax.grad(lambda p: (weights * vectors(made, p, IDS)).sum())
        plain = jax.grad(lambda p: (weights * by_convolution(p, IDS, activation)).sum())
        return ours(params), plain(params)

    ours, plain = both(params)
    for name, wanted in plain.items():
        assert np.abs(wanted).max() > 1e-3, name
        error = np.abs(ours[name] - wanted).max() / np.abs(wanted).max()
        assert error < 1e-5, name
    unread = np.setdiff1d(np.arange(261), IDS.astype(int) - 1)
    assert not np.any(ours["embedding"][unread])


def test_id_zero_is_no_error():
    """No word: its vector means nothing, and is finite."""
    made = vectors(config(), parameters(config()), np.zeros_like(IDS))
    assert np.isfinite(made).all()


def largest_responses(table, kernels, ids):
    """The definition, to be differentiated by JAX."""
    found = []
    for kernel in kernels:
        windows = ids.shape[1] - len(kernel) + 1
        terms = [table[ids[:, k : k + windows]] @ kernel[k] for k in range(len(kernel))]
        found.append(sum(terms).max(axis=1))
    return jnp.concatenate(found, axis=1)


@pytest.mark.usefixtures("users_compilation")
@pytest.mark.parametrize("platform", ["cpu", "accelerator", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_forms_of_every_platform(monkeypatch, platform, dtype):
    """More words than a block, the last block not full; gradients are float32.

    In bfloat16 a gradient's factors are rounded to 8 bits, so it is within 2**-8 of
    that of the rounded weights, as a norm; the responses themselves are exact.
    """
    monkeypatch.setattr(char_cnn, "BLOCK", char_cnn.CPU_BLOCK * 9)
    count = 2 * char_cnn.CPU_BLOCK + 5
    random = np.random.default_rng(0)
    ids = jnp.asarray(random.integers(0, 30, (count, 9)), jnp.int32)
    weights = (
        jnp.asarray(random.standard_normal((30, 4)), jnp.float32),
        tuple(
            jnp.asarray(random.standard_normal((width, 4, filters)), jnp.float32)
            for width, filters in FILTERS
        ),
    )
    pooled = partial(
        char_cnn.pooled_responses, ids=ids, dtype=jnp.dtype(dtype), platform=platform
    )
    rounded = jax.tree.map(lambda w: w.astype(dtype).astype(jnp.float32), weights)
    wanted, pull = jax.vjp(partial(largest_responses, ids=ids), *rounded)
    alone = jax.jit(pooled)(*weights)
    np.testing.assert_allclose(alone, wanted, atol=1e-5)
    best, pull_ours = jax.vjp(jax.jit(pooled), *weights)
    np.testing.assert_allclose(best, wanted, atol=1e-5)
    d_best = jnp.asarray(random.standard_normal(best.shape), jnp.float32)
    tolerance = 1e-6 if dtype == "float32" else 2**-8
    for got, plain in zip(
        jax.tree.leaves(pull_ours(d_best)), jax.tree.leaves(pull(d_best)), strict=True
    ):
        assert got.dtype == jnp.float32
        assert np.linalg.norm(got - plain) < tolerance * np.linalg.norm(plain)
        assert np.abs(plain).max() > 1


@pytest.mark.usefixtures("users_compilation")
@pytest.mark.parametrize("platform", ["cpu", "accelerator", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_equal_maxima(monkeypatch, platform, dtype):
    """Numbers so small that all is exact, and most maxima stand in several windows."""
    monkeypatch.setattr(char_cnn, "BLOCK", char_cnn.CPU_BLOCK * 9)
    count = char_cnn.CPU_BLOCK + 7
    random = np.random.default_rng(0)

    def small(*shape):
        return random.integers(-1, 2, shape).astype(np.float32)

    ids = random.integers(0, 30, (count, 9)).astype(np.int32)
    table = small(30, 4)
    kernels = tuple(small(width, 4, filters) for width, filters in FILTERS)
    best, where = reference.first_largest(table, kernels, ids)
    d_best = small(*best.shape)
    wanted = reference.gradient_of_largest(table, kernels, ids, where, d_best)

    @jax.jit
    def both(table, kernels):
        options = {"dtype": jnp.dtype(dtype), "platform": platform}
        run = partial(char_cnn.pooled_responses, ids=ids, **options)
        got, pull = jax.vjp(run, table, kernels)
        return run(table, kernels), got, pull(d_best)

    *got, gradient = both(table, kernels)
    for values in got:
        np.testing.assert_array_equal(values, best)
    for got, plain in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_array_equal(got, plain)


@pytest.mark.parametrize("shape", [None, (1, 1), (4, 1), (4, 2)])
def test_two_tables(shape):
    """Each shard's vectors together, one table after the other; and the gradient."""
    mesh = shape and make_mesh(MeshConfig(*shape))
    shards, params = shape[0] if shape else 1, parameters(config())
    random = np.random.default_rng(0)
    tables = tuple(
        random.integers(1, 262, (shards, rows, columns)).astype(np.int32)
        for rows, columns in ((6, 9), (2, SIZE))
    )
    weights = random.standard_normal((shards, 8, PROJECTION)).astype(np.float32)

    def together(params):
        flat = tuple(table.reshape(-1, table.shape[-1]) for table in tables)
        encoder = CharCnn(config(), PROJECTION, mesh)
        return encoder.apply({"params": params}, flat).reshape(weights.shape)

    def apart(params):
        encoder = CharCnn(config(), PROJECTION)
        found = [encoder.apply({"params": params}, table) for table in tables]
        return jnp.concatenate(found, axis=1)

    @partial(jax.jit, static_argnums=0)
    def both(run, params):
        found, pull = jax.vjp(run, params)
        return found, pull(weights)[0]

    got, wanted = both(together, params), both(apart, params)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.abs(two).max() > 1e-3
        np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max())


@pytest.mark.parametrize("shape", [None, (4, 1), (4, 2)])
def test_a_table_of_whole_words(shape):
    mesh = shape and make_mesh(MeshConfig(*shape))
    encoder = WordTable(WordTableConfig(9, PROJECTION), PROJECTION, mesh)
    ids = np.arange(16, dtype=np.int32) % 8 + 1
    params = {"embedding": jnp.asarray(np.eye(9, PROJECTION, dtype=np.float32))}
    found = jax.jit(encoder.apply)({"params": params}, (ids,))
    np.testing.assert_array_equal(found, np.eye(9, PROJECTION)[ids - 1])

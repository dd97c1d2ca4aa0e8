"""Mixes of layers: AllenNLP's numbers, the paper's formula, the trainable form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elmojax import ScalarMix, mix_penalty, mix_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def golden(goldens):
    data = np.load(goldens / "allennlp" / "golden_scalarmix.npz")
    return {name: data[name] for name in data.files}


@pytest.mark.parametrize("layer_norm", [False, True])
def test_equals_allennlp(golden, layer_norm):
    """Its layers keep their sentence marks, which its layer norm counts as words."""
    layers = jnp.asarray(golden["layers"].swapaxes(0, 1))
    params = {"s": golden["scalar_parameters"], "gamma": golden["gamma"]}
    params = {"params": jax.tree.map(jnp.asarray, params)}
    mask = golden["ln1_keep1_mask"]
    assert not mask.all(), "nothing is masked"
    mixed = ScalarMix(layer_norm).apply(params, layers, jnp.asarray(mask))
    number = int(layer_norm)
    wanted = golden[f"ln{number}_keep1"]
    np.testing.assert_allclose(mixed[mask], wanted[mask], atol=3e-6)
    inner = golden[f"ln{number}_keep0_mask"]
    wanted = golden[f"ln{number}_keep0"]
    np.testing.assert_allclose(mixed[:, 1:-1][inner], wanted[inner], atol=3e-6)


def test_layer_norm_sees_no_padding(golden):
    layers, mask = golden["layers"].swapaxes(0, 1), golden["ln1_keep1_mask"]
    mix = ScalarMix(layer_norm=True)
    params = mix.init(jax.random.key(0), layers, mask)
    spoilt = np.where(mask[:, None, :, None], layers, 1e3)
    one, other = (mix.apply(params, x, mask) for x in (layers, spoilt))
    np.testing.assert_array_equal(one[mask], other[mask])
    values = np.float64(layers.swapaxes(0, 1)[:, mask]).reshape(3, -1)
    normal = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    wanted = normal.mean(axis=0).reshape(-1, layers.shape[-1])
    np.testing.assert_allclose(one[mask], wanted, atol=1e-5)


def test_layer_norm_of_no_word_is_zero():
    """So are its gradients, by the layers too; whatever stands in the padding."""
    layers, mask = jnp.full((2, 3, 4, 6), 7.0), jnp.zeros((2, 4), bool)
    params = {"s": jnp.zeros(3), "gamma": jnp.float32(2)}

    def total(params, layers):
        return ScalarMix(True).apply({"params": params}, layers, mask).sum()

    mixed = ScalarMix(layer_norm=True).apply({"params": params}, layers, mask)
    np.testing.assert_array_equal(mixed, 0)
    for leaf in jax.tree.leaves(jax.grad(total, (0, 1))(params, layers)):
        np.testing.assert_array_equal(leaf, 0)


def test_layer_norm_needs_a_mask():
    layers = jnp.ones((2, 3, 4, 6))
    with pytest.raises(ValueError, match="mask"):
        ScalarMix(layer_norm=True).init(jax.random.key(0), layers)
    ScalarMix().init(jax.random.key(0), layers)


def test_untrained_it_is_the_plain_average():
    layers = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    mixed, params = ScalarMix().init_with_output(jax.random.key(0), layers)
    np.testing.assert_allclose(mixed, layers.mean(axis=1), atol=1e-6)
    assert not np.any(params["params"]["s"]) and params["params"]["gamma"] == 1


def test_gradients_reach_weights_and_scale():
    layers = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    params = {"s": jnp.array([0.1, -0.3, 0.4]), "gamma": jnp.float32(1.5)}

    def total(params):
        return ScalarMix().apply({"params": params}, layers).sum()

    gradient = jax.grad(total)(params)
    sums = np.float64(layers).sum(axis=(0, 2, 3))
    p = np.exp(params["s"]) / np.exp(params["s"]).sum()
    np.testing.assert_allclose(gradient["gamma"], p @ sums, rtol=1e-5)
    wanted = 1.5 * p * (sums - p @ sums)
    np.testing.assert_allclose(gradient["s"], wanted, rtol=1e-4, atol=1e-5)


def test_dropout_only_when_training():
    layers = jnp.ones((4, 3, 50, 6))
    mix = ScalarMix(dropout=0.25)
    params = mix.init(jax.random.key(0), layers)
    np.testing.assert_array_equal(mix.apply(params, layers), 1)
    rngs = {"dropout": jax.random.key(1)}
    mixed = mix.apply(params, layers, deterministic=False, rngs=rngs)
    np.testing.assert_allclose(np.unique(mixed), [0, 4 / 3], rtol=1e-6)
    assert 0.18 < (np.asarray(mixed) == 0).mean() < 0.32


def test_mix_weights_are_the_formula_of_the_paper():
    s = np.array([[0.0, 1.0, -1.0], [2.0, 2.0, 5.0]], np.float32)
    gamma = np.array([0.5, 2.0], np.float32)
    wanted = gamma[:, None] * np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mix_weights(s, gamma), wanted, rtol=1e-6)
    np.testing.assert_allclose(mix_weights(s[1], 2.0), wanted[1], rtol=1e-6)
    np.testing.assert_allclose(mix_weights(s).sum(axis=1), 1, rtol=1e-6)
    assert mix_weights([1.0, 1.0]).dtype == jnp.float32


def test_the_penalty_is_on_the_weights_alone():
    params = {"s": jnp.array([1.0, -2.0]), "gamma": jnp.float32(7)}
    assert float(mix_penalty(params, 0.1)) == pytest.approx(0.5)
    gradient = jax.grad(mix_penalty)(params, 0.1)
    np.testing.assert_allclose(gradient["s"], [0.2, -0.4], rtol=1e-6)
    assert gradient["gamma"] == 0

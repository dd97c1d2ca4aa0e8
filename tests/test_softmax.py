"""The adaptive softmax against PyTorch's numbers and against its own reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elmojax.errors import InputError
from elmojax.model import softmax
from elmojax.model.softmax import Softmax, log_prob, log_prob_all


def init(vocabulary, dim, cutoffs, div_value=2.0, seed=0):
    model = Softmax(vocabulary, cutoffs, div_value)
    params = model.init(jax.random.key(seed), jnp.zeros((1, dim)))["params"]
    keys = jax.random.split(jax.random.key(seed + 1), len(params))
    return {
        name: leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for key, (name, leaf) in zip(keys, params.items(), strict=True)
    }


@pytest.mark.parametrize(
    "name", ["a_bias", "a_nobias", "b_bias", "b_nobias"], ids=lambda n: n
)
def test_equals_pytorch(fixtures, name):
    """torch.nn.AdaptiveLogSoftmaxWithLoss: targets, all words, gradients."""
    data = np.load(fixtures / "adaptive" / f"adaptive_{name}.npz")
    kernel = data["w/head.weight"]
    has_bias = "w/head.bias" in data
    zeros = np.zeros(len(kernel), np.float32)
    params = {
        "kernel": kernel,
        "bias": data["w/head.bias"] if has_bias else zeros,
    }
    for k in range(sum(n.startswith("w/tail") for n in data.files) // 2):
        params[f"down_{k}"] = data[f"w/tail.{k}.0.weight"].T
        params[f"up_{k}"] = data[f"w/tail.{k}.1.weight"]
    params = jax.tree.map(jnp.asarray, params)
    x, targets = jnp.asarray(data["x"]), jnp.asarray(data["targets"], jnp.int32)
    expected = data["output64"]
    np.testing.assert_allclose(log_prob(params, x, targets), expected, atol=1e-5)
    np.testing.assert_allclose(log_prob_all(params, x), data["log_prob"], atol=1e-5)

    def mean(params, x):
        weights = jnp.full(len(x), 1 / len(x))
        return softmax.negative_log_likelihood(params, x, targets, weights)[0]

    loss, (d_params, d_x) = jax.value_and_grad(mean, (0, 1))(params, x)
    assert abs(loss - data["loss64"]) < 1e-5
    close(d_x, data["grad/x"])
    close(d_params["kernel"], data["grad/head.weight"])
    if has_bias:
        close(d_params["bias"], data["grad/head.bias"])
    for k in range(softmax._tails(params)):
        close(d_params[f"down_{k}"], data[f"grad/tail.{k}.0.weight"].T)
        close(d_params[f"up_{k}"], data[f"grad/tail.{k}.1.weight"])


def close(got, wanted, bound=1e-5):
    assert np.linalg.norm(got - wanted) <= bound * np.linalg.norm(wanted)


MIXES = {
    "every cluster": lambda key, n: jax.random.randint(key, (n,), 0, 50),
    "head only": lambda key, n: jax.random.randint(key, (n,), 0, 5),
    "last cluster only": lambda key, n: jax.random.randint(key, (n,), 20, 50),
    "middle empty": lambda key, n: jax.random.choice(key, jnp.array([0, 4, 49]), (n,)),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("cutoffs", [(5, 20), (49,), ()])
@pytest.mark.parametrize("elements", [1 << 23, 1])
def test_blocks_equal_the_dense_reference(monkeypatch, mix, cutoffs, elements):
    """`elements` = 1 makes many small blocks, the last of them partly empty."""
    monkeypatch.setattr(softmax, "BLOCK_ELEMENTS", elements)
    params = init(50, 16, cutoffs)
    x = jax.random.normal(jax.random.key(5), (37, 16))
    targets = MIXES[mix](jax.random.key(6), 37)
    weights = jax.random.uniform(jax.random.key(7), (37,))

    def dense(params, x):
        each = jnp.take_along_axis(log_prob_all(params, x), targets[:, None], 1)[:, 0]
        return -(each * weights).sum(), -each

    def blocks(params, x):
        return softmax.negative_log_likelihood(params, x, targets, weights)

    grad = lambda f: jax.value_and_grad(f, (0, 1), has_aux=True)(params, x)  # noqa: E731
    (got, got_each), got_grads = grad(blocks)
    (wanted, wanted_each), wanted_grads = grad(dense)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_allclose(got_each, wanted_each, atol=2e-6)
    np.testing.assert_allclose(log_prob(params, x, targets), -wanted_each, atol=2e-6)
    for one, other in zip(*map(jax.tree.leaves, (got_grads, wanted_grads)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max() + 1e-9)


@pytest.mark.parametrize("cutoffs", [(5, 20), (49,), ()])
def test_probabilities_sum_to_one(cutoffs):
    params = init(50, 16, cutoffs)
    x = jax.random.normal(jax.random.key(5), (11, 16))
    np.testing.assert_allclose(jnp.exp(log_prob_all(params, x)).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("cutoffs", [(5, 5), (20, 5), (50,), (0, 5)])
def test_wrong_cutoffs_are_named(cutoffs):
    with pytest.raises(InputError, match="cutoffs"):
        softmax.check_cutoffs(cutoffs, 50)

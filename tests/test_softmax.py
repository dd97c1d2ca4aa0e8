"""The adaptive softmax against PyTorch's numbers and against its own reference."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from toys import drawn

from elmojax.errors import InputError
from elmojax.model import softmax
from elmojax.model.softmax import Softmax, log_prob, log_prob_all

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY, DIM, POSITIONS = 50, 16, 37
CUTOFFS = [(5, 20), (49,), ()]


def parameters(cutoffs):
    model = Softmax(VOCABULARY, cutoffs, 2.0)
    start = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, DIM)))
    return drawn(start["params"], seed=len(cutoffs))


def close(got, wanted, bound=1e-5):
    assert np.linalg.norm(got - wanted) <= bound * np.linalg.norm(wanted)


@jax.jit
def mean_and_more(params, x, targets):
    """The mean loss and its gradients, every target, every word."""

    def mean(params, x):
        weights = jnp.full(len(x), 1 / len(x))
        return softmax.negative_log_likelihood(params, x, targets, weights)[0]

    every = (log_prob(params, x, targets), log_prob_all(params, x))
    return jax.value_and_grad(mean, (0, 1))(params, x), every


@pytest.mark.parametrize("name", ["a_bias", "a_nobias", "b_bias", "b_nobias"])
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
    (loss, (d_params, d_x)), every = mean_and_more(params, x, targets)
    np.testing.assert_allclose(every[0], data["output64"], atol=1e-5)
    np.testing.assert_allclose(every[1], data["log_prob"], atol=1e-5)
    assert abs(loss - data["loss64"]) < 1e-5
    close(d_x, data["grad/x"])
    close(d_params["kernel"], data["grad/head.weight"])
    if has_bias:
        close(d_params["bias"], data["grad/head.bias"])
    for k in range(softmax._tails(params)):
        close(d_params[f"down_{k}"], data[f"grad/tail.{k}.0.weight"].T)
        close(d_params[f"up_{k}"], data[f"grad/tail.{k}.1.weight"])


def blocks(params, x, targets, weights):
    return softmax.negative_log_likelihood(params, x, targets, weights)


def dense(params, x, targets, weights):
    each = jnp.take_along_axis(log_prob_all(params, x), targets[:, None], 1)[:, 0]
    return -(each * weights).sum(), -each


@pytest.fixture(scope="module", params=CUTOFFS, ids=str)
def compiled(request):
    """Losses with their gradients: dense, in one block, and in many small blocks."""
    random = np.random.default_rng(0)
    params = parameters(request.param)
    x = jnp.asarray(random.standard_normal((POSITIONS, DIM)), jnp.float32)
    weights = jnp.asarray(random.random(POSITIONS), jnp.float32)
    targets = jnp.zeros(POSITIONS, jnp.int32)

    def compile(function, elements=softmax.BLOCK_ELEMENTS):
        grad = jax.value_and_grad(function, (0, 1), has_aux=True)

        def everything(params, x, targets, weights):
            value = grad(params, x, targets, weights)
            return value, log_prob(params, x, targets)

        with mock.patch.object(softmax, "BLOCK_ELEMENTS", elements):
            run = jax.jit(everything).lower(params, x, targets, weights).compile()
        return lambda targets: run(params, x, jnp.asarray(targets, jnp.int32), weights)

    return SimpleNamespace(
        params=params,
        x=x,
        dense=compile(dense),
        ways={"one block": compile(blocks), "small blocks": compile(blocks, 1)},
    )


MIXES = {
    "every cluster": np.arange(POSITIONS) * 7 % VOCABULARY,
    "head only": np.arange(POSITIONS) % 5,
    "last cluster only": 20 + np.arange(POSITIONS) % 30,
    "last word only": np.full(POSITIONS, 49),
    "middle empty": np.array([0, 4, 49])[np.arange(POSITIONS) % 3],
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("way", ["one block", "small blocks"])
def test_blocks_equal_the_dense_reference(compiled, mix, way):
    """Small blocks are many, and the last of them is partly empty."""
    got, got_log_prob = compiled.ways[way](MIXES[mix])
    wanted, _ = compiled.dense(MIXES[mix])
    ((got, got_each), got_grads), ((wanted, wanted_each), wanted_grads) = got, wanted
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_allclose(got_each, wanted_each, atol=4e-6)
    np.testing.assert_allclose(got_log_prob, -wanted_each, atol=4e-6)
    for one, other in zip(
        *map(jax.tree.leaves, (got_grads, wanted_grads)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max() + 1e-9)


def test_the_dense_reference_is_the_published_formula(compiled):
    every = np.asarray(jax.jit(log_prob_all)(compiled.params, compiled.x))
    np.testing.assert_allclose(np.exp(every).sum(-1), 1, atol=1e-5)
    for position in range(0, POSITIONS, 9):
        expected = [
            reference.log_prob(compiled.params, np.float64(compiled.x[position]), word)
            for word in range(VOCABULARY)
        ]
        np.testing.assert_allclose(every[position], expected, atol=1e-5)


@pytest.mark.parametrize("cutoffs", [(5, 5), (20, 5), (50,), (0, 5)])
def test_wrong_cutoffs_are_named(cutoffs):
    with pytest.raises(InputError, match="cutoffs"):
        softmax.check_cutoffs(cutoffs, 50)

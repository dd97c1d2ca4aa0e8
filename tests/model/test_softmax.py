"""The exact softmax against PyTorch's numbers, a dense form, and NumPy."""

import itertools
from functools import partial
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec
from toys import drawn

from elmojax.config import MeshConfig
from elmojax.errors import InputError
from elmojax.model import cluster_loss, softmax
from elmojax.model.cluster_loss import Chunking, edges_of
from elmojax.model.softmax import Softmax, log_prob, log_prob_all, predict
from elmojax.training.sharding import make_mesh, shardings

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY, DIM, POSITIONS = 50, 16, 37
CUTOFFS = [(5, 20), (49,), ()]


def parameters(cutoffs, bias=True):
    model = Softmax(VOCABULARY, cutoffs, 2.0, bias)
    start = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, DIM)))
    return drawn(start["params"], seed=len(cutoffs))


def close(got, wanted, bound=1e-5):
    assert np.linalg.norm(got - wanted) <= bound * np.linalg.norm(wanted)


def mean_and_more(params, x, targets):
    """The mean loss and its gradients, every target, every word, the best ones."""

    def mean(params, x):
        weights = jnp.full(len(x), 1 / len(x))
        return softmax.negative_log_likelihood(params, x, targets, weights)[0]

    every = (log_prob(params, x, targets), log_prob_all(params, x))
    return jax.value_and_grad(mean, (0, 1))(params, x), every, predict(params, x)


WAYS = {
    "whole clusters": Chunking(1 << 19, cpu=True),
    "small chunks": Chunking(1, cpu=True),
    "accelerators": Chunking(1 << 24, cpu=False),
    "accelerators, small chunks": Chunking(300, cpu=False),
}
"""Forms of which each takes another way; those of accelerators with a plan."""


def compiled_as(way, function, *arguments):
    """With positions of each tail for all forms but the first."""
    patch = {"CPU": WAYS[way]}
    if "small" in way:
        patch |= {"MAX_LOGITS": 1, "TABLE_BLOCK": 100, "NARROW": 5}
    with mock.patch.multiple(cluster_loss, **patch):
        return jax.jit(function).lower(*arguments).compile()


def planned(targets, edges, capacity):
    """Members of each tail for targets [shards, positions], which are all in one."""
    shards, positions = targets.shape
    plans = []
    for low, high in itertools.pairwise(edges):
        where = np.full((shards, capacity), positions, np.int32)
        inside = np.zeros((shards, capacity), np.int32)
        for shard, row in enumerate(targets):
            found = np.flatnonzero((row >= low) & (row < high))
            where[shard, : len(found)] = found
            inside[shard, : len(found)] = row[found] - low
        plans.append((where, inside))
    return tuple(plans)


@pytest.mark.usefixtures("users_compilation")
@pytest.mark.parametrize("way", ["whole clusters", "accelerators, small chunks"])
def test_equals_pytorch(goldens, way):
    """torch.nn.AdaptiveLogSoftmaxWithLoss: targets, all words, gradients, predict."""
    data = np.load(goldens / "pytorch" / "adaptive.npz")
    params = {"kernel": data["w/head.weight"], "bias": data["w/head.bias"]}
    for k in range(sum(n.startswith("w/tail") for n in data.files) // 2):
        params[f"down_{k}"] = data[f"w/tail.{k}.0.weight"].T
        params[f"up_{k}"] = data[f"w/tail.{k}.1.weight"]
    params = jax.tree.map(jnp.asarray, params)
    x, targets = jnp.asarray(data["x"]), jnp.asarray(data["targets"], jnp.int32)
    run = compiled_as(way, mean_and_more, params, x, targets)
    (loss, (d_params, d_x)), every, best = run(params, x, targets)
    np.testing.assert_allclose(every[0], data["output64"], atol=1e-5)
    np.testing.assert_allclose(every[1][:4], data["log_prob"], atol=1e-5)
    np.testing.assert_array_equal(best[0][:, 0], data["predict"])
    assert abs(loss - data["loss64"]) < 1e-5
    close(d_x[:24], data["grad/x"])
    close(d_params["kernel"], data["grad/head.weight"])
    close(d_params["bias"], data["grad/head.bias"])
    for k in range(len(edges_of(params)) - 1):
        close(d_params[f"down_{k}"], data[f"grad/tail.{k}.0.weight"].T)
        close(d_params[f"up_{k}"], data[f"grad/tail.{k}.1.weight"])


def everything(nll, log_prob, params, x, targets, weights, *members):
    """Values and gradients of what trains, and of `log_prob`."""

    def total(params, x, weights):
        return nll(params, x, targets, weights, *members)

    def mixed(params, x):
        each = log_prob(params, x, targets, *members)
        return jnp.vdot(each, weights - 0.5), each

    return (
        jax.value_and_grad(total, (0, 1, 2), has_aux=True)(params, x, weights),
        jax.value_and_grad(mixed, (0, 1), has_aux=True)(params, x),
    )


FAST = partial(everything, softmax.negative_log_likelihood, log_prob)
DENSE = partial(
    everything, reference.negative_log_likelihood, reference.log_prob_of_all
)


def on_a_mesh(mesh):
    options = {"mesh": mesh}
    nll = partial(softmax.negative_log_likelihood, **options)
    return partial(everything, nll, partial(log_prob, **options))


def inputs(cutoffs, bias=True):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((POSITIONS, DIM)), jnp.float32)
    weights = jnp.asarray(random.random(POSITIONS), jnp.float32)
    return parameters(cutoffs, bias), x, jnp.zeros(POSITIONS, jnp.int32), weights


@pytest.fixture(scope="module", params=CUTOFFS, ids=str)
def compiled(request):
    """The dense form, and the fast one in every way."""
    params, x, targets, weights = inputs(request.param, bias=request.param != (5, 20))
    arguments = (params, x, targets, weights)
    edges, ways = edges_of(params), {}

    def sharded(mix, plan):
        arrays = (x[None], mix[None], weights[None])
        members = planned(np.asarray(mix)[None], edges, 40) if plan else None
        return params, *arrays, members

    for way in WAYS:
        plan = "accelerators" in way
        ways[way] = compiled_as(way, FAST, *sharded(targets, plan)), plan
    dense = jax.jit(DENSE).lower(*arguments).compile()

    def fast(run, plan):
        def at(mix):
            found = run(*sharded(jnp.asarray(mix, jnp.int32), plan))
            flat = (POSITIONS, POSITIONS * DIM)
            return jax.tree.map(
                lambda a: a[0] if a.size in flat and len(a) == 1 else a, found
            )

        return at

    ways = {way: fast(*found) for way, found in ways.items()}
    return SimpleNamespace(
        params=params,
        x=x,
        dense=lambda mix: dense(params, x, jnp.asarray(mix, jnp.int32), weights),
        ways=ways,
    )


MIXES = {
    "every cluster": np.arange(POSITIONS) * 7 % VOCABULARY,
    "head only": np.arange(POSITIONS) % 5,
    "last cluster only": 20 + np.arange(POSITIONS) % 30,
    "last word only": np.full(POSITIONS, 49),
    "middle empty": np.array([0, 4, 49])[np.arange(POSITIONS) % 3],
}


def same(got, wanted):
    """Values and gradients to rounding of their largest number."""
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, atol=3e-6 * scale + 1e-7)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("way", WAYS)
def test_the_fast_form_equals_the_reference(compiled, mix, way):
    """Blocks that are not full, pieces that overlap, clusters without a position."""
    same(compiled.ways[way](MIXES[mix]), compiled.dense(MIXES[mix]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("outside", [-1, VOCABULARY, 2**31 - 1])
def test_a_target_that_is_no_word_is_never_clamped(compiled, way, outside):
    """An InputError where numbers can be seen, NaN inside a compiled program."""
    targets = np.where(np.arange(POSITIONS) == 3, outside, 7)
    for run in (compiled.ways[way], compiled.dense):
        (((total, each), grads), (_, log_probs), *_) = _flat(run(targets))
        assert np.isnan(total) and np.isnan(log_probs[3])
        assert np.isnan(each).sum() == np.isnan(log_probs).sum() == 1
        assert np.isnan(grads[0]["kernel"]).any()
    params, x = compiled.params, compiled.x
    with pytest.raises(InputError, match=f"Target {outside} .* 50 words"):
        log_prob(params, x, targets)
    ones = np.ones(POSITIONS, np.float32)
    with pytest.raises(InputError, match=f"Target {outside} "):
        softmax.negative_log_likelihood(params, x, targets, ones)
    with pytest.raises(InputError, match="integers"):
        log_prob(params, x, ones)


def _flat(outcome):
    (nll, nll_grads), ((_, log_probs), log_prob_grads) = outcome
    return (nll, nll_grads), (None, log_probs), log_prob_grads


def test_certain_predictions_have_exact_gradients():
    """Where p is near 1 the gradient is (p - 1) x, not a difference of large sums."""
    params = {"kernel": jnp.eye(4, dtype=jnp.float32)}
    x = 9.0 * jnp.eye(4, dtype=jnp.float32)
    targets, weights = jnp.arange(4, dtype=jnp.int32), jnp.ones(4)

    def total(params):
        nll = softmax.negative_log_likelihood
        return nll(params, x, targets, weights)[0]

    p = 1 / (1 + 3 * np.exp(-9.0))
    wanted = 9.0 * ((1 - p) / 3 - np.eye(4) * ((1 - p) / 3 + 1 - p))
    close(jax.jit(jax.grad(total))(params)["kernel"], wanted, bound=2e-4)


def test_the_dense_reference_is_the_published_formula(compiled):
    every = np.asarray(jax.jit(log_prob_all)(compiled.params, compiled.x))
    np.testing.assert_allclose(np.exp(every).sum(-1), 1, atol=1e-5)
    for position in range(0, POSITIONS, 9):
        expected = [
            reference.log_prob(compiled.params, np.float64(compiled.x[position]), word)
            for word in range(VOCABULARY)
        ]
        np.testing.assert_allclose(every[position], expected, atol=1e-5)


@pytest.mark.parametrize("tile", [1 << 24, 150])
@pytest.mark.parametrize("k", [1, 7, VOCABULARY])
def test_predict_gives_the_best_words(compiled, k, tile):
    with mock.patch.object(softmax, "TILE", tile):
        ids, log_probs = predict(compiled.params, compiled.x, k)
    every = np.asarray(log_prob_all(compiled.params, compiled.x))
    # Blocks of other sizes round otherwise, by two units in the last place.
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    close(log_probs, -np.sort(-every, axis=-1)[:, :k])
    close(np.take_along_axis(every, np.asarray(ids), -1), log_probs)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("k", [0, VOCABULARY + 1])
def test_predict_refuses_what_it_cannot_give(compiled, k):
    with pytest.raises(InputError, match="50 words"):
        predict(compiled.params, compiled.x, k)


def test_arrays_of_numpy_are_taken_and_shapes_are_named(compiled):
    params = jax.tree.map(np.asarray, compiled.params)
    x, targets = np.asarray(compiled.x), np.full(POSITIONS, 7)
    wanted = log_prob(compiled.params, compiled.x, jnp.asarray(targets))
    np.testing.assert_array_equal(log_prob(params, x, targets), wanted)
    ones = np.ones(POSITIONS)
    total, each = softmax.negative_log_likelihood(params, x, targets, ones)
    np.testing.assert_allclose(each, -wanted, atol=1e-6)
    assert total == pytest.approx(float(-wanted.sum()), rel=1e-5)
    for wrong in ((x[None], targets), (x[:, :3], targets), (x, targets[1:])):
        with pytest.raises(InputError, match=r"hidden \[positions, 16\]"):
            log_prob(params, *wrong)


@pytest.mark.parametrize("plan", [True, False], ids=["planned", "found"])
@pytest.mark.parametrize(
    ("mesh", "way"),
    [
        ((4, 2), "whole clusters"),
        ((2, 4), "accelerators, small chunks"),
        pytest.param((8, 1), "accelerators", marks=pytest.mark.slow),
        pytest.param((1, 8), "small chunks", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_mesh_gives_the_numbers_of_one_device(mesh, way, plan):
    """Words do not divide; some devices have no word of a cluster."""
    mesh, shards = make_mesh(MeshConfig(*mesh)), mesh[0]
    params, *_ = inputs((5, 46))
    random = np.random.default_rng(2)
    x = jnp.asarray(random.standard_normal((shards, 9, DIM)), jnp.float32)
    weights = jnp.asarray(random.random((shards, 9)), jnp.float32)
    targets = jnp.arange(shards * 9, dtype=jnp.int32).reshape(shards, 9) * 7
    targets = targets % VOCABULARY
    members = planned(np.asarray(targets), edges_of(params), 9) if plan else None
    arrays = jax.device_put(
        (x, targets, weights, members), NamedSharding(mesh, PartitionSpec("data"))
    )
    placed = jax.device_put(params, shardings(mesh, params, "head."))
    got = compiled_as(way, on_a_mesh(mesh), placed, *arrays)(placed, *arrays)
    flat = (x.reshape(-1, DIM), targets.reshape(-1), weights.reshape(-1))
    wanted = jax.tree.leaves(jax.jit(DENSE)(params, *flat))
    got = jax.tree.leaves(got)
    same([a.reshape(b.shape) for a, b in zip(got, wanted, strict=True)], wanted)


def test_half_width_tables_are_multiplied_rounded():
    """bfloat16 weights: the fast form rounds as the reference does."""
    params, x, _, weights = inputs((5, 20))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    targets = jnp.asarray(MIXES["every cluster"], jnp.int32)
    got = jax.jit(FAST)(half, x, targets, weights)
    dense = jax.jit(DENSE)
    wanted = dense(half, x, targets, weights)
    np.testing.assert_allclose(got[0][0][1], wanted[0][0][1], atol=2e-5)
    assert got[0][1][0]["kernel"].dtype == jnp.bfloat16
    exact = dense(params, x, targets, weights)
    for one, other in zip(
        jax.tree.leaves(got[0][1]), jax.tree.leaves(exact[0][1]), strict=True
    ):
        close(np.float32(one), other, bound=0.03)


@pytest.mark.parametrize("cutoffs", [(5, 5), (20, 5), (50,), (0, 5)])
def test_wrong_cutoffs_are_named(cutoffs):
    with pytest.raises(InputError, match="cutoffs"):
        softmax.check_cutoffs(cutoffs, 50)


PAPER = 793_471


def temporary_bytes(function, cutoffs, positions, dim=512):
    """What the compiled program reserves besides arguments and results."""
    model = Softmax(PAPER, cutoffs, 4.0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, dim)))
    x = jax.ShapeDtypeStruct((positions, dim), jnp.float32)
    targets = jax.ShapeDtypeStruct((positions,), jnp.int32)
    compiled = jax.jit(function).lower(shapes["params"], x, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def total_loss(params, x, targets):
    ones = jnp.ones(len(x), jnp.float32)
    return softmax.negative_log_likelihood(params, x, targets, ones)[0]


def test_memory_at_the_paper_s_size_is_bounded():
    """Positions x words would be 130 GB and 13 GB."""
    train = jax.value_and_grad(total_loss, (0, 1))
    cutoffs = (4_000, 40_000, 200_000)
    assert temporary_bytes(train, cutoffs, 40_960) < 1.5e9
    assert temporary_bytes(log_prob, (), 4_096) < 1e9
    # The gradient of the table is a result; no second array of its size is made.
    assert temporary_bytes(train, (), 4_096) < 1e9

"""The sampled softmax: its candidates, its loss, and steps that touch few rows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from toys import CORPUS, TINY, drawn

from elmojax.config import HeadConfig, MeshConfig, OptimizerConfig
from elmojax.errors import InputError
from elmojax.model import sampled_softmax
from elmojax.model.sampled_softmax import Candidates, sampled_losses
from elmojax.text.batches import TrainingText
from elmojax.text.negatives import _exp, log_expected, log_uniform, negatives
from elmojax.text.tables import WordTables
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import make_mesh, put_on_mesh, shardings
from elmojax.training.step import (
    LanguageModel,
    compile_train_step,
    init_state,
    train_step,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY, SAMPLES = 60, 20


def generator(step=0):
    return np.random.default_rng(step)


def bits(seed=0):
    return np.random.Philox(key=[seed, 0])


def test_candidates_are_distinct_and_follow_zipf():
    """How often each word is drawn is what `log_expected` says, on average."""
    rounds, found, expected = 3000, np.zeros(VOCABULARY), np.zeros(VOCABULARY)
    stream = bits()
    for _ in range(rounds):
        words, draws = log_uniform(stream, VOCABULARY, SAMPLES)
        assert len(set(words)) == SAMPLES <= draws
        assert words.min() >= 0 and words.max() < VOCABULARY
        found[words] += 1
        expected += np.exp(log_expected(np.arange(VOCABULARY), VOCABULARY, draws))
    # A draw more or less moves the two apart a little; TensorFlow's rule, kept.
    np.testing.assert_allclose(found / rounds, expected / rounds, atol=0.03)
    assert found[0] > 2 * found[20] > 2 * found[59] > 0


def test_expected_counts_are_tensorflow_s_formula():
    """-expm1(tries * log1p(-p)), p = log((w + 2) / (w + 1)) / log(V + 1)."""
    for word, draws in ((0, 30), (7, 100), (59, 3)):
        p = np.log((word + 2) / (word + 1)) / np.log(VOCABULARY + 1)
        wanted = np.log(1 - (1 - p) ** draws)
        got = log_expected(np.array([word]), VOCABULARY, draws)[0]
        assert got == pytest.approx(wanted, rel=1e-5)


def test_negatives_name_every_row_once():
    targets = generator().integers(0, VOCABULARY, (2, 3, 5))
    found = negatives(targets, VOCABULARY, SAMPLES, seed=1, step=9)
    assert np.all(np.diff(found.words) > 0)
    np.testing.assert_array_equal(found.words[found.targets], targets)
    chosen = found.words[found.drawn]
    assert chosen.shape == (2, SAMPLES) and chosen.max() < VOCABULARY
    assert all(len(set(row)) == SAMPLES for row in chosen)
    assert set(chosen[0]) != set(chosen[1]), "each direction draws for itself"
    named = found.words[found.words < VOCABULARY]
    assert set(named) == {*targets.ravel(), *chosen.ravel()}
    again = negatives(targets, VOCABULARY, SAMPLES, seed=1, step=9)
    jax.tree.map(np.testing.assert_array_equal, found, again)
    for other in ({"seed": 2, "step": 9}, {"seed": 1, "step": 8}):
        differs = negatives(targets, VOCABULARY, SAMPLES, **other)
        assert set(differs.words[differs.drawn[0]]) != set(chosen[0])


def test_too_many_samples_are_refused():
    with pytest.raises(InputError, match=r"draws 60 words .* 60; lower"):
        log_uniform(bits(), VOCABULARY, VOCABULARY)


def test_negatives_are_the_same_for_ever():
    """Whatever NumPy and whatever machine: these numbers must never be edited."""
    words, draws = log_uniform(bits(5), 793_471, 8192)
    assert words[:6].tolist() == [21317, 3045, 15, 411, 28, 9940]
    assert (draws, words.max(), words.sum()) == (16196, 793066, 906227585)
    targets = np.zeros((2, 1, 1), np.int64)
    found = negatives(targets, 30_000, 20, seed=2**63 - 1, step=3)
    assert found.words[found.drawn[:, :5]].tolist() == [
        [21834, 2, 38, 10176, 785],
        [457, 590, 60, 17585, 199],
    ]


def test_words_are_drawn_by_the_exponential_of_numpy():
    """Its own e ** x is good to the last digits, where it decides which word it is."""
    x = np.linspace(0, np.log(793_472), 4001)
    np.testing.assert_allclose(_exp(x), np.exp(x), rtol=1e-14)


ROWS, DIM, POSITIONS = 30, 16, 37


def inputs():
    random = generator(3)
    params = drawn(
        {
            "kernel": jax.ShapeDtypeStruct((ROWS, DIM), jnp.float32),
            "bias": jax.ShapeDtypeStruct((ROWS,), jnp.float32),
        }
    )
    x = jnp.asarray(random.standard_normal((POSITIONS, DIM)), jnp.float32)
    targets = jnp.asarray(random.integers(0, ROWS, POSITIONS), jnp.int32)
    weights = jnp.asarray(random.random(POSITIONS), jnp.float32)
    rows = jnp.asarray(random.permutation(ROWS)[:12], jnp.int32)
    expected = jnp.asarray(-random.random(ROWS) * 4, jnp.float32)
    return params, x, targets, weights, Candidates(rows, expected)


def written_out(params, x, targets, weights, candidates):
    """tf.nn.sampled_softmax_loss: one position after the other, float64."""
    tree = jax.tree.map(np.float64, (params, x, weights, candidates.log_expected))
    (kernel, bias), x, weights, expected = tree[0].values(), *tree[1:]
    if kernel.ndim == 1:
        kernel, bias = bias, kernel
    losses = []
    for hidden, target in zip(x, np.asarray(targets), strict=True):
        logits = kernel @ hidden + bias - expected
        others = [w for w in np.asarray(candidates.rows) if w != target]
        each = np.array([logits[target], *logits[others]])
        losses.append(np.log(np.exp(each - each.max()).sum()) + each.max() - each[0])
    return np.vdot(losses, weights), np.array(losses)


def sampled_loss(params, x, targets, weights, candidates, mesh=None):
    """Of one direction and one shard."""
    direction = (x[None], targets[None], weights[None], candidates)
    total, (each,) = sampled_losses(params, [direction], mesh)
    return total, each[0]


def grads(mesh, *arguments):
    run = partial(sampled_loss, mesh=mesh)
    function = jax.value_and_grad(run, (0, 1, 3), has_aux=True)
    return jax.jit(function)(*arguments)


@pytest.mark.usefixtures("users_compilation")
def test_the_loss_is_tensorflow_s(monkeypatch):
    arguments = inputs()
    hits = np.isin(arguments[2], arguments[4].rows)
    assert 0 < hits.sum() < POSITIONS, "some targets are drawn too, and some are not"
    total, each = written_out(*arguments)
    for tile in (1 << 24, 60):
        monkeypatch.setattr(sampled_softmax, "TILE", tile)
        (got, got_each), _ = grads(None, *arguments)
        assert got == pytest.approx(total, rel=1e-5)
        np.testing.assert_allclose(got_each, each, atol=1e-5)
        plain = sampled_loss(*arguments)
        np.testing.assert_allclose(plain[1], each, atol=1e-5)


def test_gradients_are_slopes_in_float64():
    arguments = inputs()
    _, (d_params, d_x, d_weights) = grads(None, *arguments)
    random = generator(5)
    for name, index in (("kernel", 0), ("bias", 0), ("x", 1)):
        leaf = arguments[0][name] if index == 0 else arguments[1]
        along = random.standard_normal(leaf.shape)
        values = []
        for by in (1e-5, -1e-5):
            moved = np.float64(leaf) + by * along
            changed = (
                ({**arguments[0], name: moved}, *arguments[1:])
                if index == 0
                else (arguments[0], moved, *arguments[2:])
            )
            values.append(written_out(*changed)[0])
        slope = (values[0] - values[1]) / 2e-5
        got = np.vdot(d_params[name] if index == 0 else d_x, along)
        assert got == pytest.approx(slope, rel=1e-4)
    np.testing.assert_allclose(d_weights, written_out(*arguments)[1], atol=1e-5)


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)], ids=str)
def test_a_mesh_gives_the_numbers_of_one_device(mesh):
    arguments = inputs()
    got = grads(make_mesh(MeshConfig(*mesh)), *arguments)
    for one, other in zip(
        jax.tree.leaves(got), jax.tree.leaves(grads(None, *arguments)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_row_that_is_none_gives_nan():
    params, x, targets, *rest = inputs()
    for outside in (-1, ROWS):
        total, each = sampled_loss(params, x, targets.at[2].set(outside), *rest)
        assert np.isnan(total) and np.isnan(each).sum() == 1


# --- training ------------------------------------------------------------------------


HEAD = HeadConfig("sampled", samples=9)
LM = LanguageModel(TINY, len(CORPUS.vocabulary), HEAD)


def text(multiple=1):
    words = WordTables(CORPUS, CORPUS.vocabulary, TINY, multiple)
    return TrainingText(CORPUS, words, 8, 3, seed=0, samples=HEAD.samples)


def start(optimizer, mesh=None):
    create = partial(init_state, LM, optimizer, 8, 0)
    shapes = jax.eval_shape(create)
    state = jax.jit(create)()
    state = state.replace(params=drawn(shapes.params, seed=7))
    return (
        state
        if mesh is None
        else jax.device_put(state, shardings(mesh, state, sampled=True))
    )


def dense(batch):
    """The same batch with every word in it: a gradient as large as the whole table."""
    words = batch.negatives.words
    whole = words.copy()
    whole[words >= LM.vocabulary] = 0  # filling; no target and no candidate is there
    full = batch.negatives._replace(
        words=np.arange(LM.vocabulary, dtype=np.int32),
        targets=whole[batch.negatives.targets],
        drawn=whole[batch.negatives.drawn],
        log_expected=np.stack(
            [
                np.zeros(LM.vocabulary, np.float32)
                for _ in range(len(batch.negatives.drawn))
            ]
        ),
    )
    for row, expected in zip(
        full.log_expected, batch.negatives.log_expected, strict=True
    ):
        real = words < LM.vocabulary
        row[words[real]] = expected[real]
    return batch._replace(negatives=full)


@pytest.mark.slow
def test_sparse_adagrad_is_dense_adagrad():
    """And rows that no batch named have not moved at all."""
    optimizer = make_optimizer(OptimizerConfig(gradient_norm=0.5), 100)
    sparse = whole = start(optimizer)
    before = np.asarray(sparse.params["head"]["kernel"])
    touched = np.zeros(LM.vocabulary, bool)
    step = jax.jit(partial(train_step, LM, optimizer))
    for number in range(3):
        batch = text().batch(number)
        sparse, metrics = step(sparse, batch)
        whole, wanted = step(whole, dense(batch))
        assert {name for name in metrics if "loss" in name} == {
            "sampled_loss",
            "forward_sampled_loss",
            "backward_sampled_loss",
        }
        for name, value in metrics.items():
            assert value == pytest.approx(float(wanted[name]), rel=1e-5), name
        words = batch.negatives.words
        touched[words[words < LM.vocabulary]] = True
    assert not touched.all(), "the toy text must leave some word alone"
    for one, other in zip(jax.tree.leaves(sparse), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    after = np.asarray(sparse.params["head"]["kernel"])
    np.testing.assert_array_equal(after[~touched], before[~touched])
    assert np.all(np.any(after[touched] != before[touched], axis=-1))


def test_adamw_leaves_rows_that_no_batch_names_alone():
    config = OptimizerConfig("adamw", 0.01, weight_decay=0.1)
    optimizer = make_optimizer(config, 100)
    state = start(optimizer)
    batch = text().batch(0)
    after, _ = jax.jit(partial(train_step, LM, optimizer))(state, batch)
    named = np.isin(np.arange(LM.vocabulary), batch.negatives.words)
    assert not named.all()
    for before, now in (
        (state.params["head"], after.params["head"]),
        (state.optimizer[1][0].mu["head"], after.optimizer[1][0].mu["head"]),
    ):
        moved = np.any(np.asarray(before["kernel"]) != now["kernel"], axis=-1)
        np.testing.assert_array_equal(moved, named)


def test_a_frozen_step_moves_the_rows_that_its_batch_names_and_nothing_else():
    optimizer = make_optimizer(OptimizerConfig("adamw", 0.01), 100, freeze_steps=1)
    state, batch = start(optimizer), text().batch(0)
    step = jax.jit(partial(train_step, LM, optimizer, only="head"))
    after, _ = step(state, batch)
    named = np.isin(np.arange(LM.vocabulary), batch.negatives.words)
    (before, now), moments = (
        (tree.params["head"]["kernel"] for tree in (state, after)),
        after.optimizer[1]["head"][0].mu["head"]["kernel"],
    )
    np.testing.assert_array_equal(np.any(np.asarray(before) != now, axis=-1), named)
    np.testing.assert_array_equal(np.any(np.asarray(moments) != 0, axis=-1), named)
    for tree in (state, after):
        del tree.params["head"], tree.optimizer[1]["head"]
    frozen = [(tree.params, tree.optimizer) for tree in (state, after)]
    jax.tree.map(np.testing.assert_array_equal, *frozen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "split"),
    [((2, 1), P(None, ("model", "data"))), ((4, 2), P(None, "model"))],
    ids=str,
)
def test_sharded_training_equals_one_device(mesh, split):
    """Each device holds some columns of the table and of its moments, if they divide
    the columns."""
    optimizer = make_optimizer(OptimizerConfig(gradient_norm=0.5), 100)
    plain, step = start(optimizer), jax.jit(partial(train_step, LM, optimizer))
    mesh = make_mesh(MeshConfig(*mesh))
    lm = replace(LM, mesh=mesh)
    state = start(optimizer, mesh)
    assert state.params["head"]["kernel"].sharding.spec == split
    assert state.optimizer[1][0].sum_of_squares["head"]["kernel"].sharding.spec == split
    sharded = compile_train_step(lm, optimizer, state)
    for number in range(2):
        plain, wanted = step(plain, text().batch(number))
        batch = put_on_mesh(lm.mesh, text(mesh.shape["data"]).batch(number), "batch.")
        state, metrics = sharded(state, batch)
        for name, value in metrics.items():
            assert float(value) == pytest.approx(float(wanted[name]), rel=1e-5)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_a_step_makes_nothing_as_large_as_the_table():
    """The paper's 793,471 words: temporary memory far below one table."""
    words, dim = 793_471, TINY.lstm.projection
    lm = LanguageModel(TINY, words, HeadConfig("sampled", samples=64))
    optimizer = make_optimizer(OptimizerConfig(), 100)
    state = jax.eval_shape(partial(init_state, lm, optimizer, 8, 0))
    batch = text().batch(0)
    step = jax.jit(partial(train_step, lm, optimizer), donate_argnums=0)
    memory = step.lower(state, batch).compile().memory_analysis()
    assert memory.temp_size_in_bytes < words * dim * 4 / 4
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert results < 1e6, "tables are changed in place"

"""One training step, the optimisers and the evaluation, against NumPy in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from toys import TINY, corpus_of, drawn

from elmojax.config import (
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    OptimizerConfig,
    WordTableConfig,
)
from elmojax.model.lstm import LstmState
from elmojax.model.ops import apply_dropout, row_keys
from elmojax.model.softmax import check_cutoffs
from elmojax.text.batches import TrainingText
from elmojax.text.tables import WordTables
from elmojax.training import evaluate
from elmojax.training.choices import automatic_cutoffs
from elmojax.training.evaluate import Evaluator
from elmojax.training.optim import make_optimizer, make_schedule
from elmojax.training.sharding import path_name
from elmojax.training.step import (
    RANDOM,
    Guard,
    LanguageModel,
    TrainState,
    Watch,
    evaluation_step,
    init_state,
    loss,
    train_step,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXT = [
    "the river bank is the bank".split(),
    "no bank".split(),
    "日本 is no river".split(),
    "the the the odd one".split(),
    "and so on and on".split(),
]
ROWS, WINDOW = 3, 4
CORPUS = corpus_of(TEXT, known=9)  # 12 targets in three clusters, some words <UNK>
CUTOFFS = (5, 8)
HEAD = HeadConfig("adaptive", CUTOFFS, 2.0)
LM = LanguageModel(TINY, len(CORPUS.vocabulary), HEAD)
BATCHES = TrainingText(
    CORPUS, WordTables(CORPUS, CORPUS.vocabulary, TINY, 1), ROWS, WINDOW, seed=0
)
RECIPE = OptimizerConfig(gradient_norm=0.5)
"""The paper's Adagrad, but every gradient is clipped."""


@pytest.fixture(scope="module")
def params():
    """From NumPy: the same numbers with any version of JAX."""
    return drawn(jax.eval_shape(LM.init, jax.random.key(0)), seed=7)


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(RECIPE, 100)


@pytest.fixture(scope="module")
def compiled(optimizer):
    """The programs that tests share."""
    no_dropout = partial(loss, LM, keys=None)
    return SimpleNamespace(
        grad=jax.jit(jax.value_and_grad(no_dropout, has_aux=True)),
        step=jax.jit(partial(train_step, LM, optimizer, guard=Guard(skip=3))),
        dropping=jax.jit(partial(train_step, replace(LM, dropout=0.5), optimizer)),
        evaluation_step=jax.jit(partial(evaluation_step, replace(LM, dropout=0.5))),
    )


def start(params, optimizer, rows=ROWS):
    carry = LstmState.zeros(TINY.lstm, rows)
    key = jax.random.key_data(jax.random.key(3))
    zero = jnp.zeros((), jnp.int32)
    watch = Watch.start()
    return TrainState(params, optimizer.init(params), carry, key, zero, watch)


class NumpyModel:
    """-log p of every position, [window, two, rows]; carries the state of each row."""

    def __init__(self, lm, params, rows):
        self.lm, self.params = lm, jax.tree.map(np.float64, params)
        self.streams = [
            [reference.Stream(params["lstm"], lm.config.lstm, n) for n in range(2)]
            for _ in range(rows)
        ]

    def __call__(self, batch):
        encoder = self.lm.config.encoder
        widths = [width for width, _ in encoder.filters]
        (table,) = batch.words  # twelve columns hold any word
        words = reference.char_cnn(
            self.params["encoder"], np.maximum(table, 1), widths, encoder.activation
        )
        each = np.zeros((batch.inputs.shape[2], 2, len(self.streams)))
        for row, directions in enumerate(self.streams):
            for n, stream in enumerate(directions):
                for t in range(len(each)):
                    top = stream.read(words[batch.inputs[n, row, t]])[-1]
                    target = batch.targets[n, row, t]
                    log_prob = reference.log_prob(self.params["head"], top, target)
                    each[t, n, row] = -log_prob
        return each


def test_the_toy_text_reaches_every_cluster():
    targets = np.concatenate([BATCHES.batch(i).targets.ravel() for i in range(2)])
    for low, high in ((0, 5), (5, 8), (8, 12)):
        assert np.any((targets >= low) & (targets < high))


PINNED = {
    "loss": 2.4693513,
    "forward_loss": 2.4881642,
    "backward_loss": 2.4505386,
    "gradient_norm": 2.1189122,
    "bad": 0,
    "skipped": 0,
}
"""Of the first step, in nats a prediction; and the losses of the next steps."""
PINNED_LOSSES = [2.6398342, 2.5814345, 2.7543936]


def test_known_steps_have_known_numbers(compiled, params, optimizer):
    state, losses = start(params, optimizer), []
    for number in range(4):
        state, metrics = compiled.step(state, BATCHES.batch(number))
        if not number:
            got = {name: float(value) for name, value in metrics.items()}
            assert got == pytest.approx(PINNED, rel=1e-5)
        losses.append(float(metrics["loss"]))
    assert losses[1:] == pytest.approx(PINNED_LOSSES, rel=2e-5)
    assert state.step == 4


def test_losses_and_carry_equal_numpy(compiled, params):
    """Window after window: the carry is the state at the end of the last."""
    model = NumpyModel(LM, params, ROWS)
    carry = LstmState.zeros(TINY.lstm, ROWS)
    for number in range(3):
        batch = BATCHES.batch(number)
        each = model(batch)
        sums, after = compiled.evaluation_step(params, carry, batch)
        np.testing.assert_allclose(sums, each.sum((0, 2)), rtol=1e-5)
        (value, (metrics, carry)), _ = compiled.grad(params, carry, batch)
        # Summed over the window, averaged over rows and directions.
        np.testing.assert_allclose(value, each.sum() / (2 * ROWS), rtol=1e-5)
        for name, wanted in (
            ("loss", each.mean()),
            ("forward_loss", each[:, 0].mean()),
            ("backward_loss", each[:, 1].mean()),
        ):
            np.testing.assert_allclose(metrics[name], wanted, rtol=1e-5)
        for state in (carry, after):
            for row, directions in enumerate(model.streams):
                for n, stream in enumerate(directions):
                    one = (state.cell[:, n, row], state.hidden[:, n, row])
                    np.testing.assert_allclose(one[0], stream.cells, atol=3e-6)
                    np.testing.assert_allclose(one[1], stream.hiddens, atol=3e-6)


def test_gradients_are_the_slopes_of_the_numpy_loss(compiled, params):
    """Float64 with steps so small that no maximum and no clip changes sides."""
    batch = BATCHES.batch(0)
    carry = LstmState.zeros(TINY.lstm, ROWS)
    _, gradient = compiled.grad(params, carry, batch)
    directions = drawn(params, seed=8, scale=1.0)
    paths, tree = jax.tree.flatten_with_path(jax.tree.map(np.float64, params))
    slopes, along = jax.tree.leaves(gradient), jax.tree.leaves(directions)
    for number, (path, leaf) in enumerate(paths):

        def moved(by, number=number, leaf=leaf):
            leaves = [leaf for _, leaf in paths]
            leaves[number] = leaf + by * np.float64(along[number])
            return NumpyModel(LM, tree.unflatten(leaves), ROWS)(batch).sum()

        step = 1e-6
        measured = (moved(step) - moved(-step)) / (2 * step) / (2 * ROWS)
        computed = np.vdot(slopes[number], along[number])
        norm = np.linalg.norm(slopes[number])
        assert norm > 1e-3, f"no gradient reaches {path}"
        assert abs(measured - computed) < 1e-4 * norm, path


def test_adagrad_with_clipping_is_the_formula(compiled, params, optimizer):
    """Accumulators start at 1; the metric is the norm before clipping."""
    state = start(params, optimizer)
    wanted = jax.tree.map(np.float64, params)
    squares = jax.tree.map(np.ones_like, wanted)
    for number in range(2):
        batch = BATCHES.batch(number)
        _, gradient = compiled.grad(state.params, state.carry, batch)
        gradient = jax.tree.map(np.float64, gradient)
        leaves = jax.tree.leaves(gradient)
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
        assert norm > 2 * RECIPE.gradient_norm, "clipping does not act"
        clipped = jax.tree.map(lambda g, n=norm: g * RECIPE.gradient_norm / n, gradient)
        squares = jax.tree.map(lambda s, g: s + g**2, squares, clipped)
        wanted = jax.tree.map(
            lambda p, g, s: p - 0.2 * g / np.sqrt(s), wanted, clipped, squares
        )
        state, metrics = compiled.step(state, batch)
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
        for got, leaf in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(wanted), strict=True
        ):
            np.testing.assert_allclose(got, leaf, atol=2e-6)


def test_a_gradient_below_the_norm_is_left_alone():
    optimizer = make_optimizer(OptimizerConfig(gradient_norm=10.0), 10)
    params = {"w": jnp.array([1.0, 2.0])}
    gradient = {"w": jnp.array([0.3, -0.4])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    wanted = -0.2 * np.array([0.3, -0.4]) / np.sqrt(1 + np.array([0.09, 0.16]))
    np.testing.assert_allclose(updates["w"], wanted, rtol=1e-5)


def test_the_carry_flows_from_step_to_step(compiled, params, optimizer):
    """Step 2 starts from the state of step 1, not from zeros, with new parameters."""
    first, _ = compiled.step(start(params, optimizer), BATCHES.batch(0))
    _, metrics = compiled.step(first, BATCHES.batch(1))
    (_, (wanted, _)), _ = compiled.grad(first.params, first.carry, BATCHES.batch(1))
    zeros = LstmState.zeros(TINY.lstm, ROWS)
    (_, (fresh, _)), _ = compiled.grad(first.params, zeros, BATCHES.batch(1))
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)
    assert abs(metrics["loss"] - fresh["loss"]) > 1e-3
    np.testing.assert_array_equal(first.key, start(params, optimizer).key)
    assert first.step == 1


def test_dropout_acts_in_training_only(compiled, params, optimizer):
    """Its masks follow from the run's key and the step; evaluation has none (above)."""
    state, batch = start(params, optimizer), BATCHES.batch(0)
    losses = [
        float(compiled.dropping(at, batch)[1]["loss"])
        for at in (
            state,
            state,
            state.replace(step=state.step + 1),
            state.replace(key=state.key + 1),
        )
    ]
    assert losses[0] == losses[1]
    assert len({*losses, PINNED["loss"]}) == 4


SMALL = LanguageModel(
    ElmoConfig(WordTableConfig(12, 6), LstmConfig(8, 6, layers=1)),
    12,
    HeadConfig("full"),
    dropout=0.25,
)


def test_dropout_does_not_hang_on_switches_of_jax():
    x, key = jnp.ones((3, 2, 4, 5), jnp.float32), np.array([1, 2], np.uint32)

    def draw():
        keys = row_keys(jax.random.wrap_key_data(key, impl=RANDOM), jnp.arange(4))
        return np.asarray(apply_dropout(x, 0.4, keys, 1))

    plain = draw()
    with jax.default_prng_impl("rbg"), jax.enable_x64(True):
        np.testing.assert_array_equal(draw(), plain)


def test_dropout_is_on_inputs_and_on_the_top():
    """Where inputs are 0 only the mask of the top shows: 0, or scaled up."""
    params = drawn(jax.eval_shape(SMALL.init, jax.random.key(0)))
    words = WordTables(CORPUS, CORPUS.vocabulary, SMALL.config, 1)
    batch = TrainingText(CORPUS, words, 16, 8, seed=0).batch(0)
    carry = LstmState.zeros(SMALL.config.lstm, 16)
    outputs = jax.jit(SMALL.top_layer)
    keys = row_keys(jax.random.key(1), jnp.arange(16))

    def ratios(table):
        encoder = {"embedding": table}
        run = partial(outputs, {**params, "encoder": encoder}, carry, batch)
        plain, dropped = run(None)[0], run(keys)[0]
        return np.asarray(dropped / plain)

    table = params["encoder"]["embedding"]
    of_the_top = ratios(jnp.zeros_like(table))
    kept = of_the_top > 0.5
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(of_the_top, np.where(kept, 4 / 3, 0), rtol=1e-5)
    of_both = ratios(table)
    np.testing.assert_array_equal(of_both != 0, kept)
    changed = np.abs(of_both[kept] - 4 / 3) > 1e-3
    assert changed.mean() > 0.8, "inputs are not dropped"


def tree_close(got, wanted, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), got, wanted)


@pytest.mark.parametrize(
    ("rows", "microbatches"), [(ROWS, 3), pytest.param(6, 2, marks=pytest.mark.slow)]
)
def test_a_batch_in_microbatches_makes_the_same_step(
    compiled, params, optimizer, rows, microbatches
):
    """With dropout: a row drops the same numbers whatever stands beside it."""
    words = WordTables(CORPUS, CORPUS.vocabulary, TINY)
    texts = [
        TrainingText(CORPUS, words, rows, WINDOW, 0, microbatches=n)
        for n in (1, microbatches)
    ]
    states = [start(params, optimizer, rows) for _ in texts]
    for number in range(2):
        both = [
            compiled.dropping(state, text.batch(number))
            for state, text in zip(states, texts, strict=True)
        ]
        (one, wanted), (other, got) = both
        tree_close(got, wanted, rtol=2e-6)
        states = [one, other]
    tree_close(states[1].params, states[0].params, atol=2e-6)
    tree_close(states[1].carry, states[0].carry, atol=2e-6)


def test_a_bad_update_changes_nothing_but_the_counts(compiled, params, optimizer):
    """The text goes on; parameters, moments and LSTM state stay as they were."""
    step = compiled.step
    good, metrics = step(start(params, optimizer), BATCHES.batch(0))
    assert (metrics["bad"], metrics["skipped"]) == (0, 0)
    poison = jnp.full_like(good.carry.cell, np.nan)
    poisoned = good.replace(carry=good.carry.replace(cell=poison))
    after, metrics = step(poisoned, BATCHES.batch(1))
    assert not np.isfinite(metrics["loss"])
    assert (metrics["bad"], metrics["skipped"], after.step) == (1, 1, 2)
    for part in ("params", "optimizer", "carry"):
        old, new = getattr(poisoned, part), getattr(after, part)
        jax.tree.map(np.testing.assert_array_equal, new, old)
    assert after.watch.mean_loss == good.watch.mean_loss


@pytest.mark.slow
def test_a_leap_of_the_loss_is_bad_where_asked_for(params, optimizer):
    losses, states = [], {}
    for spike in (0.0, 1.5):
        guard = Guard(skip=3, spike=spike)
        step = jax.jit(partial(train_step, LM, optimizer, guard=guard))
        state, metrics = step(start(params, optimizer), BATCHES.batch(0))
        np.testing.assert_allclose(state.watch.mean_loss, metrics["loss"])
        worse = jax.tree.map(lambda leaf: 9 * leaf, state.params["head"])
        state = state.replace(params={**state.params, "head": worse})
        states[spike], metrics = step(state, BATCHES.batch(1))
        losses.append(float(metrics["loss"]))
        assert bool(metrics["bad"]) == (spike > 0)
    assert losses[0] == losses[1] > 1.5 * PINNED["loss"]
    moved = np.any(states[0.0].params["head"]["kernel"] != worse["kernel"])
    assert moved and not np.any(states[1.5].params["head"]["kernel"] != worse["kernel"])


def part_equal(one, other, name):
    """Whether parameters of one part, or whatever belongs to it, are the same bits."""
    return jax.tree.all(jax.tree.map(np.array_equal, one[name], other[name]))


@pytest.mark.parametrize(
    ("name", "microbatches"),
    [pytest.param("adagrad", 1, marks=pytest.mark.slow), ("adamw", 2)],
)
def test_frozen_steps_train_the_head_alone(name, microbatches):
    """Two frozen steps, then a whole one, in a warm-up of four steps."""
    recipe = OptimizerConfig(name, 0.01, warmup_steps=4, gradient_norm=0.5)
    optimizer = make_optimizer(recipe, 100, freeze_steps=2)
    words = WordTables(CORPUS, CORPUS.vocabulary, SMALL.config)
    text = TrainingText(CORPUS, words, 4, WINDOW, 0, microbatches=microbatches)
    guard = Guard(skip=1)
    frozen, whole = (
        jax.jit(partial(train_step, SMALL, optimizer, guard=guard, only=only))
        for only in ("head", None)
    )
    states = [jax.jit(partial(init_state, SMALL, optimizer, 4, 0))()]
    norms = []
    for number, step in enumerate((frozen, frozen, whole)):
        state, metrics = step(states[-1], text.batch(number))
        states.append(state)
        norms.append(float(metrics["gradient_norm"]))
    first, _, thawing, last = states
    for state in states[1:3]:
        for part in ("encoder", "lstm"):
            assert part_equal(first.params, state.params, part)
        assert part_equal(first.optimizer[1], state.optimizer[1], "rest")
    for part in ("encoder", "lstm", "head"):
        before, after = thawing.params[part], last.params[part]
        assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    moments = [state.optimizer[1] for state in states]
    if name == "adagrad":
        # Each step adds the squared norm of what clipping left, to the head's alone.
        sums = [optax.tree.sum(m["head"][0].sum_of_squares) for m in moments]
        clipped = [min(norm, 0.5) ** 2 for norm in norms[:2]]
        np.testing.assert_allclose(np.diff(sums)[:2], clipped, rtol=1e-3)
    else:
        counts = [(int(m["head"][0].count), int(m["rest"][0].count)) for m in moments]
        assert counts == [(0, 0), (1, 0), (2, 0), (3, 1)]
        # Adam's first update is the learning rate, which is the run's: half warmed up.
        moved = jax.tree.map(jnp.subtract, last.params, thawing.params)["lstm"]
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moved))
        assert largest == pytest.approx(0.005, rel=1e-3)
    poisoned = first.replace(carry=jax.tree.map(jnp.log, first.carry))
    spared, metrics = frozen(poisoned, text.batch(0))
    assert metrics["bad"] == 1 and part_equal(spared.params, first.params, "head")


def test_frozen_steps_cost_no_backward_pass_of_what_is_frozen(params):
    optimizer = make_optimizer(RECIPE, 100, freeze_steps=2)
    state, flops = start(params, optimizer), {}
    for only in ("head", None):
        step = jax.jit(partial(train_step, LM, optimizer, only=only))
        flops[only] = step.lower(state, BATCHES.batch(0)).cost_analysis()["flops"]
    assert flops["head"] < 0.6 * flops[None]


def test_a_run_without_frozen_steps_keeps_its_layout(params):
    """Checkpoints of runs that began before go on."""
    state = make_optimizer(OptimizerConfig("adamw"), 100).init(params)
    paths = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert {"1.0.count", "1.0.mu.head.kernel", "1.2.count"} <= paths
    assert len(paths) == 2 + 2 * len(jax.tree.leaves(params))


def test_a_run_starts_from_its_seed(optimizer):
    """All of its 63 bits, whatever generator JAX takes by default."""

    def create(seed):
        return jax.jit(partial(init_state, SMALL, optimizer, ROWS, seed))()

    one, other = create(0), create(2**32)
    with jax.default_prng_impl("rbg"):
        jax.tree.map(np.testing.assert_array_equal, create(0), one)
    for name in ("lstm", "head"):
        differ = jax.tree.map(
            lambda a, b: bool(np.any(a != b)), one.params[name], other.params[name]
        )
        assert any(jax.tree.leaves(differ))
    assert np.any(one.key != other.key) and one.step == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(one.carry))
    accumulators = jax.tree.leaves(optax.tree.get(one.optimizer, "sum_of_squares"))
    assert accumulators and all(np.all(leaf == 1) for leaf in accumulators)


class BruteForce:
    """Every sentence in file order, word by word, each row from a state of zeros."""

    def __init__(self, params, rows):
        total = sum(len(s) + 1 for s in TEXT)
        models = [NumpyModel(LM, params, 1) for _ in range(rows)]
        self.sums, begins = np.zeros(2), 0
        for sentence in TEXT:
            row = max(r for r in range(rows) if r * total // rows <= begins)
            begins += len(sentence) + 1
            batch = self.batch(sentence)
            self.sums += models[row](batch).sum((0, 2))
        self.tokens = total

    @staticmethod
    def batch(sentence):
        types = [*(CORPUS.types.index(word) for word in sentence)]
        inputs = np.array([[[0, *types]], [[1, *types[::-1]]]])
        targets = np.array([[[*types, 1]], [[*types[::-1], 0]]])
        words = WordTables(CORPUS, CORPUS.vocabulary, TINY, 1)
        found, sizes = words.distinct(inputs), (64,)
        (table,) = words.tables([found], sizes)
        rows, targets = words.rows(inputs, found, sizes), words.targets[targets]
        return SimpleNamespace(words=tuple(table), inputs=rows, targets=targets)


@pytest.mark.parametrize(("rows", "window"), [(3, 4), (3, 20), (1, 7)])
def test_evaluation_is_the_brute_force_mean(monkeypatch, params, rows, window):
    """Every token once, the last partial batch included, however it is batched."""
    monkeypatch.setattr(evaluate, "ROWS", rows)
    monkeypatch.setattr(evaluate, "WINDOW", window)
    wanted = BruteForce(params, rows)
    told = []
    scores = Evaluator(LM, CORPUS, CORPUS.vocabulary)(params, told.append)
    forward, backward = wanted.sums / wanted.tokens
    close = partial(pytest.approx, rel=2e-5)
    assert scores["forward_perplexity"] == close(math.exp(forward))
    assert scores["backward_perplexity"] == close(math.exp(backward))
    mean = (math.exp(forward) + math.exp(backward)) / 2
    assert scores["mean_perplexity"] == close(mean)
    geometric = math.exp((forward + backward) / 2)
    assert scores["geometric_perplexity"] == close(geometric)
    assert scores["loss"] == close((forward + backward) / 2)
    size = sum(len(" ".join(sentence).encode()) + 1 for sentence in TEXT)
    bits = wanted.sums.mean() / math.log(2) / size
    assert scores["bits_per_byte"] == close(bits)
    unknown = [w for s in TEXT for w in s if w not in CORPUS.vocabulary.words]
    words = sum(map(len, TEXT))
    assert unknown and scores["oov_rate"] == close(len(unknown) / words)
    counts = (scores["tokens"], scores["words"], scores["sentences"])
    assert counts == (sum(told), words, 5) == (words + 5, words, 5)


def test_schedules():
    constant = make_schedule(OptimizerConfig(learning_rate=0.2), 100)
    assert [float(constant(step)) for step in (0, 50, 99)] == pytest.approx([0.2] * 3)
    warm = OptimizerConfig(learning_rate=0.4, warmup_steps=10)
    rise = make_schedule(warm, 100)
    wanted = [0, 0.2, 0.4, 0.4]
    assert [float(rise(step)) for step in (0, 5, 10, 99)] == pytest.approx(wanted)
    cosine = make_schedule(replace(warm, decay="cosine"), 110)
    wanted = [0.2, 0.4, (0.4 + 0.04) / 2, 0.04]
    assert [float(cosine(s)) for s in (5, 10, 60, 110)] == pytest.approx(wanted)
    values = [float(cosine(step)) for step in range(10, 111)]
    assert all(a > b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("name", ["adagrad", "adamw", "adafactor"])
def test_every_optimizer_goes_downhill(name):
    config = OptimizerConfig(name, 0.1, warmup_steps=3, gradient_norm=1.0)
    optimizer = make_optimizer(config, 50)
    params = {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.full(4, -1.0)}

    def height(params):
        return sum(jnp.sum(leaf**2) for leaf in params.values())

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(height)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, before = optimizer.init(params), height(params)
    still, _ = step(params, state)
    assert height(still) == before, "warm-up starts at a learning rate of 0"
    for _ in range(20):
        params, state = step(params, state)
    assert height(params) < 0.8 * before


def test_weight_decay_is_on_matrices_alone():
    config = OptimizerConfig("adamw", 0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    params = {"lstm": {"kernel_0": jnp.ones((2, 2)), "bias_0": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["lstm"]["kernel_0"], -0.05, rtol=1e-6)
    assert not np.any(updates["lstm"]["bias_0"])


def zipf(size, power=1.0):
    return (1e9 / np.arange(1, size + 1) ** power).astype(np.int64) + 1


def work(counts, dim, div_value, cutoffs):
    """Multiply-adds of a position: the head, and a tail as often as it is asked."""
    edges = [*cutoffs, len(counts)]
    total = (edges[0] + len(cutoffs)) * dim
    for k, (low, high) in enumerate(itertools.pairwise(edges), 1):
        narrow = int(dim // div_value**k)
        share = counts[low:high].sum() / counts.sum()
        total += share * (dim * narrow + (high - low) * narrow)
    return total


@pytest.mark.parametrize("dim", [64, 512])
@pytest.mark.parametrize("size", [5_000, 30_000, 793_471])
@pytest.mark.parametrize("div_value", [2.0, 4.0])
def test_automatic_cutoffs_save_work(dim, size, div_value):
    counts = zipf(size)
    cutoffs = automatic_cutoffs(counts, dim, div_value)
    check_cutoffs(cutoffs, size)
    assert 1 <= len(cutoffs) <= 3
    full = work(counts, dim, div_value, ())
    chosen = work(counts, dim, div_value, cutoffs)
    assert chosen < full * {5_000: 0.6, 30_000: 0.35, 793_471: 0.12}[size]
    for one in (500, size // 10, size // 2):
        assert chosen <= 1.05 * work(counts, dim, div_value, (one,))


def test_automatic_cutoffs_follow_the_counts():
    assert automatic_cutoffs(zipf(300), 64, 4.0) == ()
    steep = automatic_cutoffs(zipf(30_000, 2.0), 64, 4.0)
    flat = automatic_cutoffs(zipf(30_000, 0.8), 64, 4.0)
    assert steep[1] < flat[1], "common words stay out of the last, narrow cluster"

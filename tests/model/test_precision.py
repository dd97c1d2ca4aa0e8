"""Products in bfloat16, everything else in float32: one device, meshes, every form."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import CORPUS, TINY, drawn

from elmojax.config import (
    CharCnnConfig,
    HeadConfig,
    LstmConfig,
    MeshConfig,
    OptimizerConfig,
)
from elmojax.model.lstm import LstmState
from elmojax.model.ops import contract
from elmojax.text.batches import TrainingText
from elmojax.text.tables import WordTables
from elmojax.training import step
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import make_mesh, path_name, put_on_mesh, shardings
from elmojax.training.step import (
    LanguageModel,
    compile_train_step,
    evaluation_step,
    init_state,
    loss,
    train_step,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, WINDOW = 8, 3
CONFIG = replace(
    TINY,
    encoder=CharCnnConfig(((1, 4), (3, 12)), 4, 1, max_characters=12),
    lstm=LstmConfig(dim=16, projection=6, cell_clip=math.inf, projection_clip=math.inf),
)
"""Without clips: one number on the other side of a clip would change the gradient more
than all roundings. (test_recurrence.py has bfloat16 with clips.)"""
ADAPTIVE = HeadConfig("adaptive", (6, 15), 2.0)
SAMPLED = HeadConfig("sampled", samples=8)
LM = LanguageModel(
    CONFIG,
    len(CORPUS.vocabulary),
    ADAPTIVE,
    dtype=jnp.bfloat16,
    platform="accelerator",
)
HALF = 2.0**-9
"""Largest relative error of a rounding to bfloat16, which has 8 bits."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("subscripts", "left", "right"),
    [("...i,io->...o", (3, 2, 8), (8, 5)), ("nki,nkg->nig", (2, 7, 3), (2, 7, 4))],
)
def test_a_product_and_its_gradient_are_rounded_alike(subscripts, left, right, dtype):
    """The factors of each of the three products are rounded, and nothing else is."""
    random = np.random.default_rng(0)
    left, right = (
        jnp.asarray(random.standard_normal(s), "float32") for s in (left, right)
    )
    out, pull = jax.vjp(lambda *both: contract(subscripts, *both, dtype), left, right)
    cotangent = jnp.asarray(random.standard_normal(out.shape), "float32")

    def exact(array):
        return jnp.asarray(np.asarray(array.astype(dtype), np.float64), "float32")

    with jax.default_matmul_precision("highest"):
        plain = partial(jnp.einsum, subscripts, precision="highest")
        wanted, pull_plain = jax.vjp(plain, exact(left), exact(right))
        slopes = pull_plain(exact(cotangent))
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    for got, slope in zip(pull(cotangent), slopes, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, slope, rtol=1e-5, atol=1e-5)


def batch_of(lm, shards=1, microbatches=1):
    words = WordTables(CORPUS, CORPUS.vocabulary, CONFIG, shards)
    samples = lm.head.samples if lm.head.kind == "sampled" else 0
    text = TrainingText(CORPUS, words, ROWS, WINDOW, 0, samples, microbatches)
    return text.batch(1)


def equations(jaxpr):
    """All of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize("head", [ADAPTIVE, SAMPLED], ids=lambda head: head.kind)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bf16", "float32"])
def test_every_product_of_a_step_has_its_precision(head, dtype):
    """Factors in the dtype of the run, sums float32; in float32 no TF32, no bf16."""
    mesh = make_mesh(MeshConfig(4, 2))
    lm = replace(LM, head=head, dtype=dtype, mesh=mesh)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = jax.eval_shape(partial(init_state, lm, optimizer, ROWS, 0))
    step = partial(train_step, lm, optimizer)
    jaxpr = jax.make_jaxpr(step)(state, batch_of(lm, 4, microbatches=2)).jaxpr
    products, sums = [], []
    for equation in equations(jaxpr):
        kinds = {v.aval.dtype for v in equation.invars if hasattr(v.aval, "dtype")}
        if equation.primitive.name == "dot_general":
            products.append(equation)
            assert kinds == {jnp.dtype(dtype)}, equation
            assert equation.outvars[0].aval.dtype == jnp.float32, equation
            if dtype == jnp.float32:
                wanted = (jax.lax.Precision.HIGHEST,) * 2
                assert equation.params["precision"] == wanted, equation
        elif equation.primitive.name.startswith(("psum", "reduce_sum", "cumsum")):
            sums.append(equation)
            assert not kinds & {jnp.dtype("bfloat16"), jnp.dtype("float16")}, equation
    assert len(products) > 20 and len(sums) > 5


@pytest.fixture(scope="module")
def params():
    """Of either head. They are numbers of bfloat16, so that the responses of filters
    are exact and the largest of a word is the same one; with this seed no relu changes
    sides either."""
    heads = (ADAPTIVE, SAMPLED)
    trees = [jax.eval_shape(replace(LM, head=h).init, jax.random.key(0)) for h in heads]
    trees = [drawn(tree, seed=2) for tree in trees]
    near = jax.tree.map(lambda w: w.astype("bfloat16").astype("float32"), trees)
    return {head.kind: tree for head, tree in zip(heads, near, strict=True)}


def gradient(lm, params, batch, carry):
    """Value, new carry and gradient of `loss`."""

    def objective(params, carry, batch):
        if batch.negatives is not None:
            params = step.take(params, batch.negatives.words)
        return loss(lm, params, carry, batch, None)

    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, (_, carry)), slopes = run(params, carry, batch)
    return {"value": value, "carry": carry, "slopes": slopes}


@pytest.fixture(scope="module")
def exact(params):
    """float32 on one device."""
    carry = drawn(jax.eval_shape(partial(LstmState.zeros, CONFIG.lstm, ROWS)), 3, 0.2)
    found = {"carry": carry}
    for head in (ADAPTIVE, SAMPLED):
        lm = replace(LM, head=head, dtype=jnp.float32, platform="cpu")
        found[head.kind] = gradient(lm, params[head.kind], batch_of(lm), carry)
    return found


def distances(got, wanted):
    """Norm of the difference over the norm, of each leaf by its name."""
    found = {}
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True
    ):
        assert leaf.dtype == jnp.float32, path_name(path)
        other = np.asarray(other)
        distance = np.linalg.norm(np.asarray(leaf) - other)
        found[path_name(path)] = float(distance / np.linalg.norm(other))
    return found


@pytest.mark.usefixtures("users_compilation")
@pytest.mark.parametrize(
    ("mesh", "head"),
    [
        (None, ADAPTIVE),
        ((4, 2), ADAPTIVE),
        pytest.param((4, 2), SAMPLED, marks=pytest.mark.slow),
        pytest.param((8, 1), ADAPTIVE, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_bf16_is_float32_but_for_the_rounding(params, exact, head, mesh):
    """Loss, carry and every leaf of the gradient, against float32 on one device.

    A number passes through about ten products, one after the other, on its way through
    encoder, two layers of several positions, the softmax and back; each rounds an
    activation (weights are not rounded: see `params`). Errors of that many roundings
    add up like a random walk, to about sqrt(10) * HALF, 0.6 %; three times that is
    allowed.
    """
    shards = 1 if mesh is None else mesh[0]
    lm = replace(LM, head=head, mesh=mesh and make_mesh(MeshConfig(*mesh)))
    tree, carry, batch = params[head.kind], exact["carry"], batch_of(lm, shards)
    if lm.mesh is not None:
        tree = jax.device_put(tree, shardings(lm.mesh, tree, "params."))
        carry = jax.device_put(carry, shardings(lm.mesh, carry, "carry."))
    got = gradient(lm, tree, put_on_mesh(lm.mesh, batch, "batch."), carry)
    found = distances(got, exact[head.kind])
    bound = 3 * np.sqrt(10) * HALF
    assert max(found.values()) < bound, found
    assert np.median(list(found.values())) > HALF / 8, "nothing was rounded"


@pytest.mark.slow
@pytest.mark.parametrize("head", [ADAPTIVE, SAMPLED], ids=lambda head: head.kind)
def test_microbatches_add_up_in_float32(params, exact, head):
    """On a mesh, in bf16: the gradient of four microbatches is that of the whole batch
    but for the rounding of its factors, as large as in one; and so is the update."""
    mesh = make_mesh(MeshConfig(2, 2))
    lm, steps = replace(LM, head=head, mesh=mesh), {}
    optimizer = make_optimizer(OptimizerConfig(gradient_norm=0.5), 10)
    for microbatches in (1, 4):
        zeros = jax.eval_shape(partial(init_state, lm, optimizer, ROWS, 0))
        places = shardings(mesh, zeros)
        tree = params[head.kind]
        state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), zeros)
        state = state.replace(
            params=tree, optimizer=optimizer.init(tree), carry=exact["carry"]
        )
        state = jax.device_put(jax.tree.map(np.array, state), places)
        batch = put_on_mesh(
            mesh, batch_of(lm, 2, microbatches), "batch.", microbatches=microbatches > 1
        )
        steps[microbatches] = compile_train_step(lm, optimizer, state)(state, batch)
    (one, numbers), (four, others) = steps.values()
    kinds = {leaf.dtype for leaf in jax.tree.leaves((four.params, four.optimizer))}
    assert kinds <= {jnp.dtype("float32"), jnp.dtype("int32")}
    for name in (lm.loss_name, "gradient_norm"):
        assert float(others[name]) == pytest.approx(float(numbers[name]), rel=4 * HALF)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=0, atol=0.2 * 0.5 * 4 * HALF),
        four.params,
        one.params,
    )
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            jax.tree.leaves(four.params),
            jax.tree.leaves(params[head.kind]),
            strict=True,
        )
    ]
    assert min(moved) > 0


def test_evaluation_in_bf16_on_a_mesh(params, exact, mesh=(4, 2)):
    """Sums of -log p, as near to float32 on one device as their roundings allow."""
    plain = replace(LM, dtype=jnp.float32, platform="cpu")
    lm = replace(LM, mesh=make_mesh(MeshConfig(*mesh)))
    carry = exact["carry"]
    wanted, _ = jax.jit(partial(evaluation_step, plain))(
        params["adaptive"], carry, batch_of(plain)
    )
    tree = jax.device_put(
        params["adaptive"], shardings(lm.mesh, params["adaptive"], "params.")
    )
    carry = jax.device_put(carry, shardings(lm.mesh, carry, "carry."))
    got, after = jax.jit(partial(evaluation_step, lm))(
        tree, carry, put_on_mesh(lm.mesh, batch_of(lm, mesh[0]), "batch.")
    )
    np.testing.assert_allclose(got, wanted, rtol=4 * HALF)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("head", [ADAPTIVE, SAMPLED], ids=lambda head: head.kind)
def test_the_step_of_production_lowers(platform, head):
    """On its mesh, with its shardings and guard, from any machine: a step that only a
    CPU could compile would break unseen."""
    mesh = make_mesh(MeshConfig(4, 2))
    lm = replace(LM, head=head, mesh=mesh, dropout=0.1, platform=None)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    shapes = jax.eval_shape(partial(init_state, lm, optimizer, ROWS, 0))
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        shardings(mesh, shapes),
    )
    batch = put_on_mesh(mesh, batch_of(lm, 4), "batch.")
    step = compile_train_step(lm, optimizer, state)
    program = jax.export.export(step, platforms=[platform])(state, batch)
    assert program.platforms == (platform,) and program.nr_devices == 8
    out = jax.tree.unflatten(program.out_tree, program.out_avals)[0]
    for got, wanted in zip(jax.tree.leaves(out), jax.tree.leaves(state), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)

"""`embed` and `encode` inside other people's programs: mapped, differentiated, sharded.

What one call must do by itself is in test_embed.py.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toys import TINY, tiny_params

import elmojax
from elmojax import ScalarMix

pytestmark = pytest.mark.usefixtures("quick_compilation")

VECTOR = 2 * TINY.lstm.projection
GAMMAS = jnp.array([0.2, -0.5, 1.1], jnp.float32)
LENGTHS = (3, 6, 0, 1, 5, 2, 6, 4)
CLOSE = partial(np.testing.assert_allclose, atol=1e-6)

encode = jax.jit(elmojax.encode)


def ids_of(*shape, seed=0):
    """Tokens [*shape, 8 sentences, 6, characters] of words of one or two letters."""
    random = np.random.default_rng(seed)
    letters = [list("abcdefgh"), ["é", "zz"]]
    words = [a + b for a in letters[0] for b in (*letters[1], "")]
    batches = [
        elmojax.batch_to_ids(
            [random.choice(words, length).tolist() for length in LENGTHS],
            TINY.encoder.max_characters,
        )
        for _ in range(np.prod(shape, dtype=int))
    ]
    return jnp.asarray(np.stack(batches).reshape(*shape, *batches[0].shape))


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def test_batches_are_mapped(params):
    """Over a leading axis of batches, alone and with gammas of their own."""
    tokens = ids_of(3)
    gammas = jnp.stack([GAMMAS, GAMMAS[::-1], 2 * GAMMAS])
    shared = jax.jit(jax.vmap(elmojax.embed, (None, 0, None)))(params, tokens, GAMMAS)
    own = jax.jit(jax.vmap(elmojax.embed, (None, 0, 0)))(params, tokens, gammas)
    for i in range(3):
        CLOSE(shared[i], elmojax.embed(params, tokens[i], GAMMAS))
        CLOSE(own[i], elmojax.embed(params, tokens[i], gammas[i]))


def test_models_are_mapped():
    """An ensemble: parameters stacked on a leading axis."""
    models = [tiny_params(seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    tokens = ids_of()
    both = jax.jit(jax.vmap(elmojax.embed, (0, None, None)))(stacked, tokens, GAMMAS)
    for model, vectors in zip(models, both, strict=True):
        CLOSE(vectors, elmojax.embed(model, tokens, GAMMAS))


def test_states_are_mapped(params):
    """`encode` with a state of each batch, as when streams are read side by side."""
    tokens = ids_of(2)
    mapped = jax.jit(jax.vmap(elmojax.encode, (None, 0, 0)))
    first = jax.jit(jax.vmap(elmojax.encode, (None, 0)))(params, tokens)
    second = mapped(params, tokens[::-1], first.state)
    for i in range(2):
        alone = encode(params, tokens[i])
        jax.tree.map(CLOSE, jax.tree.map(lambda leaf, i=i: leaf[i], first), alone)
        after = encode(params, tokens[1 - i], alone.state)
        jax.tree.map(CLOSE, jax.tree.map(lambda leaf, i=i: leaf[i], second), after)


def test_it_is_scanned(params):
    """Many batches with the memory of one, the state carried from each to the next."""
    tokens = ids_of(3)
    start = params.initial_state.for_batch(len(LENGTHS))

    def step(state, batch):
        encoded = elmojax.encode(params, batch, state)
        return encoded.state, encoded.layers

    _, layers = jax.jit(partial(jax.lax.scan, step))(start, tokens)
    state = None
    for batch, scanned in zip(tokens, layers, strict=True):
        encoded = encode(params, batch, state)
        CLOSE(scanned, encoded.layers)
        state = encoded.state


def test_gradients_of_every_batch(params):
    """jit(vmap(grad)): the slope of a curved loss that finite differences show."""
    tokens = ids_of(3)
    wanted = jnp.asarray(np.random.default_rng(1).standard_normal(VECTOR), jnp.float32)

    def loss(gammas, batch):
        vectors = elmojax.embed(params, batch, gammas)
        return optax.sigmoid_binary_cross_entropy(
            vectors @ wanted, jnp.float32(1)
        ).mean()

    slopes = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(GAMMAS, tokens)
    value = jax.jit(jax.vmap(loss, (None, 0)))
    for j, step in enumerate(1e-2 * np.eye(3, dtype=np.float32)):
        measured = (value(GAMMAS + step, tokens) - value(GAMMAS - step, tokens)) / 2e-2
        np.testing.assert_allclose(slopes[:, j], measured, atol=2e-4)
    assert np.abs(slopes).min() > 1e-3


def test_the_layers_of_a_frozen_model(params):
    """`encode` outside the gradient and a ScalarMix inside, as a task trains it:
    its slopes are those of `embed` with the paper's weights."""
    tokens = ids_of()
    s, gamma = jnp.array([0.3, -0.1, 0.2], jnp.float32), jnp.float32(1.5)

    def through_mix(weights):
        layers = jax.lax.stop_gradient(elmojax.encode(params, tokens).layers)
        return (ScalarMix().apply({"params": weights}, layers) ** 2).sum()

    def through_embed(weights):
        gammas = elmojax.mix_weights(weights["s"], weights["gamma"])
        return (elmojax.embed(params, tokens, gammas) ** 2).sum()

    weights = {"s": s, "gamma": gamma}
    one, other = (jax.jit(jax.grad(f))(weights) for f in (through_mix, through_embed))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), one, other)


def test_frozen_params_get_no_gradient(params):
    def loss(params):
        layers = jax.lax.stop_gradient(elmojax.encode(params, ids_of()).layers)
        return (layers**2).sum()

    slopes = jax.jit(jax.grad(loss))(params)
    assert not any(np.any(slope) for slope in jax.tree.leaves(slopes))


def test_remat_leaves_gradients_alone(params):
    """`jax.checkpoint`, for models that are fine-tuned in little memory."""
    tokens = ids_of()

    def slopes(embed):
        return jax.jit(jax.grad(lambda p: (embed(p, tokens, GAMMAS) ** 2).sum()))(
            params
        )

    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    again = jax.checkpoint(elmojax.embed)
    jax.tree.map(close, slopes(again), slopes(elmojax.embed))


@pytest.mark.parametrize("gammas", [GAMMAS, jnp.stack([GAMMAS, -GAMMAS])])
def test_it_is_sharded_by_its_inputs(params, mesh, gammas):
    """Sentences over `data`: the result lies there too, and nothing is gathered."""
    tokens = ids_of()
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    wanted = elmojax.embed(params, tokens, gammas)
    placed = jax.device_put((params, tokens, gammas), (whole, rows, whole))
    program = jax.jit(elmojax.embed).lower(*placed).compile()
    vectors = program(*placed)
    spec = P("data") if gammas.ndim == 1 else P(None, "data")
    lies = NamedSharding(mesh, spec)
    assert vectors.sharding.is_equivalent_to(lies, vectors.ndim), vectors.sharding
    CLOSE(vectors, wanted)
    assert not _collectives(program)


def test_the_gradient_of_a_sharded_batch(params, mesh):
    """The mean over all sentences is the one on one device; params come back whole."""
    tokens = ids_of()
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def loss(params, tokens):
        return (elmojax.embed(params, tokens, GAMMAS) ** 2).mean()

    slopes = jax.jit(jax.grad(loss), out_shardings=whole)
    one = jax.jit(jax.grad(loss))(params, tokens)
    placed = jax.device_put((params, tokens), (whole, rows))
    jax.tree.map(CLOSE, slopes(*placed), one)
    found = _collectives(slopes.lower(*placed).compile())
    assert found and "all-gather" not in found, found


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_it_runs_in_shard_map(params, mesh, check):
    tokens = ids_of()
    mapped = jax.shard_map(
        elmojax.embed,
        mesh=mesh,
        in_specs=(P(), P("data"), P()),
        out_specs=P("data"),
        check_vma=check,
    )
    vectors = jax.jit(mapped)(params, tokens, GAMMAS)
    assert vectors.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 3)
    CLOSE(vectors, elmojax.embed(params, tokens, GAMMAS))


def test_its_gradient_runs_in_shard_map(params, mesh):
    """Data parallel by hand: each device its sentences, `pmean` of the gradients."""
    tokens = ids_of()

    def loss(gammas, params, tokens):
        return (elmojax.embed(params, tokens, gammas) ** 2).mean()

    def share(gammas, params, tokens):
        return jax.lax.pmean(loss(gammas, params, tokens), "data")

    mapped = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(P(), P(), P("data")),
        out_specs=P(),
    )
    for argument in (0, 1):
        got = jax.jit(jax.grad(mapped, argument))(GAMMAS, params, tokens)
        wanted = jax.jit(jax.grad(loss, argument))(GAMMAS, params, tokens)
        jax.tree.map(CLOSE, got, wanted)


def _collectives(program):
    """Kinds of communication between devices in a compiled program."""
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    text = program.as_text()
    return {kind for kind in kinds if f"{kind}(" in text or f"{kind}-start(" in text}

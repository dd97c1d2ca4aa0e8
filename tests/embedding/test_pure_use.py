"""`embed` and `encode` inside other people's programs: mapped, differentiated, sharded.

What one call must do by itself is in test_embed.py.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import USERS_FORM
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toys import TINY, tiny_params

import elmojax
from elmojax import ScalarMix

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = replace(
    TINY,
    encoder=replace(TINY.encoder, filters=((2, 4),), highway_layers=0),
    lstm=replace(TINY.lstm, layers=1),
)
"""Quick to compile: every use is a program of its own."""
VECTOR = 2 * SMALL.lstm.projection
GAMMAS = jnp.array([0.2, -0.5], jnp.float32)
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
    return tiny_params(SMALL)


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
    models = [tiny_params(SMALL, seed) for seed in range(2)]
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
        return encoded.state, (encoded.layers, encoded.state)

    _, (layers, states) = jax.jit(partial(jax.lax.scan, step))(start, tokens)
    before = start  # from the same state each time: roundings do not add up
    for number, batch in enumerate(tokens):
        encoded = encode(params, batch, before)
        CLOSE(layers[number], encoded.layers)
        after = jax.tree.map(lambda leaf, n=number: leaf[n], states)
        jax.tree.map(CLOSE, encoded.state, after)
        before = after


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
    for j, step in enumerate(1e-2 * np.eye(2, dtype=np.float32)):
        measured = (value(GAMMAS + step, tokens) - value(GAMMAS - step, tokens)) / 2e-2
        np.testing.assert_allclose(slopes[:, j], measured, atol=2e-4)
    assert np.abs(slopes).min() > 1e-3


def test_the_layers_of_a_frozen_model(params):
    """`encode` outside the gradient and a ScalarMix inside, as a task trains it:
    its slopes are those of `embed` with the paper's weights."""
    tokens = ids_of()
    s, gamma = jnp.array([0.3, -0.1], jnp.float32), jnp.float32(1.5)

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


@pytest.mark.slow
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


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("gammas", [GAMMAS, jnp.stack([GAMMAS, -GAMMAS])])
def test_it_is_sharded_by_its_inputs(params, kind, gammas):
    """Sentences over `data`: the result lies there too, and nothing is gathered."""
    tokens, mesh = ids_of(), _mesh((4, 2), kind)
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


@pytest.mark.slow
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
    # As accelerators sum it; a CPU joins the positions of all shards first.
    with _forms_of_accelerators():
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


def _mesh(shape, kind=AxisType.Explicit):
    devices = jax.devices()[: np.prod(shape)]
    axes = ("data", "model")
    return jax.make_mesh(shape, axes, axis_types=(kind, kind), devices=devices)


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def _loss_and_slopes(learned, tokens):
    vectors = elmojax.embed(learned[0], tokens, learned[1])
    return (vectors**2).mean(), vectors


@pytest.fixture(scope="module")
def one_device(params):
    (_, vectors), slopes = _loss_and_slopes((params, GAMMAS), ids_of())
    return vectors, slopes


SLOW = pytest.mark.slow
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


@pytest.mark.parametrize(
    ("kind", "size", "inside"),
    [
        pytest.param(AUTO, (1, 1), False, id="auto-1", marks=SLOW),
        pytest.param(AUTO, (4, 1), False, id="auto-4", marks=SLOW),
        pytest.param(AUTO, (4, 2), False, id="auto-4x2"),
        pytest.param(AUTO, (4, 2), True, id="auto-4x2-set_mesh", marks=SLOW),
        pytest.param(EXPLICIT, (1, 1), False, id="explicit-1", marks=SLOW),
        pytest.param(EXPLICIT, (4, 1), False, id="explicit-4", marks=SLOW),
        pytest.param(EXPLICIT, (4, 2), False, id="explicit-4x2", marks=SLOW),
        pytest.param(EXPLICIT, (4, 2), True, id="explicit-4x2-set_mesh"),
    ],
)
def test_any_mesh(params, kind, size, inside, one_device):
    """Eager, jitted, and its gradients, whatever the type of the axes."""
    tokens, (wanted, slopes) = ids_of(), one_device
    mesh = _mesh(size, kind)
    with jax.set_mesh(mesh) if inside else nullcontext():
        rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        placed = jax.device_put((params, GAMMAS), whole)
        tokens = jax.device_put(tokens, rows)
        eager = elmojax.embed(placed[0], tokens, placed[1])
        (_, jitted), got = _loss_and_slopes(placed, tokens)
        for vectors in (eager, jitted):
            assert vectors.sharding.is_equivalent_to(rows, 3), vectors.sharding
            CLOSE(vectors, wanted)
        jax.tree.map(CLOSE, got, slopes)


@pytest.mark.parametrize(
    "kind", [pytest.param(AUTO, marks=SLOW), EXPLICIT], ids=["auto", "explicit"]
)
@pytest.mark.parametrize(
    "spec",
    [P(("data", "model")), P(), P(None, "model"), P("data", None, "model")],
    ids=str,
)
def test_tokens_of_any_sharding(params, one_device, kind, spec):
    """Split over two axes or none, along time or letters; parameters over `model`."""
    mesh = _mesh((4, 2), kind)

    def over_model(leaf):
        even = leaf.shape[-1] % 2 == 0
        spec = P(*[None] * (leaf.ndim - 1), "model") if even else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    tokens = jax.device_put(ids_of(), NamedSharding(mesh, spec))
    layers = encode(jax.tree.map(over_model, params), tokens).layers
    mixed = np.einsum("l,blth->bth", GAMMAS, layers)
    np.testing.assert_allclose(mixed, one_device[0], atol=2e-6)
    if kind is AxisType.Explicit:
        lies = NamedSharding(mesh, P(spec[0] if spec else None))
        assert layers.sharding.is_equivalent_to(lies, 4), layers.sharding


def test_a_split_axis_of_time_shorter_than_its_marks(params):
    """Two words over two devices: `<S>` once went to a wrong place there."""
    tokens, mesh = ids_of()[4:6, :2], _mesh((4, 2), AxisType.Auto)
    split = jax.device_put(tokens, NamedSharding(mesh, P(None, "model")))
    CLOSE(encode(params, split).layers, encode(params, tokens).layers)


@pytest.mark.slow
def test_the_parts_of_a_task_on_explicit_axes(params):
    """What comes after `encode`, and what is made of parameters that lie there."""
    mesh = _mesh((4, 2))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    tokens, held = ids_of(), jax.device_put(params, whole)
    split = jax.device_put(tokens, rows)
    one, many = encode(params, tokens), encode(held, split)
    keys = {"dropout": jax.random.key(1)}
    mix = ScalarMix(layer_norm=True, dropout=0.5)
    weights = mix.init(jax.random.key(0), one.layers, one.mask)

    @jax.jit
    def task(layers, mask):
        words = mix.apply(weights, layers, mask, False, rngs=keys)
        return [elmojax.pool(words, mask, how) for how in ("mean", "max", "first-last")]

    wanted = task(one.layers, one.mask)
    with jax.set_mesh(mesh):
        for got, like in zip(task(many.layers, many.mask), wanted, strict=True):
            np.testing.assert_allclose(got, like, atol=1e-5)
            assert got.sharding.is_equivalent_to(rows, 2)
    # Rows beyond a smaller batch keep their state.
    there = encode(held, jax.device_put(tokens[:4], rows), many.state)
    jax.tree.map(CLOSE, there, encode(params, tokens[:4], one.state))
    start, like = (elmojax.warm(p, t) for p, t in ((held, split), (params, tokens)))
    jax.tree.map(CLOSE, start.initial_state, like.initial_state)


@pytest.mark.slow
def test_words_of_parameters_on_explicit_axes(params):
    """Tables of words are made from parameters over `data`, or split over `model`."""
    words, mesh = elmojax.WordIndex(("ab", "b")), _mesh((4, 2))
    ids = np.array([[1, 2]] * 8, np.int32)
    mixed = {"batch_tokens": 8, "layers": "mix", "gammas": GAMMAS}
    plain = elmojax.Embedder(params, **mixed)
    wanted = plain.embed_sentence(["ab", "b"])
    for spec in (P(), P(None, "model")):
        held = params.replace(
            encoder=jax.tree.map(
                lambda leaf, spec=spec: jax.device_put(
                    leaf, NamedSharding(mesh, spec if leaf.ndim == 2 else P())
                ),
                params.encoder,
            )
        )
        cached = elmojax.embed(elmojax.cache_words(held, words), ids, GAMMAS)
        np.testing.assert_allclose(cached[0], wanted, atol=1e-5)
        there = elmojax.Embedder(held, **mixed)
        np.testing.assert_allclose(there.embed_sentence(["ab", "b"]), wanted, atol=1e-5)


@pytest.mark.parametrize("names", [("data", "model"), ("data",)], ids=str)
def test_shard_map_on_explicit_axes(params, one_device, names):
    """Over all axes of the mesh by hand, or over one of them."""
    mesh = _mesh((4, 2))
    share = jax.shard_map(
        elmojax.embed,
        mesh=mesh,
        in_specs=(P(), P("data"), P()),
        out_specs=P("data"),
        axis_names=set(names),
    )
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    placed = jax.device_put((params, ids_of(), GAMMAS), (whole, rows, whole))
    CLOSE(jax.jit(share)(*placed), one_device[0])


def test_forward_mode(params):
    """In gammas and bias, as the docstring of `embed` has it; not in params."""
    tokens = ids_of()

    def value(gammas, bias):
        return (elmojax.embed(params, tokens, gammas, bias) ** 2).mean()

    point = (GAMMAS, jnp.float32(0.5))
    forward = jax.jit(jax.jacfwd(value, (0, 1)))(*point)
    backward = jax.jit(jax.grad(value, (0, 1)))(*point)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), forward, backward)
    layers = encode(params, tokens).layers
    wanted = 2 * np.einsum("bjtv,bktv->jk", layers, layers) / layers[:, 0].size
    hessian = jax.jit(jax.hessian(value))(*point)
    np.testing.assert_allclose(hessian, wanted, rtol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda p: elmojax.embed(p, tokens, GAMMAS), (params,), (params,))


def test_the_initial_state_is_no_parameter(params):
    """30 steps of AdamW, weight decay and all, move everything but it."""
    start = jax.tree.map(lambda leaf: leaf + 0.3, params.initial_state)
    warm = params.replace(initial_state=start)
    assert len(jax.tree.leaves(warm)) == len(jax.tree.leaves(params.tree))
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    tokens = ids_of()

    def loss(params):
        return (elmojax.embed(params, tokens, GAMMAS) ** 2).mean()

    @jax.jit
    def step(params, moments):
        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    tuned, moments = warm, optimizer.init(warm)
    for _ in range(30):
        tuned, moments = step(tuned, moments)
    assert step._cache_size() == 1
    assert tuned.initial_state == warm.initial_state != params.initial_state
    for after, before in zip(*map(jax.tree.leaves, (tuned, warm)), strict=True):
        assert np.abs(after - before).max() > 1e-3


def test_equal_initial_states_are_one_program(params):
    """They are compared by content; read-only, so that the content stays."""
    run = jax.jit(lambda params, tokens: elmojax.encode(params, tokens).mask)
    start = jax.tree.map(lambda leaf: leaf + 0.3, params.initial_state)
    hashes = set()
    for copy in (np.copy, jnp.asarray, lambda leaf: leaf.astype(np.float64)):
        held = params.replace(initial_state=jax.tree.map(copy, start))
        run(held, ids_of())
        for leaf in jax.tree.leaves(held.initial_state):
            assert isinstance(leaf, np.ndarray) and not leaf.flags.writeable
            assert leaf.dtype == np.float32
        hashes.add(hash(held.initial_state))
    assert run._cache_size() == len(hashes) == 1
    run(params, ids_of())
    assert run._cache_size() == 2
    with pytest.raises(elmojax.InputError, match="no LstmState"):
        params.replace(initial_state=None)


def test_a_traced_initial_state_is_refused(params):
    """To learn it, hand it over as `state=`: it has a gradient there."""
    start = jax.tree.map(jnp.asarray, params.initial_state)

    def replaced(state):
        held = params.replace(initial_state=state)
        return (elmojax.encode(held, ids_of()).layers ** 2).mean()

    def given(state):
        return (elmojax.encode(params, ids_of(), state=state).layers ** 2).mean()

    with pytest.raises(elmojax.InputError, match="state="):
        jax.grad(replaced)(start)
    slopes = jax.jit(jax.grad(given))(start)
    assert all(np.any(slope) for slope in jax.tree.leaves(slopes))


def test_programs_of_users_trace(params, mesh):
    """With the forms of all platforms beside each other, which must agree in type, and
    not that of a CPU alone as in other tests. Nothing is compiled."""
    tokens = ids_of()
    head = {"kernel": jnp.ones((9, SMALL.lstm.projection), jnp.float32)}

    def loss(params, tokens, gammas):
        return (elmojax.embed(params, tokens, gammas) ** 2).mean()

    def shared(params, tokens, gammas):
        return jax.lax.pmean(loss(params, tokens, gammas), "data")

    def predicted(params, tokens, gammas):
        lm = elmojax.LanguageModelParams(params, head)
        targets = jnp.ones(tokens.shape[:2], jnp.int32)
        return jax.lax.pmean(elmojax.sentence_loss(lm, tokens, targets).loss, "data")

    slopes = jax.grad(loss, (0, 2))
    uses = (
        (elmojax.embed, P("data")),
        (jax.grad(shared, (0, 2)), P()),
        (jax.grad(predicted), P()),
    )
    with _forms(USERS_FORM):
        for weights in (params, elmojax.cast(params, "bf16")):
            given = weights, tokens, GAMMAS
            jax.jit(jax.hessian(loss, 2)).trace(*given)
            batches = weights, tokens[None], GAMMAS
            jax.jit(jax.vmap(slopes, (None, 0, None))).trace(*batches)
            for around in (mesh, _mesh((4, 2))):
                rows, whole = (
                    NamedSharding(around, P("data")),
                    NamedSharding(around, P()),
                )
                placed = jax.device_put(given, (whole, rows, whole))
                for run, out in uses:
                    over = {"in_specs": (P(), P("data"), P()), "out_specs": out}
                    jax.jit(jax.shard_map(run, mesh=around, **over)).trace(*placed)


@contextmanager
def _forms(form):
    """`platform_dependent` is `form` for what is traced here; nothing of it stays."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", form)
        yield
    jax.clear_caches()


def _forms_of_accelerators():
    return _forms(lambda *arguments, default, **others: default(*arguments))


def _collectives(program):
    """Kinds of communication between devices in a compiled program."""
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    text = program.as_text()
    return {kind for kind in kinds if f"{kind}(" in text or f"{kind}-start(" in text}

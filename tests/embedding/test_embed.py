"""`embed` and `encode`: pure functions that keep their word inside any JAX pipeline."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toys import TINY, drawn, tiny_params

import elmojax
from elmojax import InputError, LstmState
from elmojax.config import WordTableConfig
from elmojax.embedding.functions import encode_words
from elmojax.model.bilm import BiLM

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH, COLUMNS = TINY.lstm.projection, TINY.encoder.max_characters
GAMMAS = np.array([0.2, -0.5, 1.1], np.float32)
SENTENCES = [
    ["The", "river", "bank", "is", "the", "bank"],
    ["日本"],
    [],
    ["no", "bank", "''", ""],
    ["a"] * 8,
    ["one", "more"],
    ["and", "the", "last", "but", "one"],
    ["last"],
]

embed, encode = jax.jit(elmojax.embed), jax.jit(elmojax.encode)


def ids_of(sentences, time=8):
    ids = elmojax.batch_to_ids(sentences, COLUMNS)
    return np.pad(ids, ((0, 0), (0, time - ids.shape[1]), (0, 0)))


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def layers(params):
    return np.asarray(encode(params, ids_of(SENTENCES)).layers)


def test_it_is_the_formula(params, layers):
    vectors = embed(params, ids_of(SENTENCES), GAMMAS)
    assert vectors.shape == (8, 8, 2 * WIDTH) and vectors.dtype == jnp.float32
    wanted = np.einsum("j,bjtv->btv", np.float64(GAMMAS), layers)
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)


def test_one_hot_gammas_pick_layers_exactly(params, layers):
    for j, gammas in enumerate(np.eye(3, dtype=np.float32)):
        picked = embed(params, ids_of(SENTENCES), gammas)
        np.testing.assert_array_equal(picked, layers[:, j])


def test_the_bias_is_added_everywhere(params):
    tokens = ids_of(SENTENCES)
    plain = embed(params, tokens, GAMMAS)
    np.testing.assert_array_equal(embed(params, tokens, GAMMAS, 0.75), plain + 0.75)
    assert np.all(embed(params, tokens, GAMMAS, 0.75)[2] == 0.75), "the empty sentence"


def test_several_mixes_at_once_equal_one_by_one(params):
    tokens = ids_of(SENTENCES)
    gammas = np.stack([GAMMAS, GAMMAS[::-1], np.eye(3, dtype=np.float32)[1]])
    biases = np.array([0.0, 1.0, -2.0], np.float32)
    together = embed(params, tokens, gammas, biases)
    mapped = jax.jit(jax.vmap(elmojax.embed, (None, None, 0)))(params, tokens, gammas)
    for one, bias, mixed, alone in zip(gammas, biases, together, mapped, strict=True):
        np.testing.assert_allclose(mixed, embed(params, tokens, one, bias), atol=1e-6)
        np.testing.assert_allclose(alone + bias, mixed, atol=1e-6)
    shared = embed(params, tokens, gammas, 0.5)
    np.testing.assert_allclose(shared[2], embed(params, tokens, gammas[2]) + 0.5)


def test_it_maps_over_sentences(params):
    tokens = ids_of(SENTENCES)

    def one(sentence):
        return elmojax.embed(params, sentence[None], GAMMAS)[0]

    mapped = jax.jit(jax.vmap(one))(tokens)
    np.testing.assert_allclose(mapped, embed(params, tokens, GAMMAS), atol=1e-6)


def test_layer_zero_is_the_token_layer_twice(params, layers):
    forward, backward = np.split(layers[:, 0], 2, axis=-1)
    np.testing.assert_array_equal(forward, backward)
    words = encode_words(params, ids_of(SENTENCES)[0, :6])
    np.testing.assert_allclose(forward[0, :6], words, atol=1e-6)


def test_past_the_end_is_exactly_zero(layers):
    for row, sentence in zip(layers, SENTENCES, strict=True):
        assert not np.any(row[:, len(sentence) :])
        assert np.all(np.any(row[:, : len(sentence)], axis=-1))


sentences = st.lists(
    st.lists(st.sampled_from(["a", "b", "ab", "é", "bank", ""]), max_size=8),
    min_size=4,
    max_size=4,
)


@hypothesis.settings(max_examples=40)
@hypothesis.given(sentences, st.permutations(range(4)))
def test_a_sentence_has_its_vectors_wherever_it_stands(params, batch, order):
    """Alone, in a batch, reordered, more padded, in fewer columns of characters."""
    order = np.array(order)
    tokens = ids_of(batch)
    here = np.asarray(encode(params, tokens).layers)
    close = partial(np.testing.assert_allclose, atol=1e-6)
    close(encode(params, tokens[order]).layers, here[order])
    padded = encode(params, ids_of(batch, 11)).layers
    close(padded[:, :, :8], here)
    assert not np.any(padded[:, :, 8:])
    close(encode(params, tokens[..., : 4 + 2 + 3]).layers, here)
    for row in (0, order[0]):
        close(encode(params, tokens[row : row + 1]).layers[0], here[row])


def test_a_sentence_without_any_padding(params, layers):
    for row in (1, 6):
        tokens = elmojax.batch_to_ids([SENTENCES[row]], COLUMNS)
        wanted = layers[row, :, : tokens.shape[1]]
        np.testing.assert_allclose(encode(params, tokens).layers[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    "batch", [[[], []], []], ids=["empty sentences", "no sentence"]
)
def test_nothing_to_embed(params, batch):
    vectors = embed(params, elmojax.batch_to_ids(batch, COLUMNS), GAMMAS)
    assert vectors.shape == (len(batch), 0, 2 * WIDTH)


def test_it_is_pure(params):
    tokens = ids_of(SENTENCES)
    before = jax.tree.map(np.array, (params, tokens))
    jaxpr = jax.make_jaxpr(elmojax.embed)(params, tokens, GAMMAS)
    assert not jaxpr.effects
    first, second = (embed(params, tokens, GAMMAS) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    jax.tree.map(np.testing.assert_array_equal, before, (params, tokens))


def test_it_is_traced_once_for_equal_shapes(params):
    traces = []

    def counted(*arguments):
        traces.append(arguments)
        return elmojax.embed(*arguments)

    run = jax.jit(counted)
    one = run(params, ids_of(SENTENCES[:4]), GAMMAS)
    equal = replace(params.config, lstm=replace(params.config.lstm))
    again = tiny_params(equal, seed=1)
    other = run(again, ids_of(SENTENCES[4:]), GAMMAS[::-1])
    run(jax.tree.map(jnp.copy, params), ids_of(SENTENCES[2:6]), jnp.asarray(GAMMAS))
    assert len(traces) == 1
    assert np.abs(one - other).max() > 0.1
    run(params, ids_of(SENTENCES[:3]), GAMMAS)
    assert len(traces) == 2


def test_gradients_in_gammas(params, layers):
    """`embed` is linear in them: the gradient is the layers themselves."""
    weights = np.random.default_rng(0).standard_normal((8, 8, 2 * WIDTH))
    weights = jnp.asarray(weights, jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(gammas):
        tokens = ids_of(SENTENCES)
        return (weights * elmojax.embed(params, tokens, gammas)).sum()

    wanted = np.einsum("btv,bjtv->j", weights, layers)
    np.testing.assert_allclose(gradient(jnp.asarray(GAMMAS)), wanted, rtol=1e-4)


def test_gradients_in_params():
    """They reach every leaf, and are the slopes that finite differences show.

    Clips are wide: a slope across a kink is none.
    """
    lstm = replace(TINY.lstm, cell_clip=3.0, projection_clip=3.0)
    params = tiny_params(replace(TINY, lstm=lstm), scale=0.4)
    tokens = ids_of(SENTENCES[:4])
    weights = np.random.default_rng(0).standard_normal((4, 8, 2 * WIDTH))
    weights = jnp.asarray(weights, jnp.float32)

    def value(params):
        return (weights * elmojax.embed(params, tokens, GAMMAS)).sum()

    value, gradient = jax.jit(value), jax.jit(jax.grad(value))(params)
    directions = drawn(params, seed=3, scale=1.0)
    paths, tree = jax.tree.flatten_with_path(params)
    for number, (path, leaf) in enumerate(paths):
        slope, along = jax.tree.leaves(gradient)[number], jax.tree.leaves(directions)
        assert np.any(slope), path

        def moved(by, leaf=leaf, along=along[number], number=number):
            leaves = [leaf for _, leaf in paths]
            leaves[number] = leaf + by * along
            return float(value(tree.unflatten(leaves)))

        step = 1e-3
        measured = (moved(step) - moved(-step)) / (2 * step)
        computed = float(jnp.vdot(slope, along[number]))
        scale = float(jnp.linalg.norm(slope)) + 0.1
        assert abs(measured - computed) < 0.02 * scale, path
    letters = np.unique(tokens[tokens > 0]) - 1
    unread = np.setdiff1d(np.arange(261), [*letters, 256, 257])
    assert not np.any(gradient.encoder["embedding"][unread])


def test_the_state_that_comes_back_goes_on(params):
    """Sentence after sentence equals one long stream in each reading order."""
    batches = [["a", "river"], ["bank", "Hi", "no"], ["end"]]
    state, encoded = None, []
    for sentence in batches:
        one = encode(params, ids_of([sentence]), state)
        encoded.append(np.asarray(one.layers)[0, :, : len(sentence)])
        state = one.state

    words = [w for s in batches for w in ["<S>", *s, "</S>"]]
    mirrored = [w for s in batches for w in ["</S>", *s[::-1], "<S>"]]
    inputs = [
        encode_words(params, elmojax.batch_to_ids([order], COLUMNS)[0])
        for order in (words, mirrored)
    ]
    run = jax.jit(partial(BiLM(TINY).apply, method="contextualize"))
    stream, start = jnp.stack(inputs, axis=1)[:, :, None], LstmState.zeros(TINY.lstm, 1)
    outputs, last = run({"params": params.tree}, stream, start)
    at = 1
    for sentence, layers in zip(batches, encoded, strict=True):
        size = len(sentence)
        forward = outputs[:, at : at + size, 0, 0]
        backward = outputs[:, at : at + size, 1, 0][:, ::-1]
        wanted = np.concatenate([forward, backward], axis=-1)
        np.testing.assert_allclose(layers[1:], wanted, atol=2e-6)
        at += size + 2
    for got, wanted in zip(*map(jax.tree.leaves, (state, last)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_without_a_state_it_starts_from_the_initial_one(params, layers):
    tokens = ids_of(SENTENCES)
    start = drawn(LstmState.zeros(TINY.lstm), seed=4)
    warm = params.replace(initial_state=start)
    got = encode(warm, tokens)
    assert np.abs(got.layers[0, 1:, 0] - layers[0, 1:, 0]).min() > 0
    for state in (start, start.for_batch(len(SENTENCES))):
        wanted = encode(params, tokens, state)
        np.testing.assert_allclose(got.layers, wanted.layers, atol=1e-6)
        np.testing.assert_allclose(got.state.cell, wanted.state.cell, atol=1e-6)
    zeros = encode(params, tokens, LstmState.zeros(TINY.lstm, len(SENTENCES)))
    np.testing.assert_array_equal(zeros.layers, layers)


def test_the_state_goes_on_in_batches_of_other_sizes(params):
    """Rows beyond a smaller batch keep their state; rows of a larger one begin as
    the initial state. Each row is as in a batch of the size of the state."""
    start = drawn(LstmState.zeros(TINY.lstm), seed=4)
    params = params.replace(initial_state=start)
    four = drawn(LstmState.zeros(TINY.lstm, 4), seed=5)
    eight = four.joined(start.for_batch(4))
    tokens = ids_of(SENTENCES)
    wanted = encode(params, tokens, eight)
    for size in (2, 6):
        layers, _, after = encode(params, tokens[:size], four)
        np.testing.assert_allclose(layers, wanted.layers[:size], atol=1e-6)
        for name in ("cell", "hidden"):
            got, read = getattr(after, name), getattr(wanted.state, name)
            np.testing.assert_allclose(
                got[:, :, :size], read[:, :, :size], atol=1e-6, err_msg=name
            )
            kept = getattr(four, name)[:, :, size:]
            np.testing.assert_array_equal(got[:, :, size:], kept)


def test_on_eight_devices_it_equals_one(params):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    tokens = ids_of(SENTENCES)
    vectors = embed(
        jax.device_put(params, whole),
        jax.device_put(tokens, rows),
        jax.device_put(GAMMAS, whole),
    )
    assert {s.data.shape for s in vectors.addressable_shards} == {(1, 8, 2 * WIDTH)}
    assert len(vectors.sharding.device_set) == 8
    np.testing.assert_allclose(vectors, embed(params, tokens, GAMMAS), atol=1e-6)


def test_it_is_exported(params):
    """For the CPU and for accelerators, with the parameters inside or as arguments."""
    tokens = ids_of(SENTENCES)
    inside = jax.jit(partial(elmojax.embed, params))
    exported = jax.export.export(inside, platforms=["cpu", "tpu"])(tokens, GAMMAS)
    wanted = embed(params, tokens, GAMMAS)
    np.testing.assert_allclose(exported.call(tokens, GAMMAS), wanted, atol=1e-6)

    exported = jax.export.export(embed)(params, tokens, GAMMAS)
    other = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    wanted = embed(other, tokens, GAMMAS)
    got = exported.call(other, tokens, GAMMAS)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_an_exported_program_is_written_and_read(params):
    pytest.importorskip("flatbuffers", reason="JAX needs it to write programs")
    tokens = ids_of(SENTENCES)
    inside = jax.jit(partial(elmojax.embed, params))
    data = jax.export.export(inside)(tokens, GAMMAS).serialize()
    again = jax.export.deserialize(data)
    wanted = embed(params, tokens, GAMMAS)
    np.testing.assert_allclose(again.call(tokens, GAMMAS), wanted, atol=1e-6)


def test_wrong_shapes_are_named(params):
    tokens = ids_of(SENTENCES)
    table = tiny_params(replace(TINY, encoder=WordTableConfig(9, WIDTH)))

    def refused(match, *arguments):
        with pytest.raises(ValueError, match=match):
            elmojax.embed(*arguments)

    refused(r"\(8, 8\).*\[batch, time, characters\]", params, tokens[..., 0], GAMMAS)
    refused(r"\(8, 8, 12\).*\[batch, time\]", table, tokens, GAMMAS)
    refused("float32.*int32", params, tokens.astype(np.float32), GAMMAS)
    refused("3 character columns", params, tokens[..., :3], GAMMAS)
    wide = elmojax.batch_to_ids(SENTENCES)
    refused(r"50 .* columns.*batch_to_ids\(sentences, 12\)", params, wide, GAMMAS)
    with pytest.raises(InputError, match="50 character columns"):
        embed(params, wide, GAMMAS)
    with pytest.raises(InputError, match="50 character columns"):
        elmojax.warm(params, wide)
    narrow = elmojax.batch_to_ids([["a", "riverbank"]], 10)
    refused("10 character columns, too few", params, narrow, GAMMAS)
    refused(r"\(2,\).*3 layers", params, tokens, GAMMAS[:2])
    refused(r"\(1, 1, 3\).*\[mixes, 3\]", params, tokens, GAMMAS[None, None])


def batcher(sentences, columns=None):
    """Ids as the `Batcher` of bilm-tf makes them, or its `TokenBatcher` (`<S>` = 0)."""
    marked = [["<S>", *sentence, "</S>"] for sentence in sentences]
    if columns:
        return elmojax.batch_to_ids(marked, columns)
    place = {word: n for n, word in enumerate(["<S>", "</S>", "a", "b", "c"], 1)}
    ids = np.zeros((len(marked), max(map(len, marked))), np.int32)
    for row, sentence in enumerate(marked):
        ids[row, : len(sentence)] = [place[word] for word in sentence]
    return ids


MARKED = [["a", "b", "c"], ["b"], []]


@pytest.mark.parametrize("asked", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("table", [False, True], ids=["characters", "words"])
def test_ids_with_sentence_marks_are_refused(params, table, asked):
    """The sentence says how to take them out, and that gives the right vectors."""
    if table:
        params = tiny_params(replace(TINY, encoder=WordTableConfig(5, WIDTH)))
    tokens = asked(batcher(MARKED, None if table else COLUMNS))
    more = [(0, 2), (0, 2)] + [(0, 0)] * (tokens.ndim - 2)
    for given in (tokens, tokens[:2], np.pad(tokens, more)):
        with pytest.raises(InputError, match=r"begins with <S>.*`np\.where") as refusal:
            elmojax.encode(params, given)
    with pytest.raises(InputError, match="begins with <S>"):
        elmojax.encode(params, tokens, LstmState.zeros(TINY.lstm, 3), True)
    with pytest.raises(InputError, match="begins with <S>"):
        elmojax.warm(params, tokens)
    remedy = str(refusal.value).split("`")[1]
    cleared = eval(remedy, {"np": np, "tokens": tokens})
    rows = np.array([[3, 4, 5], [4, 0, 0], [0, 0, 0]], np.int32)
    plain = rows if table else ids_of(MARKED, 3)
    np.testing.assert_array_equal(cleared[:, :3], plain)
    assert not np.any(cleared[:, 3:])
    elmojax.encode(params, cleared)


def test_marks_that_are_words_are_let_through(params):
    """A mark inside, at one end, or in one sentence of several is a word."""
    for batch in (
        [["a", "<S>", "</S>", "b"]],
        [["<S>", "a"]],
        [["<S>"]],
        [["<S>", "a", "</S>"], ["b"]],
        [[], []],
    ):
        elmojax.encode(params, ids_of(batch))

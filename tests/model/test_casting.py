"""Half-width weights: `cast`, `precision=` and `--precision`, wherever a model goes.

A difference from float32 shows that products are rounded, its size that sums are not: a
factor in bfloat16 (8 significant bits) is off by at most 2^-8 of itself, in float16
(11 bits) by 2^-11, and vectors, whose factors are rounded independently, by no more
than a few of these.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import answer, done
from toys import TINY, drawn

import elmojax
from elmojax.config import HeadConfig
from elmojax.embedding.export import write_export
from elmojax.loading import Model, open_model
from elmojax.model.bilm import from_tree
from elmojax.saving import convert
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.step import LanguageModel

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = replace(TINY, lstm=replace(TINY.lstm, layers=1))
COLUMNS = CONFIG.encoder.max_characters
GAMMAS = np.array([0.5, 1.0], np.float32)
SENTENCES = [["the", "river", "bank"], ["no", "bank"], []]
TOKENS = elmojax.batch_to_ids(SENTENCES, COLUMNS)
WORDS = Vocabulary((*SPECIALS, "the", "bank"))
HALF = {
    "bf16": lambda params: elmojax.cast(params, "bf16"),
    "bfloat16": lambda p: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p),
    "float16": lambda p: jax.tree.map(lambda leaf: leaf.astype(jnp.float16), p),
}


@pytest.fixture(scope="module")
def tree():
    lm = LanguageModel(CONFIG, len(WORDS), HeadConfig("full"))
    return drawn(jax.eval_shape(lm.init, jax.random.key(0)), seed=7)


@pytest.fixture(scope="module")
def params(tree):
    return from_tree(CONFIG, tree)


@pytest.fixture(scope="module")
def run(params, tree, tmp_path_factory):
    """A run directory of this model."""
    out = tmp_path_factory.mktemp("casting") / "run"
    convert(Model("toy", params, WORDS, tree["head"], HeadConfig("full")), out)
    return out


def away(got, wanted):
    """Norm of the difference, over the norm."""
    got, wanted = np.float64(got), np.float64(wanted)
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


def test_float32_is_as_it_was(params):
    same = elmojax.cast(params, "float32")
    for one, other in zip(*map(jax.tree.leaves, (same, params)), strict=True):
        assert one is other
    with pytest.raises(elmojax.InputError, match="'half'; it must be one of"):
        elmojax.cast(params, "half")


def test_biases_stay_float32(params):
    half = elmojax.cast(params, "bf16")
    for path, leaf in jax.tree_util.tree_leaves_with_path(half):
        bias = "bias" in jax.tree_util.keystr(path)
        assert leaf.dtype == (jnp.float32 if bias else jnp.bfloat16), path
    assert half.initial_state is params.initial_state
    for leaf in jax.tree.leaves(elmojax.cast(half, "float32")):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) for kind in HALF],
)
def test_a_model_of_half_width_goes_everywhere(params, kind):
    half, unit = HALF[kind](params), 2.0 ** (-11 if kind == "float16" else -8)

    def close(got, wanted):
        """Some rounding on the way, of factors alone."""
        assert np.asarray(got).dtype == np.float32
        assert unit / 40 < away(got, wanted) < 3 * unit

    encoded = elmojax.encode(half, TOKENS)
    first = elmojax.encode(params, TOKENS)
    close(encoded.layers, first.layers)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    assert away(encoded.layers, elmojax.encode(rounded, TOKENS).layers) > unit / 40

    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), encoded.state)
    for state in (encoded.state, cast):
        again = elmojax.encode(half, TOKENS, state)
        assert again.state.cell.dtype == again.state.hidden.dtype == jnp.float32
    close(again.layers[:, 0], first.layers[:, 0])

    vectors = elmojax.embed(half, TOKENS, GAMMAS)
    embedder = elmojax.Embedder(half, batch_tokens=8, layers="mix", gammas=GAMMAS)
    for got, wanted in zip(embedder.embed_batch(SENTENCES), vectors, strict=True):
        np.testing.assert_allclose(got, wanted[: len(got)], atol=8 * unit)

    words = elmojax.WordIndex(("bank", "no", "river", "the"))
    ids = elmojax.word_ids(words, SENTENCES)
    for cached in (
        elmojax.cache_words(half, words),
        HALF[kind](elmojax.cache_words(params, words)),
    ):
        got = elmojax.embed(cached, ids, GAMMAS)
        np.testing.assert_allclose(got, vectors, atol=8 * unit)

    start = elmojax.warm(half).initial_state
    assert start.cell.dtype == start.hidden.dtype == np.float32

    def loss(params):
        return (elmojax.embed(params, TOKENS, GAMMAS) ** 2).mean()

    slopes = jax.jit(jax.grad(loss))(half)
    for slope, leaf in zip(*map(jax.tree.leaves, (slopes, half)), strict=True):
        assert slope.dtype == leaf.dtype and np.isfinite(np.float32(slope)).all()


def test_documents_of_half_width(params):
    half, words = elmojax.cast(params, "bf16"), ["the", "bank", "no"] * 200
    top = {"batch_tokens": 8, "layers": "top"}
    got, wanted = (
        elmojax.Embedder(p, **top).embed_sentence(words) for p in (half, params)
    )
    assert 2**-8 / 40 < away(got, wanted) < 3 * 2**-8
    by_keyword = elmojax.Embedder(params, **top, precision="bf16")
    np.testing.assert_array_equal(by_keyword.embed_sentence(words), got)


def test_master_weights_get_float32_gradients(params):
    def loss(params):
        half = elmojax.cast(params, "bf16")
        return (elmojax.embed(half, TOKENS, GAMMAS) ** 2).mean()

    for slope in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert slope.dtype == jnp.float32


def test_loading_in_half_width(params, run):
    for half in (
        elmojax.load(run, precision="bf16"),
        elmojax.restore(run, precision="bf16"),
    ):
        wanted = elmojax.cast(params, "bf16")
        jax.tree.map(np.testing.assert_array_equal, half, wanted)
    scores, exact, opened = (
        elmojax.score(model, SENTENCES, **how)
        for model, how in (
            (run, {"precision": "bf16"}),
            (run, {}),
            (open_model(run).cast("bf16"), {}),
        )
    )
    for half, whole, again in zip(scores, exact, opened, strict=True):
        assert 0 < np.abs(half.forward - whole.forward).max() < 0.05
        np.testing.assert_array_equal(again.forward, half.forward)


@pytest.mark.slow
def test_commands(params, run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the river bank\nno bank\n")
    half = ("--precision", "bf16")
    found = [answer("evaluate", run, "--text", text, *how) for how in ((), half)]
    losses = [one["loss"] for one in found]
    assert 0 < abs(losses[0] - losses[1]) < 0.02
    found = [answer("score", run, "--text", text, *how) for how in ((), half)]
    sums = [one["forward_sum"] for one in found]
    assert 0 < abs(sums[0] - sums[1]) < 0.2
    record = answer("export", run, "--out", tmp_path / "elmo", *half)
    assert record["weights"]["lstm/kernel_0"]["dtype"] == "bfloat16"
    assert record["weights"]["lstm/bias_0"]["dtype"] == "float32"
    assert (
        record["sha256"]
        == write_export(elmojax.cast(params, "bf16"), tmp_path / "same")["sha256"]
    )
    for number, how in enumerate(((), half)):
        done("embed", run, "--text", text, "--out", tmp_path / str(number), *how)
    whole, rounded = (elmojax.read_vectors(tmp_path / name)[0] for name in "01")
    np.testing.assert_allclose(
        whole, elmojax.encode(params, TOKENS).layers[0], atol=1e-6
    )
    assert 2**-8 / 40 < away(rounded, whole) < 3 * 2**-8

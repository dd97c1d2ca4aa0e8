"""The public language model: the loss of a batch as a pure function, `pretrain`."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toys import TINY, corpus_of, drawn

import elmojax
from elmojax.config import HeadConfig, MeshConfig, TrainConfig
from elmojax.errors import InputError
from elmojax.loading import Model
from elmojax.model.bilm import from_tree
from elmojax.training.step import LanguageModel

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXT = [
    "the river bank is the bank".split(),
    [],
    "no bank".split(),
    "日本 is no river".split(),
]
VOCABULARY = corpus_of(TEXT, known=6).vocabulary
COLUMNS = TINY.encoder.max_characters


def model_with(head):
    lm = LanguageModel(TINY, len(VOCABULARY), head)
    tree = drawn(jax.eval_shape(lm.init, jax.random.key(0)), seed=7)
    params = from_tree(TINY, tree)
    state = jax.tree.map(lambda leaf: leaf + 0.1, params.initial_state)
    params = params.replace(initial_state=state)
    return Model("toy", params, VOCABULARY, tree["head"], head)


ADAPTIVE = model_with(HeadConfig("adaptive", (3, 6), 2.0))
LM = elmojax.LanguageModelParams(ADAPTIVE.params, ADAPTIVE.head)
TOKENS = elmojax.batch_to_ids(TEXT, COLUMNS)
TARGETS = elmojax.target_ids(VOCABULARY, TEXT)
loss = jax.jit(elmojax.sentence_loss)


SAMPLED = pytest.param(model_with(HeadConfig("sampled")), marks=pytest.mark.slow)


@pytest.mark.parametrize("model", [ADAPTIVE, SAMPLED], ids=["adaptive", "sampled"])
def test_it_is_what_score_says(model):
    params = elmojax.LanguageModelParams(model.params, model.head)
    found = elmojax.sentence_loss(params, TOKENS, TARGETS)
    total, count = 0.0, 0
    for row, score in enumerate(elmojax.score(model, TEXT)):
        size = len(score.words) + 1
        assert found.mask[row].sum() == size and found.mask[row, :size].all()
        np.testing.assert_allclose(-score.forward, found.forward[row, :size], rtol=1e-5)
        # score: the words, then the beginning; here the beginning comes first.
        backward = np.roll(score.backward, 1)
        np.testing.assert_allclose(-backward, found.backward[row, :size], rtol=1e-5)
        assert not np.any(found.forward[row, size:])
        assert not np.any(found.backward[row, size:])
        total -= score.forward_sum + score.backward_sum
        count += 2 * size
    assert float(found.loss) == pytest.approx(total / count, rel=1e-5)
    assert float(found.perplexity) == pytest.approx(math.exp(total / count), rel=1e-5)


def test_it_is_pure_and_differentiable():
    """The slope along a direction is what a small step along it measures."""

    def of(params):
        return loss(params, TOKENS, TARGETS).loss

    slopes = jax.jit(jax.grad(of))(LM)
    along = drawn(LM, seed=5, scale=1.0)
    step = 1e-3
    up, down = (
        of(jax.tree.map(lambda w, a, s=sign: w + s * step * a, LM, along))
        for sign in (1, -1)
    )
    measured = float(up - down) / (2 * step)
    dots = jax.tree.map(lambda slope, a: float(jnp.sum(slope * a)), slopes, along)
    assert sum(jax.tree.leaves(dots)) == pytest.approx(measured, rel=0.02)
    assert all(np.any(slope) for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_it_runs_on_meshes(kind):
    wanted = elmojax.sentence_loss(LM, TOKENS, TARGETS)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    placed = jax.device_put((LM, TOKENS, TARGETS), (whole, rows, rows))
    found = loss(*placed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, wanted)
    assert found.forward.sharding.is_equivalent_to(rows, 2)


def test_bf16_and_what_does_not_fit():
    half = elmojax.sentence_loss(elmojax.cast(LM, "bf16"), TOKENS, TARGETS)
    exact = elmojax.sentence_loss(LM, TOKENS, TARGETS)
    assert half.loss.dtype == jnp.float32
    assert 0 < abs(float(half.loss / exact.loss) - 1) < 0.01
    with pytest.raises(InputError, match="target_ids"):
        elmojax.sentence_loss(LM, TOKENS, TARGETS[:, 1:])
    with pytest.raises(InputError, match="Sentence 1 is the string"):
        elmojax.target_ids(VOCABULARY, [["a"], "bank"])
    lost = elmojax.sentence_loss(LM, TOKENS, TARGETS + 100)
    assert np.isnan(lost.loss)


def test_the_parts_of_encode(monkeypatch):
    """Words by themselves, then their context; with marks, state and a mask."""
    params = ADAPTIVE.params
    words = elmojax.encode_words(params, TOKENS)
    mask = (TOKENS > 0).any(axis=-1)
    first = elmojax.encode(params, TOKENS)
    state = first.state
    for marks in (False, True):
        whole = elmojax.encode(params, TOKENS, state, marks)
        parts = elmojax.contextualize(params, words, mask, state, marks)
        jax.tree.map(np.testing.assert_array_equal, whole, parts)
    np.testing.assert_allclose(
        first.layers[:, 0, :, : words.shape[-1]], np.where(mask[..., None], words, 0)
    )


@pytest.mark.slow
def test_a_run_from_python(tmp_path):
    """`pretrain(config)` is the command: it makes a run, goes on, and is a model."""
    text = tmp_path / "text"
    text.write_text("\n".join(" ".join(s) for s in TEXT * 20 if s))
    from elmojax.text.prepare import prepare

    prepare(tmp_path / "data", patterns=[text])
    config = TrainConfig(
        data=tmp_path / "data",
        workdir=tmp_path / "run",
        model=TINY,
        head=HeadConfig("full"),
        mesh=MeshConfig(1, 1),
        rows=4,
        window=5,
        steps=2,
    )
    said: list[str] = []
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):  # another than that of the run
        first = elmojax.pretrain(config, remark=said.append)
    assert (first.began_at, first.step, said) == (0, 2, [])
    again = elmojax.pretrain(replace(config, steps=3))
    assert (again.began_at, again.step) == (2, 3)
    params, vocabulary = elmojax.load_language_model(first.run)
    found = elmojax.sentence_loss(
        params,
        elmojax.batch_to_ids(TEXT, COLUMNS),
        elmojax.target_ids(vocabulary, TEXT),
    )
    assert 1 < float(found.perplexity) < 4 * len(vocabulary)
    fresh = replace(config, workdir=tmp_path / "other", init_from=str(first.run))
    elmojax.pretrain(replace(fresh, steps=1), remark=said.append)
    assert said == [f"The weights are those of {first.run}, with its softmax."]

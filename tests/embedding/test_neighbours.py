"""Neighbours in context and without, and points of a plane."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from toys import tiny_params

from elmojax.embedding.embedder import Embedder
from elmojax.embedding.neighbours import (
    cosines,
    nearest,
    project,
    use_vectors,
    word_vectors,
)
from elmojax.errors import InputError
from elmojax.text.uses import Use

pytestmark = pytest.mark.usefixtures("quick_compilation")

SENTENCES = ["the bank".split(), "a bank is a bank by the river".split()]
USES = [
    Use(SENTENCES[0], 1, 0, 0),
    Use(SENTENCES[1], 1, 0, 4),
    Use(SENTENCES[1], 4, 0, 4),
]


@pytest.fixture(scope="module")
def embedder():
    return Embedder(tiny_params(), batch_tokens=512)


def test_vectors_are_those_of_the_words_in_their_sentences(embedder):
    short, long = embedder.embed_batch(SENTENCES)
    wanted = np.stack([short[:, 1], long[:, 1], long[:, 4]])
    vectors = use_vectors(embedder, USES)
    np.testing.assert_allclose(vectors.context, wanted[:, 1:].mean(1), atol=1e-6)
    np.testing.assert_allclose(vectors.static, wanted[:, 0], atol=1e-6)
    for layer in range(3):
        one = use_vectors(embedder, USES, layer).context
        np.testing.assert_allclose(one, wanted[:, layer], atol=1e-6)
    with pytest.raises(InputError, match="layers 0 to 2"):
        use_vectors(embedder, USES, 3)


def test_without_context_all_uses_are_one(embedder):
    vectors = use_vectors(embedder, USES)
    np.testing.assert_allclose(cosines(vectors.static[0], vectors.static), 1, atol=1e-6)
    assert cosines(vectors.context[0], vectors.context)[1:].max() < 0.999
    words = ["river", "bank"] * 120  # more than are read at once
    np.testing.assert_allclose(
        word_vectors(embedder, words)[1::2],
        np.broadcast_to(vectors.static[0], (120, vectors.static.shape[1])),
        atol=1e-6,
    )


def test_the_nearest_come_first_and_zeros_are_near_to_nothing():
    vectors = np.array([[0, 1], [2, 0], [1, 1], [0, 0], [5, 0]], np.float32)
    found = nearest(np.array([1, 0], np.float32), vectors, 4)
    assert [one.number for one in found] == [1, 4, 2, 0]
    assert [one.cosine for one in found] == pytest.approx([1, 1, 0.5**0.5, 0])
    assert cosines(vectors[3], vectors).tolist() == [0] * 5


def test_principal_components_keep_the_distances_of_a_plane():
    random = np.random.default_rng(0)
    plane = random.normal(size=(7, 2)) @ random.normal(size=(2, 12))
    points, axes = project(plane.astype(np.float32))

    def distances(x):
        return np.linalg.norm(x[:, None] - x[None], axis=-1)

    np.testing.assert_allclose(distances(points), distances(plane), atol=1e-5)
    shares = [int(name.partition("(")[2].partition("%")[0]) for name in axes]
    assert sum(shares) == pytest.approx(100, abs=1) and shares[0] >= shares[1]


@pytest.mark.parametrize("count", [1, 2])
def test_few_vectors_are_points_too(count):
    points, _ = project(np.eye(count, 5, dtype=np.float32))
    assert points.shape == (count, 2) and np.isfinite(points).all()


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_a_library_that_is_missing_is_named(method, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"elmojax\[{method}\]"):
        project(np.zeros((9, 3)), method)


def test_too_few_vectors_for_a_method_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="at least 5 uses, and there are 4"):
        project(np.zeros((4, 3)), "tsne")

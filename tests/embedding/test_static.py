"""`elmojax static`: mean contextual vectors, in files that other programs load."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import answer, refused
from toys import tiny_params

import elmojax
from elmojax.embedding.neighbours import mean_vectors
from elmojax.formats.word_vectors import read_word_vectors, write_word_vectors
from elmojax.text.vocabulary import frequent_words

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def params():
    return tiny_params()


def drawn(lines: int) -> list[list[str]]:
    draw = random.Random(0)
    sizes = (draw.choice([0, 1, 5, 20, 300]) for _ in range(lines))
    return [[f"w{draw.randrange(40)}" for _ in range(size)] for size in sizes]


def expected_means(params, sentences, gammas) -> dict[str, np.ndarray]:
    """Word by word, sentence by sentence."""
    found: dict[str, list[np.ndarray]] = {}
    embedder = elmojax.Embedder(params)
    for words, layers in zip(
        sentences, embedder.embed_sentences(sentences), strict=True
    ):
        for word, vectors in zip(words, layers.swapaxes(0, 1), strict=True):
            found.setdefault(word, []).append(np.tensordot(gammas, vectors, 1))
    return {word: np.mean(each, axis=0) for word, each in found.items()}


def test_means_are_those_of_all_places(params):
    """Over batches, of sentences that are longer than one, and with words left out."""
    sentences = drawn(60)
    gammas = [0.5, -1.0, 2.0]
    embedder = elmojax.Embedder(
        params, batch_tokens=100, layers="mix", gammas=np.array(gammas)
    )
    words = ["w3", "w1", "w39", "nowhere"]
    means = mean_vectors(embedder, iter(sentences), words)
    expected = expected_means(params, sentences, gammas)
    for word, mean in zip(words[:3], means, strict=False):
        np.testing.assert_allclose(mean, expected[word], atol=5e-6)
    assert np.isnan(means[3]).all()


def test_which_words():
    words, counts = ["b", "a", "c", "New York", "d"], [3, 3, 9, 7, 1]
    assert frequent_words(words, counts) == ["c", "a", "b", "d"]
    assert frequent_words(words, counts, min_count=2, most=2) == ["c", "a"]
    assert frequent_words(words, counts, min_count=10) == []


WORDS = ["the", "río", "a\xa0b", "日\u3000本", "</s>", "1.5", "-", "\x85", "#"]


@pytest.mark.parametrize("binary", [False, True])
def test_what_is_written_is_read_to_the_bit(tmp_path, binary):
    path = tmp_path / "vectors"
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((len(WORDS), 5)) * 10.0 ** draw.integers(-6, 4, 5)
    write_word_vectors(path, WORDS, vectors, binary)
    found, there = read_word_vectors(path, WORDS)
    assert there.all()
    np.testing.assert_array_equal(found, vectors.astype(np.float32))
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("binary", [False, True])
def test_gensim_loads_it(tmp_path, binary):
    models = pytest.importorskip("gensim.models")
    vectors = np.random.default_rng(0).standard_normal((len(WORDS), 5))
    write_word_vectors(tmp_path / "vectors", WORDS, vectors, binary)
    path = str(tmp_path / "vectors")
    loaded = models.KeyedVectors.load_word2vec_format(path, binary=binary)
    assert loaded.index_to_key == WORDS
    np.testing.assert_array_equal(loaded.vectors, vectors.astype(np.float32))


@pytest.fixture(scope="module")
def model(params, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    elmojax.save_hdf5(params, directory)
    return directory


def test_the_command(params, model, tmp_path):
    sentences = drawn(30)
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text("\n".join(map(json.dumps, sentences[:20])))
    other.write_text("\n".join(map(json.dumps, [*sentences[20:], ["New York"] * 99])))
    given = ("static", model, "--text", one, other, "--format", "jsonl")
    counts = Counter(word for words in sentences for word in words)
    least = sorted(counts.values())[5]
    for name, more, gammas in (
        ("a.vec", (), (0, 0, 1)),
        ("a.bin", ("--layers", "sum"), (1, 1, 1)),
        ("b.BIN", ("--layers", "mix", "--gammas", 1, 0, 0.5), (1, 0, 0.5)),
    ):
        out = tmp_path / name
        report = answer(*given, "--out", out, "--min-count", least, *more)
        words = [word for word, count in counts.items() if count >= least]
        assert (report["words"], report["width"]) == (len(words), 12)
        assert "Words that hold a space: 99" in report["remarks"][0]
        found, there = read_word_vectors(out, [*words, "New York"])
        assert there.tolist() == [True] * len(words) + [False]
        expected = expected_means(params, sentences, gammas)
        wanted = np.stack([expected[word] for word in words])
        np.testing.assert_allclose(found[:-1], wanted, atol=5e-6)
    out = tmp_path / "few.vec"
    assert answer(*given, "--out", out, "--max-vocabulary", 3)["words"] == 3
    listed = [line.split(" ")[0] for line in out.read_text().splitlines()[1:]]
    assert listed == sorted(counts, key=lambda word: (-counts[word], word))[:3]


def test_what_static_refuses(model, tmp_path):
    text = tmp_path / "text"
    text.write_text("the bank\n")
    given = ("static", model, "--text", text, "--out")
    refused(*given, tmp_path / "x.txt", says="end it in .vec ... or in .bin")
    refused(*given, tmp_path / "no" / "x.vec", says="there is no directory")
    refused(*given, tmp_path / "x.vec", "--min-count", 2, says="occurs 2 times; lower")
    more = ("--layers", "sum", "--gammas", 1, 1, 1)
    refused(*given, tmp_path / "x.vec", *more, says="no --gammas")
    refused(*given, tmp_path / "x.vec", "--layers", "mix", says="gammas")
    refused("static", model, "--out", tmp_path / "x.vec", says="--text FILE")
    text.write_text("\n\n")
    refused(*given, tmp_path / "x.vec", says="No word of")
    (tmp_path / "there.vec").write_text("mine")
    refused(*given, tmp_path / "there.vec", says="is there already")
    assert (tmp_path / "there.vec").read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [text, tmp_path / "there.vec"]

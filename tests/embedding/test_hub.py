"""The names of TF-Hub's module: what stands under them, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from toys import TINY, tiny_params

import elmojax
from elmojax import InputError
from elmojax.config import WordTableConfig
from elmojax.embedding.hub import hub_default, hub_tokens

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH = TINY.lstm.projection
SENTENCES = ["the river bank", "", "  two   spaces ", "tab\tword 日本 x y"]
WORDS = [
    ["the", "river", "bank"],
    [],
    ["two", "spaces"],
    ["tab\tword", "日本", "x", "y"],
]
NAMES = ["word_emb", "lstm_outputs1", "lstm_outputs2", "elmo", "default"]


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def layers(params):
    ids = elmojax.batch_to_ids(WORDS, TINY.encoder.max_characters)
    return np.asarray(elmojax.encode(params, ids).layers)


@pytest.fixture(scope="module")
def outputs(params):
    return hub_default(params, SENTENCES)


def close(got, wanted):
    assert list(got) == list(wanted)
    for name, array in got.items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-6, err_msg=name)


def test_names_and_shapes(outputs):
    assert list(outputs) == NAMES
    assert [array.shape for array in outputs.values()] == [
        (4, 4, WIDTH),
        *[(4, 4, 2 * WIDTH)] * 3,
        (4, 2 * WIDTH),
    ]
    assert {str(array.dtype) for array in outputs.values()} == {"float32"}


def test_they_are_the_layers(outputs, layers):
    np.testing.assert_array_equal(outputs["word_emb"], layers[:, 0, :, :WIDTH])
    np.testing.assert_array_equal(outputs["lstm_outputs1"], layers[:, 1])
    np.testing.assert_array_equal(outputs["lstm_outputs2"], layers[:, 2])
    np.testing.assert_allclose(outputs["elmo"], layers.mean(axis=1), atol=1e-6)


def test_default_is_the_mean_over_the_words(outputs, layers):
    for row, words in enumerate(WORDS):
        if words:
            wanted = layers[row].mean(axis=0)[: len(words)].mean(axis=0)
            np.testing.assert_allclose(outputs["default"][row], wanted, atol=1e-6)
    assert not np.any(outputs["default"][1]), "a sentence without words"


def test_past_the_end_is_zero(outputs):
    for name in NAMES[:-1]:
        for row, words in enumerate(WORDS):
            assert not np.any(outputs[name][row, len(words) :])


def test_gammas(params, layers):
    gammas = elmojax.mix_weights([0.3, -1.0, 0.5], 1.7)
    got = hub_default(params, SENTENCES, gammas=gammas)
    wanted = np.einsum("j,bjtv->btv", gammas, layers)
    np.testing.assert_allclose(got["elmo"], wanted, atol=1e-6)
    counts = np.maximum([len(words) for words in WORDS], 1)
    mean = wanted.sum(axis=1) / counts[:, None]
    np.testing.assert_allclose(got["default"], mean, atol=1e-6)


def test_tokens_are_the_same_dictionary(params, outputs):
    padded = [words + [""] * (4 - len(words)) for words in WORDS]
    counts = [len(words) for words in WORDS]
    for tokens in (padded, WORDS, np.array(padded), tuple(map(tuple, padded))):
        for lengths in (counts, np.array(counts, np.int64), jnp.asarray(counts)):
            close(hub_tokens(params, tokens, lengths), outputs)


def test_what_stands_in_the_padding_is_not_read(params, outputs):
    padded = [words + ["noise"] * (6 - len(words)) for words in WORDS]
    got = hub_tokens(params, padded, [len(words) for words in WORDS])
    np.testing.assert_allclose(got["default"], outputs["default"], atol=1e-6)
    for name in NAMES[:-1]:
        assert got[name].shape[1] == 6, "as wide as the tokens"
        np.testing.assert_allclose(got[name][:, :4], outputs[name], atol=1e-6)
        assert not np.any(got[name][:, 4:])


def test_an_empty_word_within_the_length_is_a_word(params):
    got = hub_tokens(params, [["a", "", "b"]], [3])
    assert np.all(np.any(got["elmo"][0], axis=-1))


@pytest.mark.parametrize("batch", [[], ["", "  "]], ids=["no sentence", "no word"])
def test_nothing_to_embed(params, batch):
    got = hub_default(params, batch)
    assert got["word_emb"].shape == (len(batch), 0, WIDTH)
    np.testing.assert_array_equal(got["default"], np.zeros((len(batch), 2 * WIDTH)))
    close(hub_tokens(params, [[] for _ in batch], [0] * len(batch)), got)


def test_as_many_lstm_outputs_as_layers():
    params = tiny_params(replace(TINY, lstm=replace(TINY.lstm, layers=3)))
    got = hub_default(params, ["a b"])
    assert list(got) == [*NAMES[:3], "lstm_outputs3", *NAMES[3:]]


def test_refusals(params, request):
    if request.config.getoption("--shapes"):
        pytest.skip("beartype refuses it first")

    def refused(match, function, *arguments, **more):
        with pytest.raises(InputError, match=match):
            function(*arguments, **more)

    refused("sentences is 'a b'; it must be", hub_default, params, "a b")
    refused("sentences is 3", hub_default, params, 3)
    refused(r"Sentence 1 is \['b'\].*hub_tokens", hub_default, params, ["a", ["b"]])
    refused("Sentence 0 is b'a'", hub_default, params, [b"a"])
    refused(
        "tokens is 'a b'; it must be",
        hub_tokens,
        params,
        "a b",
        [2],
    )
    refused("Sentence 1 is the string 'b'", hub_tokens, params, [["a"], "b"], [1, 1])
    refused(
        "Sentence 0 is the str",
        hub_tokens,
        params,
        np.array(["a", "b"]),
        [1, 1],
    )
    refused("Word 1 of sentence 0 is 7", hub_tokens, params, [["a", 7]], [2])
    refused(r"shape \(2,\).*\[1\]", hub_tokens, params, [["a"]], [1, 1])
    refused(r"shape \(\)", hub_tokens, params, [["a"]], 1)
    refused("is 3 in row 1.*0 to 2", hub_tokens, params, [["a", ""]] * 2, [1, 3])
    refused("is -1 in row 0", hub_tokens, params, [["a", ""]], [-1])
    refused("float64; give integers", hub_tokens, params, [["a"]], [1.0])
    refused(r"\(2,\); give \[3\]", hub_default, params, ["a"], gammas=[1.0, 2.0])
    table = tiny_params(replace(TINY, encoder=WordTableConfig(9, WIDTH)))
    refused("reads ids of words.*word_ids", hub_default, table, ["a"])

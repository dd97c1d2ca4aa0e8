"""Words encoded once: the same vectors, by number; and no number for other words."""

from __future__ import annotations

import json
from functools import partial

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TINY, tiny_params

import elmojax
from elmojax.config import WordTableConfig, from_json, to_json
from elmojax.embedding import words as table_module
from elmojax.embedding.embedder import Embedder
from elmojax.embedding.words import WordIndex, cache_words, word_ids
from elmojax.errors import InputError
from elmojax.formats.hdf5 import load_hdf5, save_token_embeddings
from elmojax.text.vocabulary import SPECIALS, Vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")

SENTENCES = [
    ["The", "old", "bank"],
    ["naïve"],
    [],
    ["bank", "bank", "of", "the", "The"],
]
WORDS = tuple(sorted({word for sentence in SENTENCES for word in sentence}))
CHARACTERS = jnp.asarray(elmojax.batch_to_ids(SENTENCES, TINY.encoder.max_characters))
ROUNDING = 1e-6
"""Matrix products of other shapes add in another order: 1e-7, not bit by bit."""


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.mark.parametrize(
    "words",
    [WORDS, ["</S>", *WORDS, "<S>"], Vocabulary((*SPECIALS, *WORDS)), WordIndex(WORDS)],
    ids=["plain", "marks inside", "vocabulary", "index"],
)
def test_the_same_vectors(params, words):
    cached = cache_words(params, words)
    ids = jnp.asarray(word_ids(words, SENTENCES))
    assert ids.dtype == np.int32
    assert ids.shape == (4, 5)
    wanted = elmojax.encode(params, CHARACTERS)
    got = jax.jit(elmojax.encode)(cached, ids)
    np.testing.assert_array_equal(got.mask, wanted.mask)
    assert np.abs(wanted.layers).max() > 0.1
    np.testing.assert_allclose(got.layers, wanted.layers, atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(got.state.cell, wanted.state.cell, atol=ROUNDING)
    gammas = jnp.array([0.2, -1.0, 3.0])
    np.testing.assert_allclose(
        elmojax.embed(cached, ids, gammas),
        elmojax.embed(params, CHARACTERS, gammas),
        atol=3 * ROUNDING,
    )


def test_ids_are_places_in_the_list(params):
    """As bilm-tf's TokenBatcher has it: the line of the word, from 1."""
    words = ("b", "a", "</S>", "b")
    index = WordIndex(words)
    assert index.words == ("b", "a", "</S>", "b", "<S>")
    assert word_ids(words, [["a", "b"], ["b"]]).tolist() == [[2, 1], [1, 0]]
    table = cache_words(params, words).config.encoder
    assert table == WordTableConfig(5, 6, begin_row=4, end_row=2)
    assert from_json(WordTableConfig, to_json(table), "here") == table


def test_many_words_go_through_in_blocks(params, monkeypatch):
    whole = cache_words(params, WORDS).encoder["embedding"]
    monkeypatch.setattr(table_module, "BLOCKS", (3,))
    parts = cache_words(params, WORDS).encoder["embedding"]
    assert whole.shape == parts.shape == (len(WORDS) + 2, 6)
    np.testing.assert_allclose(whole, parts, atol=ROUNDING)


def test_no_id_for_other_words(params):
    with pytest.raises(InputError, match=r"Sentence 1: 'money' is not among the 3"):
        word_ids(["bank"], [["bank"], ["bank", "money"]])
    with pytest.raises(InputError, match="'Bank'"):
        WordIndex(("bank",)).ids(["Bank"])
    # And should somebody make one up, it is no other word's vector.
    cached = cache_words(params, ["bank"])
    layers = elmojax.encode(cached, jnp.array([[1, 4]], jnp.int32)).layers
    assert np.isfinite(layers[0, 0, 0]).all()
    assert np.isnan(layers[0, 0, 1]).all()


def test_what_is_no_list_of_words(params, request):
    if request.config.getoption("--shapes"):
        pytest.skip("beartype refuses it first")
    for words in ("bank", [b"bank"], [1]):
        with pytest.raises(InputError, match="strings"):
            cache_words(params, words)
    with pytest.raises(InputError, match="'The bank'; give a list"):
        word_ids(["The"], ["The bank"])
    with pytest.raises(InputError, match="reads characters"):
        cache_words(cache_words(params, WORDS), WORDS)
    assert word_ids(WORDS, []).shape == (0, 0)


def test_many_sentences(params):
    index = WordIndex(WORDS)
    got = Embedder(cache_words(params, index), index).embed_sentences(SENTENCES)
    wanted = Embedder(params).embed_sentences(SENTENCES)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING)


# --- bilm-tf's token embeddings ------------------------------------------------------


def test_token_embeddings_of_bilm_tf(goldens, tmp_path):
    """The file that bilm-tf wrote, against our own table of the same words."""
    folder = goldens / "allennlp"
    params = load_hdf5(folder / "options.json", folder / "lm_weights.hdf5")
    cached = cache_words(params, WordIndex.read(folder / "vocab_test.txt"))
    theirs = folder / "elmo_token_embeddings.hdf5"
    save_token_embeddings(cached, tmp_path / "tokens.hdf5")
    with h5py.File(theirs) as a, h5py.File(tmp_path / "tokens.hdf5") as b:
        assert list(a) == list(b)
        np.testing.assert_allclose(a["embedding"], b["embedding"], atol=2e-6, rtol=0)


def test_token_embeddings_are_whole_or_not_there(params, tmp_path):
    file = tmp_path / "tokens.hdf5"
    cached = cache_words(params, WordIndex(WORDS))
    save_token_embeddings(cached, file)
    with h5py.File(file) as written:
        table = np.asarray(written["embedding"])
    np.testing.assert_array_equal(table, cached.encoder["embedding"])
    with pytest.raises(InputError, match=r"tokens\.hdf5 is there already"):
        save_token_embeddings(cached, file)
    save_token_embeddings(cached, file, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.hdf5"]
    with pytest.raises(InputError, match="what cache_words returns"):
        save_token_embeddings(params, tmp_path / "other.hdf5")


def test_word_lists_in_files(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("</S>\nbank\n<S>", encoding="utf-8")
    assert WordIndex.read(path).words == ("</S>", "bank", "<S>")
    path.write_bytes(b"b\xff")
    with pytest.raises(InputError, match=r"Line 1 of .*words\.txt is not UTF-8"):
        WordIndex.read(path)
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        WordIndex.read(tmp_path / "none.txt")


def test_carried_state_through_the_cache(goldens):
    """AllenNLP's successive batches, every layer, with word ids for characters."""
    folder = goldens / "allennlp"
    golden = json.loads((folder / "golden_sentences.json").read_text())
    sentences = [s.split() if isinstance(s, str) else s for s in golden["sentences"]]
    index = WordIndex(tuple({word for s in sentences for word in s}))
    params = load_hdf5(folder / "options.json", folder / "lm_weights.hdf5")
    cached, encode = cache_words(params, index), jax.jit(elmojax.encode)
    data = np.load(folder / "golden_stateful.npz")
    rows = 6
    state = elmojax.LstmState.zeros(params.config.lstm, rows)
    for number, picked in enumerate(golden["stateful"]):
        batch = [sentences[i] for i in picked]
        ids = np.zeros((rows, 24), np.int32)
        mine = word_ids(index, batch)
        ids[: len(batch), : mine.shape[1]] = mine
        layers, _, after = encode(cached, ids, state)
        here = (np.arange(rows) < len(batch))[None, None, :, None]
        state = jax.tree.map(partial(jnp.where, here), after, state)
        wanted = data[f"b{number}"].swapaxes(0, 1)
        for row, sentence in enumerate(batch):
            words = len(sentence)
            difference = layers[row, :, :words] - wanted[row, :, 1 : words + 1]
            assert np.abs(difference).max() <= 2e-6

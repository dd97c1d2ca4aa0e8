"""Character ids: equal to what AllenNLP and bilm-tf computed, and safe to call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmojax.errors import InputError
from elmojax.text import characters
from elmojax.text.characters import batch_to_ids, character_ids


@pytest.fixture(scope="module")
def golden(goldens: Path) -> dict[str, Any]:
    path = goldens / "allennlp" / "golden_sentences.json"
    return json.loads(path.read_text("utf-8"))


def decode(row: np.ndarray) -> str:
    """The word of a row, by the definition of the mapping (not by our encoder)."""
    ids = [int(i) - 1 for i in row]
    assert ids[0] == 258
    end = ids.index(259)
    assert set(ids[end + 1 :]) <= {260}
    marks = {(256,): "<S>", (257,): "</S>"}
    inner = tuple(ids[1:end])
    return marks[inner] if inner in marks else bytes(inner).decode("utf-8")


def test_every_sentence_has_the_ids_of_allennlp(goldens, golden):
    expected = np.load(goldens / "allennlp" / "golden_single.npz")
    for i, sentence in enumerate(golden["sentences"]):
        np.testing.assert_array_equal(batch_to_ids([sentence])[0], expected[f"ids{i}"])


def test_a_padded_batch_has_the_ids_of_allennlp(goldens, golden):
    expected = np.load(goldens / "allennlp" / "golden_batch_ids.npz")["ids"]
    ids = batch_to_ids(golden["sentences"])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)


def test_sentence_marks_in_batches_have_the_ids_of_bilm_tf(goldens, golden):
    expected = np.load(goldens / "bilm-tf" / "all_layers_stateful.npz")
    for i, members in enumerate(golden["stateful"]):
        sentences = [golden["sentences"][j] for j in members]
        marked = [["<S>", *sentence, "</S>"] for sentence in sentences]
        np.testing.assert_array_equal(batch_to_ids(marked), expected[f"b{i}_ids"])


def test_the_words_of_marks_are_the_sentence_marks():
    expected = character_ids(["<S>", "</S>"], 7)
    np.testing.assert_array_equal(characters.sentence_mark_ids(7), expected)
    assert expected.tolist() == [
        [259, 257, 260, 261, 261, 261, 261],
        [259, 258, 260, 261, 261, 261, 261],
    ]


@given(st.lists(st.text(max_size=12), max_size=8))
def test_ids_hold_the_whole_of_a_short_word(words):
    ids = character_ids(words)
    assert ids.shape == (len(words), 50) and ids.dtype == np.int32
    assert [decode(row) for row in ids] == words


@given(st.lists(st.lists(st.text(max_size=3), max_size=4), max_size=4))
def test_a_batch_is_its_words_encoded_and_zeros_after_them(batch):
    ids = batch_to_ids(batch, 8)
    assert ids.shape == (len(batch), max(map(len, batch), default=0), 8)
    for row, sentence in zip(ids, batch, strict=True):
        np.testing.assert_array_equal(row[: len(sentence)], character_ids(sentence, 8))
        assert not row[len(sentence) :].any()


def test_many_words_are_encoded_as_one_by_one(monkeypatch):
    words = [*(f"word{i}" for i in range(10)), "</S>", "", "日本", "<S>"]
    alone = np.concatenate([character_ids([word]) for word in words])
    monkeypatch.setattr(characters, "_CHUNK", 3)
    np.testing.assert_array_equal(character_ids(words), alone)


@pytest.mark.parametrize("width", [3, 4, 10, 50])
def test_long_words_are_cut_at_the_bytes_that_fit(width):
    words = ["x" * (width - 3), "x" * (width - 2), "x" * (width - 1), "é" * width]
    ids = character_ids(words, width)
    kept = ["x" * (width - 3), *["x" * (width - 2)] * 2]
    assert [decode(row) for row in ids[:3]] == kept
    # Bytes count, not characters, and the cut may fall inside a character.
    assert (ids[3, 1:-1] - 1).tolist() == list(("é" * width).encode()[: width - 2])


@pytest.mark.parametrize(
    ("batch", "part"),
    [
        ("The river", "batch is 'The river'; it must be a list of sentences"),
        (["The", "river"], "Sentence 0 is the string 'The'"),
        ([["a"], "b c"], "Sentence 1 is the string 'b c'"),
        ([["a", 7]], "Word 1 of sentence 0 is 7"),
        ([["a"], [None]], "Word 0 of sentence 1 is None"),
        ([["a"], 5], "Sentence 1 is 5"),
        (3, "batch is 3"),
    ],
)
def test_anything_but_lists_of_lists_of_words_is_refused(batch, part, request):
    if request.config.getoption("--shapes"):
        pytest.skip("beartype refuses it first")
    with pytest.raises(InputError) as caught:
        batch_to_ids(batch)
    assert part in str(caught.value)


def test_too_few_characters_are_refused():
    with pytest.raises(
        InputError, match="max_characters is 2; it must be a whole number from 3"
    ):
        character_ids(["a"], 2)

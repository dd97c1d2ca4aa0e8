"""Vocabularies: order, file format, and every refusal."""

from __future__ import annotations

import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmojax.errors import InputError
from elmojax.text.vocabulary import SPECIALS, Vocabulary

WORD = st.text(min_size=1, max_size=5).filter(
    lambda word: not set(word) & set(" \t\r\n") and word not in SPECIALS
)


def test_words_come_by_falling_count_and_then_by_code_point():
    words = ["b", "é", "a", "Z", "rare", "<UNK>", "</S>"]
    counts = [5, 9, 5, 5, 1, 99, 99]
    built = Vocabulary.from_counts(words, counts, min_count=2)
    assert built.words == ("<S>", "</S>", "<UNK>", "é", "Z", "a", "b")
    smaller = Vocabulary.from_counts(words, np.array(counts), max_size=5)
    assert smaller.words == ("<S>", "</S>", "<UNK>", "é", "Z")


@given(
    st.dictionaries(WORD, st.integers(1, 9), min_size=1),
    st.integers(4, 9),
    st.randoms(use_true_random=False),
)
def test_building_keeps_the_most_frequent_whatever_the_order(counts, size, random):
    shuffled = list(counts.items())
    random.shuffle(shuffled)
    words, numbers = zip(*shuffled, strict=True)
    built = Vocabulary.from_counts(words, numbers, max_size=size)
    assert built == Vocabulary.from_counts(list(counts), list(counts.values()), size)
    assert len(built) == min(size, len(counts) + 3)
    kept = [counts[word] for word in built.words[3:]]
    assert kept == sorted(counts.values(), reverse=True)[: len(kept)]
    built.check_sorted([0, 0, 0, *kept])


@given(st.lists(WORD, unique=True, max_size=8))
def test_a_file_reads_back_as_it_was(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "round_trip.txt"
    vocabulary = Vocabulary((*SPECIALS, *words))
    vocabulary.write(path)
    assert path.read_bytes() == "".join(f"{w}\n" for w in vocabulary.words).encode()
    assert Vocabulary.read(path) == vocabulary


def test_ids_are_places_and_2_stands_for_every_other_word():
    vocabulary = Vocabulary((*SPECIALS, "the", "bank"))
    ids = vocabulary.ids(["bank", "<S>", "river", "the", "</S>", "<UNK>", ""])
    assert ids.dtype == np.int32
    assert ids.tolist() == [4, 0, 2, 3, 1, 2, 2]
    assert vocabulary.ids([]).shape == (0,)
    assert len(vocabulary) == 5


def test_a_word_list_without_the_special_words_is_no_vocabulary(goldens):
    # The one of bilm-tf's tests: embeddings need no order, a softmax does.
    with pytest.raises(InputError, match="not Bournemouth, concept, care"):
        Vocabulary.read(goldens / "bilm-tf" / "vocab_test.txt")


def test_odd_but_sound_files_are_read(tmp_path):
    path = tmp_path / "vocab.txt"
    # No last line feed, a byte-order mark, and marks that str.splitlines() cuts at.
    odd = ["a\u2028b", "\xa0", "c\x0c", "d\x1c", "c\x85"]
    data = "\n".join(["\ufeff<S>", "</S>", "!!!MAXTERMID", "<UNK>", *odd]).encode()
    for end in (b"\n", b"\r\n"):
        path.write_bytes(data.replace(b"\n", end))
        assert Vocabulary.read(path).words == (*SPECIALS, *odd)


def test_the_words_of_a_trained_softmax_keep_their_places(tmp_path):
    """bilm-tf numbers every line but `!!!MAXTERMID`; of equal ones the last counts."""
    path = tmp_path / "vocab.txt"
    path.write_bytes(GOOD + b"a\n!!!MAXTERMID\n\na\nb c\n")
    trained = Vocabulary.read(path, trained=True)
    assert trained.words == (*SPECIALS, "a", "", "a", "b c")
    assert trained.ids(["a", "b c", "!!!MAXTERMID"]).tolist() == [5, 6, 2]
    with pytest.raises(InputError, match="Line 5") as refusal:
        Vocabulary.read(path)
    for advice in ("emove", "sort", "first"):  # any of it would renumber the words
        assert advice not in str(refusal.value)
    counted = Vocabulary.from_counts(["!!!MAXTERMID", "a"], [9, 1])
    assert counted.words == (*SPECIALS, "a")


def test_special_words_may_stand_anywhere_in_a_trained_vocabulary(tmp_path):
    """As in that of the published models: </S>, <S>, <UNK>, ..., !!!MAXTERMID."""
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"</S>\n<S>\nthe\n<UNK>\na\n!!!MAXTERMID\n")
    vocabulary, order = Vocabulary.read_trained(path)
    assert vocabulary.words == (*SPECIALS, "the", "a")
    assert order.tolist() == [1, 0, 3, 2, 4]
    path.write_bytes(GOOD + b"the\n")
    assert Vocabulary.read_trained(path)[1] is None
    path.write_bytes(b"<S>\nthe\na\n")
    with pytest.raises(InputError, match="must have these words somewhere"):
        Vocabulary.read_trained(path)


GOOD = b"<S>\n</S>\n<UNK>\n"


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["is empty"]),
        (b"the\nof\n", ["first three lines", "<S>, </S>, <UNK>", "the, of"]),
        (b"<S>\n</S>\nthe\n<UNK>\n", ["first three lines", "</S>, the"]),
        (GOOD + b"a\nb\na\n", ["'a'", "lines 4 and 6"]),
        (GOOD + b"<S>\n", ["'<S>'", "lines 1 and 4"]),
        (GOOD + b"a\n\nb\n", ["Line 5", "no word"]),
        (GOOD + b"a\n\n", ["Line 5", "no word"]),
        (GOOD + b"a\nb c\n", ["Line 5", "'b c' holds white space"]),
        (GOOD + b"\nb c\n", ["Line 4", "no word"]),
        (GOOD + b"a\nthe\t12\n", ["Line 5", "white space"]),
        (GOOD + b"a\n\xff\n", ["Line 5", "not UTF-8"]),
        (GOOD + b"a\rb\n", ["Line 4", "white space"]),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path, data, parts):
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        Vocabulary.read(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_files_that_cannot_be_opened_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt cannot be read: No such file"):
        Vocabulary.read(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        Vocabulary.read(tmp_path)
    with pytest.raises(InputError, match="cannot be written to"):
        Vocabulary(SPECIALS).write(tmp_path / "missing" / "vocab.txt")
    assert list(tmp_path.iterdir()) == []


def test_limits_that_leave_nothing_are_refused():
    for limits, part in [
        ({"max_size": 3}, "is 3; it must be a whole number from 4 to"),
        ({"min_count": 0}, "is 0; it must be a whole number from 1 to"),
        ({"min_count": 4}, "no word occurs 4 times"),
    ]:
        with pytest.raises(InputError, match=part):
            Vocabulary.from_counts(["a"], [3], **limits)


def test_an_unsorted_vocabulary_is_refused_at_its_first_rise(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(GOOD + b"a\nb\nc\nd\n")
    vocabulary = Vocabulary.read(path)
    vocabulary.check_sorted([0, 9, 99, 5, 5, 2, 0])
    with pytest.raises(InputError) as caught:
        vocabulary.check_sorted([0, 0, 0, 5, 2, 4, 9])
    message = str(caught.value)
    for part in (f"Line 6 of {path}", "'c' occurs 4 times", "'b'", "only 2 times"):
        assert part in message
    with pytest.raises(InputError, match="one count a word: 7"):
        vocabulary.check_sorted([1, 2])


def test_counting_a_text_gives_what_counter_counts(sample_lines):
    counts = Counter(word for line in sample_lines(300) for word in line.split())
    built = Vocabulary.from_counts(list(counts), list(counts.values()))
    expected = sorted(counts, key=lambda word: (-counts[word], word))
    assert list(built.words[3:]) == expected
    assert set(string.ascii_lowercase) & set(built.words)

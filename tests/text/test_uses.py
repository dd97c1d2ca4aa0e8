"""Uses of words in texts: found in their spelling, shown in a few words."""

from __future__ import annotations

from collections import Counter

import pytest

from elmojax.errors import InputError
from elmojax.text.files import read_text
from elmojax.text.uses import Use, find_uses, sense_files, sense_words, use_in

WORDS = "a bank is a bank by the river".split()


def test_a_use_is_the_word_and_place_that_are_meant():
    assert use_in(WORDS, "river").position == 7
    assert [use_in(WORDS, "bank", n).position for n in (1, 2)] == [1, 4]
    assert use_in(WORDS, "river", 1).word == "river"


@pytest.mark.parametrize(
    ("word", "occurrence", "says"),
    [
        ("Bank", None, "no word 'Bank'"),
        ("bank", None, "stands 2 times"),
        ("bank", 3, "--occurrence is 3"),
        ("river", 2, "stands once"),
    ],
)
def test_what_is_no_use_is_said(word, occurrence, says):
    with pytest.raises(InputError, match=says):
        use_in(WORDS, word, occurrence)


@pytest.mark.parametrize(
    ("position", "width", "shown"),
    [
        (1, 100, "a [bank] is a bank by the river"),
        (4, 9, "... a [bank] by ..."),
        (4, 1, "... [bank] ..."),
        (7, 11, "... the [river]"),
    ],
)
def test_a_snippet_has_the_word_and_what_is_nearest(position, width, shown):
    assert Use(WORDS, position).snippet(width, "[{}]") == shown


def test_uses_are_found_with_their_lines(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("no word here\n\nbank to bank\n")
    other.write_text("the bank\nBank\nbanks bank.\n")
    texts = [read_text(one), read_text(other)]
    uses, words = find_uses("bank", texts)
    places = [(use.text, use.line, use.position) for use in uses]
    assert places == [(0, 2, 0), (0, 2, 2), (1, 0, 1)]
    assert sorted(words) == sorted(
        set("no word here bank to the Bank banks bank.".split())
    )
    with pytest.raises(InputError, match=r"None of 2 texts .* only bank \(3\), Bank"):
        find_uses("BANK", texts)
    with pytest.raises(InputError, match=r"one.txt has no word 'tree'; give --among"):
        find_uses("tree", texts[:1])


def test_the_sentences_in_the_package_are_even():
    """Each has its word once; both meanings of a word have as many sentences."""
    sizes: Counter[str] = Counter()
    paths = sense_files()
    for path in paths:
        word = path.stem.partition("-")[0]
        lines = list(read_text(path).sentences())
        assert all(line.count(word) == 1 for line in lines), path
        assert all(line[-1] == "." for line in lines), path
        sizes[path.stem] = len(lines)
    assert len(sense_words(paths)) == 6 and len(paths) == 12
    assert set(sizes.values()) == {8}

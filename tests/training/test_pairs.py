"""Minimal pairs: BLiMP's files and two texts, and how their sentences become words."""

from __future__ import annotations

import gzip
import json

import pytest

from elmojax.errors import InputError
from elmojax.training.minimal_pairs import read_pairs, words

GOOD, BAD = "Some turtles don't scare Jill.", "Some turtles doesn't scare Jill."


def blimp(path, *pairs, **more):
    entries = (
        {"sentence_good": good, "sentence_bad": bad} | more for good, bad in pairs
    )
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


@pytest.mark.parametrize(
    ("sentence", "split", "wanted"),
    [
        (GOOD, "blanks", "Some turtles don't scare Jill."),
        (GOOD, "marks", "Some turtles don 't scare Jill ."),
        (GOOD, "penn", "Some turtles do n't scare Jill ."),
        ("I can’t, can I?", "penn", "I ca n’t , can I ?"),
        ("DON'T!", "penn", "DO N'T !"),
        ("Bill's (old) cat", "marks", "Bill 's ( old ) cat"),
        ('"No," he said...', "marks", '" No , " he said . . .'),
        ("3.5 well-to-do 1,000", "marks", "3.5 well-to-do 1,000"),
        ("the boys' books", "penn", "the boys ' books"),
        ("日本。 x\u00a0y", "marks", "日本 。 x\u00a0y"),
        ("already split .", "marks", "already split ."),
        ("two\nlines", "marks", "two lines"),
        ("", "marks", ""),
    ],
)
def test_how_sentences_become_words(sentence, split, wanted):
    assert " ".join(words(sentence, split)) == wanted
    assert words(wanted, split) == words(sentence, split), "what is split stays"


def test_blimp_s_files_in_a_directory_packed_or_not(tmp_path):
    named = {"field": "morphology", "linguistics_term": "agreement", "UID": "u1"}
    blimp(tmp_path / "a.jsonl", (GOOD, BAD), **named)
    other = blimp(tmp_path / "b.jsonl", ("A b.", "A c."), ("x", "y"))
    one, two, three = read_pairs([str(tmp_path)])
    assert " ".join(one.good) == "Some turtles don 't scare Jill ."
    assert one.groups == named and two.groups == three.groups == {"UID": "b"}
    assert (three.good, three.bad) == (["x"], ["y"])
    (tmp_path / "c.txt.gz").write_bytes(
        gzip.compress((tmp_path / "b.jsonl").read_bytes())
    )
    packed = read_pairs([str(tmp_path / "c.txt.gz"), other, other], "blanks")
    assert [pair.groups["UID"] for pair in packed] == ["c", "c", "b", "b"]
    assert packed[0].good == ["A", "b."]


def test_two_texts_line_by_line(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("the boys run .\n\nit isn't so.\n")
    bad.write_text("the boys runs .\n\nit aren't so.\n")
    files = [str(good), str(bad)]
    one, two = read_pairs(files)
    assert one.good == ["the", "boys", "run", "."] and one.groups == {}
    assert two.bad == ["it", "aren't", "so."]
    assert read_pairs(files, "penn")[1].bad == ["it", "are", "n't", "so", "."]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("some text\n", "or two texts"),
        ('["a"]\n', "or two texts"),
        ('{"sentence_good": "a"}\n', "Line 1 .* no text 'sentence_bad'"),
        (
            '{"sentence_good": "a", "sentence_bad": "b"}\n[1]\n',
            "Line 2 .* 'sentence_good'",
        ),
        ('{"sentence_good": "a", "sentence_bad": ["b"]}\n', "no text 'sentence_bad'"),
        ('{"sentence_good": "a", "sentence_bad": " "}\n', "without words"),
        ('{"sentence_good": "a.", "sentence_bad": "a ."}\n', "same sentence twice"),
        ('{"sentence_good": "a\n', "Line 1 .* is no JSON"),
        ('{"sentence_good": "\\ud800", "sentence_bad": "b"}\n', "is no JSON"),
        ('{"a": ' * 100_000, "is no JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, lines, says):
    path = tmp_path / "x.jsonl"
    path.write_text(lines)
    with pytest.raises(InputError, match=says):
        read_pairs([str(path)])


def test_texts_that_are_no_pair_of_files_are_refused(tmp_path):
    paths = {"one": "a\nb\n", "two": "c\n", "same": "c\n", "three": "c\nb\n"}
    for name, content in paths.items():
        (tmp_path / name).write_text(content)
    pairs = blimp(tmp_path / "x.jsonl", ("a", "b"))
    at = {name: str(tmp_path / name) for name in paths}
    for files, says in (
        ([at["one"], at["two"]], "one has a line 2 and .*two has not"),
        ([at["two"], at["one"]], "one has a line 2 and .*two has not"),
        ([at["two"], at["same"]], "Line 1 .* same sentence twice"),
        ([at["one"], at["three"]], "Line 2 .* same sentence twice"),
        ([at["one"]], "no JSON lines are in .*one"),
        ([at["one"], at["two"], at["three"]], "or two texts"),
        ([at["one"], pairs], "no JSON lines are in .*one"),
        ([str(tmp_path / "nowhere")], "No text file matches"),
    ):
        with pytest.raises(InputError, match=says):
            read_pairs(files)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no"):
        read_pairs([str(tmp_path / "empty")])

"""Accuracy on minimal pairs: counted from the scores, by phenomenon, and told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import answer, done, refused

import elmojax
from elmojax.training.minimal_pairs import Judged, Pair, accuracies

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAIRS = [
    ("agreement", "number", "The boys were here.", "The boys was here."),
    ("agreement", "number", "The trees are tall.", "The trees is tall."),
    ("anaphor", "gender", "Jane saw herself.", "Jane saw himself."),
    ("anaphor", "gender", "He xyzzyqs himself.", "He xyzzyqs herself."),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pairs as BLiMP has them, and as two texts, which are tokenised."""
    here = tmp_path_factory.mktemp("pairs")
    with open(here / "pairs.jsonl", "w") as blimp:
        for term, uid, good, bad in PAIRS:
            names = {"field": "morphology", "linguistics_term": term, "UID": uid}
            entry = {"sentence_good": good, "sentence_bad": bad, **names, "pair_id": 0}
            print(json.dumps(entry), file=blimp)
    for place, name in ((2, "good"), (3, "bad")):
        lines = (pair[place].replace(".", " .") + "\n" for pair in PAIRS)
        (here / name).write_text("".join(lines))
    return here


@pytest.mark.slow
def test_it_is_what_the_scores_say(files, tmp_path):
    out = tmp_path / "each.jsonl"
    report = answer("minimal-pairs", "mini", files / "pairs.jsonl", "--out", out)
    each = [json.loads(line) for line in out.read_text().splitlines()]
    right = {"forward": [], "backward": [], "both": []}
    for (term, uid, *sentences), entry in zip(PAIRS, each, strict=True):
        lists = [sentence.replace(".", " .").split() for sentence in sentences]
        good, bad = elmojax.score("mini", lists)
        assert entry["sentence_bad"] == " ".join(lists[1])
        assert (entry["linguistics_term"], entry["UID"]) == (term, uid)
        assert entry["unknown"] == ("xyzzyqs" in lists[0])
        close = {"abs": 1e-4}
        assert entry["forward_good"] == pytest.approx(good.forward_sum, **close)
        assert entry["backward_bad"] == pytest.approx(bad.backward_sum, **close)
        forward = good.forward_sum - bad.forward_sum
        backward = good.backward_sum - bad.backward_sum
        right["forward"].append(forward > 0)
        right["backward"].append(backward > 0)
        right["both"].append(forward + backward > 0)
    assert (report["pairs"], report["unknown"]) == (4, 1)
    for way, found in right.items():
        assert report[way] == np.mean(found) and report[f"{way}_ties"] == 0
        assert report["linguistics_term"]["agreement"][way] == np.mean(found[:2])
        assert report["UID"]["gender"][way] == np.mean(found[2:])
        assert report["field"]["morphology"][way] == np.mean(found)
    texts = answer("minimal-pairs", "mini", files / "good", files / "bad")
    assert texts == {k: v for k, v in report.items() if not isinstance(v, dict)}


def test_the_table_has_a_row_for_each_phenomenon(files):
    rows = [
        row.split() for row in done("minimal-pairs", "mini", files).out.splitlines()
    ]
    assert rows[0] == ["pairs", "unknown", "forward", "backward", "both"]
    assert [row[: -len(rows[0])] for row in rows[1:]] == [
        ["all"],
        ["field", "morphology"],
        ["linguistics_term", "agreement"],
        ["linguistics_term", "anaphor"],
        ["UID", "number"],
        ["UID", "gender"],
    ]
    assert rows[1][1:3] == ["4", "1"] and rows[-1][2:4] == ["2", "1"]


def test_equally_probable_pairs_are_wrong_and_counted():
    """Forward a tie, backward right; and forward right, backward as wrong."""
    ways = np.array([[[-2.0, -1.0], [-2.0, -3.0]], [[-1.0, -2.0], [-2.0, -1.0]]])
    log_probs = np.concatenate([ways, ways.sum(-1, keepdims=True)], -1)
    pairs = [Pair(["a"], ["b"], {"UID": name}) for name in ("x", "y")]
    report = accuracies(pairs, Judged(log_probs, np.array([True, False])))
    assert (report["forward"], report["backward"], report["both"]) == (0.5, 0.5, 0.5)
    ties = [report[f"{way}_ties"] for way in ("forward", "backward", "both")]
    assert ties == [1, 0, 1] and report["unknown"] == 1
    assert report["UID"]["x"] == {
        **{"pairs": 1, "unknown": 1, "forward": 0.0, "backward": 1.0, "both": 1.0},
        **{"forward_ties": 1, "backward_ties": 0, "both_ties": 0},
    }


def test_what_is_no_pair_or_no_model_is_one_sentence(files, goldens, tmp_path):
    good, pairs = files / "good", files / "pairs.jsonl"
    for arguments, says in (
        (("mini",), "MODEL FILE"),
        ((), "lacks MODEL"),
        (("mini", good), "or two texts"),
        (("mini", good, good, pairs), "no JSON lines"),
        (("mini", good, good), "or two texts"),
        (("mini", tmp_path / "nowhere"), "No text file"),
        (("mini", pairs, "--split", "words"), "expected one of"),
        (("mini", pairs, "--out", files / "good"), "is there already"),
        ((tmp_path / "nowhere", pairs), "There is no model"),
        ((goldens / "allennlp", pairs), "softmax"),
        (("mini", "gs://a/b"), "is an address"),
    ):
        refused("minimal-pairs", *arguments, says=says)
    assert done("minimal-pairs", "mini", good, files / "bad", "--out", tmp_path / "o")

"""experiments/semantic_change.py on uses whose senses are known."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import done
from conftest import REPOSITORY
from toys import tiny_params

import elmojax

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def change():
    sys.path.insert(0, str(REPOSITORY / "experiments"))
    yield importlib.import_module("semantic_change")
    sys.path.remove(str(REPOSITORY / "experiments"))


def uses(shares: list[int], seed: int, width: int = 12) -> np.ndarray:
    """Uses of some senses, each near a direction of its own: so many of each."""
    draw = np.random.default_rng(seed)
    senses = np.repeat(np.eye(width)[: len(shares)] * 5, shares, axis=0)
    return (senses + 0.05 * draw.standard_normal(senses.shape)).astype(np.float32)


@pytest.mark.parametrize("clustering", ["kmeans", "affinity"])
def test_divergence_of_known_senses(change, clustering):
    def bits(one, other):
        return change.jsd(uses(one, 0), uses(other, 1), clustering, 0)

    if clustering == "kmeans":  # affinity propagation parts the uses of a sense, too
        assert bits([30, 30], [30, 30]) == pytest.approx(0, abs=1e-9)
        half = 0.5 * math.log2(1 / 0.75) + 0.25 * math.log2(0.5 / 0.75) + 0.25
        assert bits([40, 0], [20, 20]) == pytest.approx(half)
        assert bits([10, 10, 10, 0], [0, 0, 0, 30]) == pytest.approx(1)
    assert bits([30, 0], [0, 30]) == pytest.approx(1)
    assert bits([30, 0], [29, 1]) < bits([30, 0], [10, 20]) < 1


def test_distances_are_those_of_the_pairs(change):
    one, other = uses([3, 4], 2), uses([1, 5], 3)
    lengths = np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    cosines = one @ other.T / lengths
    assert change.apd(one, other) == pytest.approx(1 - np.mean(cosines), abs=1e-6)
    u, v = one.mean(axis=0), other.mean(axis=0)
    cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert change.prt(one, other) == pytest.approx(1 / cosine, abs=1e-6)
    assert change.prt(one, -one) == math.inf
    assert change.prt(one, one) == pytest.approx(1)


def test_few_uses_have_their_clusters(change):
    same = np.ones((4, 3), np.float32)
    assert change.jsd(same, same, "kmeans", 0) == 0
    assert change.jsd(same, -same, "kmeans", 0) == 1


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """Of `moved` the contexts are others in the second corpus, of `stayed` the same."""
    here = tmp_path_factory.mktemp("corpora")
    elmojax.save_hdf5(tiny_params(), here / "model")
    elmojax.save_hdf5(tiny_params(seed=1), here / "other")
    sea = ["sea sea {} sea", "sand sea {} sand"]
    law = ["law court {} judge law", "judge court {} jury judge"]
    texts = {
        "old": [c.format("moved") for c in sea] * 6
        + [c.format("stayed") for c in sea + law] * 5
        + ["gone here", "law gone"],
        "new": [c.format("moved") for c in law] * 6
        + [c.format("stayed") for c in sea + law] * 4,
    }
    (here / "words").write_text("moved\nstayed\ngone\nnever\n")
    (here / "gold").write_text("moved\t0.9\nstayed\t0.1\nother\t1\n\n")
    for name, lines in texts.items():
        (here / name).write_text("\n".join(lines) + "\n")
    return here


def made(here: Path, ending: str, *more: str) -> list[Path]:
    outs = []
    for name in ("old", "new"):
        out = here / f"{name}-{len(more)}{ending}"
        given = ("--text", here / name, "--only", here / "words", "--out", out)
        if not out.exists():
            done("embed", here / "model", *given, *more)
        outs.append(out)
    return outs


@pytest.mark.parametrize("ending", ["", ".h5", ".parquet"])
def test_what_moved_comes_first(change, corpora, ending, capsys):
    outs = [str(out) for out in made(corpora, ending)]
    change.main([*outs, "--gold", str(corpora / "gold"), "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = {row["word"]: row for row in found["words"]}
    assert list(rows) == ["moved", "stayed", "gone", "never"]
    assert (rows["moved"]["first"], rows["moved"]["second"]) == (12, 12)
    assert (rows["stayed"]["first"], rows["stayed"]["second"]) == (20, 16)
    assert rows["moved"]["jsd"] == pytest.approx(1)
    assert rows["stayed"]["jsd"] == pytest.approx(0, abs=1e-9)
    assert rows["moved"]["prt"] > rows["stayed"]["prt"] == pytest.approx(1, abs=1e-4)
    assert list(rows["gone"].values()) == ["gone", 2, 0, None, None, None]
    assert found["spearman"] == {"words": 2, "apd": None, "prt": None, "jsd": None}


def test_correlation_with_a_gold_file(change):
    rows = [
        change.Change(word, 9, 9, apd, 1 / (1 - apd), None)
        for word, apd in {"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.2}.items()
    ]
    found = change.correlations(rows, {"a": 4, "b": 3, "c": 1, "d": 2, "e": 9})
    assert found.pop("jsd") is None
    assert found == pytest.approx({"words": 4, "apd": 0.8, "prt": 0.8})


def test_the_table(change, corpora, capsys):
    outs = [str(out) for out in made(corpora, "", "--layers", "top")]
    change.main([*outs, "--gold", str(corpora / "gold")])
    head, first, *_, last = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["word", "first", "second", "APD", "PRT", "JSD"]
    assert first.split("\t")[:3] == ["moved", "12", "12"]
    assert last.startswith("Spearman, 2 words\t")


def test_what_does_not_go_together_is_refused(change, corpora, tmp_path, capsys):
    def refused(*arguments: object, says: str) -> None:
        with pytest.raises(SystemExit) as ended:
            change.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and not out and err.count("\n") == 1
        assert says in err and err.endswith(".\n"), err

    old, new = made(corpora, "")
    top, _ = made(corpora, "", "--layers", "top")
    refused(old, top, says="differ in layers, so their vectors")
    refused(old, new, "--layer", 3, says="--layer is 3, and")
    refused(top, top, "--layer", 0, says="has one vector a word")
    refused(old, corpora / "nothing", says="is no output of")
    whole, other = tmp_path / "whole", tmp_path / "other"
    given = ("--text", corpora / "new", "--out")
    done("embed", corpora / "model", *given, whole)
    refused(old, whole, says="it has the vectors of all words")
    done("embed", corpora / "other", *given, other, "--only", corpora / "words")
    refused(old, other, says="differ in model")
    gold = tmp_path / "gold"
    for text in ("a\tb\n", "a 1\n", "a\tnan\n", "a\t1\na\t2\n"):
        gold.write_text(text)
        refused(old, new, "--gold", gold, says=f"Line {text.count(chr(10))} of")

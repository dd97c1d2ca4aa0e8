"""`elmojax embed --only`: the vectors of some words, and which they are."""

from __future__ import annotations

import filecmp
import random
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import answer, refused, run
from toys import tiny_params

import elmojax
from elmojax.text.files import read_text
from elmojax.text.uses import occurrences_of
from elmojax.vectors import parquet
from elmojax.vectors.jobs import Job, embed_files

pytestmark = pytest.mark.usefixtures("quick_compilation")

ONLY = frozenset({"w1", "w7", "w40", "never"})
OUTPUTS = ("out", "out.h5", "out.hdf5", "out.parquet")


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Lines with and without the words, blank ones, and some longer than a batch."""
    draw = random.Random(0)
    lines = [
        " ".join(f"w{draw.randrange(60)}" for _ in range(draw.choice([0, 1, 5, 9, 70])))
        for _ in range(60)
    ]
    for place in (3, 20):
        lines[place] = " ".join(f"w{draw.randrange(60)}" for _ in range(1500))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def expected(params, path) -> dict[tuple[int, int], tuple[str, np.ndarray]]:
    """By line and position: the word, and its vectors in the whole text."""
    lines = [line.split() for line in path.read_text().splitlines()]
    embedder = elmojax.Embedder(params, batch_tokens=200)
    return {
        (line, place): (word, vectors[:, place])
        for line, vectors in enumerate(embedder.embed_sentences(lines))
        for place, word in enumerate(lines[line])
        if word in ONLY
    }


def rows_of(out: Path) -> dict[tuple[int, int], tuple[str, np.ndarray]]:
    """What an output says: by line and position, the word and its vectors."""
    rows = {}
    if out.suffix in (".h5", ".hdf5"):
        with h5py.File(out) as file:
            for line, data in file.items():
                each = zip(data.attrs["positions"], data.attrs["words"], strict=True)
                words = data.attrs["sentence"].split(" ")
                for row, (place, word) in enumerate(each):
                    assert words[place] == word
                    rows[int(line), int(place)] = word, data[:, row]
    elif out.suffix == ".parquet":
        for row in pq.read_table(out).to_pylist():
            layers = np.stack([row[f"layer_{layer}"] for layer in range(3)], axis=1)
            each = zip(row["positions"], row["words"], layers, strict=True)
            for place, word, vectors in each:
                rows[row["line"], place] = word, vectors
    else:
        found = elmojax.read_vectors(out)
        words = [word for words in found.sentences() for word in words]
        lines = np.repeat(np.load(out / "lines.npy"), np.diff(found.offsets))
        places = np.load(out / "positions.npy")
        each = zip(lines.tolist(), places.tolist(), words, found.vectors, strict=True)
        rows = {(line, place): (word, v) for line, place, word, v in each}
    return rows


def job_for(params, out: Path, **more) -> Job:
    packed = "gzip" if out.suffix == ".hdf5" else None
    return Job(params, batch_tokens=200, only=ONLY, compression=packed, **more)


@pytest.mark.parametrize("name", OUTPUTS)
def test_vectors_are_those_of_the_whole_text(params, path, expected, name, tmp_path):
    found: list[Counter[str]] = []
    out = tmp_path / name
    lines, words = embed_files(job_for(params, out), [path], out, told=found.append)
    rows = rows_of(out)
    assert rows.keys() == expected.keys() and words == len(rows)
    assert lines == len({line for line, _ in rows})
    for place, (word, vectors) in expected.items():
        assert rows[place][0] == word
        np.testing.assert_allclose(rows[place][1], vectors, atol=2e-6)
    assert found == [Counter(word for word, _ in expected.values())]


@pytest.mark.parametrize("name", OUTPUTS)
def test_interrupted_and_gone_on_with(params, path, name, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_PART", 20)
    whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
    for out in (whole, parts):
        out.parent.mkdir()
    job = job_for(params, whole)
    embed_files(job, [path], whole)
    calls = 0

    def stop(done, total):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_files(job, [path], parts, report=stop)
    begun = []
    embed_files(job, [path], parts, report=lambda done, total: begun.append(done))
    assert begun[0] > 0
    one, other = (
        sorted(p for p in (out, *out.rglob("*")) if p.is_file())
        for out in (whole, parts)
    )
    assert [p.name for p in one] == [p.name for p in other]
    assert all(map(filecmp.cmp, one, other, [False] * len(one)))


def test_texts_without_the_words_are_passed_over(params, path, expected, tmp_path):
    other, out = tmp_path / "other.txt", tmp_path / "out.parquet"
    other.write_text("nothing of them\n")
    embed_files(job_for(params, out), [other, path], out)
    assert rows_of(out).keys() == expected.keys()
    text = read_text(path)
    kept = occurrences_of(frozenset({"never"}), text)
    assert len(kept.sizes) == 0 and list(kept.sentences()) == []


def test_the_command(params, path, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elmojax.save_hdf5(params, "model")
    Path("words").write_text("w1\n\n w7\t\r\nw40\nnever\n")
    given = ("embed", "model", "--text", path, "--only", "words")
    report = answer(*given, "--out", "out", "--layers", "top")
    assert report["words"] == len(expected)
    assert report["remarks"][-1] == "Words of words that the text lacks: 1 (never)."
    assert elmojax.read_vectors("out").vectors.shape[1:] == (12,)
    Path("empty").write_text("\n \n")
    Path("others").write_text("x\ny\nz\n\u00e9\n")
    Path("long").write_text("w1 " * 4001)
    more = ("--out", "no.h5")
    refused(*given, *more, "--pool", "mean", says="--only writes ... leave one")
    refused(*given[:5], "empty", *more, says="empty lists no words")
    refused(*given[:5], "others", *more, says="none of the words of --only ('x', 'y'")
    refused(*given[:5], "gone", *more, says="no file gone")
    long = ("embed", "model", "--text", "long", "--only", "words")
    status, _, said = run(*long, *more)
    assert status == 2 and "Line 1 of long has 4,001" in said.splitlines()[-1]
    ray = ("--out", "no.parquet", "--engine", "ray")
    refused(*given, *ray, says="--only is for --engine local")
    Path("long").write_text("w1 " * 4000)
    answer(*long, *more)
    assert not [p for p in Path().iterdir() if "partial" in p.name]

"""experiments/tagging.py: ELMo at the input and output of a task, from files to F1."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from toys import tiny_params

import elmojax

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = {"a": "B-NP", "e": "I-NP", "i": "B-VP", "o": "O"}


@pytest.fixture(scope="module")
def modules():
    """tagging and tagging_data, imported as when the script runs."""
    folder = str(REPOSITORY / "experiments")
    sys.path.insert(0, folder)
    yield importlib.import_module("tagging"), importlib.import_module("tagging_data")
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Flags for a toy model and text in which the last letter of a word is its tag.

    No sentence has more than 16 words: one shape to compile.
    """
    folder = tmp_path_factory.mktemp("tagging")
    elmojax.save_hdf5(tiny_params(), folder / "model")
    random = np.random.default_rng(0)
    for name, count in (("train", 60), ("dev", 10), ("test", 10)):
        lines = []
        for length in random.integers(1, 17, count):
            for vowel in random.choice(list(KINDS), length):
                word = (
                    "".join(random.choice(list("bdfgk"), random.integers(1, 3))) + vowel
                )
                lines.append(f"{word} XX {KINDS[vowel]}\n")
            lines.append("\n")
        (folder / f"{name}.txt").write_text("".join(lines))
    flags = [("model", folder / "model")]
    flags += [(n, folder / f"{n}.txt") for n in ("train", "dev", "test")]
    return [text for name, path in flags for text in (f"--{name}", str(path))]


SMALL = (
    "--epochs 5 --rows 8 --width 6 --hidden 8 --dropout 0 --elmo-dropout 0.1 "
    "--learning-rate 0.05 --json"
).split()


@pytest.mark.slow
def test_from_files_to_scores(modules, files, capsys):
    modules[0].main([*files, *SMALL])
    report = json.loads(capsys.readouterr().out)
    losses = report["losses"]
    assert losses[-1] < 0.8 * losses[0]
    assert report["score"] == "F1" and report["test"] > 40
    assert set(report["mixes"]) == {"mix_input", "mix_output"}
    for mix in report["mixes"].values():
        assert np.abs(np.array(mix["weights"]) - 1 / 3).max() > 0.01
        assert sum(mix["weights"]) == pytest.approx(1, abs=1e-3)
        assert mix["gamma"] != 1


def test_without_elmo_no_model_is_read(modules, files, capsys, monkeypatch):
    pytest.importorskip("grain")
    for name in ("encode", "load"):
        monkeypatch.setattr(modules[0].elmojax, name, None, raising=False)
    flags = "--elmo none --epochs 1 --loader grain".split()
    modules[0].main([*files, *SMALL, *flags])
    report = json.loads(capsys.readouterr().out)
    assert report["mixes"] == {} and len(report["losses"]) == 1


def test_only_the_task_is_trained(modules, files):
    """One epoch moves the mix; the biLM is as it was, and nothing of it is trained."""
    tagging, _ = modules
    given = dict(zip([flag[2:] for flag in files[::2]], files[1::2], strict=True))
    paths = {n: Path(given[n]) for n in ("train", "dev", "test")}
    options = tagging.Options(given["model"], **paths, rows=8, width=4, hidden=6)
    options = replace(options, elmo="output", epochs=1, learning_rate=0.03)
    trainer, (sentences, *_) = tagging.prepare(options)
    before = jax.tree.map(np.array, trainer.elmo)
    params, _ = tagging.train(trainer, sentences, lambda params: 0.0)
    jax.tree.map(np.testing.assert_array_equal, trainer.elmo, before)
    assert [name for name in params if name.startswith("mix_")] == ["mix_output"]
    assert np.abs(params["mix_output"]["s"]).min() > 1e-3
    assert params["Dense_0"]["kernel"].shape[0] == 2 * 6 + 2 * 6


def test_the_penalty_is_that_of_the_mixes(modules, files):
    tagging, _ = modules
    options = tagging.tyro.cli(tagging.Options, args=[*files, *SMALL, "--penalty", "2"])
    trainer, (sentences, *_) = tagging.prepare(replace(options, hidden=2))
    batch = next(trainer.batches([sentences[:8]]))
    params = trainer.init(batch)
    for name in ("mix_input", "mix_output"):
        params[name]["s"] = jax.numpy.array([0.1, 0.2, -0.2], np.float32)
    layers, key = trainer.layers(batch), jax.random.key(0)
    both, plain = jax.jit(trainer.loss)(params, batch, layers, key)
    assert float(both - plain) == pytest.approx(2 * 2 * 0.09, rel=1e-4)


def test_batches_hold_every_sentence_in_few_shapes(modules, files):
    _, data = modules
    sentences = data.read_columns(Path(files[3]), -1)
    long = [data.Sentence(("w",) * n, ("O",) * n) for n in (17, 40)]
    sentences += long
    groups = data.plan(sentences, 8, np.random.default_rng(0))
    assert sorted(chain(*groups)) == sorted(sentences)
    numbering = data.Numbering.of(sentences, None)
    batches = [numbering.batch(group, 8) for group in groups]
    assert {batch.words.shape for batch in batches} == {(8, 16), (8, 32), (8, 64)}
    for group, batch in zip(groups, batches, strict=True):
        lengths = [len(sentence.words) for sentence in group]
        assert batch.mask.sum(axis=1).tolist() == lengths + [0] * (8 - len(group))
        read = [[numbering.tags[t] for t in row] for row in batch.tags]
        for sentence, tags in zip(group, read, strict=False):
            assert tuple(tags[: len(sentence.tags)]) == sentence.tags
    once = {word for word, number in numbering.words.items() if number < 2}
    assert not once and "w" in numbering.words


def test_loaders_give_the_same_batches(modules, files):
    pytest.importorskip("grain")
    _, data = modules
    sentences = data.read_columns(Path(files[3]), -1)
    numbering = data.Numbering.of(sentences, None)
    groups = data.plan(sentences, 8, np.random.default_rng(0))

    def make(group):
        return numbering.batch(group, 8)

    one, other = data.numpy_batches(groups, make), data.grain_batches(groups, make)
    for left, right in zip(one, other, strict=True):
        jax.tree.map(np.testing.assert_array_equal, left, right)


def test_chunks_are_those_of_conlleval(modules):
    """An I- after another kind, or outside, begins a chunk; a B- always does."""
    _, data = modules
    spans = data.spans("O B-X I-X B-X I-Y O I-X I-X".split())
    assert spans == {("X", 1, 3), ("X", 3, 4), ("Y", 4, 5), ("X", 6, 8)}
    gold = ["B-X I-X O B-Y".split(), "B-X".split()]
    found = ["B-X I-X O B-X".split(), "B-X".split()]
    assert data.score(gold, found, chunks=True) == pytest.approx(100 * 4 / 6)
    assert data.score(gold, found, chunks=False) == pytest.approx(80)
    assert data.score([["O"]], [["O"]], chunks=True) == 0


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--train", "nowhere.txt"], ("nowhere.txt", "No such file")),
        (["--column", "7"], ("train.txt, line 1", "3 columns", "no column 7")),
        (["--column", "0"], ("--column is 0", "word")),
        (["--model", "nowhere"], ("nowhere",)),
        (["--sentences", "0"], ("--sentences", "0")),
        (["--rows", "0"], ("--rows", "0")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_ends_in_a_sentence(modules, files, capsys, flags, parts):
    with pytest.raises(SystemExit) as caught:
        modules[0].main([*files, *SMALL, *flags])
    output, errors = capsys.readouterr()
    assert caught.value.code == 2 and not output
    assert errors.startswith("tagging: ") and errors.count("\n") == 1, errors
    for part in parts:
        assert part in errors

"""Scores of sentences: against the model written out, in any order and company."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import reference
from toys import TINY, corpus_of, drawn

import elmojax
from elmojax.cli import main
from elmojax.config import HeadConfig
from elmojax.embedding.engine import local_mesh
from elmojax.loading import Model, open_model
from elmojax.model.bilm import from_tree
from elmojax.saving import convert
from elmojax.text.characters import character_ids
from elmojax.training import score as scoring
from elmojax.training.step import LanguageModel

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXT = [
    "the river bank is the bank".split(),
    [],
    "no bank".split(),
    "日本 is no river".split(),
    "the the the odd one".split(),
    ["on"],
]
VOCABULARY = corpus_of(TEXT, known=6).vocabulary
HEAD = HeadConfig("adaptive", (3, 6), 2.0)


@pytest.fixture(scope="module")
def model():
    """Every number from NumPy; sentences begin from a state that is not zero."""
    lm = LanguageModel(TINY, len(VOCABULARY), HEAD)
    tree = drawn(jax.eval_shape(lm.init, jax.random.key(0)), seed=7)
    params = from_tree(TINY, tree)
    state = jax.tree.map(lambda leaf: leaf + 0.1, params.initial_state)
    params = params.replace(initial_state=state)
    return Model("toy", params, VOCABULARY, tree["head"], HEAD)


def written_out(model, sentence):
    """Log-probabilities of one sentence, word by word in NumPy."""
    tree = jax.tree.map(np.float64, model.params.tree)
    encoder, widths = TINY.encoder, [width for width, _ in TINY.encoder.filters]
    found = []
    for n, (begin, end) in enumerate((("<S>", "</S>"), ("</S>", "<S>"))):
        words = sentence[:: 1 - 2 * n]
        stream = reference.Stream(model.params.tree["lstm"], TINY.lstm, n)
        start = model.params.initial_state
        stream.cells = [*np.float64(start.cell[:, n])]
        stream.hiddens = [*np.float64(start.hidden[:, n])]
        ids = character_ids([begin, *words], encoder.max_characters)
        vectors = reference.char_cnn(tree["encoder"], ids, widths, encoder.activation)
        targets = VOCABULARY.ids([*words, end])
        log_probs = [
            reference.log_prob(model.head, stream.read(vector)[-1], target)
            for vector, target in zip(vectors, targets, strict=True)
        ]
        found.append([*log_probs[:-1][:: 1 - 2 * n], log_probs[-1]])
    return np.array(found)


@pytest.mark.usefixtures("users_compilation")
def test_scores_are_the_model_s(model):
    scores = elmojax.score(model, TEXT)
    assert [one.words for one in scores] == TEXT
    for one, sentence in zip(scores, TEXT, strict=True):
        wanted = written_out(model, sentence)
        np.testing.assert_allclose(one.forward, wanted[0], atol=2e-5)
        np.testing.assert_allclose(one.backward, wanted[1], atol=2e-5)
        assert one.forward_sum == pytest.approx(wanted[0].sum(), abs=1e-4)
        assert one.backward_sum == pytest.approx(wanted[1].sum(), abs=1e-4)
        known = [word in VOCABULARY.words for word in sentence]
        assert one.known.tolist() == known
    assert not all(one.known.all() for one in scores)


def test_neither_order_nor_company_nor_blocks_change_a_number(model, monkeypatch):
    """Also many sentences, and one as long as many windows."""
    long = [TEXT[0][i % 6] for i in range(100)]
    sentences = [*TEXT, long, *TEXT * 12]
    together = elmojax.score(model, sentences)
    assert len(together) == len(sentences)
    turned = elmojax.score(model, sentences[::-1])[::-1]
    monkeypatch.setattr(scoring, "BLOCK", 10)
    monkeypatch.setattr(scoring, "SHAPES", ((16, 3), (1, 5)))
    apart = elmojax.score(model, sentences)
    for other in (turned, apart):
        for one, two in zip(together, other, strict=True):
            np.testing.assert_allclose(one.forward, two.forward, atol=3e-6)
            np.testing.assert_allclose(one.backward, two.backward, atol=3e-6)
    np.testing.assert_allclose(
        together[6].forward, written_out(model, long)[0], atol=5e-5
    )


@pytest.mark.parametrize("shape", scoring.SHAPES)
def test_rows_and_windows_change_no_number(model, monkeypatch, shape):
    long = [TEXT[0][i % 6] for i in range(400)]
    wanted = elmojax.score(model, [*TEXT, long])
    monkeypatch.setattr(scoring, "SHAPES", (shape,))
    for one, two in zip(wanted, elmojax.score(model, [*TEXT, long]), strict=True):
        np.testing.assert_allclose(one.forward, two.forward, atol=3e-6)
        np.testing.assert_allclose(one.backward, two.backward, atol=3e-6)


def test_each_shape_is_best_for_some_sentences():
    """Many sentences take many rows, one long sentence takes one."""
    many, few, long = np.full(1000, 25), np.full(20, 25), np.array([100_000, 25])
    for devices in (1, 4):
        best = [
            scoring._best_shape(np.resize(each, devices * len(each)), devices)
            for each in (many, few)
        ]
        best.append(scoring._best_shape(long, devices))
        assert best == [(rows * devices, window) for rows, window in scoring.SHAPES]


def test_devices_change_no_number(model):
    """Some of which have no sentence."""
    one, many = (list(model.scorer(mesh)(TEXT)) for mesh in (None, local_mesh(4)))
    for ours, theirs in zip(many, one, strict=True):
        assert ours.words == theirs.words
        np.testing.assert_array_equal(ours.known, theirs.known)
        np.testing.assert_allclose(ours.forward, theirs.forward, atol=3e-6)
        np.testing.assert_allclose(ours.backward, theirs.backward, atol=3e-6)


def test_nothing_and_only_empty_sentences(model):
    assert elmojax.score(model, []) == []
    (one,) = elmojax.score(model, [[]])
    assert len(one.forward) == len(one.backward) == 1 and one.words == []


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """The model as a run directory, whose initial state is zero."""
    zero = jax.tree.map(np.zeros_like, model.params.initial_state)
    out = tmp_path_factory.mktemp("score") / "run"
    convert(model._replace(params=model.params.replace(initial_state=zero)), out)
    return out


def test_the_command_prints_what_the_function_gives(run, tmp_path, capsys, monkeypatch):
    module = importlib.import_module("elmojax.cli.score")
    monkeypatch.setattr(module, "PIECE", 2)  # so that a line has several
    path = tmp_path / "text"
    path.write_text("".join(" ".join(words) + "\n" for words in TEXT))
    wanted = elmojax.score(run, TEXT)
    main(["score", str(run), "--text", str(path), "--json"])
    out = capsys.readouterr().out
    report = json.loads(out)
    assert out.count("\n") == 1
    assert report["unit"] == "nats"
    assert report["tokens"] == sum(len(words) + 1 for words in TEXT)
    for line, (got, one) in enumerate(zip(report["sentences"], wanted, strict=True)):
        assert (got["line"], got["tokens"]) == (line, one.words)
        assert [*got["forward"], got["forward_end"]] == pytest.approx(one.forward)
        assert [*got["backward"], got["backward_end"]] == pytest.approx(one.backward)
        assert got["forward_sum"] == pytest.approx(one.forward_sum)
        assert got["unknown"] == [i for i, known in enumerate(one.known) if not known]
    total = sum(one.forward_sum for one in wanted)
    assert report["forward_sum"] == pytest.approx(total)
    perplexity = np.exp(-total / report["tokens"])
    assert report["forward_perplexity"] == pytest.approx(perplexity)
    main(["score", str(run), "--text", str(path)])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["line", "position", "word", "forward", "backward"]
    assert len(rows) == 1 + sum(len(words) + 2 for words in TEXT)
    assert rows[7][:3] == ["0", "7", "</S> <S>"]
    assert rows[8][:2] == ["0", "sum"]
    assert float(rows[8][3]) == pytest.approx(wanted[0].forward_sum, abs=1e-4)
    assert any(row[2].endswith("*") for row in rows)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"good\nb\xffd\n", "Line 2 of"),
        (b"", "no lines at all"),
        (None, "No text file"),
    ],
    ids=["bytes", "empty", "missing"],
)
def test_bad_text_is_one_sentence_and_prints_no_score(
    run, tmp_path, capsys, content, says
):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        main(["score", str(run), "--text", str(path), "--json"])
    captured = capsys.readouterr()
    assert caught.value.code == 2 and captured.out == "" and says in captured.err


def test_what_gives_no_probability_is_named(model, run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["score", str(run)])
    assert "--text FILE" in capsys.readouterr().err
    with pytest.raises(elmojax.InputError, match="has no softmax"):
        elmojax.score(model._replace(head=None), TEXT)
    fewer = replace(VOCABULARY, words=VOCABULARY.words[:-1])
    with pytest.raises(elmojax.InputError, match="8 words and its softmax 9"):
        elmojax.score(model._replace(vocabulary=fewer), TEXT)
    with pytest.raises(elmojax.InputError, match="There is no model"):
        elmojax.score(tmp_path / "nowhere", TEXT)
    assert open_model(run).shape == HEAD

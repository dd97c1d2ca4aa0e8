"""Scores of sentences: against the model written out, in any order and company."""

from __future__ import annotations

import json
from dataclasses import replace

import commands
import jax
import numpy as np
import pytest
import reference
from toys import TINY, corpus_of, drawn

import elmojax
from elmojax.cli import main
from elmojax.config import HeadConfig
from elmojax.loading import Model, open_model
from elmojax.model.bilm import from_tree
from elmojax.model.ops import local_mesh
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
WAYS = ("forward", "backward")


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


def test_the_command_prints_what_the_function_gives(run, tmp_path, capsys):
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


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(" ".join(words) + "\n" for words in TEXT))
    return path


def table(*arguments):
    """Rows of a table, and its first one, as lists of cells."""
    head, *rows = commands.done("score", *arguments).out.splitlines()
    return head.split("\t"), [row.split("\t") for row in rows]


def test_all_measures_in_bits(run, text):
    flags = ("--text", text, "--entropy", "--top-k", 2, "--unit", "bits")
    wanted = elmojax.score(run, TEXT, entropy=True, top_k=2)
    report = commands.answer("score", run, *flags)
    head, rows = table(run, *flags)
    columns = [f"{w}{what}" for what in ("", "_entropy", "_rank") for w in WAYS]
    assert head[3:] == [*columns, "forward_top", "backward_top", "both_top"]
    assert report["unit"] == "bits"
    words = iter(row for row in rows if row[1] != "sum")
    sums = iter(row for row in rows if row[1] == "sum")
    for got, one in zip(report["sentences"], wanted, strict=True):
        mine = [next(words) for _ in range(len(one.words) + 1)]
        for place, name in enumerate(columns, 3):
            of = getattr(one, name)
            scaled = of if "rank" in name else of / np.log(2)
            assert [*got[name], got[f"{name}_end"]] == pytest.approx(scaled, rel=1e-5)
            shown = [float(row[place]) for row in mine]
            assert shown == pytest.approx(scaled, abs=1e-5)
        for place, way in enumerate((*WAYS, "both"), 9):
            best = getattr(one.substitutes, way)
            pairs = [
                [*zip(*each, strict=True)]
                for each in zip(best.words, best.log_probs / np.log(2), strict=True)
            ]
            for n, pair in enumerate(pairs):
                names, log_probs = zip(*got[f"{way}_top"][n], strict=True)
                assert [*names] == best.words[n]
                assert log_probs == pytest.approx([of for _, of in pair], rel=1e-5)
                shown = [part.rsplit("=", 1) for part in mine[n][place].split(" ")]
                assert [word for word, _ in shown] == best.words[n]
        total = one.forward_entropy.sum() / np.log(2)
        assert got["forward_entropy_sum"] == pytest.approx(total, rel=1e-5)
        assert float(next(sums)[5]) == pytest.approx(total, abs=1e-4)
    nats = commands.answer("score", run, "--text", text)
    for way in WAYS:
        name = f"{way}_perplexity"
        assert report[name] == pytest.approx(nats[name])


def test_one_direction_alone(run, text):
    both, rows = table(run, "--text", text, "--top-k", 1)
    flags = ("--text", text, "--top-k", 1, "--direction", "backward")
    one, mine = table(run, *flags)
    assert one == ["line", "position", "word", "backward", "backward_top"]
    assert [row[3] for row in mine] == [row[4] for row in rows]
    assert mine[6][2] == "<S>" and both[3] == "forward"
    report = commands.answer("score", run, *flags)
    assert not [name for name in report["sentences"][0] if "forward" in name]


def test_sentences_are_the_sums_of_their_words(run, text):
    flags = ("--text", text, "--entropy", "--level", "sentence")
    wanted = elmojax.score(run, TEXT, entropy=True)
    head, rows = table(run, *flags)
    assert head[:5] == ["line", "words", "unknown", *WAYS]
    report = commands.answer("score", run, *flags)
    for row, got, one in zip(rows, report["sentences"], wanted, strict=True):
        unknown = len(one.words) - sum(one.known)
        assert [int(row[1]), int(row[2])] == [len(one.words), unknown]
        assert (got["words"], got["unknown"]) == (len(one.words), unknown)
        assert float(row[3]) == pytest.approx(one.forward_sum, abs=1e-4)
        assert got["backward_sum"] == pytest.approx(one.backward_sum)
        entropy = one.backward_entropy.sum()
        assert float(row[6]) == pytest.approx(entropy, abs=1e-4)
    assert report["forward_sum"] == pytest.approx(sum(s.forward_sum for s in wanted))


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_lm_zoo_reads_what_it_would_print(run, text, way):
    """Its schema: both ids from 1, entries of the vocabulary, base 2, nothing below 0;
    the end of a sentence is a token, as in its ngram and GRNN models."""
    flags = ("--text", text, "--output-format", "lm-zoo", "--direction", way)
    head, rows = table(run, *flags)
    assert head == ["sentence_id", "token_id", "token", "surprisal"]
    end = {"forward": "</S>", "backward": "<S>"}[way]
    wanted = []
    for n, one in enumerate(elmojax.score(run, TEXT), 1):
        known = zip(one.words, one.known, strict=True)
        tokens = [*(word if there else "<UNK>" for word, there in known), end]
        for m, (token, of) in enumerate(zip(tokens, getattr(one, way), strict=True), 1):
            wanted.append((n, m, token, -of / np.log(2)))
    for row, (*names, surprisal) in zip(rows, wanted, strict=True):
        assert row[:3] == [*map(str, names)]
        assert float(row[3]) == pytest.approx(surprisal, abs=1e-5)
        assert not row[3].startswith("-")
    if way == "forward":
        assert table(run, *flags[:4]) == (head, rows)


def test_the_state_is_carried_in_a_file_and_not_to_the_next(run, text, tmp_path):
    flags = ("--carry", "--level", "sentence")
    _, rows = table(run, "--text", text, *flags)
    wanted = elmojax.score(run, TEXT, carry=True)
    for row, one in zip(rows, wanted, strict=True):
        assert float(row[3]) == pytest.approx(one.forward_sum, abs=1e-4)
    other = tmp_path / "other"
    other.write_bytes(text.read_bytes())
    _, two = table(run, "--text", text, other, *flags)
    assert [row[1:] for row in two] == [row[1:] for row in rows + rows]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--top-k 7", "has 6 words"),
        ("--top-k -1", "--top-k is -1"),
        ("--top-k 1 --level sentence", "leave --level sentence out"),
        ("--unit bit", "'bit' for argument '--unit'; expected one of ... 'nats'"),
        ("--direction both", "'both' for argument ... 'forward'"),
        ("--output-format lm-zoo --json", "leave --json out"),
        ("--output-format lm-zoo --entropy", "leave --entropy out"),
        ("--output-format lm-zoo --top-k 2", "leave --top-k out"),
        ("--output-format lm-zoo --level sentence", "leave --level sentence out"),
        ("--output-format lm-zoo --unit nats", "leave --unit nats out"),
    ],
)
def test_flags_that_do_not_go_together(run, text, flags, says):
    said = commands.refused("score", run, "--text", text, *flags.split(), says=says)
    assert "None" not in said and "---" not in said


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
    assert open_model(run).head_config == HEAD

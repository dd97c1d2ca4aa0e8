"""`similar`, `plot` and `report`: what they show is what the model and the run say."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from commands import answer, done, refused
from toys import TINY, corpus_of, drawn

import elmojax
from elmojax.config import HeadConfig
from elmojax.embedding.embedder import Embedder
from elmojax.embedding.neighbours import cosines
from elmojax.loading import Model, open_model, score
from elmojax.model.bilm import from_tree
from elmojax.saving import convert
from elmojax.text.files import read_lines
from elmojax.text.uses import sense_files
from elmojax.training import evaluate
from elmojax.training.step import LanguageModel, evaluation_step

pytestmark = pytest.mark.usefixtures("quick_compilation", "compile_once")

SENTENCE = "He sat on the bank of the river ."
LINES = [
    "the river bank is the bank",
    "",
    "no bank here $ 5 <b>",
    SENTENCE,
    "the the odd one",
    "a Bank , a bank",
]
VOCABULARY = corpus_of([line.split() for line in LINES], known=12).vocabulary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with a checkpoint, and no metrics."""
    lm = LanguageModel(TINY, len(VOCABULARY), HeadConfig("full"))
    tree = drawn(jax.eval_shape(lm.init, jax.random.key(0)), seed=7)
    params = from_tree(TINY, tree)
    out = tmp_path_factory.mktemp("seeing") / "run <1> $x_2$"
    model = Model("toy", params, VOCABULARY, tree["head"], HeadConfig("full"))
    convert(model, out, "1.0")
    return out


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(f"{line}\n" for line in LINES))
    return tmp_path


# --- similar -------------------------------------------------------------------------


def test_the_nearest_uses_have_the_greatest_cosines(run, here):
    given = ("similar", SENTENCE, "--word", "bank", "--among", "text.txt")
    report = answer(*given, "--model", run)
    places = [(one["line"], one["position"]) for one in report["nearest"]]
    assert report["uses"] == 4
    assert sorted(places) == [(0, 2), (0, 5), (2, 1), (5, 4)]  # not the sentence itself
    embedder = Embedder(elmojax.restore(run))
    ours = embedder.embed_sentence(SENTENCE.split())[1:, 4].mean(axis=0)
    for one in report["nearest"]:
        vectors = embedder.embed_sentence(one["sentence"])[1:, one["position"]]
        wanted = cosines(ours, vectors.mean(axis=0)[None])[0]
        assert one["context"] == pytest.approx(wanted, abs=1e-5)
        assert one["static"] == pytest.approx(1, abs=1e-5)
    context = [one["context"] for one in report["nearest"]]
    assert context == sorted(context, reverse=True)
    words = [one["word"] for one in report["static_words"]]
    assert "bank" not in words and len(words) == 10
    assert answer(*given, "--model", run, "-k", 2)["nearest"] == report["nearest"][:2]


def test_the_table_shows_the_word_in_its_sentence(run, here):
    given = ("--word", "bank", "--among", "text.txt", "--model", run, "--layer", 1)
    out = done("similar", SENTENCE, *given, "--nearest", 3).out.splitlines()
    assert out[0] == "He sat on the [bank] of the river ."
    assert "nearest of 4 uses, by layer 1" in out[2]
    assert out[4].split() == ["context", "static", "text", "use"]
    assert all(row.split()[1:3] == ["1.000", "text"] for row in out[5:8])
    assert all("[bank]" in row for row in out[5:8])
    assert out[9].startswith("nearest words without context: ")


def test_the_sentences_in_the_package_need_no_file(run, here):
    report = answer("similar", SENTENCE, "--word", "bank", "--model", run)
    assert report["uses"] == 16
    assert {one["sentence"].count("bank") for one in report["nearest"]} == {1}


@pytest.mark.parametrize(
    ("sentence", "flags", "says"),
    [
        ("a tree", "--word tree", "about bank, bat, cell ... --among FILE"),
        (SENTENCE, "--word Bank", "no word 'Bank' ... spaces"),
        ("a bank is a bank", "--word bank", "--occurrence 1 to 2"),
        ("", "--word bank", "argument"),
        ("Bank", "--word Bank --among text.txt --model RUN", None),
        ("BANK", "--word BANK --among text.txt --model RUN", "only bank (5), Bank (1)"),
        ("odd", "--word odd --among text.txt --model RUN --layer 3", "layers 0 to 2"),
        ("a Bank , a bank", "--word Bank --among text.txt --model RUN", "only in this"),
        ("a tree", "--word tree --among text.txt --model RUN", "has no word 'tree'"),
        (SENTENCE, "--word bank --among nothing.txt", "nothing.txt"),
        (SENTENCE, "--word bank --model nowhere", "There is no model"),
        (SENTENCE, "--word bank -k 0", "--nearest"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(run, here, sentence, flags, says):
    words = [str(run) if word == "RUN" else word for word in flags.split()]
    if says is None:
        done("similar", sentence, *words)
        return
    refused("similar", sentence, *words, says=says)


# --- plot ----------------------------------------------------------------------------


def drawn_text(path) -> str:
    """All that an SVG says: matplotlib names each text in a comment."""
    ElementTree.parse(path)
    return " ".join(re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL))


def test_senses_are_drawn_in_both_kinds(run, here):
    given = ("plot", "senses", "--word", "bank", "--among", "text.txt", "--model", run)
    assert answer(*given, "--out", "a.svg")["uses"] == 5
    done(*given, "--out", "a.png")
    assert (here / "a.png").read_bytes().startswith(b"\x89PNG")
    text = drawn_text(here / "a.svg")
    assert "all 5 uses" in text and "mean of layers 1 and 2" in text
    assert "$ 5" in text  # is no formula
    refused(*given, "--out", "a.png", says="is there already")
    done(*given, "--out", "a.png", "--overwrite")


def test_a_word_alone_in_its_texts_is_drawn(run, here):
    for name in ("_one.txt", "_two.txt"):
        (here / name).write_text("bank\n")
    texts = ("--among", "_one.txt", "_two.txt", "--model", run)
    done("plot", "senses", "--word", "bank", *texts, "--out", "a.svg")
    assert "_one (1) _two (1)" in drawn_text(here / "a.svg")


METRICS = [
    {"step": 0, "heldout_loss": 5.0, "heldout_geometric_perplexity": 148.4},
    *(
        {"step": n, "loss": 5 - n / 100, "tokens": 64 * n, "tokens_per_second": 640.0}
        for n in range(1, 151)
    ),
    {"step": 150, "heldout_loss": 3.5, "heldout_geometric_perplexity": 33.12}
    | {"heldout_forward_perplexity": 34.5, "heldout_seconds": 5.0},
]


@pytest.fixture
def trained(run):
    """The run with metrics, for one test."""
    path = run / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    yield run
    path.unlink()


def test_runs_are_drawn_with_their_names(trained, here):
    other = here / "other"
    other.mkdir()
    for name in ("config.json", "vocabulary.txt"):
        (other / name).write_bytes((trained / name).read_bytes())
    (other / "metrics.jsonl").write_text('{"step": 1, "sampled_loss": 7.5}\n')
    done("plot", "run", trained, other, "--out", "runs.svg")
    text = drawn_text(here / "runs.svg")
    assert "other: training (sampled loss)" in text
    assert "33.1" in text and "Held-out perplexity" in text
    done("plot", "run", other, "--out", "one.svg")
    assert "perplexity" not in drawn_text(here / "one.svg")


def test_mixes_are_drawn_and_averaged(here):
    files = {
        "one": {"task": "NER", "mix": {"input": [0.5, 0.3, 0.2]}},
        "two": {"task": "NER", "mix": {"input": [0.1, 0.5, 0.4]}},
        "tagger": {"mix": {"output": [0.25, 0.75]}},
    }
    for name, content in files.items():
        (here / f"{name}.json").write_text(json.dumps(content))
    names = [f"{name}.json" for name in files]
    mixes = answer("plot", "mix", *names, "--out", "mix.svg")["mixes"]
    assert mixes["NER, input"] == pytest.approx([0.3, 0.4, 0.3])
    assert mixes["tagger, output"] == [0.25, 0.75]
    text = drawn_text(here / "mix.svg")
    assert "NER, input" in text and "layer 2" in text and "0.75" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "cannot be read"),
        ("{}", "holds no mix"),
        ('{"task": "x", "mix": {}}', "holds no mix"),
        ('{"task": 3, "mix": {"input": [1]}}', "holds no mix"),
        ('{"mix": {"input": [0.5, 0.6]}}', "sum to 1"),
        ('{"mix": {"input": [2, -1]}}', "sum to 1"),
        ('{"mix": {"input": "x"}}', "sum to 1"),
        ('{"mix": {"input": 3}}', "sum to 1"),
    ],
)
def test_what_is_no_mix_is_one_sentence(here, content, says):
    (here / "bad.json").write_text(content)
    refused("plot", "mix", "bad.json", "--out", "mix.png", says=says)
    assert not (here / "mix.png").exists()


def test_mixes_of_other_depth_are_refused(here):
    for name, mix in (("a", [0.5, 0.5]), ("b", [0.2, 0.3, 0.5])):
        content = json.dumps({"task": "x", "mix": {"input": mix}})
        (here / name).write_text(content)
    refused("plot", "mix", "a", "b", "--out", "m.png", says="3 layers ... 2")


def test_pictures_that_cannot_be_are_refused(run, here, monkeypatch):
    refused("plot", says="Say what to plot")
    refused("plot", "cake", says="no 'cake' to plot")
    for kind in ("run", "mix"):
        refused("plot", kind, "--out", "o.png", says=f"elmojax plot {kind} ")
    refused("plot", "run", run, "--out", "a.pdf", says=".png or .svg")
    refused("plot", "run", run, "--out", "no/a.png", says="no directory")
    refused("plot", "run", run, "--out", "a.png", says="no numbers yet")
    refused("plot", "run", here, "--out", "a.png", says="not a run directory")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused("plot", "run", run, "--out", "a.png", says="elmojax[plots]")
    assert "senses" in done("plot", "--help").out


# --- report --------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text, self.cells = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for name, v in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data
        if self.tags[-1:] == ["td"] and data.strip():
            self.cells.append(data)


def page_of(run, *flags) -> Page:
    done("report", run, *flags)
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_a_report_is_one_page_that_loads_nothing(trained, here):
    hostile = "<script>alert(1)</script> & more"
    Path("news.txt").write_text("the river bank\n" * 3)
    Path("news.txt").rename(f"{hostile.replace('/', '')}.txt")
    page = page_of(trained, "--text", f"{hostile.replace('/', '')}.txt")
    assert "script" not in page.tags and "<script>alert(1)" in page.text
    assert (
        "# run <1> $x_2$" in page.text and "| 12 |" in page.text
    )  # tokens of the text
    (link,) = page.links
    kind, _, data = link.partition(",")
    assert kind == "data:image/svg+xml;base64"
    ElementTree.fromstring(base64.b64decode(data))
    assert "33.12" in page.text and "150 (best)" in page.text
    assert "15.0 s" in page.text and "75%" in page.text  # 9,600 tokens, 640 a second


def test_a_run_without_anything_has_a_report(run, here, monkeypatch):
    """No metrics, no held-out text, no card, no matplotlib; at last no checkpoint."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = page_of(run)
    for said in ("No step has been logged", "not been evaluated", "Not measured"):
        assert said in page.text
    assert "sentences that ship with elmojax" in page.text
    bare = here / "bare"
    bare.mkdir()
    for name in ("config.json", "vocabulary.txt"):
        (bare / name).write_bytes((run / name).read_bytes())
    status = {"state": "failed", "step": 3, "steps": 9, "why": "<out of memory>"}
    (bare / "status.json").write_text(json.dumps(status))
    (bare / "metrics.jsonl").write_text('{"step": 1, "loss": 9.5, "tokens": 64}\n')
    page = page_of(bare)
    assert "There is no model to ask yet" in page.text
    assert "failed" in page.text and "<out of memory>" in page.text
    assert "matplotlib is missing" in page.text


def test_samples_are_what_the_model_says(run):
    """A word, then forward and backward its chance and the words that `score` names."""
    cells = page_of(run).cells
    words = next(read_lines(sense_files()[0]))[1]
    (one,) = score(open_model(run), [words], top_k=3)
    start = cells.index(words[0], cells.index("made by"))
    rows = [cells[start + 5 * n : start + 5 * n + 5] for n in range(len(words))]
    assert [row[0] for row in rows] == words
    for way, column in ((one.forward, 1), (one.backward, 3)):
        chances = [float(row[column].rstrip("% ")) / 100 for row in rows]
        assert chances == pytest.approx(np.exp(way[:-1]), rel=0.05)
    assert [row[2].split(" · ") for row in rows] == one.substitutes.forward.words
    assert [row[4].split(" · ") for row in rows] == one.substitutes.backward.words


def test_texts_of_a_report_are_evaluated_by_one_program(run, here, monkeypatch):
    traced = []

    def step(*arguments):
        traced.append(evaluation_step(*arguments))
        return traced[-1]

    monkeypatch.setattr(evaluate.compile_evaluation_step, "__defaults__", (step,))
    texts = ["the river", "a bank of the river and a donaudampfschiff\n" * 9]
    names = [f"{n}.txt" for n in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        (here / name).write_text(text)
    done("report", run, "--text", *names, "--out", "card.md")
    assert len(traced) == 1
    card = (here / "card.md").read_text()
    for name in names:
        alone = answer("evaluate", run, "--text", name)
        assert f"| {alone['tokens']} |" in card
        assert f"{alone['bits_per_byte']:.3f}" in card


def test_a_report_refuses_what_is_no_run(run, here):
    refused("report", here, says="not a run directory")
    (here / "a.html").write_text("mine")
    refused("report", run, "--out", "a.html", says="is there already")
    assert (here / "a.html").read_text() == "mine"

"""experiments/tasks on whole texts: classes, answers in a paragraph, translation.

Toys are such that a network which reads its features right gets nearly all of them.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from toys import drawn, tiny_params

import elmojax

pytestmark = pytest.mark.usefixtures("quick_compilation")

SQUAD = REPOSITORY / "tests" / "data" / "squad"
SMALL = (
    "--rows 8 --hidden 8 --dropout 0 --elmo-dropout 0 --learning-rate 0.03 --json"
).split()
STATIC = [*SMALL, "--features", "random", "--width", "12", "--word-width", "0"]
PARTS = ("train", "dev", "test")


def flags_of(folder: Path, ending: str = "") -> list[str]:
    return [text for n in PARTS for text in (f"--{n}", str(folder / f"{n}{ending}"))]


def ran(module, flags, capsys):
    """The report that a command prints."""
    module.main(flags)
    return json.loads(capsys.readouterr().out)


def refused(module, flags, capsys) -> str:
    """The one sentence in which a command ends."""
    with pytest.raises(SystemExit) as caught:
        module.main(flags)
    output, errors = capsys.readouterr()
    assert caught.value.code == 2 and not output
    assert errors.count("\n") == 1, errors
    return errors


@pytest.fixture(scope="module")
def moods(tmp_path_factory) -> list[str]:
    """Flags of files in which one word says the class."""
    folder, random = tmp_path_factory.mktemp("moods"), np.random.default_rng(0)
    for name, count in zip(PARTS, (64, 16, 16), strict=True):
        lines = []
        for _ in range(count):
            kind = random.integers(3)
            words = list(random.choice(list("abcdefg"), random.integers(1, 12)))
            words.insert(random.integers(len(words)), ("grim", "plain", "zesty")[kind])
            lines.append(f"{kind}\t{' '.join(words)}\n")
        (folder / f"{name}.tsv").write_text("".join(lines))
    return flags_of(folder, ".tsv")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[str]:
    """Flags of files in which the class is whether both texts have the same colour."""
    folder, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for name, count in zip(PARTS, (96, 16, 24), strict=True):
        lines = ["label\tpremise\thypothesis\n"]
        for number in range(count):
            one, two = random.choice(["red", "green"], 2, replace=False)
            two, label = (one, "same") if number % 2 else (two, "other")
            filler = " ".join(random.choice(list("abc"), 2))
            lines.append(f"{label}\t{filler} {one}\t{two} {filler}\n")
        (folder / f"{name}.tsv").write_text("".join(lines))
    return flags_of(folder, ".tsv")


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[str]:
    """Flags of files that ask for a colour, for an animal, or for what is not there."""
    folder, random = tmp_path_factory.mktemp("asked"), np.random.default_rng(0)
    known = {"colour": ["dark red", "green"], "animal": ["dog", "cat", "old owl"]}
    for name, count in zip(PARTS, (40, 8, 12), strict=True):
        paragraphs = []
        for number in range(count):
            found = {kind: str(random.choice(known[kind])) for kind in known}
            if number % 4 == 0:
                del found["animal"]
            text = "Here , " + " , ".join(random.permutation([*found.values()]))
            qas = [
                {
                    "id": f"{number}-{kind}",
                    "question": f"Which {kind}?",
                    "is_impossible": kind not in found,
                    "answers": [
                        {"text": found[kind], "answer_start": text.index(found[kind])}
                    ]
                    if kind in found
                    else [],
                }
                for kind in known
            ]
            paragraphs.append({"context": text, "qas": qas})
        data = {"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]}
        (folder / f"{name}.json").write_text(json.dumps(data))
    return flags_of(folder, ".json")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> list[str]:
    """Flags of files in which words are renamed and come in reverse order."""
    folder, random = tmp_path_factory.mktemp("spoken"), np.random.default_rng(0)
    for name, count in zip(PARTS, (120, 8, 16), strict=True):
        sides: tuple[list[str], list[str]] = ([], [])
        for _ in range(count):
            words = random.choice(list("abcde"), random.integers(4, 6))
            sides[0].append(" ".join(words) + "\n")
            sides[1].append(" ".join(word.upper() for word in words[::-1]) + "\n")
        for ending, lines in zip(("en", "up"), sides, strict=True):
            (folder / f"{name}.{ending}").write_text("".join(lines))
    return [*flags_of(folder), "--languages", "en", "up"]


@pytest.mark.slow
def test_sentiment_is_learned(task, moods, model, capsys, tmp_path):
    """Beside learned words a biLM is read, and trained too from the second epoch on."""
    out = tmp_path / "report.json"
    flags = "--unfreeze 1 --place both --epochs 10 --patience 9 --learning-rate 0.01"
    files = [*moods, *SMALL, "--model", str(model), "--out", str(out)]
    report = ran(task("sentiment"), [*files, *flags.split()], capsys)
    assert report["metric"] == "accuracy"
    assert report["dev"][0] > 80 and report["mean"] > 80
    assert report["examples"] == [64, 16, 16] and sum(report["classes"].values()) == 16
    assert set(report["mix"]) == {"input", "output"} and "unfroz" in report["variant"]
    of_bilm = sum(leaf.size for leaf in jax.tree.leaves(tiny_params().lstm))
    assert report["parameters"] > of_bilm
    assert json.loads(out.read_text()) == report
    assert "sentiment" in task("task_report").table([report])


def test_a_linear_map_reads_words_and_layers(task, moods, model, capsys):
    """Words alone are enough here; of layers the mean of a sentence is read."""
    pytest.importorskip("sklearn")
    module = task("sentiment_probe")
    report = ran(module, [*moods, "--model", str(model), "--json"], capsys)
    names = ("words", "layer 0", "layer 1", "layer 2", "all layers")
    assert tuple(report["readings"]) == (*names, "words and all layers")
    assert report["readings"]["words"]["test"] > 80
    tests = {name: found["test"] for name, found in report["readings"].items()}
    assert report["mean"] == tests["words and all layers"]
    gain = report["mean"] - tests["words"]
    assert report["gain_over_words"]["mean"] == pytest.approx(gain, abs=0.02)
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2, 1)
    starts, parts = np.array([0, 2, 3, 6]), []
    for moved in (0, 5):  # test has nothing to say in how vectors are scaled
        parts.append(task("features").Features(vectors + moved, starts, 0.0))
    train, test = module.readings(parts)["layer 1"]
    np.testing.assert_allclose(test - train, 5 / np.std([2, 5, 9]), rtol=1e-5)
    np.testing.assert_allclose(train.mean(), 0, atol=1e-6)


@pytest.mark.slow
def test_entailment_is_learned(task, pairs, capsys):
    report = ran(task("entailment"), [*pairs, *STATIC, "--epochs", "5"], capsys)
    assert report["mean"] > 90


@pytest.mark.slow
def test_questions_are_answered(task, asked, capsys, tmp_path):
    answers = tmp_path / "answers.json"
    flags = [*asked, *STATIC, "--epochs", "5", "--answers", str(answers)]
    report = ran(task("questions"), flags, capsys)
    assert report["metric"] == "F1" and report["mean"] > 80
    assert 0 < report["each"][0]["EM"] <= report["mean"]
    squad = task("squad")
    questions = squad.read_squad(Path(asked[5]))
    found = json.loads(answers.read_text())
    scores = squad.squad_scores([found[q.name] for q in questions], questions)
    assert scores["F1"] == pytest.approx(report["mean"], abs=0.01)
    assert "" in found.values()


@pytest.mark.slow
def test_translation_is_learned(task, spoken, capsys, tmp_path):
    pytest.importorskip("sacrebleu")
    out = tmp_path / "translations.txt"
    flags = [*spoken, *STATIC, "--epochs", "12", "--translations", str(out)]
    report = ran(task("translation"), [*flags, "--hidden", "24"], capsys)
    assert report["metric"] == "BLEU" and report["mean"] > 50
    lines = out.read_text().splitlines()
    assert len(lines) == 16 and set("".join(lines)) <= set("ABCDE ")


@pytest.mark.parametrize("name", ["SentimentNetwork", "EntailmentNetwork"])
def test_scores_of_a_text_do_not_depend_on_what_is_beside_it(task, name):
    """Nor on padding: rows without words and positions past the end change nothing."""
    module = task(name.removesuffix("Network").lower())
    kind = task("classification").ClassificationOptions
    options = kind(train=Path(), test=Path(), hidden=3, word_width=4, features="none")
    network = getattr(module, name)(9, 2, options)
    texts = 2 if name.startswith("Ent") else 1

    def text(*rows, time):
        words = np.zeros((texts * len(rows), time), np.int32)
        for number, row in enumerate(rows):
            for column in range(texts):
                words[column * len(rows) + number, : len(row)] = np.array(row) + column
        return task("texts").Text(words, None)

    alone, beside = text([2, 3, 4], time=3), text([7], [2, 3, 4], [], time=8)
    init = partial(network.init, deterministic=True)
    params = drawn(jax.eval_shape(init, jax.random.key(0), alone))
    apply = jax.jit(network.apply, static_argnums=2)
    wanted, found = apply(params, alone, True), apply(params, beside, True)
    np.testing.assert_allclose(found[1], wanted[0], rtol=1e-5, atol=1e-6)
    assert np.isfinite(found).all() and np.abs(found[0] - found[1]).max() > 1e-4


def test_the_best_span_is_the_best_of_all(task):
    random = np.random.default_rng(0)
    first, last = random.standard_normal((2, 5, 8)).astype(np.float32)
    first[0, 0] = last[0, 0] = 9
    for none in (False, True):
        found = task("questions").best_spans(first, last, 3, none)
        for row, span in enumerate(np.asarray(found).tolist()):
            allowed = [(i, j) for i in range(1, 8) for j in range(i, min(8, i + 3))]
            allowed += [(0, 0)] * none
            best = max(allowed, key=lambda ij: first[row, ij[0]] + last[row, ij[1]])
            assert tuple(span) == best
        assert (found[0].tolist() == [0, 0]) == none


def test_answers_are_cut_out_of_the_context(task):
    """Of every hand-made question, marks, apostrophes and numbers among them."""
    squad = task("squad")
    questions = squad.read_squad(SQUAD / "small-v1.1.json")
    assert [len(question.answers) for question in questions] == [2, 1, 1, 1, 2]
    for question in questions:
        assert question.context.cut(*question.span) == question.answers[0]
    assert "did n't burn until 1,902" in " ".join(questions[0].context.words)
    assert "owner ’s cat" in " ".join(questions[4].context.words)
    spans = [q.span for q in squad.read_squad(SQUAD / "small-v2.0.json")]
    assert spans == [(12, 13), None, (0, 1), None]


def test_an_answer_inside_a_word_is_that_word(task):
    context = task("squad").Context("in the mid-1990s he left")
    first, last = context.span(11, 15)
    assert context.cut(first, last) == "1990s"


@pytest.mark.parametrize(
    ("found", "answer", "same", "f1"),
    [
        ("The Anna  Berg.", "anna berg", 1, 1),
        ("Berg", "Anna Berg", 0, 2 / 3),
        ("in an old mill", "the old mill, in 1874", 0, 6 / 7),
        ("a b b", "b b b", 0, 4 / 5),
        ("1902", "1,902", 1, 1),
        ("well-known", "wellknown", 1, 1),
        ("then", "the n", 0, 0),
        ("oak", "elm", 0, 0),
        ("", "oak", 0, 0),
        ("the", "an", 1, 1),
        ("", "", 1, 1),
    ],
)
def test_em_and_f1_as_counted_by_hand(task, found, answer, same, f1):
    squad = task("squad")
    assert squad.exact_match(found, answer) == same
    assert squad.token_f1(found, answer) == pytest.approx(f1)


def test_the_best_of_all_answers_counts(task):
    squad = task("squad")
    mill = squad.read_squad(SQUAD / "small-v1.1.json")[:2]
    scores = squad.squad_scores(["berg", "of oak"], mill)
    assert scores == pytest.approx({"F1": 100 * (1 + 2 / 3) / 2, "EM": 50})
    ferry = squad.read_squad(SQUAD / "small-v2.0.json")
    scores = squad.squad_scores(["", "", "winter", "thick"], ferry)
    assert scores == pytest.approx({"F1": 100 * (1 + 2 / 3) / 4, "EM": 25})


def test_bleu_of_a_corpus(task):
    pytest.importorskip("sacrebleu")
    translation = task("translation")
    pairs = [translation.Pair((), tuple("a b c d e".split()))]
    assert translation.bleu(["a b c d e"], pairs) == pytest.approx(100)
    four = 100 * np.exp(1 - 5 / 4)
    assert translation.bleu(["a b c d"], pairs) == pytest.approx(four, rel=1e-6)
    assert translation.bleu(["A b c d e"], pairs) < 100


def broken(change) -> str:
    """The small set of SQuAD 1.1 after a change."""
    data = json.loads((SQUAD / "small-v1.1.json").read_text())
    change(data["data"][0]["paragraphs"][0])
    return json.dumps(data)


def drop(name):
    return lambda paragraph: paragraph.pop(name)


def change_answer(**fields):
    return lambda paragraph: paragraph["qas"][1]["answers"][0].update(fields)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[]", ("no JSON object",)),
        ("{", ("no JSON object",)),
        ('{"data": 3}', ("data is not a list",)),
        ('{"data": []}', ("no questions",)),
        (broken(drop("context")), ("data[0].paragraphs[0].context is not a text",)),
        (broken(drop("qas")), ("paragraphs[0].qas is not a list",)),
        (broken(lambda p: p.update(context=" ")), ("context has no words",)),
        (broken(lambda p: p["qas"][0].update(question="")), ("question has no words",)),
        (broken(lambda p: p["qas"][0].update(answers=[])), ("is_impossible",)),
        (broken(change_answer(answer_start=130)), ("answers[0]", "'oak'", "130")),
        (broken(change_answer(answer_start="131")), ("not a whole number",)),
        (broken(change_answer(text="", answer_start=3)), ("answers[0]", "''")),
    ],
)
def test_what_is_not_in_the_format_of_squad(task, capsys, tmp_path, text, parts):
    path = tmp_path / "questions.json"
    path.write_text(text)
    flags = ["--train", str(path), "--test", str(SQUAD / "small-v1.1.json"), *STATIC]
    error = refused(task("questions"), flags, capsys)
    for part in ("questions: ", str(path), *parts):
        assert part in error


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("sentiment", "", ("no rows",)),
        ("sentiment", "1 good\n", ("line 1", "1 columns", "class, sentence")),
        ("sentiment", "1\tgood\n0\t \n", ("line 2", "empty sentence")),
        ("sentiment", "1\tgood\n\tbad\n", ("line 2", "empty class")),
        ("sentiment", "1\tgood\n1\tfine\n", ("one class alone, '1'",)),
        ("sentiment", "1\tgood\n2\tbad\n", ("line 1", "class '0'", "1, 2")),
        ("entailment", "a\tb c\td e\n", ("first line must name", "premise")),
        ("entailment", "label\tpremise\thypothesis\na\tb\n", ("line 2", "2 columns")),
        ("translation", "a b\n", ("line 1", "source, translation")),
    ],
)
def test_what_is_no_file_of_the_task(task, capsys, tmp_path, name, text, parts):
    if name == "translation":
        pytest.importorskip("sacrebleu")
    (tmp_path / "train.tsv").write_text(text)
    head = "label\tpremise\thypothesis\n" if name == "entailment" else ""
    (tmp_path / "test.tsv").write_text(head + "0\tgood\n")
    other = str(tmp_path / "test.tsv")
    files = ["--train", str(tmp_path / "train.tsv"), "--dev", other, "--test", other]
    error = refused(task(name), [*files, *STATIC], capsys)
    for part in (f"{name}: ", *parts):
        assert part in error


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--train", "nowhere.tsv"], ("nowhere.tsv", "No such file")),
        (["--model", "nowhere"], ("nowhere",)),
        (["--features", "none", "--word-width", "0"], ("--word-width", "input")),
        (["--place", "output", "--word-width", "0"], ("--word-width",)),
        (["--features", "word2vec"], ("--vectors",)),
        (["--layer", "7"], ("--layer is 7", "3 layers")),
        (["--examples", "0"], ("--examples", "0")),
        (["--features", "random", "--unfreeze", "1"], ("--unfreeze", "elmo")),
    ],
    ids=" ".join,
)
def test_flags_that_do_not_go_together(task, moods, model, capsys, flags, parts):
    given = [*moods, *SMALL, "--model", str(model), *flags]
    error = refused(task("sentiment"), given, capsys)
    for part in parts:
        assert part in error


def test_files_of_two_languages_have_the_same_lines(task, tmp_path):
    translation = task("translation")
    (tmp_path / "train.en").write_text("a b\nc\n")
    (tmp_path / "train.de").write_text("x\n")

    def read():
        return translation.read_pairs(tmp_path / "train", ("en", "de"))

    with pytest.raises(elmojax.InputError, match=r"train.en has 2 lines .* 1;"):
        read()
    (tmp_path / "train.de").write_text("x\n\n")
    with pytest.raises(elmojax.InputError, match=r"train.de, line 2 has no words"):
        read()
    (tmp_path / "train.de").write_text("x\ny z")
    assert read() == [(("a", "b"), ("x",)), (("c",), ("y", "z"))]


def test_too_few_examples_to_hold_some_out(task, tmp_path):
    squad, parts = task("squad"), task("parts")
    path = SQUAD / "small-v1.1.json"
    options = parts.PartOptions(train=path, test=path, held_out=2)
    sizes = list(map(len, parts.read_parts(options, squad.read_squad)))
    assert sizes == [3, 2, 5]
    options = parts.PartOptions(train=path, test=path, held_out=2, examples=2)
    with pytest.raises(elmojax.InputError, match="hold out fewer, or give --dev"):
        parts.read_parts(options, squad.read_squad)

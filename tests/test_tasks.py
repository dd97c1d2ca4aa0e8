"""experiments/tasks: what heads read, how they are trained and scored, whole commands.

Toys are separable: a head that reads its features right gets nearly all of them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tyro

import elmojax

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = {"a": "B-NP", "e": "I-NP", "i": "B-VP", "o": "O"}
SMALL = (
    "--epochs 5 --rows 8 --word-width 4 --hidden 8 --dropout 0 --elmo-dropout 0.1 "
    "--learning-rate 0.05 --json"
).split()


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> list[str]:
    """Flags of files in which the last letter of a word is its tag.

    No sentence has more than 16 words: one shape to compile.
    """
    folder = tmp_path_factory.mktemp("tagged")
    random = np.random.default_rng(0)
    for name, count in (("train", 60), ("dev", 10), ("test", 10)):
        lines = []
        for length in random.integers(1, 17, count):
            for vowel in random.choice(list(KINDS), length):
                letters = random.choice(list("bdfgk"), random.integers(1, 3))
                lines.append(f"{''.join(letters)}{vowel} XX {KINDS[vowel]}\n")
            lines.append("\n")
        (folder / f"{name}.txt").write_text("".join(lines))
    names = ("train", "dev", "test")
    return [text for n in names for text in (f"--{n}", str(folder / f"{n}.txt"))]


@pytest.fixture(scope="module")
def senses(tmp_path_factory) -> list[str]:
    """Flags of files in which the word before says which bank is meant."""
    folder = tmp_path_factory.mktemp("senses")
    random = np.random.default_rng(0)
    for name, count in (("train", 120), ("test", 40)):
        rows = ["word\tsense\ttarget_index\tsentence"]
        for _ in range(count):
            sense = str(random.choice(["money", "river"]))
            before = {"money": "aa", "river": "zz"}[sense]
            filler = random.choice(["dog", "cat"], 2)
            sentence = f"{filler[0]} {before} bank {filler[1]}"
            rows.append(f"bank\t{sense}\t2\t{sentence}")
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return [x for n in ("train", "test") for x in (f"--{n}", str(folder / f"{n}.tsv"))]


def report_of(module, capsys, *flags) -> dict:
    module.main([str(flag) for flag in flags])
    return json.loads(capsys.readouterr().out)


# --- features and batches ------------------------------------------------------------

SENTENCES = [["The", "bank"], ["a", "river", "bank"], ["Hi"]]


def options_of(task, **given):
    return task("task_options").FeatureOptions(**given)


def test_features_are_the_layers_of_the_frozen_model(task, model):
    """Each layer over its root mean square; padding is 0; one pass for all heads."""
    features = task("features")
    options = options_of(task, model=str(model))
    made, other = features.make_features(options, [SENTENCES, SENTENCES[:1]])
    batch = made.batch([2, 1], rows=3, time=4).astype(np.float32)
    assert batch.shape == (3, 3, 4, 12) and made.megabytes == 6 * 3 * 12 * 2 / 1e6
    tokens = elmojax.batch_to_ids([SENTENCES[2], SENTENCES[1]], 12)
    layers = np.asarray(elmojax.encode(elmojax.load(model), tokens).layers)
    wanted = layers / made.scale[:, None, None]
    np.testing.assert_allclose(batch[:2, :, :3], wanted, atol=3e-3)
    assert not batch[2].any() and not batch[0, :, 1:].any() and not batch[:, :, 3].any()
    sizes = (made.vectors.astype(np.float32) ** 2).mean(axis=(0, 2))
    np.testing.assert_allclose(sizes, 1, rtol=1e-2)
    np.testing.assert_array_equal(other.scale, made.scale)
    of_banks = made.at([1, 2, 0])
    np.testing.assert_array_equal(of_banks[1], batch[1, :, 2])


def test_one_layer_or_the_spelling_alone(task, model):
    features = task("features")
    every = features.make_features(options_of(task, model=str(model)), [SENTENCES])[0]
    for given, layer in (({"layer": 2}, 2), ({"features": "characters"}, 0)):
        options = options_of(task, model=str(model), **given)
        one = features.make_features(options, [SENTENCES])[0]
        np.testing.assert_array_equal(one.vectors, every.vectors[:, [layer]])
    assert (
        features.make_features(options_of(task, features="none"), [SENTENCES]) is None
    )


def test_static_vectors_know_no_context(task, tmp_path):
    """Random ones are the same in every text; of a file's words, case matters less."""
    features, file = task("features"), tmp_path / "vectors.txt"
    file.write_text("the 1 2\nbank 3 -4\nBANK 0 9\n")
    random = options_of(task, features="random", width=5)
    one, other = (
        features.make_features(random, [part])[0] for part in (SENTENCES, SENTENCES[1:])
    )
    assert one.vectors.shape == (6, 1, 5)
    bare = [made.vectors[:, 0] * made.scale for made in (one, other)]
    np.testing.assert_allclose(bare[0][2:], bare[1], atol=5e-3)
    np.testing.assert_array_equal(one.vectors[1], one.vectors[4])
    given = options_of(task, features="glove", vectors=file)
    made = features.make_features(given, [[["The", "bank", "BANK", "none"]]])[0]
    ratio = made.vectors[:, 0] * made.scale
    np.testing.assert_allclose(ratio, [[1, 2], [3, -4], [0, 9], [0, 0]], atol=2e-2)


def test_every_sentence_is_in_a_batch_of_few_shapes(task):
    batching = task("batching")
    lengths = [*range(1, 41), 0]
    groups = batching.plan(lengths, 8, np.random.default_rng(0))
    assert sorted(np.concatenate(groups)) == list(range(41))
    for group in groups:
        assert len(group) <= 8
        assert len({batching.padded_length(lengths[n]) for n in group}) == 1
    assert {batching.padded_length(n) for n in lengths} == {16, 32, 64}
    again = batching.plan(lengths, 8, np.random.default_rng(0))
    assert [list(group) for group in again] == [list(group) for group in groups]


# --- conditional random field --------------------------------------------------------


def test_the_crf_is_what_counting_all_sequences_gives(task):
    crf, random = task("crf"), np.random.default_rng(0)
    tags, lengths = 3, (4, 1, 3)
    scores = random.normal(size=(3, 4, tags)).astype(np.float32)
    mask = np.arange(4) < np.array(lengths)[:, None]
    gold = random.integers(0, tags, (3, 4)) * mask
    parts = [random.normal(size=s).astype(np.float32) for s in ((3, 3), (3,), (3,))]
    transitions = crf.Transitions(*parts)
    found = crf.log_likelihood(*map(jnp.asarray, (scores, gold, mask)), transitions)
    best = crf.viterbi(jnp.asarray(scores), jnp.asarray(mask), transitions)
    for row, length in enumerate(lengths):
        totals = {}
        for sequence in itertools.product(range(tags), repeat=length):
            total = transitions.first[sequence[0]] + transitions.last[sequence[-1]]
            total += sum(scores[row, at, tag] for at, tag in enumerate(sequence))
            total += sum(
                transitions.steps[step] for step in itertools.pairwise(sequence)
            )
            totals[sequence] = float(total)
        every = np.logaddexp.reduce(list(totals.values()))
        wanted = totals[tuple(gold[row, :length])] - every
        assert float(found[row]) == pytest.approx(wanted, abs=1e-4)
        assert tuple(map(int, best[row, :length])) == max(totals, key=totals.get)


# --- scores --------------------------------------------------------------------------


def test_chunks_count_as_conlleval_counts_them(task):
    """An I- after another kind, or outside, begins a chunk; a B- always does."""
    pytest.importorskip("seqeval")
    score = task("tagging").score
    gold = ["B-X I-X O B-Y".split(), "B-X".split()]
    found = ["B-X I-X O B-X".split(), "B-X".split()]
    assert score(gold, found, "F1") == pytest.approx(100 * 4 / 6)
    assert score(gold, found, "accuracy") == pytest.approx(80)
    loose = ["O I-X I-X I-Y O".split()]
    strict = ["O B-X I-X B-Y O".split()]
    assert score(strict, loose, "F1") == 100
    assert score([["B-X", "B-X"]], [["B-X", "I-X"]], "F1") == 0
    assert score([["O"]], [["O"]], "F1") == 0


def test_the_nearest_vote_and_cosines_break_ties(task):
    nearest = task("senses").nearest_senses
    train = np.array([[9, 0], [1, 0.1], [0, 1], [0.1, 5], [-1, 0]], np.float32)
    names = ["x", "x", "y", "y", "z"]
    test = np.array([[1, 0.2], [0.1, 3], [-2, 0.1]], np.float32)
    assert nearest(train, names, test, 1) == ["x", "y", "z"]
    assert nearest(train, names, test, 3) == ["x", "y", "y"]
    assert nearest(train, names, test, 4) == ["x", "y", "y"]


def test_neighbours_are_uses_of_the_same_word(task):
    senses = task("senses")
    train = [
        senses.Use(word, sense, 0, (word,))
        for word, sense in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2"))
    ]
    of_train = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    test = [train[1], train[2], train[2]]
    of_test = np.array([[0.1, 1], [1, 0.1], [0.1, 1]], np.float32)
    hits = senses.neighbour_hits(train, of_train, test, of_test, 1)
    assert hits.tolist() == [True, True, False]
    assert senses.accuracy(test, hits)["words"] == {"a": 100, "b": 50}
    most = senses.majority_hits([*train, train[0]], test)
    assert most.tolist() == [False, True, True]


# --- files ---------------------------------------------------------------------------

CONLLU = """\
# text = I can't
1\tI\tI\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2-3\tcan't\t_\t_\t_\t_\t_\t_\t_\t_
2\tca\tcan\tAUX\tMD\t_\t0\troot\t_\t_
3\tn't\tnot\tPART\tRB\t_\t2\tadvmod\t_\t_
3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_

1\t#\t#\tSYM\tNN\t_\t0\troot\t_\t_
"""


def test_conllu_and_columns_are_the_same_sentences(task, tmp_path):
    files, conllu, plain = task("task_files"), tmp_path / "a", tmp_path / "b"
    conllu.write_text(CONLLU)
    plain.write_text("I\tPRON\tPRP\r\nca\tAUX\tMD\r\nn't\tPART\tRB\r\n\r\n#\tSYM\tNN")
    one, other = (files.read_columns(path, 1) for path in (conllu, plain))
    assert one == other and one[0].words == ("I", "ca", "n't")
    assert one[0].tags == ("PRON", "AUX", "PART") and one[1].words == ("#",)
    assert files.read_columns(conllu, 2)[1].tags == ("NN",)


@pytest.mark.parametrize(
    ("command", "flags", "content", "parts"),
    [
        ("pos", ["--train", "nowhere"], None, ("nowhere", "No such file")),
        ("pos", ["--column", "7"], None, ("line 1", "3 columns", "no column 7")),
        ("pos", ["--column", "0"], None, ("--column is 0", "word")),
        ("pos", ["--column", "1"], None, ("one tag alone", "XX")),
        ("pos", ["--held-out", "0"], None, ("--held-out is 0", "1")),
        ("pos", ["--dropout", "2"], None, ("--dropout is 2", "0.99")),
        ("pos", ["--model", "nowhere"], None, ("nowhere",)),
        ("pos", ["--layer", "3"], None, ("--layer is 3", "3 layers")),
        ("pos", ["--features", "glove"], None, ("glove", "--vectors")),
        ("pos", ["--unfreeze", "1", "--features", "none"], None, ("--unfreeze",)),
        ("pos", [], "\n\n", ("no sentence",)),
        ("pos", [], "word\n", ("line 1", "1 columns")),
        ("pos", [], "a\t\tb\n", ("line 1", "empty")),
        ("pos", [], CONLLU + "3\tx\ty\n", ("line 9", "3 columns", "CoNLL-U")),
        ("chunking", ["--column", "1"], None, ("tag 'XX'", "B-, I- and O")),
        ("chunking", [], "a\tO\n", ("no tag but O",)),
        ("senses", [], "a\tb\n", ("first line", "target_index")),
        ("senses", [], "{}w\ts\t1\n", ("line 2", "3 columns")),
        ("senses", [], "{}w\t\t0\tx y\n", ("line 2", "empty sense")),
        ("senses", [], "{}w\ts\t2\tx y\n", ("target_index '2'", "2 words")),
        ("senses", [], "{}w\ts\t1\tx y\n", ("of 'bank'", "no use")),
        ("senses", ["--place", "output"], None, ("--place input",)),
        ("senses", ["--seeds", "0", "0"], None, ("--seeds is 0 0", "twice")),
        ("senses", ["--seeds"], None, ("--seeds is empty",)),
        ("senses", ["--seeds", "-1"], None, ("--seeds", "from 0")),
        ("senses", ["--bogus"], None, ("--bogus", "`senses.py --help`")),
        ("senses", ["--vectors", "v.bin"], None, ("--features elmo does not read it",)),
        ("senses", ["--out", "."], None, ("is there already", "--overwrite")),
        ("senses", ["--out", __file__], None, ("is there already", "--overwrite")),
        ("senses", ["--out", f"{__file__}/o.json"], None, ("is no directory",)),
        ("senses", ["--out", "x" * 300], None, ("cannot be written", "too long")),
        ("chunking", [], "a\tB-other\n", ("none of the tags", "of one task")),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_wrong_input_ends_in_a_sentence(
    task, model, tagged, senses, capsys, tmp_path, command, flags, content, parts
):
    if command == "chunking":
        pytest.importorskip("seqeval")
    given = ["--model", str(model), *(senses if command == "senses" else tagged)]
    column = ["--column", "-1"] if command == "pos" and content is None else []
    if content is not None:
        wrong, head = tmp_path / "wrong", "word\tsense\ttarget_index\tsentence\n"
        wrong.write_text(content.replace("{}", head))
        flags = ["--train", str(wrong)]
    with pytest.raises(SystemExit) as caught:
        task(command).main([*given, *column, *flags, "--json"])
    output, errors = capsys.readouterr()
    assert caught.value.code == 2 and not output
    assert errors.startswith(f"{command}: ") and errors.count("\n") == 1, errors
    for part in parts:
        assert part in errors


# --- whole tasks ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_tagger_learns_from_layers_at_both_places(
    task, model, tagged, capsys, tmp_path
):
    pytest.importorskip("seqeval")
    flags = [
        "--filters",
        "0",
        "--place",
        "both",
        "--out",
        tmp_path / "r" / "chunk.json",
    ]
    given = ["--model", model, *tagged, *SMALL, *flags]
    report = report_of(task("chunking"), capsys, *given)
    assert min(report["scores"]) > 60 and report["metric"] == "F1"
    assert report["mean"] == report["scores"][0] and report["deviation"] is None
    assert set(report["mix"]) == {"input", "output"}
    for weights in report["mix"].values():
        assert sum(weights) == pytest.approx(1, abs=1e-3) and len(weights) == 3
        assert np.abs(np.array(weights) - 1 / 3).max() > 0.01
    assert json.loads((tmp_path / "r" / "chunk.json").read_text()) == report
    assert report["model"] == "toy" and str(model.parent) not in json.dumps(report)


@pytest.mark.slow
def test_without_features_no_model_is_read(task, tagged, capsys):
    """Letters alone are enough here: they are what the tags are made of."""
    flags = [*tagged, *SMALL, "--features", "none", "--model", "nowhere"]
    report = report_of(task("pos"), capsys, *flags, "--column", -1)
    assert report["scores"][0] > 90 and report["metric"] == "accuracy"
    assert report["mix"] == {} and report["megabytes"] == 0 and not report["model"]


def test_a_mix_and_a_linear_map_tell_senses(task, model, senses, capsys):
    flags = ["--model", model, *senses, "--json", "--epochs", 12, "--rows", 32]
    flags += ["--learning-rate", 0.1, "--patience", 9]
    report = report_of(task("senses"), capsys, *flags)
    assert report["scores"][0] > 95
    assert report["neighbours"]["layer 1"]["accuracy"] > 95
    assert report["neighbours"]["layer 0"]["accuracy"] < 70  # it knows no context
    assert 50 <= report["majority"]["accuracy"] < 70
    assert set(report["neighbours"]) == {
        *(
            "layer 0",
            "layer 1",
            "layer 2",
            "layers 1 and 2",
            "all layers",
            "window",
            "standardized",
        ),
    }


@pytest.fixture
def small(task, model, tagged):
    """Options of a small tagger."""
    paths = {n: Path(tagged[2 * i + 1]) for i, n in enumerate(("train", "dev", "test"))}
    options = task("tagging").TaggingOptions(model=str(model), **paths, crf=False)
    sizes = {"word_width": 4, "filters": 0, "hidden": 4, "examples": 8, "rows": 8}
    return replace(options, epochs=2, learning_rate=0.03, **sizes)


@pytest.mark.slow
def test_layers_thaw_from_the_top(task, small, monkeypatch):
    """Frozen at first, then the top layer moves, then the one below; words never do."""
    tagging, seen = task("tagging"), []
    lstm = elmojax.load(small.model).lstm

    def predictor(network, tags, crf):
        def gold(params, part):
            seen.append({n: bool(np.any(params["lstm"][n] != lstm[n])) for n in lstm})
            return [list(sentence.tags) for sentence in part.examples]

        return gold

    monkeypatch.setattr(tagging, "predictor", predictor)
    report = tagging.run("pos", "accuracy", replace(small, unfreeze=1, epochs=3))
    assert report["variant"] == "unfrozen after 1 epochs"
    assert not any(seen[0].values())
    assert seen[1] == {name: name.endswith("_1") for name in lstm}
    assert all(seen[2].values())


def test_training_keeps_the_best_epoch_and_stops(task, small):
    fitting, devs = task("fitting"), iter([1.0, 3.0, 2.0, 2.5, 9.0])
    options = replace(small, epochs=5, patience=2, penalty=2.0)
    params = {"w": jnp.zeros(2), "mix_input": {"s": jnp.ones(3), "gamma": jnp.ones(())}}
    tried = []

    def evaluate(params):
        tried.append(params)
        return next(devs)

    def loss(params, batch, key):
        return ((params["w"] - batch) ** 2).sum()

    fitted = fitting.fit(params, loss, lambda _: [jnp.ones(2)], evaluate, options, 0)
    assert fitted.dev == 3 and len(fitted.epochs) == 4 and fitted.params is tried[1]
    assert float(fitting.mix_penalties(params, 2.0)) == pytest.approx(6)
    assert float(tried[0]["mix_input"]["s"][0]) < 1  # by the penalty alone
    steps = np.diff([float(each["w"][0]) for each in tried])
    assert steps[2] < 0.7 * steps[1]  # the rate was halved


# --- vectors of the same text --------------------------------------------------------


@pytest.mark.parametrize("method", ["glove", "word2vec"])
def test_words_of_the_same_contexts_come_near(task, tmp_path, method):
    if method == "word2vec":
        pytest.importorskip("gensim")
    random, lines = np.random.default_rng(0), []
    for _ in range(1500):
        kind = random.integers(2)
        animal = random.choice(["cat", "dog"] if kind else ["tea", "milk"])
        context = random.choice(["fur", "paws", "tail"] if kind else ["cup", "hot"], 3)
        lines.append(f"{context[0]} {animal} {context[1]} {context[2]} strange\n")
    (tmp_path / "text.txt").write_text("".join(lines))
    words = "cat dog tea milk fur paws tail cup hot never".split()
    specials = elmojax.text.vocabulary.SPECIALS
    (tmp_path / "words.txt").write_text("\n".join([*specials, *words]) + "\n")
    out = tmp_path / "vectors.bin"
    flags = {"text": "text.txt", "vocabulary": "words.txt", "out": "vectors.bin"}
    given = [x for n, v in flags.items() for x in (f"--{n}", str(tmp_path / v))]
    sizes = "--width 8 --window 2 --epochs 20 --workers 1".split()
    task("static_vectors").main([*given, *sizes, "--method", method])
    known = [word for word in words if word != "never"]
    vectors, found = task("features").read_word_vectors(out, [*known, "strange"])
    assert found.tolist() == [True] * 9 + [False]
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)[:, None]
    cosines = dict(zip(known, vectors[:9] @ vectors[0], strict=True))
    assert cosines["dog"] > max(cosines["tea"], cosines["milk"]) + 0.3


def test_pairs_are_counted_by_their_distance(task):
    glove = task("glove")
    options = glove.GloveOptions(width=2, window=2, epochs=1, least=0.4)
    ids = [np.array([0, 1, 2, 3], np.int32), np.array([3, 0], np.int32)]
    pairs = glove.count_pairs(ids, 4, options)
    found = {(i, j): c for i, j, c in zip(*map(np.ndarray.tolist, pairs), strict=True)}
    half = {(0, 1): 1, (0, 2): 0.5, (1, 2): 1, (1, 3): 0.5, (2, 3): 1, (0, 3): 1}
    assert found == half | {(j, i): count for (i, j), count in half.items()}


# --- reports -------------------------------------------------------------------------


def test_reports_make_a_table_and_a_picture(task, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    module, paths = task("task_report"), []
    spread = {"scores": [91.0, 93.0], "mean": 92.0, "deviation": 1.41}
    assert module.spread([91, 93]) == spread
    for kind, mean, deviation in (("elmo", 94.123, 0.21), ("random", 92.0, None)):
        report = {
            **{"task": "chunking", "features": kind, "metric": "F1", "mean": mean},
            **{"deviation": deviation, "layer": 1 if kind == "random" else None},
            **{"mix": {"input": [0.25, 0.75]}, "megabytes": 12.4},
            "milliseconds": {"features": 1.234, "network": 0.5},
        }
        paths.append(tmp_path / f"{kind}.json")
        paths[-1].write_text(json.dumps(report))
    names = [str(path) for path in paths]
    module.main([*names, "--plot", str(tmp_path / "plots" / "bars.svg")])
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == (
        "| chunking | elmo | F1 | 94.12 | 0.21 | input 0.25 0.75 | 1.23 + 0.50 | 12 |"
    )
    assert rows[3].startswith("| chunking | random, layer 1 | F1 | 92.00 |  |")
    assert "<svg" in (tmp_path / "plots" / "bars.svg").read_text()
    for wrong in ("{}", '{"task": "chunking", "features": "elmo", "mean": 1}'):
        paths[0].write_text(wrong)
        with pytest.raises(SystemExit) as caught:
            module.main(names)
        assert caught.value.code == 2
        assert "elmo.json is no report" in capsys.readouterr().err
    for flags, said in (
        ([], "Say which reports"),
        ([names[1], "--plot", "bars.txt"], "ends in .png"),
    ):
        with pytest.raises(SystemExit) as caught:
            module.main(flags)
        assert caught.value.code == 2 and said in capsys.readouterr().err


def test_a_bert_of_a_directory_has_a_vector_for_each_word(task, tmp_path):
    """Words of several pieces, long sentences and unknown words among them; a part
    alone gives what it gives in a batch."""
    numpy, tokenizers = (
        pytest.importorskip(name) for name in ("safetensors.numpy", "tokenizers")
    )
    words = {w: n for n, w in enumerate("[PAD] [UNK] [CLS] [SEP] a b ##b ##c".split())}
    model = tokenizers.models.WordPiece(words, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = ("[SEP]", 3), ("[CLS]", 2)
    tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    config |= {"num_attention_heads": 2, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 10})
    )
    shapes = {"embeddings.word_embeddings.weight": (8, 4)}
    shapes |= {"embeddings.position_embeddings.weight": (10, 4)}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, 4)}
    layer = "encoder.layer.0."
    for name, (rows, columns) in {
        **{f"attention.self.{part}": (4, 4) for part in ("query", "key", "value")},
        **{"attention.output.dense": (4, 4), "intermediate.dense": (6, 4)},
        "output.dense": (4, 6),
    }.items():
        shapes |= {f"{layer}{name}.weight": (rows, columns)}
        shapes |= {f"{layer}{name}.bias": (rows,)}
    for name in ("embeddings", f"{layer}attention.output", f"{layer}output"):
        shapes |= {f"{name}.LayerNorm.{part}": (4,) for part in ("weight", "bias")}
    random = np.random.default_rng(0)
    weights = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    numpy.save_file(weights, str(tmp_path / "model.safetensors"))
    transformer = task("transformer").Transformer.read(tmp_path)
    sentences = [["a", "abc", "?"], ["a"] * 12, [], ["abb"]]
    vectors = np.concatenate(list(transformer.blocks(sentences)))
    assert vectors.shape == (16, 2, 4) and np.isfinite(vectors).all()
    alone = np.concatenate(list(transformer.blocks(sentences[:1])))
    np.testing.assert_allclose(alone, vectors[:3], atol=1e-5)
    long = vectors[3:15]  # eight pieces in a part
    np.testing.assert_allclose(long[8:, 0], long[:4, 0], atol=1e-5)
    ids = jnp.array([[2, 4, 4, 6, 7, 1, 3]])
    layers = transformer._layers(transformer.weights, ids, jnp.ones(ids.shape, bool))
    np.testing.assert_allclose(vectors[1], layers[0, :, 2:5].mean(axis=1), atol=1e-5)
    for key, value in (("num_hidden_layers", 2), ("max_position_embeddings", 12)):
        wrong = config | {"max_position_embeddings": 10, key: value}
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(elmojax.InputError, match="does not fit config"):
            task("transformer").Transformer.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(elmojax.InputError, match="BERT with gelu"):
        task("transformer").Transformer.read(tmp_path)


def test_what_is_done_is_not_run_again(task, tmp_path, capsys, monkeypatch):
    """All commands parse; one that fails is named, and its report is still missing."""
    module, ran = task("all"), []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pos-elmo.json").write_text("{}")
    flags = ["--data", "d", "--text", "a.txt", "--vocabulary", "v", "--seeds", "0", "1"]
    flags += ["--out", str(tmp_path / "out"), "--tasks", "pos", "--layers", "1"]
    module.main([*flags, "--dry"])
    names = [line.split("/")[-1] for line in capsys.readouterr().out.splitlines()]
    kinds = "random word2vec none characters glove elmo-layer0 elmo-unfrozen".split()
    wanted = ["word2vec.bin", "glove.bin", *(f"pos-{kind}.json" for kind in kinds)]
    assert names == wanted
    shapes = {"pos.py": task("pos").PosOptions}
    shapes["static_vectors.py"] = task("static_vectors").Arguments

    def run(command, **_):
        ran.append(command)
        tyro.cli(shapes[Path(command[1]).name], args=command[2:])
        return subprocess.CompletedProcess(command, int("glove" in command))

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module, "write_tables", lambda asked, jobs: None)
    with pytest.raises(SystemExit) as caught:
        module.main(flags)
    assert caught.value.code == 1 and len(ran) == len(wanted)
    assert "failed: glove.bin, pos-glove.json" in capsys.readouterr().err

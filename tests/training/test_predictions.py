"""Entropy, ranks and substitutes: the whole distribution written out word by word."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import reference
from toys import TINY, corpus_of, drawn

import elmojax
from elmojax.config import HeadConfig
from elmojax.loading import Model, evaluate_corpora
from elmojax.model.bilm import from_tree
from elmojax.model.ops import local_mesh
from elmojax.text.characters import character_ids
from elmojax.text.vocabulary import BEGIN_ID, END_ID, SPECIALS
from elmojax.training import evaluate
from elmojax.training import score as scoring
from elmojax.training.score import Measures
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
WORDS = len(VOCABULARY) - len(SPECIALS)
HEADS = {
    "adaptive": HeadConfig("adaptive", (3, 6), 2.0),
    "full": HeadConfig("full"),
    "sampled": HeadConfig("sampled", samples=4),
}


def toy(kind: str) -> Model:
    """Every number from NumPy; sentences begin from a state that is not zero."""
    lm = LanguageModel(TINY, len(VOCABULARY), HEADS[kind])
    tree = drawn(jax.eval_shape(lm.init, jax.random.key(0)), seed=7)
    params = from_tree(TINY, tree)
    state = jax.tree.map(lambda leaf: leaf + 0.1, params.initial_state)
    params = params.replace(initial_state=state)
    return Model("toy", params, VOCABULARY, tree["head"], HEADS[kind])


@pytest.fixture(scope="module")
def model():
    return toy("adaptive")


def written_out(model, sentences, carry=False):
    """Of each sentence [two, words + 1, vocabulary]: all log-probabilities, in NumPy,
    of the words in their order and then of the end (or beginning)."""
    encoder, widths = TINY.encoder, [width for width, _ in TINY.encoder.filters]
    params, start = model.params.tree["encoder"], model.params.initial_state
    found = [[] for _ in sentences]
    for n, (begin, turn) in enumerate((("<S>", 1), ("</S>", -1))):
        stream = None
        for each, sentence in zip(found, sentences, strict=True):
            if stream is None or not carry:
                stream = reference.Stream(model.params.tree["lstm"], TINY.lstm, n)
                stream.cells = [*np.float64(start.cell[:, n])]
                stream.hiddens = [*np.float64(start.hidden[:, n])]
            ids = character_ids([begin, *sentence[::turn]], encoder.max_characters)
            vectors = reference.char_cnn(params, ids, widths, encoder.activation)
            hidden = [stream.read(vector)[-1] for vector in vectors]
            every = [
                [reference.log_prob(model.head, h, w) for w in range(len(VOCABULARY))]
                for h in hidden
            ]
            each.append([*every[:-1][::turn], every[-1]])
    return [np.array(each) for each in found]


def agrees(one, sentence, log_probs, tolerance=2e-5):
    """Whether a score, with all words as substitutes, is that of distributions."""
    close = {"atol": tolerance, "rtol": tolerance}
    ids = VOCABULARY.ids(sentence)
    places = np.arange(len(ids) + 1)
    ways = zip(("forward", "backward"), (END_ID, BEGIN_ID), log_probs, strict=True)
    for way, end, wanted in ways:
        there = wanted[places, [*ids, end]]
        np.testing.assert_allclose(getattr(one, way), there, **close)
        entropy = -(np.exp(wanted) * wanted).sum(-1)
        np.testing.assert_allclose(getattr(one, f"{way}_entropy"), entropy, **close)
        ranks = 1 + (wanted > there[:, None]).sum(-1)
        np.testing.assert_array_equal(getattr(one, f"{way}_rank"), ranks)
    product = np.exp(log_probs[0] + log_probs[1])
    both = np.log(product / product.sum(-1, keepdims=True))
    for wanted, best in zip([*log_probs, both], one.substitutes, strict=True):
        wanted = wanted[:-1, len(SPECIALS) :]
        order = np.argsort(-wanted, axis=-1, kind="stable")
        named = [[VOCABULARY.words[i + len(SPECIALS)] for i in row] for row in order]
        assert best.words == named
        wanted = np.take_along_axis(wanted, order, axis=-1)
        np.testing.assert_allclose(best.log_probs, wanted, **close)


@pytest.mark.parametrize("kind", HEADS)
def test_they_are_those_of_the_whole_distribution(kind):
    model = toy(kind)
    scores = elmojax.score(model, TEXT, entropy=True, top_k=WORDS)
    for one, sentence, log_probs in zip(
        scores, TEXT, written_out(model, TEXT), strict=True
    ):
        agrees(one, sentence, log_probs)


def test_blocks_order_devices_and_length_change_no_number(model, monkeypatch):
    """Blocks of three positions, blocks of sentences, eight devices, many windows."""
    long = [TEXT[0][i % 6] for i in range(100)]
    sentences = [*TEXT, long]
    wanted = elmojax.score(model, sentences, entropy=True, top_k=2)
    turned = elmojax.score(model, sentences[::-1], entropy=True, top_k=2)[::-1]
    measures = Measures(entropy=True, top_k=2)
    shared = list(model.scorer(local_mesh())(sentences, measures=measures))
    monkeypatch.setattr(scoring, "LOGITS", 3 * len(VOCABULARY))
    monkeypatch.setattr(scoring, "BLOCK", 10)
    apart = elmojax.score(model, sentences, entropy=True, top_k=2)
    close = {"atol": 1e-5}
    for other in (turned, shared, apart):
        for one, two in zip(wanted, other, strict=True):
            for way in ("forward_entropy", "backward_entropy"):
                np.testing.assert_allclose(
                    getattr(one, way), getattr(two, way), **close
                )
            for mine, theirs in zip(one.substitutes, two.substitutes, strict=True):
                assert mine.words == theirs.words
                np.testing.assert_allclose(mine.log_probs, theirs.log_probs, **close)


def test_no_block_has_more_logits_than_its_bound(monkeypatch):
    """At the vocabulary of the One Billion Word Benchmark, and the positions are all
    there and in order."""
    lm = LanguageModel(TINY, 793_471, HEADS["full"])
    seen = []

    def predict(dtype, k, head, hidden, targets):
        seen.append(targets.size // 2)
        zeros = np.zeros((3, targets.shape[1], k))
        return hidden[..., 0], targets, zeros, zeros

    monkeypatch.setattr(scoring, "_predict", predict)
    targets = np.arange(200, dtype=np.int32).reshape(2, 100)
    hidden = targets[..., None].astype(np.float32)
    found = scoring.predictions(lm, {}, hidden, targets, 4)
    np.testing.assert_array_equal(found.rank, targets)
    np.testing.assert_array_equal(found.entropy, targets)
    assert found.ids.shape == (3, 100, 4)
    assert max(seen) * lm.vocabulary <= scoring.LOGITS < (1 << 25)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_target_has_the_same_probability_among_substitutes(model, precision):
    cast = model.cast(precision)
    for one in elmojax.score(cast, TEXT, entropy=True, top_k=WORDS):
        for way in ("forward", "backward"):
            best = getattr(one.substitutes, way)
            for n in np.flatnonzero(one.known):
                place = best.words[n].index(one.words[n])
                same = pytest.approx(getattr(one, way)[n], abs=1e-5)
                assert best.log_probs[n, place] == same


def test_only_what_is_asked_for_is_there(model):
    (plain,) = elmojax.score(model, TEXT[:1])
    assert plain[4:] == (None,) * 5
    (some,) = elmojax.score(model, TEXT[:1], top_k=1)
    assert some[4:8] == (None,) * 4 and len(some.substitutes.both.words) == 6
    with pytest.raises(elmojax.InputError, match="has 6 words, so the 7 most"):
        elmojax.score(model, TEXT, top_k=7)
    with pytest.raises(elmojax.InputError, match="top_k"):
        elmojax.score(model, TEXT, top_k=-1)


# --- the state, carried --------------------------------------------------------------


def test_a_carried_state_is_that_of_one_stream_in_blocks_of_any_size(
    model, monkeypatch
):
    measures = {"entropy": True, "top_k": WORDS, "carry": True}
    wanted = written_out(model, TEXT, carry=True)
    for size in (scoring.BLOCK, 5, 1):
        monkeypatch.setattr(scoring, "BLOCK", size)
        scores = elmojax.score(model, TEXT, **measures)
        for one, sentence, log_probs in zip(scores, TEXT, wanted, strict=True):
            agrees(one, sentence, log_probs)
    alone = elmojax.score(model, TEXT)
    np.testing.assert_array_equal(scores[0].words, alone[0].words)
    np.testing.assert_allclose(scores[0].forward, alone[0].forward, atol=3e-6)
    assert abs(scores[2].forward - alone[2].forward).max() > 1e-3


def test_carried_scores_add_up_to_the_evaluation_of_one_row(model, monkeypatch):
    """Rows of an evaluation carry their state in both directions, from zeros."""
    zero = jax.tree.map(np.zeros_like, model.params.initial_state)
    zero = model._replace(params=model.params.replace(initial_state=zero))
    monkeypatch.setattr(evaluate, "ROWS", 1)
    monkeypatch.setattr("elmojax.loading.ROWS", 1)
    (found,) = evaluate_corpora(zero, [corpus_of(TEXT, known=6)])
    scores = elmojax.score(zero, TEXT, carry=True)
    for way in ("forward", "backward"):
        total = sum(getattr(one, f"{way}_sum") for one in scores)
        perplexity = np.exp(-total / found["tokens"])
        assert found[f"{way}_perplexity"] == pytest.approx(perplexity, rel=1e-5)

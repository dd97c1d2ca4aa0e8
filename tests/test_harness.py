"""The adapter for lm-evaluation-harness: its sums, and the harness itself on a task."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from toys import TINY, drawn

import elmojax
from elmojax.config import HeadConfig
from elmojax.loading import Model, open_model
from elmojax.model.bilm import from_tree
from elmojax.saving import convert
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.minimal_pairs import words
from elmojax.training.step import LanguageModel

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOOD, BAD = "The boys were here .", "The boys was here ."


@pytest.fixture(scope="module")
def adapter():
    """`elmojax.harness`, with stand-ins for what it imports of the harness."""
    models = {}

    class LM:
        pass

    def register_model(name):
        return lambda kind: models.setdefault(name, kind)

    parts = {"lm_eval": {}, "lm_eval.api": {}, "lm_eval.api.model": {"LM": LM}}
    parts["lm_eval.api.registry"] = {"register_model": register_model}
    with pytest.MonkeyPatch.context() as patch:
        for name, content in parts.items():
            module = ModuleType(name)
            module.__dict__.update(content)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "elmojax.harness", raising=False)
        module = importlib.import_module("elmojax.harness")
        assert models == {"elmojax": module.ElmojaxLM}
        yield module
        del sys.modules["elmojax.harness"]


WORDS = ("He", "The", "boys", "here", "saw", "them", "was", "were", ".")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model of any numbers that knows `WORDS`."""
    head = HeadConfig("full")
    vocabulary = Vocabulary((*SPECIALS, *WORDS))
    lm = LanguageModel(TINY, len(vocabulary), head)
    tree = drawn(jax.eval_shape(lm.init, jax.random.key(0)), seed=7, scale=1.0)
    tree["head"]["bias"] *= 0  # so that it is not always the same word
    out = tmp_path_factory.mktemp("harness") / "run"
    convert(Model("toy", from_tree(TINY, tree), vocabulary, tree["head"], head), out)
    return str(out)


@pytest.fixture(scope="module")
def lm(adapter, run):
    return adapter.ElmojaxLM(model=run, batch_size=1, device=None)


@pytest.fixture(scope="module")
def scored(run):
    """Scores of lines that are tokenised."""
    model = open_model(run)

    def scored(*lines, **more):
        return elmojax.score(model, [line.split() for line in lines], **more)

    return scored


def asked(*pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


def test_a_continuation_is_the_sum_of_its_words(lm, scored):
    """In any company; the context is read, and its words are not counted."""
    pairs = [("", GOOD), ("The boys", " were here."), ("The boys ", BAD[9:]), ("a", "")]
    found = lm.loglikelihood(asked(*pairs))
    good, bad = scored(GOOD, BAD)
    wanted = [good.forward[:5], good.forward[2:5], bad.forward[2:5], []]
    for (total, _), each in zip(found, wanted, strict=True):
        assert total == pytest.approx(np.sum(each), abs=1e-4)
    turned = lm.loglikelihood(asked(*pairs[::-1]))[::-1]
    for one, other in zip(found, turned, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    (alone,) = lm.loglikelihood(asked(pairs[1]), disable_tqdm=True)
    assert alone == pytest.approx(found[1], abs=1e-4)


def test_a_word_that_the_boundary_cuts_is_the_continuation_s(lm, scored):
    (score,) = scored(GOOD)
    ((total, _),) = lm.loglikelihood(asked(("The bo", "ys were here .")))
    assert total == pytest.approx(score.forward[1:5].sum(), abs=1e-4)


def test_greedy_is_what_nothing_is_more_probable_than(lm, scored):
    """A word outside the vocabulary is never what the model would write."""
    last = [*WORDS, "xyzzyq"]
    contexts = [f"{one} {two}" for one in WORDS for two in WORDS]
    lines = [f"{context} {word}" for context in contexts for word in last]
    ranks = [int(one.forward_rank[2]) for one in scored(*lines, entropy=True)]
    wanted = [
        rank == 1 and not line.endswith("xyzzyq")
        for line, rank in zip(lines, ranks, strict=True)
    ]
    assert 0 < sum(wanted) < ranks.count(1)
    pairs = [(context, f" {word}") for context in contexts for word in last]
    assert [greedy for _, greedy in lm.loglikelihood(asked(*pairs))] == wanted
    assert lm.loglikelihood(asked(("The", ""))) == [(0.0, True)]


def test_a_line_is_a_sentence_and_the_state_is_carried(lm, scored):
    """Of a whole text, with the end of the last line where it has ended."""
    one, two = scored(GOOD, "He saw them .", carry=True)
    text = "The boys were here.\n\nHe saw them."
    whole = one.forward_sum + two.forward[:-1].sum()
    ended, open_, empty, blank = lm.loglikelihood_rolling(
        asked((text + "\n",), (text,), ("",), ("\n \n",))
    )
    assert open_ == pytest.approx(whole, abs=1e-4)
    assert ended == pytest.approx(whole + two.forward[-1], abs=1e-4)
    assert empty == blank == 0.0
    ((total, _),) = lm.loglikelihood(asked(("The boys were here.", "\nHe saw them.")))
    wanted = one.forward[-1] + two.forward[:-1].sum()
    assert total == pytest.approx(wanted, abs=1e-4)


def test_splitting_at_blanks_only(adapter, run, scored):
    lm = adapter.ElmojaxLM(run, split="blanks")
    good, glued = scored(GOOD, "The boys were here.")
    one, two = lm.loglikelihood_rolling(asked((GOOD,), ("The boys were here.",)))
    assert one == pytest.approx(good.forward[:-1].sum(), abs=1e-4)
    assert two == pytest.approx(glued.forward[:-1].sum(), abs=1e-4)


def test_what_it_cannot_do_is_one_sentence(adapter, lm):
    for arguments, says in (
        ({"model": "nowhere"}, "There is no model"),
        ({"modle": "mini"}, "no model argument modle"),
        ({"split": "words"}, "split is 'words'"),
        ({"precision": "fp8"}, "precision is"),
    ):
        with pytest.raises(elmojax.InputError, match=says):
            adapter.ElmojaxLM(**arguments)
    with pytest.raises(elmojax.InputError, match="writes no text"):
        lm.generate_until(asked(("a", {})))


def run_module(*arguments, cwd=None, **environment):
    paths = {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "elmojax.harness", *arguments],
        env={**os.environ, **paths, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
    )


THERE = importlib.util.find_spec("lm_eval") is not None


@pytest.mark.skipif(THERE, reason="lm_eval is installed")
def test_without_the_harness_it_says_so():
    done = run_module("--tasks", "x")
    assert done.returncode == 2 and "pip install 'elmojax[lm-eval]'" in done.stderr
    assert done.stderr.count("\n") == 1


TASK = """
task: agreement
dataset_path: json
dataset_kwargs: {data_files: {train: PAIRS}}
output_type: multiple_choice
validation_split: train
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{[sentence_good, sentence_bad]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
@pytest.mark.skipif(not THERE, reason="lm_eval is not installed")
def test_the_harness_on_a_task_of_its_own(tmp_path):
    pairs = [(GOOD, BAD), ("He saw them.", "He saw they."), ("Jo is.", "Jo are.")]
    pairs.append(pairs[0][::-1])
    keys = ("sentence_good", "sentence_bad")
    lines = (json.dumps(dict(zip(keys, pair, strict=True))) for pair in pairs)
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(lines))
    (tmp_path / "task.yaml").write_text(TASK.replace("PAIRS", str(file)))
    done = run_module(
        *("--model", "elmojax", "--model_args", "model=mini", "--tasks", "agreement"),
        *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
        cwd=tmp_path,
        HF_HOME=str(tmp_path / "hf"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("results*.json")
    result = json.loads(found.read_text())["results"]["agreement"]["acc,none"]
    wanted = elmojax.score("mini", [words(line, "marks") for p in pairs for line in p])
    sums = np.array([one.forward[:-1].sum() for one in wanted]).reshape(-1, 2)
    assert result == np.mean(sums[:, 0] > sums[:, 1])

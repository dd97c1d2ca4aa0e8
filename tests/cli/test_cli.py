"""The commands as a user types them: the whole chain, going on, refusals, help."""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import CHARACTERS, LSTM, SMALL, TINY, Outcome, answer, done, refused, run
from damage import sweep

import elmojax
from elmojax.cli import COMMANDS
from elmojax.cli.common import keep_compiled_programs, parse
from elmojax.cli.pretrain import PretrainArguments, RecipeArguments, parse_recipe
from elmojax.embedding.embedder import Embedder
from elmojax.initialization import with_word_vectors
from elmojax.loading import open_model
from elmojax.text.batches import ORDER
from elmojax.training.checkpoint import (
    Checkpoints,
    read_run,
)
from elmojax.training.metrics import read_metrics
from elmojax.training.record import checkpoint_steps, lock_run, read_record
from elmojax.training.start import start


class World(NamedTuple):
    """A text, its prepared corpora, and a run of six steps with two checkpoints."""

    folder: Path
    text: Path
    data: Path
    heldout_text: Path
    heldout: Path
    run: Path
    prepared: dict[str, Any]
    trained: Outcome


pytestmark = [
    pytest.mark.usefixtures("quick_compilation", "compile_once"),
    # What Orbax leaves behind when it fails to load a damaged checkpoint.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, sample_lines) -> World:
    folder = tmp_path_factory.mktemp("world")
    text, heldout_text = folder / "text.txt", folder / "heldout.txt.xz"
    text.write_text("\n".join(sample_lines(60)) + "\n", encoding="utf-8")
    lines = "\n".join(sample_lines(12, "heldout")) + "\n\n"
    heldout_text.write_bytes(lzma.compress(lines.encode()))
    data, heldout, workdir = (folder / name for name in ("data", "heldout", "run"))
    done("prepare", "--text", text, "--out", data, "--max-vocabulary", 60)
    words = ("--vocabulary", data / "vocabulary.txt")
    prepared = answer("prepare", "--text", heldout_text, "--out", heldout, *words)
    trained = done(
        *("pretrain", "--data", data, "--heldout", heldout, "--workdir", workdir),
        *("--steps", 6, "--checkpoint-every", 3, "--keep", 5, *TINY),
    )
    return World(folder, text, data, heldout_text, heldout, workdir, prepared, trained)


@pytest.fixture
def copied(world, tmp_path) -> Path:
    """The run of the world, to be damaged."""
    return shutil.copytree(world.run, tmp_path / "run")


def asked(*arguments: object) -> elmojax.TrainConfig:
    """What `elmojax pretrain` makes of its flags."""
    argv = [str(argument) for argument in arguments]
    return parse_recipe(PretrainArguments, "pretrain", argv)[0].train_config()


# --- odd texts -----------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_remarks_what_is_odd_about_a_text(world, tmp_path):
    odd, plain = tmp_path / "odd.txt", tmp_path / "plain.txt"
    lines = ["the <unk> of the", "protein" * 9, "the of"]
    plain.write_text("\n".join([*lines, ""]))
    odd.write_text("".join(f"<S> {line} </S>\n" for line in lines))
    numbers = {}
    for text, command in (
        (odd, ("prepare", "--out", tmp_path / "data", "--max-characters", 16)),
        (odd, ("embed", world.run, "--out", tmp_path / "vectors.hdf5")),
        (odd, ("verify", world.run, "--against", tmp_path / "vectors.hdf5")),
        (odd, ("score", world.run)),
        (odd, ("evaluate", world.run)),
        (plain, ("evaluate", world.run)),
    ):
        ended = done(*command, "--text", text, "--json")
        report = json.loads(ended.out)
        numbers[text] = report.get("mean_perplexity")
        cut, unsegmented, *marks, unknown = report["remarks"]
        assert cut.startswith("Words cut after 14 bytes: 1;")
        assert "look unsegmented" in unsegmented and "word): 1 of 3;" in unsegmented
        told = ["(<S> 3 times, </S> 3 times)" in mark for mark in marks]
        assert told == [True] * (text == odd)
        assert "look like special ones (<unk> 1 times)" in unknown
        assert all(f"elmojax: {said}\n" in ended.err for said in report["remarks"])
    assert numbers[odd] == numbers[plain] is not None


# --- the whole chain -----------------------------------------------------------------


@pytest.mark.slow
def test_a_sampled_softmax_trains_and_is_evaluated_exactly(world, tmp_path):
    """What is sampled is called sampled_loss; perplexities are those of all words."""
    workdir = tmp_path / "run"
    arguments = ("--data", world.data, "--heldout", world.heldout, "--workdir", workdir)
    sampled = ("--head.kind", "sampled", "--head.samples", 20)
    command = ("pretrain", *arguments, *sampled, "--log-every", 1, *TINY)
    done(*command, "--steps", 3)
    done(*command, "--steps", 6)
    lines = [
        json.loads(s) for s in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    trained = [line for line in lines if "gradient_norm" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5, 6]
    for line in trained:
        assert {name for name in line if "loss" in name or "perplexity" in name} == {
            "sampled_loss",
            "forward_sampled_loss",
            "backward_sampled_loss",
        }
    last = [line for line in lines if "heldout_loss" in line][-1]
    scores = answer("evaluate", workdir, "--data", world.heldout)
    assert scores["loss"] == pytest.approx(last["heldout_loss"])
    assert scores["loss"] < lines[0]["heldout_loss"]
    done("convert", workdir, "--out", tmp_path / "hdf5")
    again = answer("evaluate", tmp_path / "hdf5", "--data", world.heldout)
    assert again["loss"] == pytest.approx(scores["loss"], rel=1e-6)


def test_prepare_shows_cutoffs_where_ranks_mean_something(tmp_path):
    """The ones that pretrain takes; none for a vocabulary of another text."""
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in random.zipf(1.3, 60_000) if i < 9_000]
    text = tmp_path / "text"
    text.write_text(
        "\n".join(" ".join(words[i : i + 20]) for i in range(0, len(words), 20))
    )
    report = answer("prepare", "--text", text, "--out", tmp_path / "data")
    assert set(report["cutoffs"]) == {"mini", "small", "medium", "original"}
    ranks = report["cutoffs"]["mini"]
    assert 1 <= len(ranks) <= 3 and ranks[-1] < report["vocabulary"]
    shown = done("prepare", "--text", text, "--out", tmp_path / "data").out
    assert " ".join(map(str, ranks)) in shown
    workdir = tmp_path / "run"
    where = ("--data", tmp_path / "data", "--workdir", workdir)
    started = start(asked(*where, *CHARACTERS, *SMALL, "--model.lstm.dim", 8), "test")
    started.lock.release()
    assert read_record(workdir).train.head.cutoffs == tuple(ranks)
    other = tmp_path / "other"
    other.write_text("w9 w8 w8\n" * 3)
    known = ("--vocabulary", tmp_path / "data" / "vocabulary.txt")
    report = answer("prepare", "--text", other, "--out", tmp_path / "more", *known)
    assert report["cutoffs"] is None
    assert (
        "not sorted"
        in done(*("prepare", "--text", other, "--out", tmp_path / "more", *known)).out
    )


def test_prepare_reports_what_it_wrote(world):
    with lzma.open(world.heldout_text, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[:-1]
    words = [word for line in lines for word in line.split()]
    known = set((world.data / "vocabulary.txt").read_text("utf-8").split("\n"))
    report = world.prepared
    assert report["tokens"] == len(words) and report["types"] == len({*words}) + 3
    assert report["sentences"] == sum(bool(line.split()) for line in lines)
    assert report["blank_lines"] == sum(not line.split() for line in lines)
    assert report["vocabulary"] == 60
    assert report["oov_rate"] == sum(w not in known for w in words) / len(words)
    assert json.loads((world.heldout / "corpus.json").read_text())["tokens"] == len(
        words
    )
    again = done(
        *("prepare", "--text", world.heldout_text, "--out", world.heldout),
        *("--vocabulary", world.data / "vocabulary.txt"),
    )
    assert "(unchanged)" in again.out and again.err == ""


def test_prepare_takes_files_after_one_flag_and_after_several(tmp_path, world):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name} words\n")
    a, b, c = (tmp_path / f"{name}.txt" for name in "abc")
    files = ("--text", a, b, "--text", c)
    assert answer("prepare", *files, "--out", tmp_path / "d")["sentences"] == 3
    scores = answer("evaluate", world.run, *files)
    assert (scores["sentences"], scores["words"]) == (3, 6)


def test_pretrain_leaves_a_whole_run(world):
    there = {path.name for path in world.run.iterdir()}
    assert {"config.json", "vocabulary.txt", "metrics.jsonl", "checkpoints"} <= there
    vocabulary = (world.data / "vocabulary.txt").read_bytes()
    assert (world.run / "vocabulary.txt").read_bytes() == vocabulary
    assert {p.name for p in (world.run / "checkpoints").iterdir()} == {"3", "6"}
    metrics = read_metrics(world.run / "metrics.jsonl")
    training = [line for line in metrics if "loss" in line]
    heldout = [line for line in metrics if "heldout_loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in heldout] == [0, 6]
    keys = {"loss", "forward_loss", "backward_loss", "gradient_norm", "learning_rate"}
    keys |= {"step", "epoch", "tokens", "tokens_per_second"}
    keys |= {"table_words"}
    assert all(line.keys() == keys for line in training)
    assert training[-1]["tokens"] == 6 * 8 * 10
    assert (
        "step 1/6: loss" in world.trained.err and "of which steps" in world.trained.err
    )
    assert "step 6: held-out perplexity" in world.trained.err
    assert "before," in world.trained.out and "loss.png" in world.trained.out


def test_the_commands_that_pretrain_suggests_work(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suggested = world.trained.out.partition("What to type next:\n")[2].splitlines()
    evaluate, embed, python = map(shlex.split, suggested)
    done(*evaluate[1:])
    assert embed[0] == "echo" and embed[2:6] == [">", "words.txt", "&&", "elmojax"]
    Path("words.txt").write_text(embed[1] + "\n")
    done(*embed[6:])
    assert Path("vectors.hdf5").exists()
    out = io.StringIO()
    monkeypatch.setattr(elmojax, "embed", jax.jit(elmojax.embed))
    with contextlib.redirect_stdout(out):
        exec(python[2], {})
    assert out.getvalue() == "(1, 3, 16)\n"


def test_evaluate_counts_every_token_and_agrees_with_itself(world):
    scores = answer("evaluate", world.run, "--data", world.heldout)
    packed = answer("evaluate", world.run, "--text", world.heldout_text)
    assert packed.pop("seconds") > 0 and scores.pop("seconds") > 0
    assert packed.pop("remarks")[0].startswith("Words cut after 14 bytes: 1;")
    assert packed == {k: v for k, v in scores.items() if k != "remarks"}
    assert scores["tokens"] == scores["words"] + scores["sentences"]
    assert scores["words"] == world.prepared["tokens"]
    forward, backward = scores["forward_perplexity"], scores["backward_perplexity"]
    assert scores["mean_perplexity"] == pytest.approx((forward + backward) / 2)
    geometric = math.sqrt(forward * backward)
    assert scores["geometric_perplexity"] == pytest.approx(geometric)
    bits = math.log2(geometric) * scores["tokens"] / world.prepared["bytes"]
    assert scores["bits_per_byte"] == pytest.approx(bits)
    assert scores["oov_rate"] == world.prepared["oov_rate"]
    last = read_metrics(world.run / "metrics.jsonl")[-1]
    assert scores["remarks"] == []
    for name in set(scores) - {"remarks"}:
        assert scores[name] == pytest.approx(last[f"heldout_{name}"], rel=1e-5)
    earlier = answer("evaluate", world.run, "--data", world.heldout, "--step", 3)
    assert earlier["mean_perplexity"] != scores["mean_perplexity"]
    printed = done("evaluate", world.run, "--data", world.heldout).out
    assert f"mean_perplexity        {scores['mean_perplexity']:,.4f}" in printed


def test_devices_change_nothing_that_is_printed(world, monkeypatch):
    """Perplexities of one device and of four, float32 rounding apart."""
    one, many = (_evaluated_on(count, world, monkeypatch).items() for count in (1, 4))
    for (name, ours), (other, theirs) in zip(many, one, strict=True):
        assert name == other and (
            name == "seconds" or ours == pytest.approx(theirs, rel=1e-6)
        )


def _evaluated_on(count, world, monkeypatch):
    with monkeypatch.context() as patch:
        devices = jax.local_devices()[:count]
        patch.setattr(jax, "local_devices", lambda: devices)
        return answer("evaluate", world.run, "--data", world.heldout)


def test_embed_writes_what_encode_gives(world, tmp_path):
    lines = [
        "The river bank .",
        "",
        "Hi",
        "Über 日本語 naïve 🙂 donaudampfschifffahrtsgesellschaft",
        "word " * 130 + ".",
        "   ",
    ]
    text, out = tmp_path / "in.txt", tmp_path / "out.hdf5"
    text.write_text("\n".join(lines), encoding="utf-8")
    report = answer("embed", world.run, "--text", text, "--out", out)
    sentences = [line.split() for line in lines]
    assert (report["lines"], report["words"]) == (6, sum(map(len, sentences)))
    params, tokens = elmojax.restore(world.run), elmojax.batch_to_ids(sentences, 16)
    encoded = jax.jit(elmojax.encode)(params, tokens).layers
    middle = jax.jit(elmojax.embed)(params, tokens, np.float32([0, 1, 0]))
    with h5py.File(out) as file:
        assert set(file) == set("012345")
        for number, sentence in enumerate(sentences):
            layers, words = file[str(number)][:], len(sentence)
            assert layers.dtype == np.float32 and layers.shape == (3, words, 16)
            np.testing.assert_allclose(layers, encoded[number, :, :words], atol=1e-6)
            np.testing.assert_allclose(layers[1], middle[number, :words], atol=1e-6)
    refused("embed", world.run, "--text", text, "--out", out, says="is there already")
    done("embed", world.run, "--text", text, "--out", out, "--overwrite")
    assert not list(tmp_path.glob(".*"))


def test_load_restore_and_steps(world):
    newest, third = elmojax.load(world.run), elmojax.restore(world.run, step=3)
    assert newest.config == read_record(world.run).train.model
    same = jax.tree.map(np.array_equal, newest, elmojax.restore(str(world.run), 6))
    assert jax.tree.all(same)
    assert not np.array_equal(newest.lstm["kernel_0"], third.lstm["kernel_0"])


@pytest.mark.slow
def test_pretrain_has_a_text_and_a_place_of_its_own(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("pretrain", "--steps", 2, "--heldout", world.heldout, *TINY)
    assert read_record(Path("runs/mini")).train.data is None
    assert "runs/mini has done its 2 steps already" in done("pretrain").err
    says = "another corpus than ... give the same --data"
    refused("pretrain", "--data", world.data, says=says)


@pytest.mark.slow
def test_the_first_command_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = done("pretrain", "--steps", 40, "--mesh.data", 1)
    scores = re.search(r"perplexity: ([\d,.]+) before, ([\d,.]+) after", outcome.out)
    before, after = (float(score.replace(",", "")) for score in scores.groups())
    assert after < before / 5
    assert "elmojax evaluate runs/mini --data runs/mini/sample-heldout" in outcome.out


# --- going on ------------------------------------------------------------------------


def losses(workdir: Path) -> list[tuple[int, float]]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return [(m["step"], m.get("loss", m.get("heldout_loss"))) for m in lines]


def test_a_resumed_run_ends_as_an_uninterrupted_one(world, copied):
    shutil.rmtree(copied / "checkpoints" / "6")
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while it wrote
    outcome = done("pretrain", "--workdir", copied)
    assert "Going on from the checkpoint of step 3" in outcome.err
    assert losses(copied) == losses(world.run)
    ended, never = (read_run(path)[2] for path in (copied, world.run))
    assert jax.tree.all(jax.tree.map(np.array_equal, ended, never))
    assert read_record(copied).train.rows == 8


@pytest.mark.slow
def test_the_same_command_line_again_is_no_error(world, tmp_path):
    command = [
        *("pretrain", "--data", world.data, "--workdir", tmp_path / "run"),
        *("--steps", 1, "--model.lstm.no-skip-connections", *TINY),
        "--allow-unsorted-vocabulary",
    ]
    done(*command)
    assert "has done its 1 steps already" in done(*command).err
    assert "has done its 1 steps already" in done(*command, "--json").err
    assert answer(*command)["step"] == 1


def test_a_run_without_a_checkpoint_begins_again_and_says_so(world, copied):
    shutil.rmtree(copied / "checkpoints")
    outcome = done("pretrain", "--workdir", copied)
    assert "no checkpoint yet; it begins at step 0" in outcome.err
    assert losses(copied) == losses(world.run)


def test_epochs_replace_the_steps_of_a_run(world, copied):
    corpus = json.loads((world.data / "corpus.json").read_text())
    steps = math.ceil(math.ceil(corpus["positions"] / 8) * 0.9 / 10)
    outcome = done("pretrain", "--workdir", copied, "--epochs", 0.9, "--json")
    assert json.loads(outcome.out)["step"] == steps > 6
    assert f"in 6 steps, as this run began, and not in the {steps}" in outcome.err
    says = "Give --steps or --epochs, not both"
    refused("pretrain", "--steps", 3, "--epochs=1", says=says)


WORDS = ["--encoder", "words", *LSTM, *SMALL]
"""A model that is quickly compiled."""


def edit_record(run: Path, **changes: Any) -> None:
    """Changes of config.json; None takes a field out, as in records before it."""
    path = run / "config.json"
    record = json.loads(path.read_text())
    for name, value in changes.items():
        owner = record["train"] if name in record["train"] else record
        owner[name] = value
        if value is None:
            del owner[name]
    path.write_text(json.dumps(record))


def rates(run: Path) -> list[float]:
    lines = read_metrics(run / "metrics.jsonl")
    return [line["learning_rate"] for line in lines if "learning_rate" in line]


@pytest.mark.slow
def test_a_schedule_belongs_to_its_run(world, tmp_path):
    """Half a cosine in two steps, then its end; in eight steps where that is asked."""
    peak, end = 0.01, 0.001
    shape = ("--optimizer.warmup-steps", 0, "--optimizer.learning-rate", peak)
    command = ["pretrain", "--data", world.data, "--workdir", tmp_path, *shape, *WORDS]
    assert "learning rate" not in done(*command, "--steps", 2).err
    assert read_record(tmp_path).train.schedule_steps == 2
    edit_record(tmp_path, schedule_steps=None)  # as records were
    said = done(*command, "--steps", 3).err
    assert "falls in 2 steps, as this run began, and not in the 3" in said
    assert "it is 0.001 in step 3. With --schedule-steps 3 it would go on at" in said
    said = done(*command, "--steps", 5, "--schedule-steps", 8).err
    assert "falls in 8 steps from here on, and no longer in 2" in said
    assert said.count("learning rate") == 1 and "where it was to be 0.001" in said
    assert read_record(tmp_path).train.schedule_steps == 8
    assert "falls in 8 steps, as" in done(*command, "--steps", 6).err
    falls = [(1 + math.cos(math.pi * n / 8)) / 2 for n in (3, 4, 5)]
    wanted = [peak, (peak + end) / 2, end, *(end + (peak - end) * f for f in falls)]
    assert rates(tmp_path) == pytest.approx(wanted)
    constant = ("--optimizer.decay", "constant", "--schedule-steps", 8)
    says = "--schedule-steps ... leave one of them out"
    refused(*command[:3], *WORDS, *constant, "--workdir", tmp_path / "new", says=says)


def test_a_record_says_what_decides_the_bits(world, copied):
    record = read_record(copied)
    assert (record.jax, record.numpy, record.order) == (
        jax.__version__,
        np.__version__,
        ORDER,
    )
    assert record.jax_threefry_partitionable is jax.threefry_partitionable.value
    with jax.threefry_partitionable(False):
        says = "jax_threefry_partitionable ... set JAX_THREEFRY_PARTITIONABLE=1"
        refused("pretrain", "--workdir", copied, "--steps", 7, says=says)
    edit_record(copied, jax="0.9.9", order=None, jax_threefry_partitionable=None)
    said = done("pretrain", "--workdir", copied, "--steps", 7).err
    assert f"started with jax 0.9.9 and goes on with jax {jax.__version__}" in said
    assert "shuffled sentences in another way" in said
    assert losses(copied)[-1][0] == 7


def test_a_run_that_goes_on_as_it_began_says_nothing_else(world, copied):
    shutil.rmtree(copied / "checkpoints" / "6")
    said = done("pretrain", "--workdir", copied).err
    for words in ("was started with", "in another way", "learning rate"):
        assert words not in said


@pytest.mark.slow
def test_frozen_steps_leave_the_bits_of_all_but_the_softmax(world, tmp_path):
    """Interrupted while they are frozen; the third step moves all."""
    command = ["pretrain", "--data", world.data, "--workdir", tmp_path, *WORDS]
    command += ["--freeze-steps", 2, "--optimizer.warmup-steps", 0]
    done(*command, "--steps", 1)
    done(*command, "--steps", 3, "--checkpoint-every", 1)
    one, two, three = (read_run(tmp_path, n)[2] for n in (1, 2, 3))
    for before, after, frozen in ((one, two, True), (two, three, False)):
        same = jax.tree.map(np.array_equal, before, after)
        assert not any(jax.tree.leaves(same["head"]))
        for part in ("encoder", "lstm"):
            assert jax.tree.all(same[part]) == frozen


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on(world, tmp_path):
    workdir = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "elmojax", "pretrain", "--data", world.data),
        *("--workdir", workdir, "--steps", 10**6, "--checkpoint-every", 2, *TINY),
    ]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not checkpoint_steps(workdir):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    newest = Checkpoints(workdir).latest
    assert f"Stopped by SIGINT after step {newest};" in err
    assert "Traceback" not in err
    outcome = done("pretrain", "--workdir", workdir, "--steps", newest + 1)
    assert f"Going on from the checkpoint of step {newest}" in outcome.err
    steps = [step for step, _ in losses(workdir)]
    assert steps == list(range(1, newest + 2))


# --- words instead of characters -----------------------------------------------------


@pytest.fixture(scope="module")
def vectors(world) -> Path:
    """A GloVe file of twelve numbers for half of the vocabulary."""
    words = (world.data / "vocabulary.txt").read_text("utf-8").split("\n")[3:-1:2]
    rows = np.arange(len(words) * 12, dtype=np.float32).reshape(-1, 12) / 500
    path = world.folder / "glove.txt"
    lines = [f"{w} {' '.join(map(str, row))}\n" for w, row in zip(words, rows)]  # noqa: B905
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.slow
def test_word_vectors_are_the_start_of_the_table(world, vectors, tmp_path):
    workdir = tmp_path / "run"
    command = [
        *("pretrain", "--data", world.data, "--heldout", world.heldout),
        *("--encoder", "words", "--word-vectors", vectors, "--workdir", workdir),
        *("--steps", 2, *LSTM, *SMALL),
    ]
    first = done(*command)
    assert "29 words of the vocabulary have a vector" in first.err
    config = read_record(workdir).train
    assert config.model.encoder.dim == 12
    scores = answer("evaluate", workdir, "--text", world.heldout_text)
    assert scores["tokens"] == scores["words"] + scores["sentences"]
    text = tmp_path / "in.txt"
    text.write_text("the of unheard-of\n")
    done("embed", workdir, "--text", text, "--out", tmp_path / "out.hdf5")
    model = open_model(workdir)
    tokens = model.vocabulary.ids("the of unheard-of".split())[None] + 1
    with h5py.File(tmp_path / "out.hdf5") as file:
        alone = jax.jit(elmojax.encode)(model.params, tokens).layers[0]
        np.testing.assert_allclose(file["0"][:], alone, atol=1e-6)
    before = losses(workdir)
    assert "has done its 2 steps already" in done(*command, "--preset", "mini").err
    shutil.rmtree(workdir / "checkpoints")  # as if killed before the first of them
    assert "29 words" in done("pretrain", "--workdir", workdir).err
    assert losses(workdir) == before
    vectors.rename(vectors.with_name("gone"))  # not needed to go on
    done("pretrain", "--workdir", workdir)
    vectors.with_name("gone").rename(vectors)


@pytest.mark.parametrize("kind", ["glove", "text", "binary"])
def test_every_format_of_word_vectors_fills_the_same_rows(
    world, vectors, tmp_path, kind
):
    rows = [line.split(" ") for line in vectors.read_text("utf-8").splitlines()]
    header, path = f"{len(rows)} 12\n".encode(), tmp_path / "vectors"
    plain = vectors.read_bytes()
    packed = b"".join(
        f"{word} ".encode() + np.array(v, "<f4").tobytes() for word, *v in rows
    )
    path.write_bytes(
        {"glove": plain, "text": header + plain, "binary": header + packed}[kind]
    )
    train = elmojax.TrainConfig(data=world.data, encoder="words", word_vectors=path)
    said: list[str] = []
    config, initialize = with_word_vectors(train, said.append)
    assert len(rows) == 29 and said[-1].startswith("29 words of the vocabulary have")
    table = np.full((60, config.model.encoder.dim), 7.0, np.float32)
    filled = initialize({"encoder": {"embedding": table}})["encoder"]["embedding"]
    np.testing.assert_array_equal(filled[3], np.array(rows[0][1:], np.float32))
    np.testing.assert_array_equal(filled[4], table[4])


# --- refusals ------------------------------------------------------------------------

BAD_TEXTS: dict[str, tuple[bytes | None, str]] = {
    "empty": (b"", "holds no words at all"),
    "blank": (b"\n \n\t\n", "holds no words at all"),
    "missing": (None, "No text file matches"),
    "latin-1": (
        b"good\ncaf\xe9 .\n",
        "Line 2 of ... is not UTF-8 ... --errors replace",
    ),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_text_that_will_not_do(world, tmp_path, name):
    content, says = BAD_TEXTS[name]
    text, out = tmp_path / "text.txt", tmp_path / "out"
    if content is not None:
        text.write_bytes(content)
    refused("prepare", "--text", text, "--out", out, says=says)
    refused("evaluate", world.run, "--text", text, says=says)
    if name == "blank":
        assert answer("embed", world.run, "--text", text, "--out", out)["lines"] == 3
        return
    says = "has no lines at all" if name == "empty" else says
    refused("embed", world.run, "--text", text, "--out", out, says=says)
    assert set(tmp_path.iterdir()) <= {text}
    if name == "latin-1":
        replace = ("--errors", "replace")
        done("prepare", "--text", text, "--out", tmp_path / "data", *replace)
        done("evaluate", world.run, "--text", text, *replace)
        done("embed", world.run, "--text", text, "--out", out, *replace)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("prepare --text {text} --text {out}*.txt --out {out}", "No text file matches"),
        ("prepare --text {text} --out {text}/out", "cannot be written"),
        ("prepare --out {out}", "Give the text either as --text FILES or as --tfds"),
        ("prepare --text --out {out}", "Give the text either as"),
        ("prepare --text {text} --out {out} --min-count 0", "--min-count is 0"),
        ("prepare --text {text} --out {out} --max-vocabulary -5", "--max-vocabulary"),
        (
            "prepare --text {text} --out {out} --max-characters 1",
            "--max-characters is 1",
        ),
        ("prepare --text {text} --out {out} --vocabulary {text}", "first three lines"),
        ("prepare --text {text} --out {out} --vocabulary {out}", "cannot be read"),
        ("prepare --tfds lm1b --data-dir {out} --out {out}", "No TFDS data set"),
        ("evaluate {run}", "Give either --data DIRECTORY or --text FILE"),
        ("evaluate {run} --data {data} --text {text}", "Give either"),
        ("evaluate {run} --data {run}", "is not a prepared corpus"),
        ("evaluate {out} --data {data}", "There is no model"),
        ("evaluate {text} --data {data}", "is not a run directory"),
        ("evaluate {data} --data {data}", "has no config.json"),
        ("evaluate {run} --data {data} --step 4", "no checkpoint of step 4 ... 3, 6"),
        ("embed {run} --text {text} --out {out}/a.hdf5", "there is no directory"),
        ("embed {run} --text {text} --out {data} --overwrite", "embed` made only"),
        (
            "embed {run} --text {text} --out {out} --batch-tokens 0",
            "from 1 to 16777216",
        ),
        ("pretrain --data {run} --workdir {out}", "is not a prepared corpus"),
        ("pretrain --data {out} --workdir {out}", "is not a prepared corpus"),
        ("pretrain --data {data} --heldout {out}x --workdir {out}", "not a prepared"),
        ("pretrain --data {data} --workdir {text}", "cannot be written"),
        ("pretrain --data {data} --workdir {text}/run", "cannot be written"),
        ("pretrain --workdir {text}", "cannot be written ... is no directory"),
        ("pretrain --preset huge", "no preset 'huge'; choose one of mini, small"),
        ("pretrain --preset mini --config x.py", "--preset or --config, not both"),
        ("pretrain --config {out}.py", "there is no such file"),
        ("pretrain --data {data} --workdir {out} --rows 9 --mesh.data 2", "--rows 9"),
        ("pretrain --data {data} --workdir {out} --mesh.data 99", "99 devices"),
        ("pretrain --data {data} --workdir {out} --mesh.model 99", "devices"),
        (
            "pretrain --data {data} --workdir {out} --model.lstm.dim 15 --mesh.model 2",
            "15 entries ... --mesh.model",
        ),
        ("pretrain --data {data} --workdir {out} --head.cutoffs 99", "cutoffs"),
        (
            "pretrain --data {data} --workdir {out} --head.kind full --head.cutoffs 9",
            "A full softmax has no cutoffs",
        ),
        (
            "pretrain --data {data} --workdir {out} --head.kind sampled",
            "draws 8192 words and the vocabulary has 60; lower --head.samples",
        ),
        (
            "pretrain --data {data} --workdir {out} --head.kind sampled "
            "--head.cutoffs 9",
            "A sampled softmax has no cutoffs",
        ),
        (
            "pretrain --data {data} --workdir {out} --head.kind sampled "
            "--optimizer.name adafactor",
            "no moments of single rows",
        ),
        ("score {run}", "--text FILE"),
        ("score {out} --text {text}", "There is no model"),
        ("pretrain --data {data} --workdir {out} --evaluate-every 5", "--heldout"),
        (
            "pretrain --workdir {out} --encoder words --word-vectors {text}",
            "--word-vectors needs --data",
        ),
        (
            "pretrain --data {data} --workdir {out} --encoder words "
            "--word-vectors {out}x",
            "word vectors ... cannot be read",
        ),
        (
            "pretrain --data {data} --workdir {out} --encoder words "
            "--word-vectors {text}",
            "give a word2vec",
        ),
        ("pretrain --workdir {run} --rows 16", "rows = 8, and now it is 16"),
        ("pretrain --workdir {run} --seed 5", "seed = 0, and now it is 5"),
        ("pretrain --workdir {run} --model.lstm.dim 8", "model.lstm.dim = 16 ... 8"),
        ("pretrain --workdir {run} --encoder words", "encoder = characters"),
        ("pretrain --workdir {run} --preset mini", "corpus than the sample text"),
        ("pretrain --workdir {run} --preset mini --data {data}", "was started with"),
        ("pretrain --workdir {run} --data {heldout}", "trained on another corpus"),
        ("train", "there is no command 'train'; choose one of prepare, pretrain"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(world, tmp_path, command, says):
    before = {path: path.stat().st_mtime_ns for path in world.folder.rglob("*")}
    names = {**world._asdict(), "out": tmp_path / "out"}
    refused(*command.format(**names).split(), says=says)
    assert not list(tmp_path.iterdir())
    assert before == {path: path.stat().st_mtime_ns for path in world.folder.rglob("*")}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--rows -1", "rows is -1; it must be a whole number from 1"),
        ("--rows many", "--rows"),
        ("--rows 1.5", "--rows"),
        ("--rows", "--rows"),
        ("--steps 0", "steps is 0"),
        ("--seed 9223372036854775808", "from 0 to 9223372036854775807"),
        ("--epochs inf", "epochs is inf"),
        ("--epochs nan", "epochs is nan"),
        ("--dropout 1", "dropout is 1.0"),
        ("--mesh.data -1", "--mesh.data is -1"),
        ("--optimizer.learning-rate -1", "learning-rate is -1.0"),
        ("--optimizer.name sgd", "sgd"),
        ("--precision fp8", "fp8"),
        ("--model.lstm.dim 0", "--model.lstm.dim is 0"),
        ("--head.cutoffs 5 3", "strictly increasing"),
        ("--word-vectors x", "--encoder words"),
        ("--bogus 3", "--bogus"),
        ("extra", "extra"),
    ],
)
def test_wrong_flags_are_named(tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("pretrain", *flags.split())
    assert status == 2 and out == "" and "Traceback" not in err
    assert says in re.sub(r"[\s│]+", " ", err)
    assert not list(tmp_path.iterdir())


CONFIGS = {
    "config = 3": "must define a function config()",
    "": "must define a function config()",
    "def config(): return 3": "must define a function config() ... not 3",
    "def config(:": "fails in line 1 (SyntaxError",
    "import nosuch": "fails in line 1 (ModuleNotFoundError",
    "import sys\nsys.exit(0)": "fails in line 2 (SystemExit: 0)",
    "def config(): exit()": "fails in line 1 (SystemExit",
    "raise BaseException('no' * 999)": "fails in line 1 (BaseException: no",
    "def config(): return config()": "fails in line 1 (RecursionError",
    "import elmojax\ndef config(): return elmojax.TrainConfig": "not <class",
    "def config():\n    return {}['x']": "fails in line 2 (KeyError",
    "import elmojax\n\n\ndef config(): return elmojax.TrainConfig(rows=0)": (
        "fails in line 4 (InputError: TrainConfig.rows is 0"
    ),
}


@pytest.mark.parametrize("code", CONFIGS)
def test_a_config_file_that_fails(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code)
    refused("pretrain", "--config", "mine.py", says=CONFIGS[code])
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


def test_a_config_file_sets_what_flags_leave_open(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from dataclasses import replace\nfrom elmojax import TrainConfig\n"
        "def config(): return replace(TrainConfig.preset('mini'), rows=4, steps=7, "
        f"data={str(world.data)!r})\n"
    )
    done("pretrain", "--config=mine.py", *TINY, "--steps", 1, "--workdir", "run")
    train = read_record(tmp_path / "run").train
    assert (train.rows, train.steps, train.data) == (8, 1, world.data)


def test_the_record_of_a_run_begins_the_same_run_again(world, tmp_path):
    """And so does TOML of some of its fields."""
    done("pretrain", "--data", world.data, *TINY, "--steps", 2, "--workdir", tmp_path)
    record, again = tmp_path / "config.json", tmp_path / "again"
    done("pretrain", "--config", record, "--workdir", again)
    assert read_record(again).train == replace(
        read_record(tmp_path).train, workdir=again
    )
    assert losses(again) == losses(tmp_path)
    trees = [read_run(run)[2] for run in (again, tmp_path)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))
    toml = tmp_path / "mine.toml"
    toml.write_text(
        "rows = 4\nsteps = 1\n[model.lstm]\ndim = 16\nprojection = 8\n[model.encoder]\n"
        "filters = [[1, 4], [2, 4]]\nembedding_dim = 4\n[optimizer]\nname = 'adamw'\n"
    )
    given = ("--data", world.data, "--workdir", tmp_path / "toml", "--batch-size", 8)
    train = asked("--config", toml, *given)
    assert (train.rows, train.steps, train.model.lstm.dim) == (8, 1, 16)
    assert train.optimizer.name == "adamw" and train.window == 20


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", "{", "a.json does not hold a TrainConfig"),
        ("a.json", "[]", "a.json does not hold a TrainConfig"),
        ("a.json", '{"row": 3}', "TrainConfig has no field 'row'"),
        ("a.toml", "rows = ", "a.toml does not hold a TrainConfig"),
        ("a.toml", "rows = 0", "TrainConfig.rows is 0"),
        ("a.toml", "rows = 'many'", "rows is 'many'; it must be a whole number"),
        ("a.toml", "[optimizer]\nrate = 1", "OptimizerConfig has no field 'rate'"),
    ],
)
def test_a_config_of_fields_that_is_wrong(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    run = tmp_path / "run"
    refused("pretrain", "--config", tmp_path / name, "--workdir", run, says=says)
    assert not run.exists()


def test_flags_have_the_names_that_people_type():
    names = (
        "--batch-size 6 --seq-len=7 --grad-accum 2 --num-negatives 9 "
        "--max-grad-norm 3.5 --eval-data held"
    )
    asked = parse(RecipeArguments, "estimate", names.split(), default=RecipeArguments())
    assert (asked.rows, asked.window, asked.accumulate) == (6, 7, 2)
    assert asked.head.samples == 9 and asked.optimizer.gradient_norm == 3.5
    assert asked.heldout == Path("held")


def test_an_unsorted_vocabulary_is_refused_unless_allowed(world, tmp_path):
    lines = (world.data / "vocabulary.txt").read_text("utf-8").splitlines()
    path, data = tmp_path / "vocabulary.txt", tmp_path / "data"
    path.write_text("\n".join([*lines[:3], *lines[:2:-1]]) + "\n", encoding="utf-8")
    done("prepare", "--text", world.text, "--vocabulary", path, "--out", data)
    command = ("pretrain", "--data", data, "--workdir", tmp_path / "run", "--steps", 1)
    refused(*command, *TINY, says="needs words by falling count")
    assert not (tmp_path / "run").exists()
    done(*command, *TINY, "--allow-unsorted-vocabulary")
    path.write_text("\n".join([*lines, lines[9]]) + "\n", encoding="utf-8")
    words = ("--vocabulary", path)
    out = tmp_path / "twice"
    refused("prepare", "--text", world.text, *words, "--out", out, says="twice")


def test_a_damaged_corpus_is_refused(world, tmp_path):
    for path in world.data.iterdir():
        for damage in (Path.unlink, lambda path: path.write_bytes(b"[]")):
            data = shutil.copytree(world.data, tmp_path / "data", dirs_exist_ok=True)
            damage(data / path.name)
            workdir = tmp_path / "run"
            refused("pretrain", "--data", data, "--workdir", workdir, *TINY)
            refused("evaluate", world.run, "--data", data)
            assert not workdir.exists()


ADDRESSES = """
pretrain --config gs://bucket/config.json
pretrain --encoder words --word-vectors https://key:secret@host/x.vec?secret
prepare --text gs://bucket/text --out data
prepare --text text --vocabulary s3://bucket/vocabulary.txt --out data
prepare --tfds lm1b --data-dir gs://tfds-data --out data
evaluate model --text gs://bucket/text
score model --text gs://bucket/text
embed model --text text --out gs://bucket/vectors.hdf5
embed model --text gs://bucket/text --out vectors.hdf5
export model --out gs://bucket/model.zip
verify model --text text --against gs://bucket/vectors.hdf5
runs gs://bucket/runs
"""


def test_addresses_are_refused_where_a_path_is_due(tmp_path, monkeypatch):
    """Never a directory `gs:` of this machine, and no secret is printed."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("a b c")
    for command in ADDRESSES.strip().splitlines():
        error = refused(
            *command.split(), says=":// ... is an address, and this must be on"
        )
        assert "secret" not in error
    assert os.listdir() == ["text"]


# --- damaged runs --------------------------------------------------------------------


def reads_of(world: World, tmp_path: Path) -> list[tuple[object, ...]]:
    text = tmp_path / "in.txt"
    text.write_text("The river bank .\n")
    return [
        ("evaluate", tmp_path / "run", "--data", world.heldout),
        ("embed", tmp_path / "run", "--text", text, "--out", tmp_path / "out.hdf5"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"", "does not hold a RunRecord"),
        ("config.json", b'{"train": {"rows"', "does not hold a RunRecord"),
        ("config.json", b"[1]", "does not hold a RunRecord"),
        ("config.json", b'{"train": {"rows": "x"}}', "TrainConfig.rows is 'x'"),
        ("config.json", b'{"train": {"rows": 1.5}}', "TrainConfig.rows is 1.5"),
        ("config.json", b'{"train": {"rows": -1}}', "config.json: TrainConfig.rows"),
        ("config.json", b'{"train": {"colour": 1}}', "colour"),
        ("config.json", b"\xff\xfe", "cannot be read"),
        ("vocabulary.txt", None, "vocabulary.txt is gone"),
        ("vocabulary.txt", b"", "is empty"),
        ("vocabulary.txt", b"<S>\n</S>\n<UNK>\nthe\n", "4 words ... trained with 60"),
    ],
)
def test_a_damaged_run_is_refused(world, copied, tmp_path, name, content, says):
    (copied / name).unlink() if content is None else (copied / name).write_bytes(
        content
    )
    for command in reads_of(world, tmp_path):
        refused(*command, says=says)
    with pytest.raises(elmojax.InputError):
        elmojax.restore(copied)
    if name == "config.json" and content is None:
        says = "has checkpoints but no config.json"
    # Whether it has steps to do or is done: without these files it is of no use.
    command = ("pretrain", "--data", world.data, "--workdir", copied, *TINY)
    refused(*command, "--steps", 6, says=says)
    assert not (tmp_path / "out.hdf5").exists()


def test_a_vocabulary_of_the_same_size_is_refused(world, copied, tmp_path):
    path = copied / "vocabulary.txt"
    path.write_bytes(path.read_bytes()[:-2])  # the last word loses a letter
    for command in reads_of(world, tmp_path):
        refused(*command, says="holds other words")
    refused("pretrain", "--workdir", copied, says="holds other words")


def test_a_run_of_another_format_is_refused(copied):
    path = copied / "config.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(elmojax.InputError, match="format 2"):
        elmojax.restore(copied)


@pytest.mark.parametrize(
    ("half", "part"),
    [
        ("params", "_METADATA"),
        pytest.param("training", "ocdbt.process_0/d/*", marks=pytest.mark.slow),
    ],
)
def test_a_cut_checkpoint_is_refused_or_set_aside(world, copied, tmp_path, half, part):
    files = (copied / "checkpoints" / "6" / half).glob(part)
    path = max(files, key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)
    says = "checkpoints/6 cannot be read ... Restore it from a copy"
    for command in reads_of(world, tmp_path):
        if half == "params":
            refused(*command, says=says)
        else:
            done(*command)
    outcome = done("pretrain", "--workdir", copied, "--steps", 7)
    assert "checkpoints/6 is damaged" in outcome.err
    assert "Going on from the checkpoint of step 3" in outcome.err
    assert (copied / "damaged" / "6").is_dir()
    assert [step for step, _ in losses(copied)] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    for command in reads_of(world, tmp_path):
        done(*command, *(["--overwrite"] if command[0] == "embed" else []))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "cut in half", "a bit flipped"])
def test_no_damage_to_a_checkpoint_gives_other_numbers(world, tmp_path, damage):
    """Every file in turn: harmless, or named by who reads it and set aside by a run."""
    found = sweep(world.run, tmp_path, only=damage)
    assert found["cases"] == found["files"] > 15
    assert found["set aside"] >= 4 and found["refused to who reads"] >= 4


def test_without_any_whole_checkpoint_a_run_does_not_begin_again(world, copied):
    """Nothing is overlooked: not even what lost all its metadata."""
    for path in (copied / "checkpoints").rglob("*"):
        if path.is_file():
            path.unlink()
    refused("evaluate", copied, "--data", world.heldout, says="checkpoints/6")
    refused("pretrain", "--workdir", copied, says="No whole checkpoint is left")
    assert {path.name for path in (copied / "damaged").iterdir()} == {"3", "6"}


@pytest.mark.parametrize(
    "error",
    [MemoryError("no"), PermissionError("no"), ValueError("RESOURCE_EXHAUSTED: GPU")],
    ids=repr,
)
def test_trouble_of_the_machine_is_no_damage(world, copied, monkeypatch, error):
    """A good checkpoint is never set aside because there was too little memory."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    refused("pretrain", "--workdir", copied, says="cannot be read here and now")
    monkeypatch.undo()
    assert not (copied / "damaged").exists()
    assert _steps_on_disk(copied) == {"3", "6"}


def test_what_fails_once_is_no_damage(world, copied, monkeypatch):
    """A busy machine makes Orbax fail for reasons of its own: look again first."""
    handler, failed = ocp.PyTreeCheckpointHandler, []
    real = handler.restore

    def fail(*arguments: Any, **more: Any) -> Any:
        if not failed:
            failed.append(1)
            raise RuntimeError
        return real(*arguments, **more)

    monkeypatch.setattr(handler, "restore", fail)
    outcome = done("pretrain", "--workdir", copied, "--steps", 7)
    assert failed and "Going on from the checkpoint of step 6" in outcome.err
    assert "could not be read at first (RuntimeError:)" in outcome.err
    assert not (copied / "damaged").exists()


def _steps_on_disk(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def test_two_runs_in_one_directory_are_kept_apart(world, copied):
    lock = lock_run(copied)
    error = refused(
        "pretrain", "--workdir", copied, "--steps", 7, says="Another process"
    )
    assert f"process {os.getpid()}" in error
    lock.release()
    done("pretrain", "--workdir", copied, "--steps", 7)


def test_damaged_metrics_lose_only_their_own_line(world, copied):
    path = copied / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = b'\xff{"step"'
    lines[3] = b"null"
    path.write_bytes(b"\n".join(lines))
    done("pretrain", "--workdir", copied, "--steps", 7)
    steps = [step for step, _ in losses(copied)]
    assert steps == [0, 1, 4, 5, 6, 6, 7, 7]


# --- help ----------------------------------------------------------------------------

FLAGS = {
    "prepare": "--text --format --out --vocabulary --max-vocabulary --min-count --tfds "
    "--split --data-dir --feature --errors --overwrite --json",
    "pretrain": "--data --workdir --preset --config --heldout --steps --epochs --rows "
    "--window --seed --mesh.data --mesh.model --precision --checkpoint-every "
    "--evaluate-every --encoder --word-vectors --head.kind --optimizer.learning-rate "
    "--model.lstm.dim --init-from --freeze-steps --tensorboard --tracker --json "
    "--accumulate --skip-nonfinite --spike-guard --distributed --coordinator "
    "--patience --process-id --process-count --profile",
    "estimate": "--preset --config --data --workdir --rows --window --mesh.data "
    "--mesh.model --precision --accumulate --head.kind --steps --epochs --chip "
    "--vocabulary --tokens --json",
    "runs": "DIR --compare --json",
    "evaluate": "MODEL --data --text --format --step --json",
    "embed": "MODEL --text --format --out --step --layers --gammas --dtype --pool "
    "--only --compression --batch-tokens --errors --overwrite --engine --workers "
    "--ray-address --json",
    "static": "MODEL --text --format --out --layers --gammas --min-count "
    "--max-vocabulary --batch-tokens --step --precision --errors --overwrite --json",
    "score": "MODEL --text --format --step --errors --unit --direction --level "
    "--entropy --top-k --carry --output-format --json",
    "minimal-pairs": "MODEL FILE --split --out --overwrite --step --precision --json",
    "convert": "MODEL --out --step --dtype --json",
    "export": "MODEL --out --step --overwrite --json",
    "verify": "MODEL --against --text --no-carry --errors --json",
    "similar": "SENTENCE --word --among --model --layer --nearest --occurrence --json",
    "plot": "senses run mix",
    "report": "RUN --out --text --errors --overwrite --json",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_flag(command):
    outcome = done(command, "--help")
    text = re.sub(r"[\s│╭╮╰╯─]+", " ", outcome.out)
    assert all(f"{flag} " in text for flag in FLAGS[command].split())
    unexplained = r"(--[\w.-]+)( [A-Z]+| \{[^}]*\}| \[.*?\]+)? \(default"
    assert re.findall(unexplained, text) == []
    assert "{None}" not in text and "STR]" not in text and "subcommand" not in text


def test_overview_names_every_command():
    overview = done("--help").out
    assert all(f"\n  {command} " in overview for command in COMMANDS)
    assert run().out == overview and run().status == 2
    assert done("--version").out == f"elmojax {elmojax.__version__}\n"


def test_flags_may_be_written_with_underscores(world, tmp_path):
    flags = [flag.replace("-", "_").replace("__", "--") for flag in TINY]
    train = asked("--data", world.data, "--checkpoint_every", 0, "--steps=1", *flags)
    assert train.model == read_record(world.run).train.model
    assert (train.checkpoint_every, train.steps) == (0, 1)


def test_events_and_a_profile_are_written_beside_the_metrics(world, tmp_path):
    command = ("pretrain", "--data", world.data, "--workdir", tmp_path, "--steps", 3)
    done(*command, "--tensorboard", "--profile", *TINY)
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"gradient_norm" in events.read_bytes()
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()


def test_embedder_asks_for_the_vocabulary_of_a_word_table():
    words = elmojax.ElmoConfig(encoder=elmojax.config.WordTableConfig(5, 4))
    params = jax.eval_shape(lambda: elmojax.init(words, jax.random.key(0)))
    with pytest.raises(elmojax.InputError, match="vocabulary is needed"):
        Embedder(params)


def test_compiled_programs_are_kept_where_jax_or_elmojax_was_told(
    tmp_path, monkeypatch
):
    told: dict[str, Any] = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.setenv("ELMOJAX_CACHE", str(tmp_path))
    keep_compiled_programs()
    assert not told  # the tests have set JAX_COMPILATION_CACHE_DIR
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    keep_compiled_programs()
    assert told["jax_compilation_cache_dir"] == str(tmp_path / "programs")
    assert (tmp_path / "programs").is_dir()

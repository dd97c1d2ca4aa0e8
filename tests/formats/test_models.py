"""MODEL in its forms: convert both ways, verify, and training continued from one."""

import functools
import json
import shutil
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

import elmojax
from elmojax.cli import main
from elmojax.cli.pretrain import PretrainArguments, parse_recipe
from elmojax.config import (
    CharCnnConfig,
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    TrainConfig,
)
from elmojax.initialization import with_model
from elmojax.loading import open_model
from elmojax.text.corpus import Corpus
from elmojax.text.prepare import prepare
from elmojax.text.vocabulary import Vocabulary
from elmojax.training.card import command as command_of
from elmojax.training.card import model_card
from elmojax.training.record import RunRecord, create_run, fixed_fields, read_record
from tests.commands import refused
from tests.toys import drawn, tiny_params

TINY = "--model.lstm.dim 16 --model.lstm.projection 8 --rows 8 --mesh.data 1".split()


def leaves_equal(one, other):
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def status(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    return stop.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sample_lines, quick_compilation):
    folder = tmp_path_factory.mktemp("models")
    for name, count in (("train", 400), ("heldout", 60)):
        text = "\n".join(sample_lines(count, name)) + "\n"
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    data = str(folder / "data")
    main(
        ["prepare", "--text", f"{folder}/train.txt", "--min-count", "2", "--out", data]
    )
    words = f"{data}/vocabulary.txt"
    heldout = ["--text", f"{folder}/heldout.txt", "--vocabulary", words]
    main(["prepare", *heldout, "--out", f"{folder}/heldout"])
    return folder


def pretrain(folder, name, *flags):
    run = folder / name
    where = ["--data", folder / "data", "--heldout", folder / "heldout"]
    main(list(map(str, ["pretrain", *where, "--workdir", run, *flags])))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    key = "heldout_mean_perplexity"
    return run, [m[key] for m in map(json.loads, lines) if key in m]


@pytest.fixture(scope="module")
def run(folder):
    return pretrain(folder, "run", "--steps", 80, *TINY)


def test_orbax_to_hdf5_and_back_changes_no_bit(folder, run, capsys):
    files, again = folder / "files", folder / "again"
    main(["convert", str(run[0]), "--out", str(files), "--json"])
    assert json.loads(capsys.readouterr().out)["format"] == "HDF5"
    main(["convert", str(files), "--out", str(again), "--json"])
    assert json.loads(capsys.readouterr().out)["format"] == "Orbax"
    first, last = elmojax.restore(run[0]), elmojax.restore(again)
    assert leaves_equal(first, elmojax.load(files)) and leaves_equal(first, last)
    assert leaves_equal(open_model(run[0]).head, open_model(again).head)
    scores = []
    for model in (run[0], files, again):
        main(["evaluate", str(model), "--data", f"{folder}/heldout", "--json"])
        scores.append(json.loads(capsys.readouterr().out)["forward_perplexity"])
    assert scores[0] == scores[1] == scores[2]
    assert status("convert", run[0], "--out", files) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_softmax_whose_special_words_stand_elsewhere_scores_the_same(tmp_path):
    """bilm-tf finds them anywhere; its rows are put in our order as it is read."""
    words = ("<S>", "</S>", "<UNK>", "the", "river", "bank")
    params = tiny_params()
    shapes = {"kernel": np.zeros((6, params.config.lstm.projection))}
    head = drawn(shapes | {"bias": np.zeros(6)}, seed=3)
    elmojax.save_hdf5(params, tmp_path / "ours", head, Vocabulary(words))
    order = np.array([3, 1, 0, 4, 2, 5])  # of our rows in their file
    theirs = {name: leaf[order] for name, leaf in head.items()}
    elmojax.save_hdf5(params, tmp_path / "theirs", theirs)
    listed = "".join(f"{words[number]}\n" for number in order)
    (tmp_path / "theirs/vocabulary.txt").write_text(listed + "!!!MAXTERMID\n")
    text = [["the", "river", "bank"], ["a", "bank"], []]
    ours, found = (elmojax.score(tmp_path / name, text) for name in ("ours", "theirs"))
    for one, other in zip(ours, found, strict=True):
        np.testing.assert_array_equal(one.forward, other.forward)
        np.testing.assert_array_equal(one.backward, other.backward)
    cut = {"down_0": np.zeros((6, 2)), "up_0": np.zeros((2, 2))}
    clusters = {"kernel": head["kernel"][:5], "bias": head["bias"][:5], **cut}
    elmojax.save_hdf5(params, tmp_path / "theirs", clusters, overwrite=True)
    (tmp_path / "theirs/vocabulary.txt").write_text(listed)
    with pytest.raises(elmojax.InputError, match="only a full softmax"):
        elmojax.score(tmp_path / "theirs", text)


def test_half_the_size_keeps_three_digits(folder, run, tmp_path, capsys):
    """In float16; a model that has numbers beyond it is refused as a whole."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    main(["convert", str(run[0]), "--out", str(whole)])
    main(["convert", str(run[0]), "--out", str(half), "--dtype", "float16"])
    for one, other in zip(
        *(jax.tree.leaves(open_model(path).params) for path in (whole, half)),
        strict=True,
    ):
        assert other.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(one, np.float16), other)
    sizes = [(path / "weights.hdf5").stat().st_size for path in (half, whole)]
    assert sizes[0] < 0.7 * sizes[1]
    main(["verify", str(half)])
    out = tmp_path / "out"
    assert status("convert", half, "--out", out, "--dtype", "float16") == 2
    assert "leave --dtype float16 out" in capsys.readouterr().err and not out.exists()
    large = jax.tree.map(lambda leaf: leaf + 1e5, elmojax.load(half))
    with pytest.raises(elmojax.InputError, match="beyond float16"):
        elmojax.save_hdf5(large, out, dtype="float16")
    assert not out.exists()


def test_a_run_has_a_card_that_goes_with_its_model(folder, run, tmp_path):
    """Numbers are those of the run; places of this machine are not named."""
    directory, perplexities = run
    card = (directory / "card.md").read_text(encoding="utf-8")
    assert card == model_card(directory)
    assert f"| {perplexities[-1]:,.1f} |" in card
    assert "80 steps of 8 x 20 tokens: 12,800 tokens |" in card
    leaves = jax.tree.leaves(elmojax.restore(directory))
    assert f"{sum(leaf.size for leaf in leaves):,}, and" in card
    words = Corpus.open(folder / "data").info["tokens"]
    assert f"{words:,} words" in card and "licence was not said" in card
    assert str(folder) not in card
    main(["convert", str(directory), "--out", str(tmp_path / "files")])
    assert (tmp_path / "files/card.md").read_text(encoding="utf-8") == card
    more = model_card(directory, {"news": {"mean_perplexity": 1234.56}})
    assert "| news | - | - | 1,234.6 | - | - | - |" in more


def test_the_command_of_a_card_makes_the_same_run(run):
    """All that its configuration says, but places, comes back."""
    config = read_record(run[0]).train
    argv = command_of(config).split()[2:]
    again = parse_recipe(PretrainArguments, "pretrain", argv)[0].train_config()
    assert fixed_fields(again) == fixed_fields(config)


def test_the_card_says_where_the_text_comes_from(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a river bank\n" * 300)
    says = "Rivers of the World, CC BY 4.0, https://rivers.example"
    prepare(tmp_path / "c", patterns=[str(text)], about=[says])
    config = TrainConfig(data=tmp_path / "c", workdir=tmp_path / "run")
    record = RunRecord(train=config, corpus="", vocabulary=6)
    create_run(config.workdir, record, None)
    assert f"- {says}" in model_card(config.workdir)
    shutil.rmtree(tmp_path / "c")
    assert "not there any more" in model_card(config.workdir)


def test_a_model_without_a_softmax_converts_and_says_what_it_cannot_do(
    folder, tmp_path, capsys
):
    config = ElmoConfig(CharCnnConfig(((1, 4), (2, 4)), 4, 1), LstmConfig(12, 6))
    params = elmojax.init(config, jax.random.key(0))
    elmojax.save_hdf5(params, tmp_path / "files")
    main(["convert", str(tmp_path / "files"), "--out", str(tmp_path / "run")])
    assert leaves_equal(elmojax.restore(tmp_path / "run"), params)
    data = folder / "heldout"
    assert status("evaluate", tmp_path / "run", "--data", data) == 2
    assert "has no softmax" in capsys.readouterr().err
    warm = elmojax.warm(params)
    elmojax.save_hdf5(warm, tmp_path / "warm")
    out = tmp_path / "lost"
    assert status("convert", tmp_path / "warm", "--out", out) == 2
    assert "initial state" in capsys.readouterr().err and not out.exists()


def test_verify_lists_arrays_and_finds_what_is_wrong(folder, run, tmp_path, capsys):
    files = tmp_path / "files"
    main(["convert", str(run[0]), "--out", str(files)])
    capsys.readouterr()
    main(["verify", str(files), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["wrong"] == 0
    names = {array["name"] for array in report["arrays"]}
    assert {"char_embed", "CNN_proj/W_proj"} <= names
    main(["verify", str(run[0])])
    assert "lstm.kernel_1" in capsys.readouterr().out
    with h5py.File(files / "weights.hdf5", "a") as file:
        del file["CNN_proj/b_proj"]
        file["char_embed"][3, 3] = np.nan
        file["CNN/more"] = np.zeros(3, np.float32)
    assert status("verify", files) == 2
    out, err = capsys.readouterr()
    assert "3 of" in err
    for name, state in (
        ("CNN_proj/b_proj", "missing"),
        ("char_embed", "not finite"),
        ("CNN/more", "superfluous"),
    ):
        assert any(name in line and state in line for line in out.splitlines())


@pytest.mark.slow
def test_verify_compares_vectors_of_others(folder, run, tmp_path, capsys):
    text = folder / "heldout.txt"
    out = tmp_path / "vectors.hdf5"
    main(["embed", str(run[0]), "--text", str(text), "--out", str(out)])
    capsys.readouterr()
    flags = ["--against", str(out), "--text", str(text), "--no-carry", "--json"]
    main(["verify", str(run[0]), *flags])
    layers = json.loads(capsys.readouterr().out)["differences"]
    assert len(layers) == 3 and max(layer["largest"] for layer in layers) < 1e-5
    assert status("verify", run[0], "--against", out) == 2


@pytest.mark.slow
def test_training_goes_on_from_another_models_weights(folder, run, tmp_path, capsys):
    """The same vocabulary keeps the softmax; HDF5 alone gets a new one, and ends below
    what the same steps reach from scratch."""
    _, scratch = pretrain(folder, "scratch", "--steps", 40, *TINY)
    _, kept = pretrain(folder, "kept", "--steps", 4, "--rows", 8, "--init-from", run[0])
    assert "with its softmax" in capsys.readouterr().err
    assert kept[0] == pytest.approx(run[1][-1], rel=1e-5)
    body = tmp_path / "body"
    elmojax.save_hdf5(elmojax.restore(run[0]), body)
    flags = ["--init-from", body, "--freeze-steps", 10, "--steps", 40, "--rows", 8]
    _, fresh = pretrain(folder, "fresh", *flags)
    assert "with a new softmax" in capsys.readouterr().err
    assert fresh[-1] < scratch[-1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--encoder", "words"], "reads characters, and its weights fit no --encoder"),
        (["--model.lstm.layers", "3"], "--model.lstm.layers is not for a run that"),
        (["--model.lstm.dim=16"], "--model.lstm.dim is not for a run that starts"),
        (
            ["--config", "mine.json"],
            "is to have model.encoder.filters = ((1, 8),), and",
        ),
    ],
)
def test_the_shape_is_that_of_the_model(
    small, goldens, tmp_path, monkeypatch, flags, says
):
    monkeypatch.chdir(tmp_path)
    mine = {"model": {"encoder": {"filters": [[1, 8]]}, "lstm": {"dim": 24}}}
    Path("mine.json").write_text(json.dumps(mine))
    start = ["--data", small, "--workdir", "run", "--init-from", goldens / "allennlp"]
    refused("pretrain", *start, *flags, says=says)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json"]


def test_a_softmax_that_is_kept_is_the_one_that_was_asked_for(small, tmp_path):
    vocabulary = Corpus.open(small).vocabulary
    model = elmojax.init(ElmoConfig.preset("mini"), jax.random.key(0))
    head = {"kernel": np.zeros((len(vocabulary), 64), np.float32)}
    elmojax.save_hdf5(model, tmp_path / "model", head, vocabulary)
    config = TrainConfig(small, tmp_path / "run", init_from=str(tmp_path / "model"))
    assert with_model(config)[0].head.kind == "full"
    with pytest.raises(elmojax.InputError, match=r"have head\.kind = sampled, and .*"):
        with_model(replace(config, head=HeadConfig("sampled")))


@pytest.fixture
def small(tmp_path_factory):
    """A prepared corpus of a few words."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "text.txt").write_text("the river bank\nthe bank\n")
    prepare(folder / "data", patterns=[folder / "text.txt"])
    return folder / "data"


def test_a_model_goes_by_many_names(goldens, tmp_path):
    """Files under their published names, by address, and checkpoints of bilm-tf."""
    source = goldens / "allennlp"
    files = source / "options.json", source / "lm_weights.hdf5"
    params = elmojax.load_hdf5(*files)
    named = tmp_path / "named"
    named.mkdir()
    for file, name in zip(
        files, ("elmo_options.json", "elmo_weights.hdf5"), strict=True
    ):
        shutil.copy(file, named / name)
    assert leaves_equal(elmojax.load(named), params)
    checkpoint = (
        Path(__file__).parents[1] / "data" / "bilm_tf_checkpoint" / "characters"
    )
    prefix = next(checkpoint.glob("*.index")).with_suffix("")
    assert leaves_equal(elmojax.load(checkpoint), elmojax.load(prefix))
    assert open_model(checkpoint).head is not None


def test_a_model_comes_from_an_address(goldens, tmp_path, monkeypatch):
    """A server on this machine stands for one with published files."""
    monkeypatch.setenv("ELMOJAX_CACHE", str(tmp_path / "cache"))
    source = goldens / "allennlp"
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(source / "options.json", site / "options.json")
    shutil.copy(source / "lm_weights.hdf5", site / "weights.hdf5")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            params = elmojax.load(f"{address}/options.json")
            with pytest.raises(elmojax.InputError, match="404"):
                elmojax.load(f"{address}/nothing/options.json")
            with pytest.raises(elmojax.InputError, match="SHA-256"):
                elmojax.load(f"{address}/weights.hdf5#sha256={'0' * 64}")
        finally:
            server.shutdown()
    wanted = elmojax.load_hdf5(source / "options.json", source / "lm_weights.hdf5")
    assert leaves_equal(params, wanted)


def test_what_is_no_model_is_one_sentence(tmp_path, folder, capsys):
    (tmp_path / "options.json").write_text("{}")
    shutil.copy(folder / "train.txt", tmp_path / "weights.hdf5")
    for model in (tmp_path, tmp_path / "nothing", folder / "train.txt"):
        for command in (["verify", model], ["convert", model, "--out", "x"]):
            assert status(*command) == 2
            assert "Traceback" not in capsys.readouterr().err

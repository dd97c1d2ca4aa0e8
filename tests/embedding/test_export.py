"""`elmojax export`: one file that runs with JAX alone and gives the same vectors."""

from __future__ import annotations

import json
import math
import resource
import runpy
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from toys import TINY, tiny_params

import elmojax
from elmojax import ElmoConfig, InputError
from elmojax.cli import main
from elmojax.config import WordTableConfig, from_json
from elmojax.embedding.export import export_programs, write_export
from elmojax.embedding.words import WordIndex
from elmojax.text.vocabulary import SPECIALS, Vocabulary

pytest.importorskip("flatbuffers", reason="JAX needs it to write programs")
pytestmark = pytest.mark.usefixtures("quick_compilation")

LOADER = REPOSITORY / "experiments" / "load_exported.py"
COLUMNS = TINY.encoder.max_characters
GAMMAS, BIAS = np.array([0.2, -0.5, 1.1], np.float32), np.float32(0.25)
BATCH = [
    ["The", "river", "bank", "."],
    ["日本", "", "<S>", "a word that is cut"],
    ["</S>", "\udc80x"],
]


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def file(params, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model.elmo"
    write_export(params, out, version="7")
    return out


@pytest.fixture(scope="module")
def loader():
    return SimpleNamespace(**runpy.run_path(str(LOADER)))


WITHOUT_ELMOJAX = """
import runpy, sys
import numpy as np
sys.modules["elmojax"] = None
script, file, batch, out = sys.argv[1:]
loader = runpy.run_path(script)
model, batch = loader["load"](file), eval(batch)
gammas, bias = np.array([0.2, -0.5, 1.1], np.float32), np.float32(0.25)
for rows in (1, 3):
    tokens = loader["character_ids"](batch[:rows], 12)
    vectors = model.embed(model.weights, tokens, gammas, bias)
    np.savez(f"{out}/{rows}", tokens=tokens, vectors=vectors)
sys.argv = [script, file, "The river bank ."]
runpy.run_path(script, run_name="__main__")
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"flax", "optax"}))
"""


def test_the_loader_script_without_elmojax(params, file, tmp_path):
    command = [sys.executable, "-c", WITHOUT_ELMOJAX]
    command += [str(LOADER), str(file), repr(BATCH), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    for rows in (1, 3):
        got = np.load(tmp_path / f"{rows}.npz")
        tokens = elmojax.batch_to_ids(BATCH[:rows], COLUMNS)
        np.testing.assert_array_equal(got["tokens"], tokens)
        wanted = elmojax.embed(params, tokens, GAMMAS, BIAS)
        np.testing.assert_allclose(got["vectors"], wanted, atol=1e-6)
    shape, *lines, libraries = done.stdout.split("\n")[:-1]
    assert shape == f"(1, 4, {TINY.dim})" and libraries == ""
    tokens = elmojax.batch_to_ids(BATCH[:1], COLUMNS)
    mean = elmojax.embed(params, tokens, np.full(3, 1 / 3, np.float32))[0]
    for line, word, vector in zip(lines, BATCH[0], mean, strict=True):
        assert line.split(" ")[0] == word
        printed = np.array(line.split(" ")[1:], np.float32)
        np.testing.assert_allclose(printed, vector[:5], atol=1e-6)


@pytest.mark.usefixtures("users_compilation")
@pytest.mark.slow
def test_all_layers(params, file, loader):
    model = loader.load(str(file))
    for time in (1, 4, 9):
        tokens = np.zeros((3, time, COLUMNS), np.int32)
        tokens[:, :4] = elmojax.batch_to_ids(BATCH, COLUMNS)[:, :time]
        got = model.layers(model.weights, tokens)
        wanted = elmojax.encode(params, tokens).layers
        np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.slow
def test_the_initial_state_goes_along(params, loader, tmp_path):
    warm = elmojax.warm(params)
    write_export(warm, tmp_path / "warm")
    model = loader.load(str(tmp_path / "warm"))
    tokens = elmojax.batch_to_ids(BATCH, COLUMNS)
    wanted = elmojax.encode(warm, tokens).layers
    assert np.abs(wanted - elmojax.encode(params, tokens).layers).max() > 0.01
    got = model.layers(model.weights, tokens)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_sizes_and_platforms(params):
    for name, data in export_programs(params).items():
        program = jax.export.deserialize(bytearray(data))
        assert program.platforms == ("cpu", "cuda", "tpu"), name
        assert program.nr_devices == 1
        batch, time, columns = program.in_avals[-3 if name == "embed" else -1].shape
        assert columns == COLUMNS
        for size in (batch, time):
            assert not isinstance(size, int)


def test_no_sentence_and_no_word_are_refused(file, loader):
    model = loader.load(str(file))
    for shape in ((0, 2, COLUMNS), (2, 0, COLUMNS)):
        with pytest.raises(ValueError, match=r"Expected value >= 1"):
            model.layers(model.weights, np.zeros(shape, np.int32))


def test_half_width_weights(params, loader, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params.tree)
    params = params.replace(encoder=half["encoder"], lstm=half["lstm"])
    record = write_export(params, tmp_path / "half")
    assert record["weights"]["lstm/kernel_0"]["dtype"] == "bfloat16"
    assert record["weights"]["initial_state/cell"]["dtype"] == "float32"
    model = loader.load(str(tmp_path / "half"))
    assert model.weights["lstm/kernel_0"].dtype == jnp.bfloat16
    tokens = elmojax.batch_to_ids(BATCH, COLUMNS)
    wanted = elmojax.embed(params, tokens, GAMMAS, BIAS)
    got = model.embed(model.weights, tokens, GAMMAS, BIAS)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [Vocabulary, WordIndex])
def test_a_model_that_reads_word_ids(kind, loader, tmp_path):
    words = kind((*SPECIALS, "the", "bank"))
    config = replace(TINY, encoder=WordTableConfig(5, TINY.lstm.projection))
    params = tiny_params(config)
    write_export(params, tmp_path / "words", words)
    model = loader.load(str(tmp_path / "words"))
    tokens = loader.word_ids([["the", "other", "bank"], ["bank"]], model.words)
    np.testing.assert_array_equal(tokens, [[4, 3, 5], [5, 0, 0]])
    wanted = elmojax.embed(params, tokens, GAMMAS, BIAS)
    got = model.embed(model.weights, tokens, GAMMAS, BIAS)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_the_record(params, file, tmp_path):
    with zipfile.ZipFile(file) as archive:
        record = json.loads(archive.read("config.json"))
        assert {info.compress_type for info in archive.infolist()} == {0}
        assert "words.json" not in archive.namelist()
    assert from_json(ElmoConfig, json.dumps(record["model"]), "it") == params.config
    assert (record["elmojax"], record["jax"]) == ("7", jax.__version__)
    embed = record["programs"]["embed"]
    assert embed["inputs"]["tokens"] == f"int32 [batch, time, {COLUMNS}]"
    assert embed["output"] == f"float32 [batch, time, {TINY.dim}]"
    other = write_export(tiny_params(seed=1), tmp_path / "other")
    again = write_export(params, tmp_path / "again", version="7")
    assert other["sha256"] != record["sha256"] == again["sha256"]
    data = file.read_bytes()
    assert data == (tmp_path / "again").read_bytes(), "equal models, equal files"
    assert str(REPOSITORY).encode() not in data, "where the package is installed"


def test_clips_may_be_off(loader, tmp_path):
    lstm = replace(TINY.lstm, cell_clip=math.inf, projection_clip=math.inf)
    params = tiny_params(replace(TINY, lstm=lstm))
    write_export(params, tmp_path / "out")
    model = loader.load(str(tmp_path / "out"))
    text = json.dumps(model.config["model"])
    assert from_json(ElmoConfig, text, "it") == params.config


def test_damaged_weights_are_noticed(file, loader, tmp_path):
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "bad", "w") as new:
        for name in old.namelist():
            data = bytearray(old.read(name))
            if name == "weights/lstm/bias_0.npy":
                data[-1] ^= 1
            new.writestr(name, bytes(data))
    with pytest.raises(SystemExit, match="weights are not those"):
        loader.load(str(tmp_path / "bad"))


def test_files_are_whole_or_not_there(params, tmp_path):
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InputError, match="cannot be written: File too large"):
            write_export(params, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


def test_it_replaces_only_if_asked(params, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"there already.*--overwrite"):
        write_export(params, out)
    assert out.read_text() == "mine"
    write_export(params, out, overwrite=True)
    assert zipfile.is_zipfile(out)
    with pytest.raises(InputError, match="there already"):
        write_export(params, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="no directory"):
        write_export(params, tmp_path / "no" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_flatbuffers_it_says_what_to_install(params, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(InputError, match="pip install flatbuffers"):
        write_export(params, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command(params, loader, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "out.elmo"
    elmojax.save_hdf5(params, model)
    main(["export", str(model), "--out", str(out)])
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: embed and layers for cpu, cuda, tpu; ")
    assert line.count("\n") == 1 and "load_exported.py" in line

    def refused(match, *arguments):
        with pytest.raises(SystemExit) as stop:
            main(["export", *map(str, arguments)])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert match in message and message.count("\n") == 1

    refused("there already", model, "--out", out)
    refused("no directory", model, "--out", tmp_path / "no" / "out")
    refused("no model", tmp_path / "nothing", "--out", tmp_path / "new")
    refused("leave --step out", model, "--out", tmp_path / "new", "--step", 3)
    main(["export", str(model), "--out", str(out), "--overwrite", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["out"] == str(out) and record["bytes"] == out.stat().st_size
    assert record["elmojax"] == elmojax.__version__
    tokens = elmojax.batch_to_ids(BATCH, COLUMNS)
    exported = loader.load(str(out))
    assert exported.config["sha256"] == record["sha256"]
    got = exported.embed(exported.weights, tokens, GAMMAS, BIAS)
    wanted = elmojax.embed(params, tokens, GAMMAS, BIAS)
    np.testing.assert_allclose(got, wanted, atol=1e-6)

"""Models for the Hugging Face Hub: saved, pushed and loaded, and every fault.

The Hub is `tests/hub_server.py`, on 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.flax import save_file as save_flax
from safetensors.numpy import load_file, save_file
from toys import TINY, drawn, tiny_params

import elmojax
from elmojax import InputError
from elmojax.config import LstmConfig, WordTableConfig
from elmojax.loading import FULL, Model, open_model, verify
from elmojax.text.vocabulary import Vocabulary
from elmojax.training.record import find_runs
from tests.commands import done, refused
from tests.hub_server import Hub, serving

pytestmark = pytest.mark.usefixtures("quick_compilation")

WORDS = Vocabulary(("<S>", "</S>", "<UNK>", "the", "river"))
NAMES = ["README.md", "config.json", "model.safetensors"]


def same(one, other):
    """Trees of the same arrays, bit by bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def full_model():
    """With a softmax, its words and a card."""
    shapes = {"kernel": np.zeros((5, 6)), "bias": np.zeros(5)}
    model = Model("toy", tiny_params(), WORDS, drawn(shapes, 3), FULL)
    return model._replace(card="# A river\n\nNo bank.\n")


@pytest.fixture
def saved(tmp_path):
    elmojax.save_pretrained(full_model(), tmp_path / "saved")
    return tmp_path / "saved"


# --- a directory ---------------------------------------------------------------------


def test_a_model_there_and_back(saved):
    """All that it has, bit by bit; config.json says what options.json does."""
    assert sorted(path.name for path in saved.iterdir()) == [*NAMES, "vocabulary.txt"]
    model, wanted = open_model(saved), full_model()
    same(model.params, wanted.params)
    same(dict(model.head), dict(wanted.head))
    assert (model.vocabulary, model.head_config) == (WORDS, wanted.head_config)
    assert (model.card, model.form) == (wanted.card, "safetensors")
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "elmojax"
    assert config["lstm"]["use_skip_connections"] is True
    text = (saved / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: elmojax\n") and "# A river" in text
    (score,) = elmojax.score(saved, [["the", "river"]])
    assert np.isfinite(score.forward).all()


def test_every_kind_of_model(tmp_path):
    limits = replace(TINY.lstm, cell_clip=float("inf"), skip_connections=False)
    shapes = {
        "clips": replace(TINY, lstm=limits),
        "words": replace(TINY, encoder=WordTableConfig(9, 6)),
        "square": replace(TINY, lstm=LstmConfig(6, 6, 3)),
    }
    for name, config in shapes.items():
        params = tiny_params(config)
        elmojax.save_pretrained(params, tmp_path / name)
        same(elmojax.load(tmp_path / name), params)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == NAMES
        json.loads((tmp_path / name / "config.json").read_text(), parse_constant=pytest)
    warm = elmojax.warm(tiny_params())
    elmojax.save_pretrained(warm, tmp_path / "warm")
    state = elmojax.load(tmp_path / "warm").initial_state
    np.testing.assert_array_equal(state.cell, warm.initial_state.cell)


def test_a_named_model_takes_its_softmax_and_card_along(tmp_path):
    elmojax.save_pretrained("mini", tmp_path / "mini")
    found, wanted = open_model(tmp_path / "mini"), open_model("mini")
    same(found.params, wanted.params)
    same(dict(found.head), dict(wanted.head))
    assert found.vocabulary == wanted.vocabulary and found.card == wanted.card
    assert (
        found.head_config == wanted.head_config and found.head_config.kind == "adaptive"
    )


def test_it_is_a_model_everywhere(saved, tmp_path):
    assert done("verify", saved).out.count(" ok") == len(verify(saved)[0])
    done("convert", saved, "--out", tmp_path / "run")
    same(elmojax.restore(tmp_path / "run"), elmojax.load(saved))
    assert find_runs(tmp_path) == [tmp_path / "run"], "the other is none"
    elmojax.save_pretrained(tmp_path / "run", tmp_path / "again")
    files = [path / "model.safetensors" for path in (saved, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", saved)
    same(elmojax.load(packed), elmojax.load(saved))


def test_other_numbers_are_read_as_float32(saved):
    arrays = load_file(saved / "model.safetensors")
    for dtype, digits in ((np.float16, 1e-3), (np.float64, 0), (jnp.bfloat16, 8e-3)):
        stored = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
        if dtype is np.float64:
            wide = {name: x.astype(np.float64) for name, x in arrays.items()}
            save_file(wide, saved / "model.safetensors")
        else:
            cast = {name: x.astype(dtype) for name, x in stored.items()}
            save_flax(cast, saved / "model.safetensors")
        for one, other in zip(
            *map(jax.tree.leaves, (elmojax.load(saved), tiny_params())), strict=True
        ):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, rtol=digits, atol=digits / 100)


def test_nothing_of_others_is_overwritten(saved, tmp_path):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(InputError, match="is there already"):
        elmojax.save_pretrained(tiny_params(seed=1), saved)
    assert before == {path.name: path.read_bytes() for path in saved.iterdir()}
    elmojax.save_pretrained(tiny_params(seed=1), saved, overwrite=True)
    same(elmojax.load(saved), tiny_params(seed=1))
    assert not (saved / "vocabulary.txt").exists(), "of the model before"
    done("convert", saved, "--out", tmp_path / "run")
    with pytest.raises(InputError, match="belongs to something else"):
        elmojax.save_pretrained(tiny_params(), tmp_path / "run", overwrite=True)
    same(elmojax.load(tmp_path / "run"), tiny_params(seed=1))


def test_half_a_model_never_passes_for_one(tmp_path, monkeypatch):
    broken = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), tiny_params())
    with pytest.raises(InputError, match="not finite"):
        elmojax.save_pretrained(broken, tmp_path / "a")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        elmojax.save_pretrained(tiny_params(), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        elmojax.save_pretrained(tiny_params(), tmp_path / "file" / "in")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda at: at.unlink(), "is missing, damaged or cut short"),
        (lambda at: at.write_bytes(b""), "is missing, damaged or cut short"),
        (lambda at: at.write_bytes(at.read_bytes()[:900]), "is missing, damaged"),
        (lambda at: at.write_bytes(at.read_bytes()[:-1]), "is missing, damaged"),
        (lambda at: at.write_bytes(b"\xff" * 99), "is missing, damaged"),
        (lambda at: _without(at, "char_embed"), "has no array char_embed"),
        (lambda at: _without(at, "RNN_1/RNN/MultiRNNCell/Cell1/LSTMCell/B"), "Cell1"),
        (lambda at: _with(at, char_embed=np.zeros((3, 4), "f4")), r"is \[3, 4\], but"),
        (lambda at: _with(at, char_embed=np.zeros((300, 4), "f4")), "300 different"),
        (lambda at: _with(at, char_embed=np.zeros((261, 4), int)), "floating-point"),
        (lambda at: _with(at, char_embed=np.full((261, 4), np.nan)), "not finite"),
        (lambda at: save_file({"x": np.zeros(1)}, at), "has no array char_embed"),
        (lambda at: at.with_name("config.json").unlink(), "is a model of PyTorch"),
        (lambda at: at.with_name("config.json").write_text("{"), "a model of PyTorch"),
        (lambda at: _config(at, lstm=3), "config.json: lstm in it is not an object"),
        (lambda at: _config(at, lstm=None), "has no|is not an object"),
        (lambda at: _config(at, char_cnn=None), "has no array embedding"),
    ],
)
def test_faults_of_its_files(saved, fault, says):
    fault(saved / "model.safetensors")
    with pytest.raises(InputError, match=says):
        open_model(saved)
    refused("verify", saved)


def _without(path, name):
    save_file({k: v for k, v in load_file(path).items() if k != name}, path)


def _with(path, **arrays):
    save_file(load_file(path) | arrays, path)


def _config(path, **changes):
    file = path.with_name("config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_softmax_that_does_not_fit(saved):
    _with(saved / "model.safetensors", **{"softmax/W": np.zeros((5, 7), "f4")})
    with pytest.raises(
        InputError,
        match=r"softmax/W is \[5, 7\], but .*config\.json calls for \[5, 6\]",
    ):
        open_model(saved)
    elmojax.load(saved)


@pytest.mark.parametrize("name", ["safetensors", "huggingface_hub"])
def test_without_the_library(saved, tmp_path, monkeypatch, name):
    for module in list(sys.modules):
        if module.partition(".")[0] == name:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    used = saved if name == "safetensors" else "hf://me/river"
    with pytest.raises(InputError, match=rf"{name} is needed .*'elmojax\[hub\]'"):
        elmojax.load(used)
    with pytest.raises(InputError, match="is needed"):
        if name == "safetensors":
            elmojax.save_pretrained(tiny_params(), tmp_path / "other")
        else:
            elmojax.push_to_hub(tiny_params(), "me/river")
    assert not (tmp_path / "other").exists()


# --- the Hub -------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server, and a cache of one's own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def gone(monkeypatch):
    """Nobody answers any more."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def test_pushed_and_loaded(hub: Hub, monkeypatch):
    assert (
        elmojax.push_to_hub(full_model(), "me/river", token="hf_x") == "hf://me/river"
    )
    assert "Bearer hf_x" in hub.tokens
    files = hub.repositories["me/river"]
    assert sorted(files) == [*NAMES, "vocabulary.txt"]
    assert b'load("hf://me/river")' in files["README.md"]
    hub.asked.clear()
    model, wanted = open_model("hf://me/river"), full_model()
    same(model.params, wanted.params)
    same(dict(model.head), dict(wanted.head))
    assert (model.vocabulary, model.card) == (WORDS, wanted.card)
    assert model.source == "hf://me/river"
    once = [asked for asked in hub.asked if "GET" in asked and "resolve" in asked]
    assert sum("safetensors" in asked for asked in once) == 1
    for name in ("HF://me/river", "hf://me/river@main", "hf://me/river/"):
        same(elmojax.load(name), wanted.params)
    assert [a for a in hub.asked if "GET" in a and "resolve" in a] == once
    gone(monkeypatch)
    same(elmojax.load("hf://me/river"), wanted.params)


def test_it_is_a_model_of_every_command(hub: Hub, saved, tmp_path):
    hub.add("me/river", saved)
    assert json.loads(done("verify", "hf://me/river", "--json").out)["wrong"] == 0
    done("convert", "hf://me/river", "--out", tmp_path / "run")
    same(elmojax.load(tmp_path / "run"), tiny_params())


def test_a_repository_with_the_files_of_allennlp(hub: Hub, tmp_path):
    """Beside the config.json of another library."""
    elmojax.save_hdf5(tiny_params(), tmp_path / "files")
    (tmp_path / "files/config.json").write_text('{"model_type": "bert"}')
    hub.add("you/elmo", tmp_path / "files")
    same(elmojax.load("hf://you/elmo"), tiny_params())


def test_the_model_of_another_program_is_not_downloaded(hub: Hub):
    config = b'{"model_type": "bert", "architectures": ["BertModel"]}'
    weights = {"model.safetensors": b"x" * 99, "pytorch_model.bin": b"x"}
    hub.repositories["you/bert"] = {"config.json": config, **weights}
    says = "^hf://you/bert is a Hugging Face BERT model; elmojax reads ELMo"
    with pytest.raises(InputError, match=says):
        elmojax.load("hf://you/bert")
    assert not any("safetensors" in a or ".bin" in a for a in hub.asked)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://me/other", "is not there, or not for us to see"),
        ("hf://me/river@v9", "has no such revision"),
        ("hf://river", "is no repository of the Hugging Face Hub"),
        ("hf://", "is no repository of the Hugging Face Hub"),
        ("hf://me/river/model.safetensors", "is no repository"),
        ("hf://me/river@", "is no repository"),
        ("hf://me/../river", "is no repository"),
        ("hf://-me/ri--ver", "hf://-me/ri--ver cannot be used"),
        ("hf://me/broken", "hf://me/broken/model.safetensors is missing, damaged"),
        ("hf://me/empty", "There is no model 'hf://me/empty'"),
    ],
)
def test_addresses_that_are_none(hub: Hub, saved, address, says):
    hub.add("me/river", saved)
    hub.repositories["me/empty"] = {}
    files = hub.repositories["me/river"]
    hub.repositories["me/broken"] = {**files, "model.safetensors": b"x" * 99}
    with pytest.raises(InputError, match=says):
        elmojax.load(address)
    refused("verify", address)


def test_names_that_cannot_be_pushed_to(hub: Hub):
    for name in ("river", "a/b/c", "hf://", "me/ri ver", "me/river@v1@v2"):
        with pytest.raises(InputError):
            elmojax.push_to_hub(tiny_params(), name)
    assert not hub.repositories


def test_nobody_answers(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    gone(monkeypatch)
    with pytest.raises(InputError, match=r"cannot be reached, and is not \(whole\)"):
        elmojax.load("hf://me/river")
    with pytest.raises(InputError, match="cannot be used"):
        elmojax.push_to_hub(tiny_params(), "me/river")


def test_offline_the_cache_is_enough(hub: Hub, saved, tmp_path):
    """As HF_HUB_OFFLINE says, which huggingface_hub reads as it starts; and a model of
    this machine asks nobody."""
    hub.add("me/river", saved)
    elmojax.load("hf://me/river")
    hub.asked.clear()
    code = (
        "import sys, elmojax\n"
        f"elmojax.load({str(saved)!r}); elmojax.load('mini')\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "print(elmojax.load('hf://me/river').config.lstm.dim)\n"
        "try: elmojax.load('hf://me/other')\n"
        "except elmojax.InputError as error: print(error)\n"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "8" and "hf://me/other cannot be reached" in second
    assert not hub.asked

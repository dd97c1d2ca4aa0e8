"""Modules of TF-Hub: what TensorFlow wrote and computed, and every fault.

`data/tf_hub_module` comes from experiments/peers/make_hub_module.py: bilm-tf's graph
with generated weights, exported by tensorflow_hub.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import elmojax
from elmojax import InputError
from elmojax.errors import Remark
from elmojax.formats.tf_checkpoint import load_hub_module
from elmojax.loading import open_model, verify
from tests.commands import done, refused

MODULE = Path(__file__).parents[1] / "data" / "tf_hub_module"
SENTENCES = ["the river ran past the old mill", "où est le pont ?", "日本 x"]

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def module(tmp_path):
    """A copy to be edited."""
    return Path(shutil.copytree(MODULE, tmp_path / "elmo"))


def test_the_outputs_are_those_of_tensorflow():
    params, gammas = elmojax.load(MODULE), elmojax.hub_mix(MODULE)
    found = elmojax.hub_default(params, SENTENCES, gammas=gammas)
    with np.load(MODULE / "expected.npz") as expected:
        assert set(expected) == set(found)
        for name, wanted in expected.items():
            np.testing.assert_allclose(found[name], wanted, rtol=0, atol=5e-6)
            assert np.abs(wanted).max() > 0.3, "it says something"
    words = [sentence.split() for sentence in SENTENCES]
    tokens = elmojax.hub_tokens(params, words, [7, 5, 2], gammas=gammas)
    np.testing.assert_allclose(tokens["elmo"], found["elmo"], rtol=0, atol=1e-6)


def test_the_mix_is_the_papers():
    wanted = elmojax.mix_weights([0.4, -1.0, 0.7], 1.3)
    np.testing.assert_allclose(elmojax.hub_mix(MODULE), wanted, rtol=1e-6)
    with pytest.raises(InputError, match="mini has no weights of its layers"):
        elmojax.hub_mix("mini")


def test_it_is_a_model_everywhere(module, tmp_path):
    """Verified, converted with a remark about its mix, embedded with that mix."""
    names = {array.name for array in verify(module)[0]}
    assert {"encoder.embedding", "lstm.kernel_1", "mix"} <= names
    assert done("verify", module).out.count(" ok") == len(names)
    with pytest.warns(Remark, match=r"weights of the layers .*\(0.500683 0.123467 "):
        done("convert", module, "--out", tmp_path / "run")
    for one, other in zip(
        *(jax.tree.leaves(elmojax.load(path)) for path in (module, tmp_path / "run")),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "text.txt").write_text(SENTENCES[0] + "\n")
    out = ("--text", tmp_path / "text.txt", "--layers", "mix")
    done("embed", module, *out, "--out", tmp_path / "vectors")
    vectors = np.load(tmp_path / "vectors/vectors.npy")
    with np.load(MODULE / "expected.npz") as expected:
        wanted = expected["elmo"][0]
    np.testing.assert_allclose(vectors.reshape(wanted.shape), wanted, atol=5e-6)
    refused("embed", tmp_path / "run", *out, "--out", tmp_path / "w", says="gammas")


def test_as_an_archive_and_beside_a_graph(module, tmp_path):
    (module / "saved_model.pb").write_bytes(b"\x08\x01")
    (module / "assets").mkdir()
    packed = shutil.make_archive(str(tmp_path / "elmo_3"), "gztar", module)
    assert elmojax.load(packed).config == elmojax.load(MODULE).config
    np.testing.assert_array_equal(elmojax.hub_mix(packed), elmojax.hub_mix(MODULE))


def test_options_beside_it_say_what_shapes_do_not(module):
    options = {
        "lstm": {
            "dim": 16,
            "projection_dim": 8,
            "n_layers": 2,
            "cell_clip": 0.5,
            "proj_clip": None,
        },
        "char_cnn": {
            "activation": "tanh",
            "embedding": {"dim": 4},
            "filters": [[1, 4], [2, 4], [3, 6]],
            "max_characters_per_token": 20,
            "n_highway": 2,
        },
    }
    (module / "options.json").write_text(json.dumps(options))
    config = elmojax.load(module).config
    assert config.lstm.cell_clip == 0.5 and not config.lstm.skip_connections
    assert (config.encoder.activation, config.max_characters) == ("tanh", 20)


def test_a_mix_that_is_not_carried_on_is_remarked(tmp_path):
    with pytest.warns(Remark, match="weights of the layers"):
        elmojax.save_pretrained(MODULE, tmp_path / "saved")
    assert elmojax.load(tmp_path / "saved").config == elmojax.load(MODULE).config


# --- faults --------------------------------------------------------------------------


def test_a_saved_model_of_something_else(tmp_path):
    """A checkpoint of bilm-tf has other names, as every other model has."""
    source = MODULE.parent / "bilm_tf_checkpoint" / "characters"
    (tmp_path / "variables").mkdir()
    for file in source.glob("model.ckpt-40.*"):
        name = file.name.replace("model.ckpt-40", "variables")
        shutil.copy(file, tmp_path / "variables" / name)
    says = r"SavedModel of something else than ELMo: none of its variables \('"
    with pytest.raises(InputError, match=says):
        elmojax.load(tmp_path)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda at: at.unlink(), "is a TensorFlow SavedModel|no other model"),
        (lambda at: at.write_bytes(at.read_bytes()[:700]), "was cut short"),
        (lambda at: at.write_bytes(b""), "was cut short"),
        (lambda at: next(at.parent.glob("*00-of*")).unlink(), "cannot be read"),
        (lambda at: _flip(next(at.parent.glob("*00-of*"))), "checksum"),
    ],
)
def test_files_that_are_missing_or_damaged(module, fault, says):
    fault(module / "variables" / "variables.index")
    with pytest.raises(InputError, match=says):
        open_model(module)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


@pytest.fixture
def without(monkeypatch):
    """A module of other variables: a name and an array, or None to take it out."""

    def change(name, array):
        from elmojax.formats.tf_bundle import Bundle

        read, opened = Bundle.read, Bundle.__init__

        def start(self, prefix):
            opened(self, prefix)
            if array is None:
                self.variables.pop(name, None)

        def values(self, keep):
            found = read(self, keep)
            return found if array is None else {**found, name: np.asarray(array)}

        monkeypatch.setattr(Bundle, "__init__", start)
        monkeypatch.setattr(Bundle, "read", values)

    return change


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("bilm/char_embed", None, "has no variable bilm/char_embed"),
        ("bilm/CNN/b_cnn_1", None, "has no array CNN/b_cnn_1"),
        ("bilm/CNN_proj/W_proj", np.zeros((3, 8)), r"is \[3, 8\], but"),
        ("bilm/CNN_proj/b_proj", np.full(8, np.nan), "CNN_proj/b_proj has values that"),
        ("bilm/char_embed", np.zeros((300, 4)), "300 different characters"),
        (
            "bilm/CNN/W_cnn_2",
            np.zeros((1, 3, 4, 6), int),
            "W_cnn_2 of floating-point",
        ),
        ("aggregation/weights", np.zeros(2), r"aggregation/weights is \[2\]"),
        ("aggregation/scaling", None, "has no array aggregation/scaling"),
        ("aggregation/weights", [0, np.inf, 0], "aggregation/weights has values"),
    ],
)
def test_variables_that_make_no_model(without, name, array, says):
    without(name, array)
    with pytest.raises(InputError, match=says):
        load_hub_module(MODULE)


def test_rows_of_characters_with_and_without_padding(without):
    """A module of 261 rows has none for padding."""
    wanted = elmojax.load(MODULE).encoder["embedding"]
    without("bilm/char_embed", np.asarray(wanted))
    np.testing.assert_array_equal(elmojax.load(MODULE).encoder["embedding"], wanted)


def test_a_module_without_a_mix(without):
    without("aggregation/weights", None)
    without("aggregation/scaling", None)
    assert load_hub_module(MODULE)[1] is None

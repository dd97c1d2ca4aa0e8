"""The files of bilm-tf and AllenNLP: their vectors, their shapes, every fault."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Stream, char_cnn
from toys import TINY, drawn, tiny_params

import elmojax
from elmojax import LstmState
from elmojax.config import (
    CharCnnConfig,
    ElmoConfig,
    LstmConfig,
    WordTableConfig,
    from_json,
    to_json,
)
from elmojax.embedding.embedder import Embedder
from elmojax.embedding.functions import encode
from elmojax.embedding.words import WordIndex, cache_words
from elmojax.errors import InputError
from elmojax.formats import hdf5, published
from elmojax.formats.hdf5 import load_hdf5, load_head, save_hdf5
from elmojax.formats.verify import check_hdf5, compare_embeddings
from elmojax.model import recurrence
from elmojax.model.bilm import ElmoParams
from elmojax.model.softmax import Softmax
from elmojax.text.characters import batch_to_ids, character_ids
from elmojax.text.vocabulary import SPECIALS, Vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")

BOUND = 2e-6
CELL = "RNN_{}/RNN/MultiRNNCell/Cell{}/LSTMCell"
SENTENCES = [["The", "bank"], [], ["naïve", "x" * 70, "."]]


def load(directory: Path, weights: str = "weights.hdf5") -> ElmoParams:
    return load_hdf5(directory / "options.json", directory / weights)


def same(got, wanted):
    """Trees of the same arrays, bit by bit."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


# --- what other programs computed ----------------------------------------------------


@pytest.fixture(scope="module", params=["bilm-tf", "allennlp"])
def published_model(request, goldens):
    """Folder and parameters."""
    folder = goldens / request.param
    return folder, load(folder, "lm_weights.hdf5")


@pytest.mark.slow
@pytest.mark.parametrize(
    "through", ["characters", pytest.param("words", marks=pytest.mark.slow)]
)
def test_the_embeddings_of_bilm_tf(goldens, through):
    """Ten sentences, their state carried; a file of top layers."""
    folder, index = goldens / "allennlp", None
    params = load(folder, "lm_weights.hdf5")
    file = folder / "lm_embeddings_0.hdf5"
    lines = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    text = [line.split() for line in lines]
    if through == "words":
        index = WordIndex(tuple({word for sentence in text for word in sentence}))
        params = cache_words(params, index)
    (top,) = compare_embeddings(params, text, file, vocabulary=index)
    assert top.layer == 2
    assert 0 < top.largest <= BOUND
    # Without the state of the sentences before they are other vectors.
    (top,) = compare_embeddings(params, text, file, carry=False, vocabulary=index)
    assert top.largest > 0.01
    assert top.sentence > 0


def test_published_files_there_and_back(published_model, tmp_path):
    """Every array of theirs is in our file, the same bit by bit."""
    folder, params = published_model
    save_hdf5(params, tmp_path)
    theirs = json.loads((folder / "options.json").read_text())
    assert json.loads((tmp_path / "options.json").read_text()) == theirs
    with (
        h5py.File(folder / "lm_weights.hdf5") as a,
        h5py.File(tmp_path / "weights.hdf5") as b,
        hdf5.open_hdf5(folder / "lm_weights.hdf5") as one,
        hdf5.open_hdf5(tmp_path / "weights.hdf5") as other,
    ):
        assert one.shapes == other.shapes
        for name in one.shapes:
            np.testing.assert_array_equal(a[name], b[name])
    report = check_hdf5(folder / "options.json", folder / "lm_weights.hdf5")
    assert report.good
    assert len(report.arrays) == 33
    refused = "AllenNLP refuses models without skip connections."
    assert report.notes == (() if folder.name == "allennlp" else (refused,))


# --- every shape, there and back -----------------------------------------------------

clips = st.floats(0.1, 9).map(float) | st.just(math.inf)


lstms = st.fixed_dictionaries(
    {
        "dim": st.integers(1, 5),
        "projection": st.integers(1, 5),
        "layers": st.integers(1, 8),
        "cell_clip": clips,
        "projection_clip": clips,
        "skip_connections": st.booleans(),
    }
)
cnns = st.fixed_dictionaries(
    {
        "filters": st.lists(
            st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3
        ).map(tuple),
        "embedding_dim": st.integers(1, 3),
        "highway_layers": st.integers(0, 2),
        "activation": st.sampled_from(["relu", "tanh"]),
        "max_characters": st.integers(4, 60),
        "characters": st.sampled_from([261, 262]),
    }
)
tables = st.fixed_dictionaries(
    {
        "size": st.just(6),
        "dim": st.integers(1, 7),
        "begin_row": st.integers(0, 5),
        "end_row": st.integers(0, 5),
    }
)
recipes = st.tuples(lstms, st.one_of(cnns, cnns, tables), st.booleans(), st.booleans())


def make(lstm: dict, encoder: dict, same_width: bool, project: bool) -> ElmoConfig:
    """`same_width`: the encoder is as wide as the LSTM's inputs, so that a projection
    can be left out."""
    if "size" in encoder:
        width = lstm["projection"] if same_width else encoder["dim"]
        table = WordTableConfig(**{**encoder, "dim": width})
        return ElmoConfig(table, LstmConfig(**lstm))
    cnn = CharCnnConfig(**encoder)
    if not same_width:
        return ElmoConfig(cnn, LstmConfig(**lstm))
    lstm = {**lstm, "projection": cnn.filter_count}
    return ElmoConfig(replace(cnn, project=project), LstmConfig(**lstm))


@settings(max_examples=12)
@given(
    recipes,
    st.booleans(),
    st.sampled_from([None, ((), True), ((2, 5), True), ((2, 5), False)]),
)
def test_every_shape_there_and_back(tmp_path_factory, recipe, warm, softmax):
    directory, config = tmp_path_factory.mktemp("model") / "new", make(*recipe)
    params, head = tiny_params(config), None
    if warm:
        state = drawn(params.initial_state, seed=3)
        params = replace(params, initial_state=state)
    if softmax is not None:
        model = Softmax(9, softmax[0], 2.0, softmax[1])
        hidden = jnp.zeros((1, config.lstm.projection))
        head = drawn(jax.eval_shape(model.init, jax.random.key(0), hidden)["params"])
    save_hdf5(params, directory, head)
    loaded = load(directory)
    assert loaded.config == params.config
    same(loaded, params)
    assert check_hdf5(directory / "options.json", directory / "weights.hdf5").good
    if head is not None:
        same(load_head(directory / "softmax.hdf5", config.lstm.projection), head)
    assert from_json(ElmoConfig, to_json(config), "here") == config
    names = {path.name for path in directory.iterdir()}
    expected = {"options.json", "weights.hdf5", *(["softmax.hdf5"] if head else [])}
    assert names == expected
    shutil.rmtree(directory)


@settings(max_examples=3)
@given(recipes)
def test_every_shape_has_vectors(recipe):
    """The model that a configuration describes runs, and its clips hold."""
    config = make(*recipe)
    shape = (2, 3)
    if isinstance(config.encoder, CharCnnConfig):
        shape = (2, 3, config.encoder.max_characters)
    layers = jax.jit(elmojax.encode)(
        tiny_params(config), np.ones(shape, np.int32)
    ).layers
    assert layers.shape == (2, config.lstm.layers + 1, 3, 2 * config.lstm.projection)
    assert np.isfinite(layers).all()
    assert np.abs(layers[:, 1]).max() <= config.lstm.projection_clip


# --- what only others write ----------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """A model in files, to be edited."""
    save_hdf5(tiny_params(), tmp_path / "model")
    return tmp_path / "model"


def edit_options(directory: Path, section: str, **changes) -> None:
    path = directory / "options.json"
    options = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del options[section][key]
        else:
            options[section][key] = value
    path.write_text(json.dumps(options))


def weights(directory: Path) -> h5py.File:
    return h5py.File(directory / "weights.hdf5", "r+")


def test_facts_of_tensorflow():
    assert published.FORGET_BIAS == recurrence.FORGET_BIAS
    assert published.GATES == ("i", "j", "f", "o")


def test_one_layer_as_bilm_tf_dumps_it(tmp_path):
    """dump_weights names the one cell otherwise than its own reader expects."""
    params = tiny_params(replace(TINY, lstm=replace(TINY.lstm, layers=1)))
    save_hdf5(params, tmp_path)
    with weights(tmp_path) as file:
        for direction in range(2):
            group = f"RNN_{direction}/RNN"
            file.move(f"{group}/MultiRNNCell/Cell0/LSTMCell", f"{group}/LSTMCell")
    same(load(tmp_path), params)


def test_no_projection_as_bilm_tf_has_it(tmp_path):
    """Neither of the CNN nor of the LSTM, where their widths agree."""
    cnn = replace(TINY.encoder, project=False)
    clips = {"cell_clip": 0.8, "projection_clip": math.inf}
    config = ElmoConfig(cnn, LstmConfig(dim=16, projection=16, **clips))
    params = tiny_params(config)
    identity = jnp.stack([jnp.eye(16)] * 2)
    for layer in range(2):
        params.lstm[f"projection_{layer}"] = identity
    save_hdf5(params, tmp_path)
    with weights(tmp_path) as file:
        np.testing.assert_array_equal(file["CNN_proj/W_proj"], np.eye(16))  # AllenNLP
        del file["CNN_proj"]
        for direction in range(2):
            for layer in range(2):
                del file[f"{CELL.format(direction, layer)}/W_P_0"]
    edit_options(tmp_path, "char_cnn", projection=...)
    edit_options(tmp_path, "lstm", proj_clip=0.01)  # TensorFlow does not look at it
    loaded = load(tmp_path)
    assert loaded.config == config
    same(loaded, params)


def test_a_word_model_of_bilm_tf(tmp_path):
    """No char_cnn in the options, `embedding` beside the LSTM."""
    params = tiny_params(ElmoConfig(WordTableConfig(7, 6), TINY.lstm))
    save_hdf5(params, tmp_path, vocabulary=Vocabulary((*SPECIALS, "a", "b", "c", "d")))
    options = json.loads((tmp_path / "options.json").read_text())
    assert options.pop("n_tokens_vocab") == 7
    del options["word_table"]
    (tmp_path / "options.json").write_text(json.dumps(options))
    same(load(tmp_path), params)
    assert len(Vocabulary.read(tmp_path / "vocabulary.txt")) == 7


def test_a_table_of_another_width_is_projected_for_the_others(tmp_path):
    params = tiny_params(ElmoConfig(WordTableConfig(5, 4), TINY.lstm))
    save_hdf5(params, tmp_path)
    kernel = params.encoder["projection_kernel"]
    with weights(tmp_path) as file:
        table = np.asarray(params.encoder["embedding"]) @ np.asarray(kernel)
        np.testing.assert_allclose(file["embedding"], table, atol=1e-6)


def test_small_liberties(model):
    """Other float types, further data, null for no highways or clips."""
    with weights(model) as file:
        kept = file["char_embed"][...]
        del file["char_embed"], file["CNN_high_0"]
        file["char_embed"] = kept.astype(np.float64)
        file["notes/of the owner"] = np.arange(3)
    edit_options(model, "char_cnn", n_highway=None, n_characters=...)
    edit_options(model, "lstm", cell_clip=None)
    params = load(model)
    assert params.config.encoder.highway_layers == 0
    assert params.config.lstm.cell_clip == math.inf
    np.testing.assert_array_equal(params.encoder["embedding"], kept)
    report = check_hdf5(model / "options.json", model / "weights.hdf5")
    assert [a.name for a in report.arrays if a.state != "ok"] == ["notes/of the owner"]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("layers", [1, 4, 8])
def test_deep_and_shallow_models_are_the_published_equations(tmp_path, layers, skip):
    """Through the files; catELMo's models have 2, 4 or 8 layers."""
    shape = replace(TINY.lstm, layers=layers, skip_connections=skip)
    save_hdf5(tiny_params(replace(TINY, lstm=shape)), tmp_path)
    params, words = load(tmp_path), ["the", "river", "où"]
    ids = batch_to_ids([words], TINY.encoder.max_characters)
    found = np.asarray(encode(params, jnp.asarray(ids)).layers[0])
    marked = character_ids(["<S>", *words, "</S>"], TINY.encoder.max_characters)
    x = char_cnn(params.encoder, marked, (1, 2, 3), "relu")
    forward, backward = (Stream(params.lstm, shape, way) for way in range(2))
    ahead = np.stack([forward.read(v) for v in x])
    back = np.stack([backward.read(v) for v in x[::-1]])[::-1]
    both = np.concatenate([ahead, back], axis=-1)[1:-1]
    wanted = [np.concatenate([x, x], axis=-1)[1:-1], *both.swapaxes(0, 1)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


def test_options_as_files_of_others_have_them(model):
    """Keys of training, a string for true, the projection as an object, no word of
    skip connections (then there are none)."""
    wanted = load(model)
    edit_options(model, "lstm", use_skip_connections="true")
    edit_options(model, "char_cnn", projection={"dim": TINY.lstm.projection})
    content = json.loads((model / "options.json").read_text())
    content |= {"n_epochs": 10, "dropout": 0.1, "all_clip_norm_val": 10.0}
    (model / "options.json").write_text(json.dumps(content))
    same(load(model), wanted)
    assert load(model).config == wanted.config
    edit_options(model, "char_cnn", projection={"dim": 7})
    with pytest.raises(InputError, match=r"projection\.dim is 7; it must be lstm"):
        load(model)
    edit_options(model, "char_cnn", projection=None)
    edit_options(model, "lstm", use_skip_connections=...)
    assert not load(model).config.lstm.skip_connections
    edit_options(model, "lstm", use_skip_connections="false")
    with pytest.raises(InputError, match="use_skip_connections is 'false'; it must be"):
        load(model)


@pytest.mark.parametrize("told", [True, False])
def test_characters_that_are_no_bytes_are_refused(model, told):
    """Models of Unicode characters: 256,000 in the wild, a few here."""
    with weights(model) as file:
        if not told:
            del file["char_embed"]
            file["char_embed"] = np.zeros((300, 4), np.float32)
    edit_options(model, "char_cnn", n_characters=256_000 if told else 262)
    says = f"{256_000 if told else 300} different characters.*UTF-8 bytes"
    with pytest.raises(InputError, match=says):
        load(model)
    with pytest.raises(InputError, match=says):
        check_hdf5(model / "options.json", model / "weights.hdf5")


# --- faults --------------------------------------------------------------------------

OPTIONS_FAULTS = {
    "lstm": ["dim", "projection_dim", "n_layers", "cell_clip", "proj_clip"],
    "char_cnn": ["filters", "activation", "embedding", "max_characters_per_token"],
}


@pytest.mark.parametrize(
    ("section", "key"),
    [(section, key) for section, keys in OPTIONS_FAULTS.items() for key in keys]
    + [("lstm", "use_skip_connections")],
)
def test_missing_and_senseless_keys(model, section, key):
    missing = () if key == "use_skip_connections" else (...,)
    for value in (*missing, "much", -3, [], {"dim": 0}):
        edit_options(model, section, **{key: value})
        with pytest.raises(InputError, match=rf"options\.json.*{section}\.{key}"):
            load(model)
        edit_options(model, section, **{key: None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[1]", "is not an object"),
        ("{}", "has no lstm"),
        ('{"lstm": 3}', "lstm in it is not an object"),
        (b"\x89HDF\r\n", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_options_that_are_none(model, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    (model / "options.json").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        load(model)
    assert "options.json" in str(caught.value)


def _nan(file):
    file["CNN/b_cnn_1"][2] = np.nan


def _infinite(file):
    file[f"{CELL.format(1, 0)}/W_0"][2, 3] = np.inf


def _group(file):
    del file["CNN/W_cnn_0"]
    file["CNN/W_cnn_0/deeper"] = np.zeros(5, np.float32)


def _delete(name):
    def fault(file):
        del file[name]

    return fault


def _put(name, value):
    def fault(file):
        if name in file:
            del file[name]
        file[name] = value

    return fault


@pytest.mark.parametrize(
    ("fault", "name", "state"),
    [
        (_nan, "CNN/b_cnn_1", "not finite"),
        (_infinite, f"{CELL.format(1, 0)}/W_0", "not finite"),
        (_delete("char_embed"), "char_embed", "missing"),
        (_delete("CNN_proj/b_proj"), "CNN_proj/b_proj", "missing"),
        (_delete(f"{CELL.format(0, 1)}/B"), f"{CELL.format(0, 1)}/B", "missing"),
        (_delete("RNN_1"), f"{CELL.format(1, 0)}/W_0", "missing"),
        (_put("char_embed", np.zeros((100, 4), "f")), "char_embed", "wrong shape"),
        (_put("char_embed", np.zeros(5, "f")), "char_embed", "wrong shape"),
        (_put("char_embed", "text"), "char_embed", "not floating point"),
        (_group, "CNN/W_cnn_0", "missing"),
        (_put("CNN/b_cnn_0", np.zeros((4, 1), "f")), "CNN/b_cnn_0", "wrong shape"),
        (_put("CNN_high_1/b_carry", np.zeros(16, "f")), "CNN_high_1", "superfluous"),
        (_put("CNN/W_cnn_3", np.zeros(16, "f")), "CNN/W_cnn_3", "superfluous"),
        (
            _put(f"{CELL.format(0, 2)}/B", np.zeros(16, "f")),
            CELL.format(0, 2),
            "superfluous",
        ),
    ],
)
def test_faults_of_arrays(model, fault, name, state):
    with weights(model) as file:
        fault(file)
    with pytest.raises(InputError) as caught:
        load(model)
    assert "weights.hdf5" in str(caught.value)
    assert name in str(caught.value)
    report = check_hdf5(model / "options.json", model / "weights.hdf5")
    assert not report.good
    (array, *_) = [array for array in report.arrays if array.state != "ok"]
    assert array.name.startswith(name)
    assert array.state == state


def test_weights_of_another_model(model, tmp_path):
    other = ElmoConfig(replace(TINY.encoder, highway_layers=2), TINY.lstm)
    save_hdf5(tiny_params(other), tmp_path / "other")
    message = "CNN_high_1/.*options.json has no such part. Do all files belong"
    with pytest.raises(InputError, match=message):
        load_hdf5(model / "options.json", tmp_path / "other" / "weights.hdf5")
    save_hdf5(
        tiny_params(ElmoConfig(WordTableConfig(4, 6), TINY.lstm)), tmp_path / "words"
    )
    with pytest.raises(InputError, match="has no array char_embed"):
        load_hdf5(model / "options.json", tmp_path / "words" / "weights.hdf5")
    with pytest.raises(InputError, match="has no array embedding"):
        load_hdf5(tmp_path / "words" / "options.json", model / "weights.hdf5")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an HDF5 file but empty"),
        (b"The river bank .\n", "is not an HDF5 file but text"),
        (b"<html>404</html>", "is not an HDF5 file but text"),
        (b"\x80\x00\x01\xff", "is not an HDF5 file but something else"),
    ],
)
def test_files_that_are_not_hdf5(model, data, message):
    (model / "weights.hdf5").write_bytes(data)
    with pytest.raises(InputError, match=message):
        load(model)


def test_missing_files(model):
    with pytest.raises(InputError, match=r"none\.hdf5 cannot be read: No such file"):
        load(model, "none.hdf5")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_hdf5(model / "options.json", model)
    (model / "options.json").unlink()
    with pytest.raises(InputError, match=r"options\.json cannot be read: No such file"):
        load(model)


def test_files_cut_short_and_damaged(model):
    """Never another model: an error, or the same numbers."""
    path = model / "weights.hdf5"
    whole, params = path.read_bytes(), load(model)
    for size in range(9, len(whole), len(whole) // 12):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"weights\.hdf5 is damaged or cut short"):
            load(model)
    random = np.random.default_rng(0)
    for _ in range(20):  # of the bytes that are not numbers
        damaged = bytearray(whole)
        damaged[int(random.integers(0, 2048))] ^= 0x55
        path.write_bytes(damaged)
        try:
            assert load(model).config == params.config
        except InputError as error:
            assert "weights.hdf5" in str(error)


@pytest.mark.parametrize("kind", ["external storage", "external link", "virtual"])
def test_arrays_of_other_files_are_not_read(model, tmp_path, kind):
    """A file that was downloaded could show what else lies on this machine."""
    name, other = "CNN_proj/b_proj", tmp_path / "other"
    with weights(model) as file:
        values = file[name][:]
        del file[name]
        if kind == "external storage":
            other.write_bytes(values.tobytes())
            where = [(str(other), 0, values.nbytes)]
            file.create_dataset(name, values.shape, values.dtype, external=where)
        else:
            with h5py.File(other, "w") as elsewhere:
                elsewhere["b"] = values
            if kind == "external link":
                file[name] = h5py.ExternalLink(str(other), "b")
            else:
                layout = h5py.VirtualLayout(values.shape, values.dtype)
                layout[:] = h5py.VirtualSource(str(other), "b", values.shape)
                file.create_virtual_dataset(name, layout)
    for read in (load, lambda model: check_hdf5(*map(model.joinpath, files(model)))):
        with pytest.raises(InputError, match=rf"5: {name} lies in another file"):
            read(model)


def test_a_soft_link_beside_the_arrays_is_no_harm(model):
    with weights(model) as file:
        file["of_this_file"] = h5py.SoftLink("/CNN_proj/b_proj")
        file["of_none"] = h5py.SoftLink("/nowhere")
    load(model)


# --- writing -------------------------------------------------------------------------


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


def test_nothing_is_overwritten_silently(tmp_path):
    params, head = tiny_params(), {"kernel": jnp.ones((3, 6)), "bias": jnp.ones(3)}
    save_hdf5(params, tmp_path, head, Vocabulary((*SPECIALS, "a")))
    assert len(files(tmp_path)) == 4
    other = tiny_params(seed=1)
    with pytest.raises(InputError, match=r"options\.json is there already"):
        save_hdf5(other, tmp_path)
    same(load(tmp_path), params)
    save_hdf5(other, tmp_path, overwrite=True)
    same(load(tmp_path), other)
    # The softmax and the vocabulary were those of the model that is gone.
    assert files(tmp_path) == ["options.json", "weights.hdf5"]


def test_half_a_model_never_passes_for_one(tmp_path, monkeypatch):
    params = tiny_params()
    broken = {**params.lstm, "bias_1": params.lstm["bias_1"] * jnp.nan}
    with pytest.raises(
        InputError, match=r"Cell1/LSTMCell/B has values that are not fin"
    ):
        save_hdf5(replace(params, lstm=broken), tmp_path)
    assert files(tmp_path) == []

    def full(*_):
        raise OSError(28, "No space left on device")

    save_hdf5(params, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "write_arrays", full)
        with pytest.raises(InputError, match="cannot be written: No space left"):
            save_hdf5(tiny_params(seed=1), tmp_path, overwrite=True)
    same(load(tmp_path), params)

    moved = []

    def move(source, target):
        if moved:
            raise OSError(5, "Input/output error")
        moved.append(target)
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(hdf5.os, "replace", move)
        with pytest.raises(InputError, match="Input/output error"):
            save_hdf5(tiny_params(seed=1), tmp_path, overwrite=True)
    assert files(tmp_path) == ["weights.hdf5"]  # without options it is no model


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_hdf5(tiny_params(), tmp_path / "file" / "model")


def test_a_state_for_one_batch_is_not_saved(tmp_path):
    params = tiny_params()
    state = drawn(LstmState.zeros(TINY.lstm, 3))
    with pytest.raises(InputError, match="initial_state is that of a batch"):
        save_hdf5(replace(params, initial_state=state), tmp_path)


def test_half_width_parameters_are_saved_in_float32(tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_params())
    save_hdf5(half, tmp_path)
    same(load(tmp_path), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half))


def test_softmax_files_that_do_not_fit(tmp_path):
    head = {"kernel": jnp.ones((3, 6)), "bias": jnp.ones(3)}
    save_hdf5(tiny_params(), tmp_path, head)
    file = tmp_path / "softmax.hdf5"
    with h5py.File(file) as written:  # as the published softmax files have it
        assert set(written["softmax"]) == {"W", "b"}
    says = r"softmax\.hdf5: softmax/W is \[3, 6\], but a projection of 8 calls for"
    with pytest.raises(InputError, match=says):
        load_head(file, 8)
    with pytest.raises(InputError, match=r"weights\.hdf5 has no array softmax/W"):
        load_head(tmp_path / "weights.hdf5", 6)
    with h5py.File(file, "r+") as edited:
        del edited["softmax/b"]
        edited["softmax/b"] = np.zeros(4, np.float32)
    with pytest.raises(InputError, match="softmax/W has 3 rows and softmax/b 4"):
        load_head(file, 6)


# --- comparing -----------------------------------------------------------------------


def _write_vectors(path, params):
    with h5py.File(path, "w") as file:
        for line, layers in enumerate(Embedder(params).embed_sentences(SENTENCES)):
            file[str(line)] = layers


def test_comparison_with_files_of_ours(tmp_path):
    params, path = tiny_params(), tmp_path / "vectors.hdf5"
    _write_vectors(path, params)
    differences = compare_embeddings(params, SENTENCES, path, carry=False)
    assert [d.layer for d in differences] == [0, 1, 2]
    assert all(d.largest < 1e-6 for d in differences)
    with h5py.File(path, "r+") as file:
        file["2"][1, 2, 5] += 0.5
    differences = compare_embeddings(params, SENTENCES, path, carry=False)
    assert differences[1][2:] == (2, 2)
    assert abs(differences[1].largest - 0.5) < 1e-5
    with h5py.File(path, "r+") as file:  # the top layer alone
        for key in ("0", "1", "2"):
            top = file[key][-1]
            del file[key]
            file[key] = top
    (only,) = compare_embeddings(params, SENTENCES, path, carry=False)
    assert only.layer == 2
    assert only.largest < 1e-6


def test_comparisons_that_make_no_sense(tmp_path):
    params, path = tiny_params(), tmp_path / "vectors.hdf5"
    _write_vectors(path, params)
    with pytest.raises(InputError, match="has no vectors of line 3"):
        compare_embeddings(params, [*SENTENCES, ["more"]], path)
    with pytest.raises(InputError, match="more lines than the 2 of the text"):
        compare_embeddings(params, SENTENCES[:2], path)
    with pytest.raises(InputError, match=r"line 0 has vectors of shape \[3, 2, 12\]"):
        compare_embeddings(params, [["one"], *SENTENCES[1:]], path)
    words = cache_words(params, ["The"])
    with pytest.raises(InputError, match="its vocabulary is needed"):
        compare_embeddings(words, SENTENCES, path)


def test_who_else_reads_a_model(tmp_path):
    """Every peculiarity is a note; none of them is a fault."""
    lstm = LstmConfig(dim=8, projection=16, layers=9)
    odd = ElmoConfig(replace(TINY.encoder, characters=262), lstm)
    save_hdf5(tiny_params(odd), tmp_path)
    edit_options(tmp_path, "char_cnn", n_characters=261)
    report = check_hdf5(tmp_path / "options.json", tmp_path / "weights.hdf5")
    assert report.good
    parts = (
        "8 layers",
        "dim is less",
        "CNN_proj out",
        "262 rows",
        "50 only",
        "to be 262",
    )
    assert len(report.notes) == len(parts)
    for note, part in zip(report.notes, parts, strict=True):
        assert part in note

"""Models of ELMoForManyLangs: their vectors are those of its own program.

`data/manylangs` comes from experiments/peers/make_manylangs.py: a model that the
modules of elmoformanylangs made, and what its `Embedder` says. Its clips act, and its
sentences have unknown words and characters, U+3000, words of more characters than it
reads, and its own marks.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elmojax
from elmojax.cli.embed import Arguments
from elmojax.config import (
    CHARACTER_MARKS,
    WORD_MARKS,
    ElmoConfig,
    LstmConfig,
    UnicodeCnnConfig,
    from_json,
    to_json,
)
from elmojax.errors import InputError
from elmojax.formats.manylangs import SHAPE
from elmojax.model.bilm import ElmoParams
from elmojax.text.characters import unicode_rows
from elmojax.vectors.jobs import Job
from tests.commands import answer, done, refused

pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = Path(__file__).parents[1] / "data" / "manylangs"
SENTENCES = json.loads((DATA / "sentences.json").read_text("utf-8"))
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(DATA / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def params() -> ElmoParams:
    return elmojax.load(DATA / "legacy")


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    """A copy to be changed."""
    shutil.copytree(DATA, tmp_path / "models")
    yield tmp_path / "models" / "legacy"


def encoder_of(params: ElmoParams) -> UnicodeCnnConfig:
    assert isinstance(params.config.encoder, UnicodeCnnConfig)
    return params.config.encoder


# The same vectors


def close(ours: Any, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", ["legacy", "zip"])
def test_vectors(
    form: str, expected: dict[str, np.ndarray], users_compilation: None
) -> None:
    embedder = elmojax.Embedder(elmojax.load(DATA / form))
    found = list(embedder.embed_sentences(SENTENCES))
    for number, vectors in enumerate(found):
        close(vectors, expected[f"s{number}"])
    for number in reversed(range(len(SENTENCES))):  # whatever came before
        close(embedder.embed_sentence(SENTENCES[number]), expected[f"s{number}"])


def test_pure_functions(params: ElmoParams, expected: dict[str, np.ndarray]) -> None:
    tokens = elmojax.unicode_ids(encoder_of(params), SENTENCES)
    layers, mask, _ = elmojax.encode(params, tokens)
    mixed = jax.jit(elmojax.embed)(params, tokens, [0.5, 0.25, -1.0])
    for number, sentence in enumerate(SENTENCES):
        close(layers[number, :, : len(sentence)], expected[f"s{number}"])
        mix = np.einsum("l,ltd->td", [0.5, 0.25, -1.0], expected[f"s{number}"])
        close(mixed[number, : len(sentence)], mix)
    assert mask.sum(axis=1).tolist() == [len(sentence) for sentence in SENTENCES]
    words = tokens[:2, :3]
    slopes = jax.grad(lambda p: elmojax.encode_words(p, words).sum())(params).encoder
    assert all(np.any(leaf) for leaf in jax.tree.leaves(slopes))


def test_state_that_is_carried(
    params: ElmoParams, expected: dict[str, np.ndarray]
) -> None:
    """As its program does with batches of one sentence."""
    tokens = elmojax.unicode_ids(encoder_of(params), SENTENCES)
    state = params.initial_state.for_batch(1)
    for number, sentence in enumerate(SENTENCES):
        here = tokens[number : number + 1]
        layers, _, state = elmojax.encode(params, here, state)
        close(layers[0, :, : len(sentence)], expected[f"c{number}"])
    start = elmojax.warm(params)
    assert np.any(start.initial_state.cell)


def test_layers_as_they_are_numbered(
    expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    lines = [sentence for sentence in SENTENCES[:4] if " " not in sentence]
    text.write_text("\n".join(map(" ".join, lines)) + "\n\n", "utf-8")
    wanted: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        -2: lambda layers: layers,
        -1: lambda layers: np.average(layers, axis=0),
        2: lambda layers: layers[2],
    }
    for layer, choose in wanted.items():
        out = tmp_path / f"{layer}.hdf5"
        done(
            *("embed", DATA / "legacy", "--text", text, "--out", out),
            *("--output-layer", layer),
        )
        with h5py.File(out) as file:
            for number in range(len(lines)):
                close(file[str(number)][()], choose(expected[f"s{number}"]))
            assert file[str(len(lines))].shape[-2:] == (0, 16)
    flags = ("embed", DATA / "legacy", "--text", text, "--out", tmp_path / "x")
    chosen = Arguments(out=tmp_path, output_layer=0)
    assert chosen.selection(2) == ("mix", (1.0, 0.0, 0.0))
    refused(*flags, "--output-layer", 3, says="the last layer of this model is 2")
    refused(*flags, "--output-layer", -3, says="from -2 to 100")
    refused(*flags, "--output-layer", 1, "--layers", "top", says="not both")
    assert not (tmp_path / "x").exists()


# Ids


def test_ids_of_a_word(params: ElmoParams) -> None:
    encoder = encoder_of(params)
    letters, words = list(encoder.alphabet), list(encoder.words)

    def spelled(word: str) -> list[str]:
        (ids,) = unicode_rows(encoder, [word])
        return [words[ids[0] - 1], *(letters[row - 1] for row in ids[1:])]

    def row(word: str, *inside: str) -> list[str]:
        # The released code has the marks of words the other way round.
        marked = ["<eow>", *inside, "<bow>"]
        return [word, *marked, *["<pad>"] * (12 - len(marked))]

    assert spelled("bank") == row("bank", *"bank")
    assert spelled("天氣") == row("天氣", *"天氣")
    assert spelled("Xb") == row("<oov>", "<oov>", "b")
    assert spelled("") == row("<oov>")
    assert spelled("\u3000") == row("\u3000", "\u3000")
    # The first 10 characters count, of the whole word too.
    assert spelled("bankbankbank") == row("bankbankba", *"bankbankba")
    assert spelled("x" * 10) == spelled("x" * 1000) == row("x" * 10, *"x" * 10)
    for mark, other in (("<bos>", "<S>"), ("<eos>", "</S>")):
        assert spelled(mark) == spelled(other) == row(mark, mark)
    assert spelled("<oov>") == row("<oov>", *["<oov>"] * 5)
    assert spelled("<pad>") == row("<pad>", "<oov>", "p", "a", "<oov>", "<oov>")


def test_batches_of_ids(params: ElmoParams) -> None:
    encoder = encoder_of(params)
    ids = elmojax.unicode_ids(encoder, [["bank", "river"], [], ["."]])
    assert ids.shape == (3, 2, 13) and ids.dtype == np.int32
    assert not ids[1].any() and not ids[2, 1].any()
    np.testing.assert_array_equal(ids[0], unicode_rows(encoder, ["bank", "river"]))
    assert elmojax.unicode_ids(encoder, []).shape == (0, 0, 13)
    with pytest.raises(InputError, match="give a list of words"):
        elmojax.unicode_ids(encoder, ["bank"])
    with pytest.raises(InputError, match="must be a UnicodeCnnConfig"):
        elmojax.unicode_ids(elmojax.ElmoConfig().encoder, [["bank"]])


def test_ids_of_other_models_are_refused(params: ElmoParams) -> None:
    for tokens in (
        elmojax.batch_to_ids([["bank"]]),
        elmojax.batch_to_ids([["bank"]], 12),
        np.ones((1, 1), np.int32),
        np.ones((1, 1, 13), np.float32),
    ):
        with pytest.raises(InputError, match="unicode_ids"):
            elmojax.encode(params, tokens)
    encoder = encoder_of(params)
    for place, rows in ((0, encoder.words), (1, encoder.alphabet)):
        ids = elmojax.unicode_ids(encoder, [["bank", "."], ["river"]])
        ids[0, 0, place] = len(rows) + 1
        layers = elmojax.encode(params, ids).layers
        assert np.isnan(layers[0, :, 0]).all() and np.isfinite(layers[1]).all()
    marked = [["<S>", "bank", "</S>"], ["<bos>", "<eos>"]]
    with pytest.raises(InputError, match=r"tokens\[:, 1:, 2:3\] == \d+"):
        elmojax.encode(params, elmojax.unicode_ids(encoder, marked))


def test_short_words_are_read_in_fewer_columns() -> None:
    """By `Embedder`: the same vectors, of short words and of long ones, whose UTF-8
    bytes are counted."""
    letters = tuple("abcdefgh今天氣")
    encoder = UnicodeCnnConfig(
        words=(*WORD_MARKS, "a", "bb"),
        alphabet=(*letters, *CHARACTER_MARKS),
        word_dim=3,
        filters=((1, 3), (3, 4)),
        embedding_dim=4,
        highway_layers=1,
        activation="tanh",
        max_characters=50,
    )
    config = ElmoConfig(encoder, LstmConfig(dim=6, projection=5, layers=1))
    params = elmojax.init(config, jax.random.key(0))
    words = ["a", "bb", "h" * 15, "h" * 16, "今" * 5, "今天氣" * 2, "c" * 48, "d" * 90]
    layers = elmojax.encode(params, elmojax.unicode_ids(encoder, [words])).layers[0]
    close(elmojax.Embedder(params).embed_sentence(words), np.asarray(layers))


# In every other place that takes a model


def test_a_fixed_list_of_words(
    params: ElmoParams, expected: dict[str, np.ndarray]
) -> None:
    words = elmojax.WordIndex(tuple(SENTENCES[0]))
    table = elmojax.cache_words(params, words)
    ids = elmojax.word_ids(words, SENTENCES[:1])
    close(elmojax.encode(table, ids).layers[0], expected["s0"])


def test_exported(
    params: ElmoParams, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    done("export", DATA / "zip", "--out", tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        program = jax.export.deserialize(bytearray(file.read("layers.jax_export")))
        about = json.loads(file.read("config.json"))["model"]["encoder"]
        weights = {
            name[len("weights/") : -len(".npy")]: np.load(io.BytesIO(file.read(name)))
            for name in file.namelist()
            if name.startswith("weights/")
        }
    assert about["words"] == list(encoder_of(params).words)
    tokens = elmojax.unicode_ids(encoder_of(params), SENTENCES[:1])
    close(program.call(weights, jnp.asarray(tokens))[0], expected["s0"])


def test_converted_to_a_run(
    params: ElmoParams, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert answer("convert", DATA / "legacy", "--out", run)["format"] == "Orbax"
    restored = elmojax.restore(run)
    assert restored.config == params.config
    for one, other in zip(*map(jax.tree.leaves, (restored, params)), strict=True):
        np.testing.assert_array_equal(one, other)
    close(elmojax.Embedder(restored).embed_sentence(SENTENCES[1]), expected["s1"])
    says = "read no models with dictionaries"
    refused("convert", run, "--out", tmp_path / "hdf5", says=says)
    with pytest.raises(InputError, match=says):
        elmojax.save_hdf5(params, tmp_path / "hdf5")
    assert not (tmp_path / "hdf5").exists()


def test_verified(tmp_path: Path) -> None:
    report = answer("verify", DATA / "legacy")
    assert report["wrong"] == 0 and len(report["arrays"]) == 25
    text, out = tmp_path / "text.txt", tmp_path / "x.hdf5"
    text.write_text("The river bank .\n今 天 天氣\n", "utf-8")
    done("embed", DATA / "legacy", "--text", text, "--out", out)
    report = answer(
        *("verify", DATA / "legacy", "--against", out, "--text", text, "--no-carry")
    )
    assert all(each["largest"] < TOLERANCE for each in report["differences"])


def test_neither_trained_nor_scored(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river bank .\n", "utf-8")
    for command in ("score", "evaluate"):
        refused(command, DATA / "legacy", "--text", text, says="has no softmax")
    says = "Models of ELMoForManyLangs are read and not trained"
    flags = ("--init-from", DATA / "legacy", "--workdir", tmp_path / "run")
    for command in ("pretrain", "estimate"):
        refused(command, *flags, says=says)
    assert not (tmp_path / "run").exists()


def test_dictionaries_belong_to_the_model(params: ElmoParams) -> None:
    """What is half done with others is not gone on with."""
    encoder = encoder_of(params)
    alphabet = (*encoder.alphabet[1:], encoder.alphabet[0])
    config = replace(params.config, encoder=replace(encoder, alphabet=alphabet))
    models = {
        Job(each).form().settings["model"]
        for each in (params, replace(params, config=config))
    }
    assert len(models) == 2
    assert from_json(ElmoConfig, to_json(config), "here") == config != params.config
    for name, entries in (
        ("words", ("<oov>", "bank")),
        ("alphabet", ("a", *CHARACTER_MARKS, "a")),
    ):
        with pytest.raises(InputError, match=f"UnicodeCnnConfig.{name} is"):
            replace(encoder, **{name: entries})


# The files of a model


def test_where_its_shape_is_looked_for(model: Path) -> None:
    found = model.parent / "configs" / SHAPE
    for place in (
        model / SHAPE,
        model / "configs" / SHAPE,
        model.parent / SHAPE,
        model.parent.parent / "configs" / SHAPE,
    ):
        place.parent.mkdir(exist_ok=True)
        found = found.rename(place)
        assert elmojax.load(model).config.lstm.dim == 12
    # What the published models name and do not bring is known.
    found.unlink()
    says = f"{SHAPE} as published, with the dictionaries, calls for [13, 100]"
    refused("verify", model, says=says)
    config = {"config_path": r"C:\elmo\configs\cnn_small.json"}
    (model / "config.json").write_text(json.dumps(config))
    refused("verify", model, says="names the file cnn_small.json ... put it into")


def test_a_path_that_a_model_names_is_not_opened(model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere" / "shape.json"
    outside.parent.mkdir()
    shutil.copy(model.parent / "configs" / SHAPE, outside)
    for named in (str(outside), "../../../elsewhere/shape.json"):
        (model / "config.json").write_text(json.dumps({"config_path": named}))
        refused("verify", model, says="names the file shape.json")


def edited(path: Path, edit: Callable[[str], str]) -> None:
    path.write_bytes(edit(path.read_bytes().decode("utf-8")).encode("utf-8"))


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("char.dic", lambda text: "", "no entry <bos> and no <eos>"),
        ("char.dic", lambda text: text.replace("<bow>", "<b>"), "no entry <bow>"),
        ("word.dic", lambda text: text.replace("<oov>", "oov"), "no entry <oov>"),
        ("word.dic", lambda text: text.replace("\t3\n", "\t4\n"), "a row of its own"),
        ("word.dic", lambda text: text.replace("bank\t", "river\t"), "of its own"),
        ("word.dic", lambda text: text.replace("\t0\n", "\t99\n"), "a row of its own"),
        ("word.dic", lambda text: text + "two\twords\t13\n", "line 14 is no entry"),
        ("word.dic", lambda text: text + "\n", "line 14 is no entry"),
        ("word.dic", lambda text: text + "x\t-1\n", "line 14 is no entry"),
        ("word.dic", lambda text: text + "x\t" + "9" * 5000, "line 14 is no entry"),
        ("word.dic", lambda text: text + "more\t13\n", "word_emb_layer ... [14, 6]"),
        ("char.dic", lambda text: text + "é\t25\n", "char_emb_layer ... [26, 5]"),
        ("config.json", lambda text: text[:-3], "is not JSON"),
        ("config.json", lambda text: "{}", "has no config_path"),
        ("config.json", lambda text: '{"config_path": null}', "the name of a file"),
        ("config.json", lambda text: '{"config_path": "/"}', "the name of a file"),
        ("config.json", lambda text: '{"config_path": ".."}', "names the file"),
        (SHAPE, lambda text: text.replace("cnn", "lstm"), "it must be 'cnn'"),
        (SHAPE, lambda text: text.replace('"elmo"', '"lstm"'), "must be 'elmo'"),
        (SHAPE, lambda text: text.replace("relu", "gelu"), "'relu' or 'tanh'"),
        (SHAPE, lambda text: text.replace('"dim": 12', '"dim": 13'), "[48, 8]"),
        (SHAPE, lambda text: text.replace('"n_layers": 2', '"n_layers": 1'), "holds"),
        (SHAPE, lambda text: text.replace('"n_layers": 2', '"n_layers": 3'), "no arr"),
        (SHAPE, lambda text: text.replace('"n_highway": 2', '"n_highway": 1'), "holds"),
        (SHAPE, lambda text: text.replace('_token": 12', '_token": 2'), "from 3 to"),
        (
            SHAPE,
            lambda text: text.replace('"word_dim": 6', '"word_dim": 0'),
            "word_dim",
        ),
        (
            SHAPE,
            lambda text: text.replace('"char_dim": 5', '"char_dim": 0'),
            "char_dim",
        ),
        (SHAPE, lambda text: text.replace('"cell_clip"', '"clip"'), "cell_clip"),
        (SHAPE, lambda text: "[]", "is not an object"),
    ],
)
def test_files_that_will_not_do(
    name: str, edit: Callable[[str], str], says: str, model: Path
) -> None:
    path = model.parent / "configs" / name if name == SHAPE else model / name
    edited(path, edit)
    refused("verify", model, says=says)
    with pytest.raises(InputError, match=re.escape(says.split(" ... ")[0])):
        elmojax.load(model)


def test_missing_files(model: Path, tmp_path: Path) -> None:
    text = ("--text", DATA / "sentences.json", "--out", tmp_path / "x")
    for name in ("char.dic", "encoder.pkl", "config.json", "token_embedder.pkl"):
        (model / name).unlink()
        says = f"has no ... {name} ... unpack all of its files there"
        refused("embed", model, *text, says=says)
        refused("verify", model, says=says)
    (model / "word.dic").unlink()
    refused("verify", model, says="has no config.json")


def test_blanks_of_a_dictionary(model: Path) -> None:
    """As its program reads it: blanks around an entry go, and alone are U+3000; ends
    of lines may be those of Windows."""
    wanted = elmojax.load(model).config
    edited(model / "char.dic", lambda text: text.replace("\u3000\t", "\u00a0\t"))
    edited(model / "word.dic", lambda text: text.replace("\u3000\t", "\t"))
    edited(model / "word.dic", lambda text: text.replace("\n", " \r\n"))
    edited(model / "word.dic", lambda text: text.replace("river", " river"))
    assert elmojax.load(model).config == wanted


def test_numbers_that_are_not_finite(model: Path) -> None:
    weights = (model / "encoder.pkl").read_bytes()
    (model / "encoder.pkl").write_bytes(weights[:-4] + b"\x00\x00\xc0\x7f")
    refused("verify", model, says="values that are not finite")


def test_no_step(model: Path) -> None:
    refused("export", model, "--step", 0, "--out", model / "x.zip", says="--step")

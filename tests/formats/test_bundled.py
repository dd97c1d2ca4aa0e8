"""The model that ships with elmojax: by its name, and where no MODEL is named."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import elmojax
from elmojax.cli import main
from elmojax.formats.forms import BUNDLED, bundled_models
from elmojax.formats.hdf5 import OPTIONS
from elmojax.loading import load_language_model

SENSES = "He sat on the bank of the river .", "She put her money in the bank ."


def test_what_ships_is_small_and_whole():
    assert bundled_models() == ["mini"]
    files = {path.name: path.stat().st_size for path in (BUNDLED / "mini").iterdir()}
    assert sum(files.values()) < 8_000_000
    main(["verify", "mini"])
    card = (BUNDLED / "mini/card.md").read_text(encoding="utf-8")
    for needed in ("CC BY-SA", "Held-out perplexity", "parameters"):
        assert needed in card
    _, vocabulary = load_language_model("mini")
    assert "bank" in vocabulary.words


def test_a_word_has_another_vector_in_another_sentence():
    """In layers 1 and 2, and not in layer 0, the static one."""
    embedder = elmojax.Embedder(elmojax.load("mini"))
    river, money = embedder.embed_sentences(text.split() for text in SENSES)
    one, other = river[:, 4], money[:, 6]
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    assert all(np.abs(one - other).max(axis=1)[1:] > 0.1)


def test_embed_takes_it_where_no_model_is_named(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("\n".join(SENSES) + "\n")
    vectors = []
    for model in ((), ("mini",)):
        out = tmp_path / f"{len(model)}.hdf5"
        main(["embed", *model, "--text", str(text), "--out", str(out)])
        said = "no MODEL is named, so it is mini" in capsys.readouterr().err
        assert said == (not model)
        with h5py.File(out) as file:
            vectors.append([np.asarray(file[str(line)]) for line in range(2)])
    for one, other in zip(*vectors, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_score_and_evaluate_take_it_too(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("\n".join(SENSES) + "\n")
    main(["score", "--text", str(text), "--json"])
    assert json.loads(capsys.readouterr().out)["forward_perplexity"] < 1000
    main(["evaluate", "--text", str(text), "--json"])
    assert json.loads(capsys.readouterr().out)["mean_perplexity"] < 1000


def test_a_directory_of_the_same_name_has_a_path(tmp_path, monkeypatch):
    """A name is the model that ships; what lies here is ./mini or a `Path`."""
    monkeypatch.chdir(tmp_path)
    Path("mini").mkdir()
    assert elmojax.load("mini").config == elmojax.ElmoConfig.preset("mini")
    for here in ("./mini", Path("mini")):
        with pytest.raises(elmojax.InputError, match=r"is not|is no"):
            elmojax.load(here)
    with pytest.raises(elmojax.InputError, match=r"ships with elmojax \(mini\)"):
        elmojax.load("minimal")
    assert (BUNDLED / "mini" / OPTIONS).is_file()

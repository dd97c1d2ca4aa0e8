"""Proteins: the vectors of SeqVec (Heinzinger et al. 2019), by id, from FASTA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import answer, done, refused
from toys import tiny_params

import elmojax
from elmojax import InputError
from elmojax.vectors.jobs import Job, embed_files

pytestmark = pytest.mark.usefixtures("quick_compilation", "one_device")

AMINO_ACIDS = list("ACDEFGHIKLMNPQRSTVWYXUZOB")
SUM = ("--layers", "sum")


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    jax.config.update("jax_default_device", jax.devices()[0])
    yield
    jax.config.update("jax_default_device", None)


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def proteins() -> dict[str, str]:
    """From one residue to thousands."""
    draw = np.random.default_rng(0)
    sizes = {"P12345": 70, "1ABC_A": 1, "titin": 2500, "P9/3-20": 17}
    return {name: "".join(draw.choice(AMINO_ACIDS, n)) for name, n in sizes.items()}


@pytest.fixture(scope="module")
def folder(params, proteins, tmp_path_factory) -> Path:
    """A model and its FASTA file, with lines of 60 letters and a header of UniProt."""
    folder = tmp_path_factory.mktemp("proteins")
    elmojax.save_hdf5(params, folder / "model")
    lines = []
    for name, residues in proteins.items():
        lines.append(f">sp|{name}|NAME" if name == "P12345" else f">{name} chain A")
        lines += [residues[at : at + 60].lower() for at in range(0, len(residues), 60)]
    (folder / "in.fasta").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def seqvec(params, proteins) -> dict[str, np.ndarray]:
    """SeqVec in its own steps: characters of each residue, all layers, their sum."""
    columns = params.config.max_characters
    vectors = {}
    for name, residues in proteins.items():
        ids = elmojax.batch_to_ids([list(residues.upper())], columns)
        layers = np.asarray(elmojax.encode(params, ids).layers[0])
        vectors[name] = layers.sum(axis=0)
    return vectors


@pytest.mark.parametrize("pool", ["each residue", "mean"])
def test_vectors_by_id_are_those_of_seqvec(folder, seqvec, pool, tmp_path):
    more = () if pool == "each residue" else ("--pool", pool)
    given = ("--text", folder / "in.fasta", "--format", "fasta", *SUM, *more)
    out = tmp_path / "out.h5"  # batches of at most 500 residues
    done("embed", folder / "model", *given, "--out", out, "--batch-tokens", 500)
    with h5py.File(out) as file:
        for name, expected in seqvec.items():
            expected = expected.mean(axis=0) if more else expected
            assert file[name].shape == expected.shape
            np.testing.assert_allclose(file[name], expected, atol=5e-5)


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_ids_are_in_every_output(folder, proteins, name, tmp_path):
    given = ("--text", folder / "in.fasta", "--format", "fasta", *SUM)
    done("embed", folder / "model", *given, "--pool", "mean", "--out", tmp_path / name)
    if name == "out":
        ids = (tmp_path / "out/ids.txt").read_text().split()
        words = elmojax.read_vectors(tmp_path / name).sentences()
    else:
        table = pq.read_table(tmp_path / name)
        ids, words = table["id"].to_pylist(), table["words"].to_pylist()
    assert dict(zip(ids, map("".join, words), strict=True)) == proteins


def test_ids_that_cannot_all_name_data_sets(folder, tmp_path):
    path, out = tmp_path / "in.fasta", tmp_path / "out.h5"
    given = ("embed", folder / "model", "--text", path, "--format", "fasta")
    for ids, says in ((("a", "a/1-9"), "Protein 0"), (("a/b", "."), "Protein 1")):
        path.write_text("".join(f">{name}\nMKT\n" for name in ids))
        refused(*given, "--out", out, says=f"{says} (from 0) is ... another id")
        assert sorted(tmp_path.iterdir()) == [path]


def test_flags_that_do_not_go_with_a_sum(folder, tmp_path):
    given = ("embed", folder / "model", "--text", folder / "in.fasta", *SUM)
    refused(*given, "--gammas", 1, 1, 1, "--out", tmp_path / "x", says="no --gammas")


def test_a_run_is_not_gone_on_with_in_another_format(params, tmp_path):
    """Even where both read the same words."""
    path, out = tmp_path / "text", tmp_path / "out"

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    path.write_text("MKT\n" * 400)
    with pytest.raises(KeyboardInterrupt):
        embed_files(Job(params, batch_tokens=100), [path], out, report=stop)
    path.write_text('["MKT"]\n' * 400)
    job = Job(params, batch_tokens=100, format="jsonl")
    with pytest.raises(InputError, match='text_format nothing there, "jsonl" now'):
        embed_files(job, [path], out)
    assert embed_files(job, [path], out, overwrite=True) == (400, 400)


def test_words_of_conllu_have_a_vector_each_whatever_blanks_they_hold(folder, tmp_path):
    forms, empty = [["26 000", "19\xa0700"], ["dol", "."]], "\t_" * 8
    rows = [
        "\n".join(f"{n}\t{form}{empty}" for n, form in enumerate(words, 1))
        for words in forms
    ]
    (tmp_path / "text").write_text("\n\n".join(rows))
    given = ("--text", tmp_path / "text", "--format", "conllu")
    out = tmp_path / "out.hdf5"
    report = answer("embed", folder / "model", *given, "--out", out)
    assert (report["lines"], report["words"]) == (2, 4)
    assert "Words that hold a space: 1;" in report["remarks"][0]
    model = elmojax.load(folder / "model")
    expected = list(elmojax.Embedder(model).embed_sentences(forms))
    with h5py.File(out) as file:
        for number, vectors in enumerate(expected):
            np.testing.assert_allclose(file[str(number)], vectors, atol=1e-6)

"""What a path is: the forms of other collections, archives, and what is no model."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
import tempfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import jax
import numpy as np
import pytest
from toys import TINY, drawn, tiny_params

import elmojax
from elmojax import InputError
from elmojax.config import WordTableConfig
from elmojax.formats import archive
from elmojax.formats.forms import form_of
from elmojax.loading import open_model, verify
from elmojax.text.vocabulary import Vocabulary
from tests.commands import done, refused

pytestmark = pytest.mark.usefixtures("quick_compilation")

BERT = '{"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 768}'
MANYLANGS = '{"seed": 1, "config_path": "cnn_50_100_512_4096_sample.json"}'
WORDS = ("<S>", "</S>", "<UNK>", "the", "of")


@pytest.fixture
def plain(tmp_path):
    """A model as `save_hdf5` writes it, to be given other names."""
    elmojax.save_hdf5(tiny_params(), tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def nlpl(plain):
    """As a folder of the NLPL repository."""
    os.rename(plain / "weights.hdf5", plain / "model.hdf5")
    (plain / "meta.json").write_text('{"id": 170, "dimensions": 12}')
    (plain / "README").write_text("see vectors.nlpl.eu\n")
    with gzip.open(plain / "vocab.txt.gz", "wt") as file:
        file.write("the\nof\n")
    return plain


def is_tiny(model):
    pairs = zip(
        *map(jax.tree.leaves, (elmojax.load(model), tiny_params())), strict=True
    )
    return all(np.array_equal(a, b) for a, b in pairs)


# --- forms ---------------------------------------------------------------------------


def test_the_folders_of_the_nlpl_repository(nlpl, tmp_path):
    """Wherever MODEL is taken; words that no softmax has are left alone."""
    assert is_tiny(nlpl)
    assert all(array.state == "ok" for array in verify(nlpl)[0])
    done("convert", nlpl, "--out", tmp_path / "run")
    assert is_tiny(tmp_path / "run")
    assert open_model(nlpl).vocabulary is None
    os.rename(nlpl / "model.hdf5", nlpl / "norelmo30.hdf5")
    os.rename(nlpl / "options.json", nlpl / "options_30.json")
    assert is_tiny(nlpl)


def test_a_packed_vocabulary_belongs_to_a_softmax_that_is_there(nlpl):
    shapes = {"kernel": np.zeros((5, 6)), "bias": np.zeros(5)}
    elmojax.save_hdf5(tiny_params(), nlpl / "s", drawn(shapes), Vocabulary(WORDS))
    shutil.move(nlpl / "s/softmax.hdf5", nlpl)
    (nlpl / "vocab.txt.gz").write_bytes(gzip.compress("\n".join(WORDS).encode()))
    (score,) = elmojax.score(nlpl, [["the", "of"]])
    assert np.isfinite(score.forward).all() and all(score.known)
    for data, says in (
        (gzip.compress(b"the\n" * 99)[:-9], "cannot be read: "),
        (gzip.compress(b"\xff\n"), "is not UTF-8"),
    ):
        (nlpl / "vocab.txt.gz").write_bytes(data)
        with pytest.raises(InputError, match=says):
            open_model(nlpl)


def test_a_model_over_words_has_its_own(tmp_path):
    """`"char_cnn": null`, as training writes it; its words are packed."""
    params = tiny_params(replace(TINY, encoder=WordTableConfig(5, 6)))
    elmojax.save_hdf5(params, tmp_path / "words")
    file = tmp_path / "words/options.json"
    options = json.loads(file.read_text())
    del options["word_table"]
    file.write_text(json.dumps(options | {"char_cnn": None, "n_epochs": 3}))
    packed = gzip.compress("\n".join(WORDS).encode() + b"\n")
    (tmp_path / "words/vocab.txt.gz").write_bytes(packed)
    model = open_model(tmp_path / "words", head=False)
    assert model.vocabulary == Vocabulary(WORDS)
    np.testing.assert_array_equal(
        model.params.encoder["embedding"], params.encoder["embedding"]
    )


def test_several_languages_share_their_options(plain):
    """As CrossLingualELMo has them: name one, where there are several."""
    os.rename(plain / "options.json", plain / "options262.json")
    os.rename(plain / "weights.hdf5", plain / "en_weights.hdf5")
    assert is_tiny(plain)
    shutil.copy(plain / "en_weights.hdf5", plain / "es_weights.hdf5")
    with pytest.raises(InputError, match=r"2 files of weights \(en.*es.*\); name the"):
        elmojax.load(plain)
    assert is_tiny(plain / "es_weights.hdf5")
    assert done("verify", plain / "en_weights.hdf5").out.count(" ok") > 20


def test_weights_are_read_with_the_options_of_their_name(plain):
    for name in ("options.json", "weights.hdf5"):
        shutil.copy(plain / name, plain / f"small_{name}")
        os.rename(plain / name, plain / f"large_{name}")
    (plain / "large_options.json").write_text("{}")
    assert is_tiny(plain / "small_weights.hdf5")
    with pytest.raises(InputError, match=r"large_options\.json has no lstm"):
        elmojax.load(plain / "large_weights.hdf5")
    with pytest.raises(InputError, match="files of weights"):
        elmojax.load(plain)
    os.remove(plain / "large_weights.hdf5")
    with pytest.raises(InputError, match=r"2 files of options .*; name the weights"):
        elmojax.load(plain)
    os.remove(plain / "large_options.json")
    os.remove(plain / "small_options.json")
    with pytest.raises(InputError, match="no options beside it"):
        elmojax.load(plain / "small_weights.hdf5")


@pytest.mark.parametrize("config", [BERT, MANYLANGS, "[1]", "{", '{"train": 1}'])
def test_a_config_of_somebody_else_does_not_make_a_run(plain, config, tmp_path):
    (plain / "config.json").write_text(config)
    assert form_of(plain) == "HDF5" and is_tiny(plain)
    assert all(array.state == "ok" for array in verify(plain)[0])
    done("convert", plain, "--out", tmp_path / "run")
    assert form_of(tmp_path / "run") == "run" and is_tiny(tmp_path / "run")
    shutil.copytree(tmp_path / "run", plain, dirs_exist_ok=True)
    assert form_of(plain) == "run", "with both, the run says what it is"


# --- what is no model ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": BERT}, "is a Hugging Face BERT model; elmojax reads ELMo"),
        ({"config.json": BERT, "model.safetensors": ""}, "Hugging Face BERT"),
        ({"config.json": BERT, "tf_model.h5": ""}, "Hugging Face BERT"),
        ({"config.json": '{"architectures": ["X"]}'}, "a Hugging Face X model"),
        ({"config.json": '{"architectures": 3}'}, "no other model"),
        ({"config.json": MANYLANGS, "encoder.pkl": ""}, "ELMoForManyLangs"),
        ({"saved_model.pb": ""}, "a TensorFlow SavedModel of something else"),
        ({"weights.th": "", "config.json": "{}"}, "a model of AllenNLP"),
        ({"pytorch_model.bin": ""}, "a model of PyTorch"),
        ({"model.onnx": ""}, "a model of another program"),
        ({"embed.jax_export": "", "config.json": "{}"}, "what `elmojax export` wrote"),
        ({"corpus.json": "{}"}, "is a prepared corpus"),
        ({"options.json": "{}"}, r"has options \(options.json\) and no weights"),
        ({"model.hdf5": ""}, r"has weights \(model.hdf5\) and no options"),
        ({}, "is no model but an empty directory"),
        ({"a": "", "b": ""}, "no other model: .*, but a, b"),
        ({str(n): "" for n in range(9)}, r"but 0, 1, 2, 3, 4 \.\.\."),
    ],
)
def test_it_is_named_as_what_it_is(tmp_path, files, says):
    there = tmp_path / "there"
    there.mkdir()
    for name, content in files.items():
        (there / name).write_text(content)
    with pytest.raises(InputError, match=says):
        elmojax.load(there)
    for command in (("verify", there), ("convert", there, "--out", tmp_path / "out")):
        refused(*command)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_model(tmp_path):
    for name, content in {"a.txt": "text", "b.hdf5": "text", "c": ""}.items():
        (tmp_path / name).write_text(content)
        refused("verify", tmp_path / name)
    with pytest.raises(
        InputError, match="is not a run directory, an archive or an HDF5"
    ):
        elmojax.load(tmp_path / "a.txt")
    with pytest.raises(InputError, match="There is no model"):
        elmojax.load(tmp_path / "d.zip")


# --- archives ------------------------------------------------------------------------


def packed(folder, name, kind, inside=""):
    """An archive of the files of a folder, below `inside`."""
    path = folder.parent / name
    files = sorted(folder.iterdir())
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"{inside}{file.name}")
    else:
        with tarfile.open(path, f"w:{kind}") as archive:
            for file in files:
                archive.add(file, f"{inside}{file.name}")
    return path


@pytest.mark.parametrize(
    ("name", "kind", "inside"),
    [
        ("170.zip", "zip", ""),
        ("170", "zip", "170/elmo/"),
        ("mimic.tar.gz", "gz", "./"),
        ("mimic.tgz", "gz", "mimic/"),
        ("mimic.zip", "xz", ""),
        ("a.tar", "", "a/"),
        ("a.tar.bz2", "bz2", ""),
    ],
)
def test_archives_leave_nothing_behind(nlpl, tmp_path, monkeypatch, name, kind, inside):
    os.rename(nlpl / "model.hdf5", nlpl / "mimic_wiki.hdf5")
    (nlpl / ".DS_Store").write_text("x")
    path = packed(nlpl, name, kind, inside)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = sorted(tmp_path.rglob("*"))
    assert archive.is_archive(path) and is_tiny(path)
    assert verify(path)[0] == verify(nlpl)[0]
    model = open_model(path)
    assert (model.form, model.source) == ("HDF5", str(path))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_in_an_archive(plain, tmp_path):
    done("convert", plain, "--out", tmp_path / "run")
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path / "run")
    assert is_tiny(archive)
    done("convert", archive, "--out", tmp_path / "files")
    assert is_tiny(tmp_path / "files") and form_of(tmp_path / "files") == "HDF5"


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def tarred(path, **changes):
    info = tarfile.TarInfo("options.json")
    info.size = 2
    for name, value in changes.items():
        setattr(info, name, value)
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"{}".ljust(20 * 512, b"\0"))


def encrypted(path):
    zipped(path, **{"options.json": "{}"})
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + at] |= 1
    path.write_bytes(bytes(data))


def linked(path):
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("options.json")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(17):
            archive.writestr(f"{number}.hdf5", bytes(1 << 16))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (partial(zipped, **{"../options.json": "{}"}), "leads out of it"),
        (partial(zipped, **{"/tmp/options.json": "{}"}), "leads out of it"),
        (partial(zipped, **{"a\\..\\..\\options.json": "{}"}), "leads out of it"),
        (partial(tarred, name="a/../../options.json"), "leads out of it"),
        (partial(tarred, name="/options.json"), "leads out of it"),
        (linked, "holds a link"),
        (partial(tarred, type=tarfile.SYMTYPE, linkname="/etc"), "holds a link"),
        (partial(tarred, type=tarfile.LNKTYPE, linkname="a"), "holds a link"),
        (partial(tarred, type=tarfile.FIFOTYPE), "holds a device"),
        (partial(tarred, type=tarfile.CHRTYPE), "holds a device"),
        (partial(tarred, size=1 << 60), "unpacks to 1,152,921,504,606,846,976 bytes"),
        (bomb, r"unpacks to 1,\d+,\d+ bytes and more, in 1\d files"),
        (encrypted, "needs a password"),
        (partial(zipped, **{f"{n}/a": "" for n in range(31)}), "in 31 files"),
        (partial(zipped, **{"notes.txt": "none"}), r"a\.zip.* no other model"),
        (lambda path: zipped(path), "empty directory"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)), "damaged"),
        (lambda path: path.write_bytes(b"PK"), "not a run directory, an archive"),
        (lambda path: path.write_bytes(gzip.compress(b"text")), "damaged, cut"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "damaged, cut"),
        (lambda path: path.write_bytes(b"BZh9" + bytes(50)), "damaged, cut"),
        (lambda path: path.write_bytes(b"\xfd7zXZ\0" + bytes(50)), "damaged, cut"),
    ],
)
def test_archives_that_are_refused(tmp_path, monkeypatch, make, says):
    """In one sentence, and nothing is anywhere afterwards."""
    monkeypatch.setattr(archive, "SMALL", 1 << 20)
    monkeypatch.setattr(archive, "MOST_FILES", 30)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    make(tmp_path / "a.zip")
    with pytest.raises(InputError, match=says):
        elmojax.load(tmp_path / "a.zip")
    refused("verify", tmp_path / "a.zip")
    assert [p.name for p in tmp_path.rglob("*")] in (["a.zip", "tmp"], ["tmp", "a.zip"])


@pytest.mark.parametrize("kind", ["zip", "gz", "xz", "bz2", ""])
def test_archives_cut_short_and_damaged(nlpl, kind):
    """Wherever it is: an error or, past the last file, the same model."""
    archive = packed(nlpl, "a", kind)
    whole = archive.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95):
        archive.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError):
            elmojax.load(archive)
    if kind:
        for at in range(300, len(whole), len(whole) // 5):
            damaged = bytearray(whole)
            damaged[at] ^= 255
            archive.write_bytes(bytes(damaged))
            try:
                assert is_tiny(archive)
            except InputError:
                pass


def test_a_disk_that_is_full(nlpl, monkeypatch):
    archive = packed(nlpl, "a", "zip")
    usage = shutil.disk_usage(nlpl)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"has no room for .* in .*TMPDIR"):
        elmojax.load(archive)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(InputError, match=r"No space left on device\. Make room"):
        elmojax.load(archive)


# --- addresses -----------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        if self.command == "GET":
            self.asked.append(self.path)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of the files in tmp_path, and its address."""
    monkeypatch.setenv("ELMOJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Quiet, "asked", [])
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_archive_at_an_address_is_unpacked_once(nlpl, tmp_path, site):
    packed(nlpl, "170.zip", "zip", "170/")
    assert is_tiny(f"{site}/170.zip") and is_tiny(f"{site}/170.zip")
    assert Quiet.asked == ["/170.zip"]
    (cached,) = (tmp_path / "cache").rglob("model.hdf5")
    assert f"{site}/170.zip" not in str(cached)
    done("verify", f"{site}/170.zip?download=1")
    assert json.loads(done("verify", f"{site}/170.zip", "--json").out)["wrong"] == 0
    packed(nlpl, "mimic.tar.gz", "gz")
    assert is_tiny(f"{site}/mimic.tar.gz")
    packed(nlpl, "3", "gz")
    assert is_tiny(f"{site}/3?tf-hub-format=compressed")


def test_what_comes_and_is_no_archive_is_not_kept(nlpl, tmp_path, site):
    (tmp_path / "170.zip").write_text("<html>log in first</html>")
    for _ in range(2):
        refused("verify", f"{site}/170.zip", says="It is not kept")
    assert Quiet.asked == ["/170.zip"] * 2
    packed(nlpl, "170.zip", "zip")
    assert is_tiny(f"{site}/170.zip")
    refused("verify", f"{site}/171.zip", says="404")
    wrong = f"{site}/170.zip#sha256={'0' * 64}"
    refused("verify", wrong, says="has the SHA-256 ... not kept")


def test_other_names_at_an_address(nlpl, tmp_path, site):
    """model.hdf5; options that several languages share; weights of any name."""
    assert is_tiny(f"{site}/plain") and is_tiny(f"{site}/plain/model.hdf5")
    os.rename(nlpl / "model.hdf5", nlpl / "en_weights.hdf5")
    shutil.copy(nlpl / "options.json", nlpl / "options262.json")
    os.rename(nlpl / "options.json", nlpl / "other.json")
    assert is_tiny(f"{site}/plain/en_weights.hdf5")
    refused("verify", f"{site}/plain/es_weights.hdf5", says="404")

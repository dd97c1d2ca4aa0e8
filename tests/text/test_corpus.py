"""Prepared corpora: what is in them, that they are whole, and every refusal."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmojax import disk
from elmojax.errors import InputError
from elmojax.text import files
from elmojax.text.corpus import PARTS, Corpus
from elmojax.text.prepare import prepare
from elmojax.text.tfds import TfdsText
from elmojax.text.vocabulary import SPECIALS, Vocabulary

TEXT = """\
the river bank is the bank
no bank

the <S> in the </S> text is <UNK>
ééééé 日本語日本語日本語日本語日本語日本語
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


def sentences_of(corpus: Corpus) -> list[list[str]]:
    pairs = zip(corpus.offsets, corpus.offsets[1:], strict=False)
    return [[corpus.types[i] for i in corpus.words[a:b]] for a, b in pairs]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def refused(*parts: str, **arguments: Any) -> None:
    with pytest.raises(InputError) as caught:
        prepare(**arguments)
    for part in parts:
        assert part in str(caught.value)


def test_a_corpus_is_its_text(text, tmp_path):
    report = prepare(tmp_path / "data", patterns=[text], max_vocabulary=6)
    corpus = Corpus.open(tmp_path / "data")
    lines = [line.split() for line in TEXT.splitlines() if line]
    assert sentences_of(corpus) == lines
    running = [word for line in lines for word in line]
    count = Counter(running)
    ranked = sorted(set(count) - set(SPECIALS), key=lambda word: (-count[word], word))
    assert corpus.types == [*SPECIALS, *ranked]
    assert corpus.counts.tolist() == [count[word] for word in corpus.types]
    assert corpus.vocabulary.words == (*SPECIALS, "the", "bank", "is")
    assert corpus.words.dtype == np.int32 and isinstance(corpus.words.base, np.memmap)
    targets = corpus.targets(corpus.vocabulary)
    assert targets.dtype == np.int32
    assert targets.tolist() == [0, 1, 2, 3, 4, 5] + [2] * (len(corpus.types) - 6)

    unknown = [word for word in running if corpus.vocabulary.ids([word]) == 2]
    expected = {
        "sentences": 4,
        "tokens": 18,
        "positions": 22,
        "types": len(corpus.types),
        "vocabulary": 6,
        "out_of_vocabulary": len(unknown),
        "oov_rate": len(unknown) / 18,
        "truncated_words": 1,
        "bytes": len(TEXT.encode()) - 1,  # the blank line is no sentence
        "blank_lines": 1,
        "replaced_lines": 0,
        "files": [{"name": str(text), "bytes": len(TEXT.encode())}],
        "max_characters": 50,
    }
    assert {key: corpus.info[key] for key in expected} == expected
    assert {key: report[key] for key in corpus.info} == corpus.info
    assert report["status"] == "written" and report["words_per_second"] > 0
    for name, part in corpus.info["parts"].items():
        data = (tmp_path / "data" / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert part == {"bytes": len(data), "sha256": digest}


# Neither is text: a NUL, and a carriage return that ends no line.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")
LINE = st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=4).map(" ".join)


@given(st.lists(LINE, min_size=1, max_size=6), st.booleans())
def test_any_text_comes_back_as_its_sentences(tmp_path_factory, lines, last_feed):
    data = ("\n".join(lines) + "\n" * last_feed).encode()
    each = (re.findall("[^ \t]+", line) for line in data.decode().split("\n"))
    expected = [words for words in each if words]
    folder = tmp_path_factory.mktemp("any")
    (folder / "text.txt").write_bytes(data)
    if not any(set(words) - set(SPECIALS) for words in expected):
        return
    if data.startswith(b"\xef\xbb\xbf"):
        return
    prepare(folder / "data", patterns=[folder / "text.txt"])
    assert sentences_of(Corpus.open(folder / "data")) == expected


def test_blocks_cut_lines_nowhere(text, tmp_path, monkeypatch):
    prepare(tmp_path / "whole", patterns=[text])
    for size in (1, 2, 7, 64):
        monkeypatch.setattr(files, "_BLOCK", size)
        monkeypatch.setattr(disk, "_CHUNK", size)
        prepare(tmp_path / f"b{size}", patterns=[text])
        assert contents(tmp_path / f"b{size}") == contents(tmp_path / "whole")


def test_packed_files_globs_and_order(text, tmp_path):
    data, second = text.read_bytes(), b"one more bank"
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(data))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(data))
    (tmp_path / "d.txt.bz2").write_bytes(bz2.compress(data))
    (tmp_path / "a.txt").write_bytes(second)
    prepare(tmp_path / "plain", patterns=[text])
    plain = sentences_of(Corpus.open(tmp_path / "plain"))
    for name in ("b.txt.gz", "c.txt.xz", "d.txt.bz2"):
        prepare(tmp_path / f"{name}.data", patterns=[tmp_path / name])
        corpus = Corpus.open(tmp_path / f"{name}.data")
        assert sentences_of(corpus) == plain
        assert corpus.fingerprint == Corpus.open(tmp_path / "plain").fingerprint
    names = [
        str(text),
        str(tmp_path / "[a-c].txt*"),
        f"{tmp_path}/../{tmp_path.name}/a.txt",
    ]
    prepare(tmp_path / "all", patterns=names)
    corpus = Corpus.open(tmp_path / "all")
    listed = [Path(file["name"]).name for file in corpus.info["files"]]
    assert listed == ["text.txt", "a.txt", "b.txt.gz", "c.txt.xz"]
    # A file without a last line feed does not run into the next.
    assert sentences_of(corpus) == [*plain, ["one", "more", "bank"], *plain, *plain]


def test_lines_are_numbered_and_blank_ones_kept(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffa b\r\n\n\xa0\nc\x85d\x0be\n\n".encode())
    expected = [(1, ["a", "b"]), (2, []), (3, ["\xa0"]), (4, ["c\x85d\x0be"]), (5, [])]
    assert list(files.read_lines(path)) == expected
    path.write_bytes(b"")
    assert list(files.read_lines(path)) == []


def test_undecodable_bytes_are_refused_by_line_or_replaced(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\n\ntwo \xff\xfe\nth\xc3\xa9 \xef\xbf\xbd\n\xe2\x82")
    where = f"Line 3 of {path} is not UTF-8: byte 0xff"
    refused(where, "--errors replace", out=tmp_path / "data", patterns=[path])
    prepare(tmp_path / "data", patterns=[path], errors="replace")
    corpus = Corpus.open(tmp_path / "data")
    expected = [["one"], ["two", "\ufffd\ufffd"], ["thé", "\ufffd"], ["\ufffd"]]
    assert sentences_of(corpus) == expected
    assert corpus.info["replaced_lines"] == 2


def test_lines_are_numbered_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 10)
    (tmp_path / "text.txt").write_bytes(b"a b c\n" * 99 + b"d\xff\n")
    numbers = [
        number for number, _ in files.read_lines(tmp_path / "text.txt", "replace")
    ]
    assert numbers == list(range(1, 101))
    with pytest.raises(InputError, match="Line 100 of"):
        list(files.read_lines(tmp_path / "text.txt"))


def test_truncated_words_are_the_running_words_that_do_not_fit(tmp_path):
    words = ["x" * 8, "x" * 9, "x" * 9, "é" * 4, "é" * 5]
    (tmp_path / "text.txt").write_text(" ".join(words), "utf-8")
    for width, truncated in [(9, 5), (10, 3), (11, 1), (12, 0)]:
        out = tmp_path / str(width)
        report = prepare(out, patterns=[tmp_path / "text.txt"], max_characters=width)
        assert report["truncated_words"] == truncated
        assert report["max_characters"] == width


def test_a_given_vocabulary_is_kept_and_counts_as_it_is(text, tmp_path):
    given_vocabulary = Vocabulary((*SPECIALS, "bank", "absent", "the"))
    given_vocabulary.write(tmp_path / "vocab.txt")
    prepare(tmp_path / "data", patterns=[text], vocabulary=tmp_path / "vocab.txt")
    corpus = Corpus.open(tmp_path / "data")
    assert corpus.vocabulary == given_vocabulary
    assert corpus.info["out_of_vocabulary"] == 18 - 3 - 4 - 2  # bank, the, <S> </S>
    assert "absent" not in corpus.types


def test_the_same_request_again_gives_the_same_bytes(text, tmp_path):
    out = tmp_path / "data"
    prepare(out, patterns=[text])
    first, made = contents(out), out.stat().st_ino
    assert prepare(out, patterns=[text])["status"] == "unchanged"
    assert out.stat().st_ino == made
    prepare(tmp_path / "other", patterns=[text])
    assert contents(tmp_path / "other") == first
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "data", "other"}


def test_another_corpus_is_replaced_only_on_request(text, tmp_path):
    out = tmp_path / "data"
    prepare(out, patterns=[text])
    first = contents(out)
    refused("other settings (min_count)", out=out, patterns=[text], min_count=2)
    text.write_text(TEXT.replace("river", "rover"), "utf-8")
    refused("--overwrite", "the text has changed", out=out, patterns=[text])
    assert contents(out) == first
    assert prepare(out, patterns=[text], overwrite=True)["status"] == "replaced"
    assert "rover" in Corpus.open(out).types
    damaged = bytearray((out / "words.npy").read_bytes())
    damaged[-1] ^= 1
    (out / "words.npy").write_bytes(damaged)
    refused("damaged", out=out, patterns=[text])
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "data"}


def test_an_old_corpus_outlives_a_failing_replacement(text, tmp_path, monkeypatch):
    out = tmp_path / "data"
    prepare(out, patterns=[text])
    first = contents(out)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if "partial" in Path(source).name:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    parts = ("cannot be written", "Input/output error")
    refused(*parts, out=out, patterns=[text], min_count=2, overwrite=True)
    assert contents(out) == first
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "data"}


def test_other_peoples_files_are_never_touched(text, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("also mine")
    for place, part in [(out, "holds other files"), (tmp_path / "file", "is a file")]:
        for overwrite in (False, True):
            refused(part, out=place, patterns=[text], overwrite=overwrite)
    (out / "corpus.json").write_text("{}")
    refused("holds other files", out=out, patterns=[text], overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "also mine"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert prepare(empty, patterns=[text])["status"] == "written"
    (tmp_path / "link").symlink_to(empty)
    assert prepare(tmp_path / "link", patterns=[text])["status"] == "unchanged"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"patterns": ["{}/nothing.txt"]}, ["No text file matches", "nothing.txt"]),
        ({"patterns": ["{}/no*.txt"]}, ["No text file matches", "no*.txt"]),
        ({"patterns": ["{}"]}, ["is a directory", "*.txt"]),
        ({"patterns": ["{}/text.txt", "{}/empty.txt"]}, ["empty.txt holds no words"]),
        ({"patterns": ["{}/blank.txt"]}, ["blank.txt holds no words", "downloaded"]),
        ({"patterns": ["{}/cut.xz"]}, ["cut.xz is cut short"]),
        ({"patterns": ["{}/cut.gz"]}, ["cut.gz is cut short"]),
        ({"patterns": ["{}/cut.bz2"]}, ["cut.bz2 is cut short"]),
        ({"patterns": ["{}/false.xz"]}, ["false.xz is not what its ending"]),
        ({"patterns": ["{}/false.gz"]}, ["false.gz is not what its ending"]),
        ({"patterns": ["{}/false.bz2"]}, ["false.bz2 is not what its ending"]),
        ({"patterns": ["{}/latin.txt"]}, ["Line 2 of", "latin.txt is not UTF-8"]),
        ({}, ["--text FILES or as --tfds NAME"]),
        (
            {"patterns": ["{}/text.txt"], "max_vocabulary": 2},
            ["max-vocabulary", "from 4 to"],
        ),
        ({"patterns": ["{}/text.txt"], "min_count": 0}, ["min_count", "from 1 to"]),
        ({"patterns": ["{}/text.txt"], "min_count": 50}, ["no word occurs 50 times"]),
        (
            {"patterns": ["{}/text.txt"], "max_characters": 2},
            ["max_characters", "from 3 to"],
        ),
        ({"patterns": ["{}/text.txt"], "vocabulary": "{}/nix"}, ["nix cannot be read"]),
        (
            {"patterns": ["{}/text.txt"], "vocabulary": "{}/text.txt"},
            ["first three lines of"],
        ),
        (
            {"patterns": ["{}/text.txt"], "vocabulary": "v", "max_vocabulary": 9},
            ["Give one or the other"],
        ),
        (
            {"patterns": ["{}/text.txt"], "vocabulary": "v", "min_count": 2},
            ["Give one or the other"],
        ),
        (
            {"patterns": ["{}/text.txt"], "out": "{}/text.txt/some/data"},
            ["cannot be written", "text.txt is no directory"],
        ),
    ],
)
def test_bad_input_is_one_clear_sentence_and_leaves_nothing(
    text, tmp_path, arguments, parts
):
    data = text.read_bytes() * 50
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b"\n \n\n")
    (tmp_path / "latin.txt").write_bytes(b"a\ncaf\xe9 b\n")
    for suffix, pack in [("xz", lzma), ("gz", gzip), ("bz2", bz2)]:
        (tmp_path / f"cut.{suffix}").write_bytes(pack.compress(data)[:-9])
        (tmp_path / f"false.{suffix}").write_bytes(data)
    before = sorted(tmp_path.iterdir())

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(item) for item in value]
        return value.format(tmp_path) if isinstance(value, str) else value

    arguments = {key: place(value) for key, value in arguments.items()}
    refused(*parts, **{"out": tmp_path / "data", **arguments})
    assert sorted(tmp_path.iterdir()) == before


def test_an_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 1 << 20)
    (tmp_path / "text.txt").write_bytes(b"first\n" + b"word " * 500_000)
    parts = ("Line 2 of", "longer than 1 MiB", "one sentence a line")
    refused(*parts, out=tmp_path / "data", patterns=[tmp_path / "text.txt"])


def test_a_full_disk_is_an_input_error_that_leaves_nothing(text, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk._HashedFile, "write", full)
    parts = (str(tmp_path / "data"), "No space left on device", "make room")
    refused(*parts, out=tmp_path / "data", patterns=[text])
    assert list(tmp_path.iterdir()) == [text]


def test_an_interrupt_leaves_nothing_behind(text, tmp_path):
    def interrupt(share: float, words: int) -> None:
        assert (share, words) == (1.0, 18)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "data", patterns=[text], progress=interrupt)
    assert list(tmp_path.iterdir()) == [text]


def test_of_two_runs_at_once_the_later_one_is_refused(text, tmp_path):
    out = tmp_path / "data"

    def other(share: float, words: int) -> None:
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")

    refused("cannot be written", out=out, patterns=[text], progress=other)
    assert contents(out) == {"thesis.tex": b"years of work"}


def test_only_what_dead_runs_of_this_machine_left_is_cleared_away(text, tmp_path):
    host = socket.gethostname()
    names = [f"{host}-{os.getppid()}", f"elsewhere-{host}-1", f"{host}-{os.getpid()}"]
    left = [tmp_path / f".data.partial-{name}" for name in names]
    for path in left:
        path.mkdir()
    prepare(tmp_path / "data", patterns=[text])
    assert [path.exists() for path in left] == [True, True, False]


def test_a_killed_run_is_never_trusted_and_cleared_away(text, tmp_path):
    program = """
        import os, signal, sys
        from elmojax.text.prepare import prepare
        kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        prepare(sys.argv[1], patterns=[sys.argv[2]], progress=kill)
    """
    out = tmp_path / "data"
    command = [sys.executable, "-c", textwrap.dedent(program), str(out), str(text)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = [path for path in tmp_path.iterdir() if path != text]
    assert left.name.startswith(".data.partial-")
    for path in (out, left):
        with pytest.raises(InputError, match="is not a prepared corpus"):
            Corpus.open(path)
    # As a run that was killed between its two renames would leave it.
    prepare(tmp_path / "old", patterns=[text])
    replaced = left.name.replace("partial", "replaced")
    os.rename(tmp_path / "old", tmp_path / replaced)
    assert prepare(out, patterns=[text])["status"] == "unchanged"
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "data"}


def test_a_damaged_corpus_is_refused(text, tmp_path):
    prepare(tmp_path / "good", patterns=[text])

    def opening(damage: Any) -> str:
        bad = tmp_path / "bad"
        shutil.copytree(tmp_path / "good", bad)
        damage(bad)
        with pytest.raises(InputError) as caught:
            Corpus.open(bad)
        shutil.rmtree(bad)
        return str(caught.value)

    def rewrite(**changes: Any) -> Any:
        def damage(bad: Path) -> None:
            info = json.loads((bad / "corpus.json").read_text())
            (bad / "corpus.json").write_text(json.dumps({**info, **changes}))

        return damage

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    def cut(bad: Path) -> None:
        os.truncate(bad / "words.npy", 150)

    arrays = ("counts.npy", "words.npy", "offsets.npy")
    again = "Run `elmojax prepare` again"
    for name in ("vocabulary.txt", "types.txt", "counts.npy", "offsets.npy"):
        message = opening(lambda bad, name=name: (bad / name).unlink())
        assert f"{name} is missing" in message and again in message
    assert "words.npy has 150 bytes, and should have 200" in opening(cut)
    changed = "has changed since it was made"
    for name in ("vocabulary.txt", "types.txt", *arrays):
        message = opening(lambda bad, name=name: flip(bad / name))
        assert f"{name} {changed}" in message and again in message
    assert "format 99" in opening(rewrite(format=99))
    assert "does not describe a whole corpus" in opening(rewrite(parts={}))
    assert "types.txt has 12 lines" in opening(rewrite(types=11))
    for content in ("{", "[]", "3", '{"format": 1}', "[" * 100_000, "null", "\xff"):
        message = opening(lambda bad, c=content: (bad / "corpus.json").write_text(c))
        assert "cannot be understood" in message
    for parts in ([], 3, "x", dict.fromkeys(PARTS, 3), dict.fromkeys(PARTS, "bytes")):
        assert again in opening(rewrite(parts=parts))
    assert "does not describe" in opening(rewrite(tokens="50"))
    assert "words.npy holds int32" in opening(rewrite(tokens=7))
    message = opening(lambda bad: (bad / "corpus.json").unlink())
    assert "is not a prepared corpus (it has no corpus.json)" in message
    with pytest.raises(InputError, match="is no directory"):
        Corpus.open(tmp_path / "nowhere")


def test_the_fingerprint_names_the_content_not_the_place(text, tmp_path):
    prepare(tmp_path / "one", patterns=[text])
    shutil.copy(text, tmp_path / "copy.txt")
    prepare(tmp_path / "two", patterns=[tmp_path / "copy.txt"])
    prepare(tmp_path / "three", patterns=[text], max_vocabulary=5)
    one, two, three = (
        Corpus.open(tmp_path / name).fingerprint for name in ("one", "two", "three")
    )
    assert one == two != three


def test_memory_does_not_grow_with_the_text(text, tmp_path):
    program = """
        import resource, sys
        from elmojax.text.prepare import prepare
        peaks = []
        for i, path in enumerate(sys.argv[2:]):
            prepare(f"{sys.argv[1]}/{i}", patterns=[path])
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(peaks[1] - peaks[0])
    """
    line, paths = "some words of a text that is long only because it repeats\n", []
    for name, lines in [("short.txt", 1000), ("long.txt", 600_000)]:
        (tmp_path / name).write_text(line * lines)
        paths.append(str(tmp_path / name))
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    # 7.2M words: 35 MB of text and 29 MB of ids; as Python words about 400 MB.
    assert int(done.stdout) / 1024 < 150


BUILD = """
import sys
import numpy as np
import tensorflow_datasets as tfds

LINES = open(sys.argv[2], encoding="utf-8").read().split("\\n")

class Lm1bShaped(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        kinds = tfds.features
        features = {"text": kinds.Text(), "length": kinds.Scalar(np.int64)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=kinds.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, manager):
        splits = {"train": LINES, "test": ["x y"]}
        return {name: self._generate_examples(splits[name]) for name in splits}

    def _generate_examples(self, lines):
        for i in range(0, len(lines), 2):  # one example may hold several lines
            yield i, {"text": "\\n".join(lines[i:i + 2]), "length": i}

Lm1bShaped(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""

USE = """
import json, sys
from pathlib import Path
from elmojax.errors import InputError
from elmojax.text.prepare import prepare
from elmojax.text.tfds import TfdsText

data, out = sys.argv[1:]
assert "tensorflow_datasets" not in sys.modules
report = prepare(out, tfds=TfdsText("lm1b_shaped", "train", data))
again = prepare(out, tfds=TfdsText("lm1b_shaped:1.2.0", "train", data))
part = prepare(out + "-part", tfds=TfdsText("lm1b_shaped", "train[:1]", data))
refusals = []
for request in [
    TfdsText("lm1b", "train", data),
    TfdsText("lm1b_shaped:9.9.9", "train", data),
    TfdsText("lm1b_shaped", "valid", data),
    TfdsText("lm1b_shaped", "train[:x]", data),
    TfdsText("lm1b_shaped", "train", data, "sentence"),
    TfdsText("lm1b_shaped", "train", data, "length"),
    TfdsText("lm1b_shaped", "train", data + "/nowhere"),
]:
    try:
        prepare(out + "-refused", tfds=request)
    except InputError as error:
        refusals.append(str(error))
(info,) = Path(data).glob("*/*/dataset_info.json")
for content in ("{", "[]", '{"name": 3}', "[" * 100_000, '{"splits": [{"name": 3}]}'):
    info.write_text(content)
    try:
        prepare(out + "-refused", tfds=TfdsText("lm1b_shaped", "train", data))
    except InputError as error:
        refusals.append(str(error))
loaded = "tensorflow" in sys.modules
print(json.dumps([report, again["status"], part["sentences"], refusals, loaded]))
"""


@pytest.fixture(scope="module")
def tfds_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A data set of lm1b's shape, built by TFDS and prepared, apart from pytest."""
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "text.txt").write_text(TEXT, "utf-8")
    data, out, text = (str(folder / name) for name in ("tfds", "data", "text.txt"))
    build = [sys.executable, "-c", BUILD, data, text]
    subprocess.run(build, check=True, capture_output=True)
    use = [sys.executable, "-c", USE, data, out]
    done = subprocess.run(use, check=True, capture_output=True, text=True)
    return folder, json.loads(done.stdout)


def test_a_tfds_data_set_is_the_same_corpus_as_its_text(tfds_run):
    folder, (report, again, part, _, tensorflow_loaded) = tfds_run
    prepare(folder / "plain", patterns=[folder / "text.txt"])
    plain, ours = Corpus.open(folder / "plain"), Corpus.open(folder / "data")
    assert sentences_of(ours) == sentences_of(plain)
    assert ours.fingerprint == plain.fingerprint
    source = {"name": "lm1b_shaped/1.2.0", "split": "train", "feature": "text"}
    assert report["tfds"] == {**source, "examples": 3}
    assert report["blank_lines"] == 1 and report["files"] == []
    assert again == "unchanged"
    assert part == 2
    assert not tensorflow_loaded


FEATURES = "tensorflow_datasets.core.features"
TEXT_FEATURE = {"pythonClassName": f"{FEATURES}.text_feature.Text", "text": {}}


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": "planted.Text"},
        {"python_class_name": "planted.Text"},
        {"type": "planted.Text", "content": {}},
        {"pythonClassName": f"{FEATURES}_of_others.Text"},
        {"pythonClassName": "tensorflow_datasets.testing.Text"},
        {"jsonFeature": {"json": json.dumps({"a": [{"type": "planted.Text"}]})}},
        {"featuresDict": {"features": {"a": {"pythonClassName": "planted.Text"}}}},
    ],
)
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_tfds_runs_no_code_of_a_data_set(tmp_path, monkeypatch, features, name):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text("raise SystemExit('run')")
    data = tmp_path / "mine" / "1.0.0"
    data.mkdir(parents=True)
    fine = {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict"}
    inner = {"featuresDict": {"features": {"type": TEXT_FEATURE, "text": features}}}
    info = {"name": "mine", "version": "1.0.0"}
    (data / "dataset_info.json").write_text(json.dumps(info))
    (data / name).write_text(json.dumps({**info, "features": {**fine, **inner}}))
    with pytest.raises(InputError, match="is no feature of TFDS itself"):
        prepare(tmp_path / "out", tfds=TfdsText("mine", data_dir=tmp_path))
    assert not (tmp_path / "out").exists() and "planted" not in sys.modules


def test_tfds_refusals_name_what_there_is(tfds_run):
    folder, (_, _, _, refusals, _) = tfds_run
    expected = [
        ("'lm1b' is prepared", "there is lm1b_shaped:1.2.0", "--data-dir"),
        ("'lm1b_shaped:9.9.9' is prepared", "lm1b_shaped:1.2.0"),
        ("no split 'valid'", "train, test"),
        ("'train[:x]'", "cannot be read"),
        ("no feature 'sentence'", "length, text"),
        ("'length'", "is no text"),
        ("there is none", "nowhere"),
        *[("cannot be read", "dataset_info.json")] * 5,
    ]
    assert len(refusals) == len(expected)
    for message, parts in zip(refusals, expected, strict=True):
        for part in parts:
            assert part in message
    assert not (folder / "data-refused").exists()

"""Formats of text: CoNLL-U, JSON lines and FASTA become the sentences in them."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import pytest
from commands import answer, refused, run
from conftest import REPOSITORY

from elmojax.cli.common import remark
from elmojax.errors import InputError
from elmojax.text import files, formats
from elmojax.text.corpus import Corpus
from elmojax.text.files import read_text
from elmojax.text.formats import Format
from elmojax.text.prepare import prepare

pytestmark = pytest.mark.usefixtures("quick_compilation")


def row(number: object, form: str) -> str:
    return "\t".join([str(number), form, *"_" * 8])


CONLLU = "\n".join(
    [
        "# sent_id = 1",
        row(1, "vais"),
        row("2-3", "du"),
        row(2, "de"),
        row(3, "le"),
        row("3.1", "(elid.)"),
        "",
        "",
        "# newpar",
        row(1, "26 000"),
        row(2, "19\xa0700"),
        row(3, "_"),
    ]
)
CONLLU_WORDS = [["vais", "de", "le"], ["26 000", "19\xa0700", "_"]]
LISTS = [["The", "New York", "bank"], [], ["a\xa0b", "日\u3000本", "\x85"], ["<unk>"]]
JSONL = "\n".join(
    json.dumps(words, ensure_ascii=bool(place)) if words else " "
    for place, words in enumerate(LISTS)
)
FASTA = "\n\n>sp|P12345|X_HUMAN of a man\nMK T\tA\nyiakq*\n\n> P2/1-9 b\n\nMKT\n>c\nx"
PROTEINS = {"P12345": "MKTAYIAKQ", "P2/1-9": "MKT", "c": "X"}
GOOD: dict[Format, tuple[str, list[list[str]]]] = {
    "conllu": (CONLLU, CONLLU_WORDS),
    "jsonl": (JSONL, LISTS),
    "fasta": (FASTA, [list(residues) for residues in PROTEINS.values()]),
}


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def read(path: Path, format: Format) -> list[list[str]]:
    return list(read_text(path, format=format).sentences())


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("format", GOOD)
def test_sentences_and_words_of_each_format(tmp_path, format, block, monkeypatch):
    """Wherever blocks of the file part it, whatever ends lines, packed or not."""
    monkeypatch.setattr(files, "_BLOCK", block)
    text, sentences = GOOD[format]
    path = tmp_path / "text"
    for data in (text, text + "\n", f"\ufeff{text}\n", text.replace("\n", "\r\n")):
        assert read(written(path, data), format) == sentences
    path.write_bytes(gzip.compress(text.encode()))
    assert read(path, format) == sentences


def test_ids_of_proteins(tmp_path):
    text = read_text(written(tmp_path / "p.fasta", FASTA), format="fasta")
    assert text.names == list(PROTEINS)
    other = FASTA.replace("P12345", "P12346")
    renamed = read_text(written(tmp_path / "q.fasta", other), format="fasta")
    assert renamed.digest != text.digest  # a run does not go on with other ids
    with pytest.raises(InputError, match="changed while"):
        written(tmp_path / "p.fasta", other)
        list(text.sentences())


@pytest.mark.parametrize("format", GOOD)
def test_a_prepared_corpus_has_the_words_of_the_file(tmp_path, format):
    text, sentences = GOOD[format]
    report = prepare(
        tmp_path / "data",
        patterns=[written(tmp_path / "text", text)],
        format=format,
    )
    corpus = Corpus.open(tmp_path / "data")
    words = [word for words in sentences for word in words]
    assert [corpus.types[i] for i in corpus.words] == words
    assert len(corpus.offsets) - 1 == sum(map(bool, sentences))
    spaced = {word for word in words if " " in word}
    assert set(corpus.vocabulary.words[3:]) == set(words) - spaced
    assert report["odd"]["spaced_words"] == len(spaced)
    assert corpus.info["text_format"] == format


def test_plain_lines_are_prepared_as_before(tmp_path):
    path = written(tmp_path / "text", "the bank\n")
    assert "text_format" not in prepare(tmp_path / "data", patterns=[path])


ROWS = f"{row(1, 'a')}\n{row(2, 'b')}\n"
WRONG: list[tuple[Format, str, str]] = [
    ("conllu", "The bank\n", "Line 1 of .* has 1 columns, and CoNLL-U has ten"),
    ("conllu", f"{ROWS}3\tc\tNOUN\n", "Line 3 of .* has 3 columns"),
    ("conllu", f"{ROWS}{ROWS}", "Line 3 of .* is word '1', and the next .* word 3"),
    ("conllu", row("x", "a"), "Line 1 of .* is word 'x'"),
    ("conllu", f"{ROWS}{row(3, ' ')}", "Line 3 of .* has no word in its column 2"),
    ("conllu", "# nothing\n", "has no lines at all"),
    ("conllu", "", "has no lines at all"),
    ("jsonl", '["a"]\n["b"', "Line 2 of .* is no JSON"),
    ("jsonl", "[" * 100_000, "Line 1 of .* is no JSON .*nested too deeply"),
    ("jsonl", '["a"]\n{"tokens": ["b"]}', "Line 2 of .* is no list of words but"),
    ("jsonl", '"a"', "Line 1 of .* is no list of words"),
    ("jsonl", '["a", 1]', "Line 1 of .* is no list of words"),
    ("jsonl", '[["a"]]', "Line 1 of .* is no list of words"),
    ("jsonl", "the bank", "Line 1 of .* is no JSON"),
    ("jsonl", '["a"]\n\n["b", ""]', "Line 3 of .*: word 2, '', is empty"),
    ("jsonl", '[" "]', "Line 1 of .*: word 1, ' ', is empty"),
    ("jsonl", r'["a\tb"]', "Line 1 of .* holds a tab"),
    ("jsonl", r'["a", "a\nb"]', "Line 1 of .*: word 2, .* an end of line"),
    ("jsonl", r'["\u0000"]', "Line 1 of .* a NUL"),
    ("jsonl", r'["\ud800"]', "Line 1 of .* half a character"),
    ("fasta", "MKT\n", "Line 1 of .* comes before any header"),
    ("fasta", ">\nMKT", "Line 1 of .* has no id after '>'"),
    ("fasta", ">a\n>b\nMKT", "Line 1 of .*: 'a' has no residues"),
    ("fasta", ">a\nMKT\n>b\n*\n", "Line 3 of .*: 'b' has no residues"),
    ("fasta", ">a x\nMKT\n>b\nM\n>a y\nM", "Line 5 of .* the id 'a', which line 1"),
    ("fasta", ">a\nMKT\nMK-T", "Line 3 of .* holds '-', .* gaps of an alignment"),
    ("fasta", ">a\nMKT\nMK.T", "Line 3 of .* holds '.', .* gaps of an alignment"),
    ("fasta", ">a\nMK*T", r"Line 2 of .* holds '\*', .* at the end"),
    ("fasta", ">a\nMK*\nT", r"Line 3 of .* holds '\*', .* at the end"),
    ("fasta", ">a\nMKT**", r"Line 2 of .* holds '\*', .* at the end"),
    ("fasta", ">a\nMK1T", "Line 2 of .* holds '1', .* mend or remove it"),
    ("fasta", ">a\nMKß", "Line 2 of .* holds 'ß'"),
    ("fasta", "", "has no lines at all"),
]


@pytest.mark.parametrize(("format", "text", "says"), WRONG)
def test_what_is_not_of_the_format_is_refused_by_file_and_line(
    tmp_path, format, text, says
):
    path = written(tmp_path / "text", text)
    with pytest.raises(InputError, match=says):
        read_text(path, format=format)
    with pytest.raises(InputError):
        prepare(tmp_path / "data", patterns=[path], format=format)
    assert not (tmp_path / "data").exists()


def test_a_protein_that_does_not_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LONGEST", 100)
    path = written(tmp_path / "genome", ">chr1\n" + "ACGT\n" * 99)
    with pytest.raises(InputError, match=r"Line 27 of .*: 'chr1' has more than 100"):
        read_text(path, format="fasta")


def test_bytes_that_are_not_utf8_in_each_format(tmp_path):
    path = tmp_path / "text"
    path.write_bytes('["déjà"]\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"Line 1 of .* is not UTF-8"):
        read_text(path, format="jsonl")
    (words,) = read_text(path, "replace", format="jsonl").sentences()
    assert words == ["d\ufffdj\ufffd"]


def test_other_formats_are_known_where_text_is_due(tmp_path):
    path = written(tmp_path / "text", CONLLU)
    with pytest.raises(InputError, match="give --format conllu"):
        read_text(path)
    path = written(tmp_path / "text", '["The", "bank"]\n[ "." ] .\n["."]')
    odd = read_text(path).odd
    assert odd.listed_lines == 2
    (said,) = remark(odd, 50)
    assert said.startswith("Lines that are JSON lists: 2;") and "--format jsonl" in said


MODEL = "made/hdf5"


def test_commands_read_every_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open(REPOSITORY / "tests/data/made_before/made.tar.xz") as made:
        made.extractall(filter="data")
    plain = "the river bank .\n\nthe bank was steep .\n"
    lists = [line.split() for line in plain.splitlines()]
    rows = ["\n".join(row(n, w) for n, w in enumerate(s, 1)) for s in lists if s]
    texts = {
        "text": plain.replace("\n\n", "\n"),
        "conllu": "\n\n".join(rows),
        "jsonl": "\n".join(json.dumps(words) for words in lists if words),
    }
    found = []
    for format, text in texts.items():
        given = ("--text", written(tmp_path / format, text), "--format", format)
        exact, each = (
            answer("evaluate", MODEL, *given),
            answer("score", MODEL, *given),
        )
        del exact["seconds"]
        prepared = answer("prepare", *given, "--out", f"data-{format}")
        found.append((exact, each, prepared["parts"], prepared["oov_rate"]))
    assert found[0] == found[1] == found[2]
    given = ("--text", written(tmp_path / "p.fasta", FASTA), "--format", "fasta")
    first, *_ = answer("score", MODEL, *given)["sentences"]
    assert first["tokens"] == list("MKTAYIAKQ")
    refused("score", "--text", "jsonl", "--format", "json", says="json")
    refused("evaluate", "--data", "data-text", "--format", "jsonl", says="--format is")
    tfds = ("--tfds", "lm1b", "--out", "x")
    refused("prepare", *tfds, "--format", "jsonl", says="--format jsonl is for --text")
    similar = ("similar", "the bank", "--word", "bank", "--model", MODEL)
    refused(*similar, "--format", "jsonl", says="--format is for the texts of --among")
    near = run(*similar, "--among", "jsonl", "--format", "jsonl")
    assert near.status == 0 and "the river [bank] ." in near.out

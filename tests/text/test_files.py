"""Text files: what a word is, what is refused, and what is remarked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from elmojax.errors import InputError
from elmojax.text.corpus import Corpus
from elmojax.text.files import Oddities, read_lines, read_text
from elmojax.text.formats import words_of
from elmojax.text.prepare import prepare

BLANKS = "\xa0\u202f\u3000\u2028\x85\x0b\x0c\x1c\x1d\x1e\x1f\ufeff\u200b"
"""Blanks and ends of lines of Unicode and of Python, none of which part words here."""
TEXT = b"the river bank .\n\nthe bank\twas steep .\n"
WORDS = [["the", "river", "bank", "."], [], ["the", "bank", "was", "steep", "."]]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sentences(path: Path) -> list[list[str]]:
    return [words for _, words in read_lines(path)]


def test_only_spaces_and_tabs_part_words_whoever_reads(tmp_path):
    words = [f"a{blank}b" for blank in BLANKS] + list(BLANKS[:3])
    path = written(tmp_path / "text.txt", " \t ".join(words).encode() + b" \n")
    assert words_of(" ".join(words)) == words
    assert sentences(path) == [words] == list(read_text(path).sentences())
    prepare(tmp_path / "data", patterns=[path])
    corpus = Corpus.open(tmp_path / "data")
    assert [corpus.types[i] for i in corpus.words] == words
    assert set(corpus.vocabulary.words[3:]) == set(words)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n"])
def test_ends_of_lines(tmp_path, end):
    data = TEXT.replace(b"\n", end)
    assert sentences(written(tmp_path / "text.txt", data)) == WORDS
    assert sentences(written(tmp_path / "text.txt", data[: -len(end)])) == WORDS


def test_marks_around_a_sentence_are_its_own():
    assert words_of("<S> the bank . </S>") == ["the", "bank", "."]
    assert words_of("<S>") == words_of(" </S> ") == words_of("<S> </S>") == []
    assert words_of("a <S> b </S> <UNK>") == ["a", "<S>", "b", "</S>", "<UNK>"]


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("name", ["text", "text.txt", "text.gz", "text.bz2", "a.XZ"])
def test_packed_files_are_known_by_what_they_hold(tmp_path, kind, name):
    one = PACK[kind](TEXT)
    padding = {"gz": b"", "xz": bytes(8), "bz2": b""}[kind]
    for data, times in ((one, 1), (one + padding + one, 2)):
        assert sentences(written(tmp_path / name, data)) == WORDS * times


@pytest.mark.parametrize("kind", PACK)
def test_a_later_stream_that_is_damaged_drops_nothing_in_silence(tmp_path, kind):
    one, path = PACK[kind](TEXT * 99), tmp_path / f"text.{kind}"
    flipped = bytearray(one)
    flipped[len(one) // 2] ^= 255
    for rest in (one[:-9], one[:4], bytes(flipped), b"what is this", one[4:]):
        written(path, one + rest)
        for errors in ("strict", "replace"):
            with pytest.raises(InputError, match=r"is cut short|cannot be read"):
                read_text(path, errors)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("in/one.txt", TEXT)
    return file.getvalue()


def tarred(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name in ("in", "in/öne.txt"):
            member = tarfile.TarInfo(name)
            member.size = 0 if name == "in" else len(TEXT)
            member.type = tarfile.DIRTYPE if name == "in" else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(TEXT))
    return file.getvalue()


ROW = b"1\tThe\tthe\tDET\tDT\t_\t2\tdet\t_\t_\n"
OTHERS = {
    "zip": (zipped(), "is a ZIP archive of 'in/one.txt'"),
    "tar": (tarred(tarfile.PAX_FORMAT), "is a tar archive of 'in', 'in/öne.txt'"),
    "old tar": (tarred(tarfile.GNU_FORMAT), "is a tar archive of 'in', 'in/öne.txt'"),
    "tar in bzip2": (bz2.compress(tarred(tarfile.USTAR_FORMAT)), "is a tar archive"),
    "zip in gzip": (gzip.compress(zipped()), "is a ZIP archive"),
    "twice": (gzip.compress(gzip.compress(TEXT)), "is packed by gzip twice"),
    "twice, xz": (lzma.compress(bz2.compress(TEXT)), "is packed by bzip2 twice"),
    "zstd": (b"\x28\xb5\x2f\xfd" + os.urandom(99), "Zstandard"),
    "UTF-16": (TEXT.decode().encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    "UTF-16 BE": ("\ufeffa b\n".encode("utf-16-be"), "is in UTF-16"),
    "UTF-32": (TEXT.decode().encode("utf-32"), "is in UTF-32"),
    "no mark": (TEXT.decode().encode("utf-16-le"), "Line 1 of .* holds a NUL byte"),
    "NUL": (TEXT + b"a\0b c\n", "Line 4 of .* holds a NUL byte"),
    "other bytes": (b"?" + gzip.compress(os.urandom(9999))[1:], "NUL byte"),
    "Macintosh": (TEXT.replace(b"\n", b"\r"), "Line 1 of .* a carriage return without"),
    "one return": (TEXT + b"a\rb c\n", "Line 4 of .* a carriage return without"),
    "CoNLL-U": (b"# sent_id = 1\r\n1-2\t" + ROW[2:] + ROW + b"\n", "is CoNLL-U"),
    "one row": (ROW[:-1], "is CoNLL-U"),
}


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_text_is_called_by_its_name(tmp_path, kind, errors):
    data, says = OTHERS[kind]
    for name, other in (("text", ""), ("text.txt", ""), ("t.bz2", "|is not what its")):
        path = written(tmp_path / name, data)
        with pytest.raises(InputError, match=says + other):
            prepare(tmp_path / "data", patterns=[path], errors=errors)
    assert not (tmp_path / "data").exists()


def test_replacing_bytes_makes_no_text_of_what_is_none(tmp_path):
    for data in ("Мосты через реку .\n".encode("cp1251") * 9, bytes(range(1, 256)) * 2):
        path = written(tmp_path / "text.txt", data.replace(b"\r", b""))
        with pytest.raises(InputError, match=r"is not UTF-8: .* --errors replace"):
            read_text(path)
        with pytest.raises(InputError, match=r"a third .* cannot be read"):
            read_text(path, "replace")
    path = written(tmp_path / "text.txt", "déjà vu à Orléans\n".encode("latin-1") * 9)
    assert len(read_text(path, "replace").sizes) == 9


def test_columns_in_a_text_are_only_text(tmp_path):
    path = written(tmp_path / "text.txt", b"1\ta\n" + ROW + b"some words\n")
    assert len(sentences(path)[1]) == 10


def looked(text: str, max_characters: int | None = 50) -> Oddities:
    odd = Oddities()
    for line in text.split("\n"):  # as blocks of a text do
        odd.look([line], max_characters)
    whole = Oddities()
    whole.look(text.split("\n"), max_characters)
    assert odd == whole
    return odd


def test_oddities_are_counted():
    odd = looked(f"{'x' * 48} {'x' * 49}\t{'é' * 25}\n\n \t\n日本\xa0語 of\na b")
    assert (odd.lines, odd.words, odd.truncated_words) == (3, 7, 2)
    assert looked("x" * 99, None).truncated_words == 0
    assert looked(f"{'日本' * 10}\n{'A' * 19}\n{'ab ' * 99}").unsegmented_lines == 1
    assert looked("a " * 1001).long_lines == 1 and looked("a  " * 999).long_lines == 0
    odd = looked("<S> <unk> <UNK> UNK [unk] Unk unknown </S>\n<s> @@UNKNOWN@@ @-@ - U")
    spelt = ["<S>", "<unk>", "UNK", "[unk]", "Unk", "</S>", "<s>", "@@UNKNOWN@@"]
    assert odd.spellings == dict.fromkeys(spelt, 1)
    odd.add(looked("<unk> <unk>"))
    assert (odd.lines, odd.words, odd.spellings["<unk>"]) == (3, 15, 3)
    again = Oddities(**vars(odd))
    assert again == odd

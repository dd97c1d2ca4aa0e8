"""word2vec and GloVe files, made here byte by byte."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elmojax.errors import InputError
from elmojax.formats.word_vectors import read_word_vectors

FORMATS = ("word2vec", "binary", "glove")
TABLE = {"the": [0.5, -1.25, 3.0], "río": [1e-3, 2.0, -0.0], "<UNK>": [7.0, 8.0, 9.0]}

# In a text, words end at a space; in all formats a line break cannot be in a word.
words = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1
)
# A binary has no other marks of where a word ends than values that vectors have.
numbers = st.floats(width=32, min_value=-(2**19), max_value=2**19).filter(
    lambda number: number == 0 or abs(number) > 1e-14
)
tables = st.integers(2, 9).flatmap(
    lambda dim: st.dictionaries(
        words, st.lists(numbers, min_size=dim, max_size=dim), min_size=1, max_size=12
    )
)


def encode(table: dict[str, list[float]], form: str, newline: bool = True) -> bytes:
    dim = len(next(iter(table.values())))
    header = f"{len(table)} {dim}\n".encode()
    if form == "binary":
        end = b"\n" if newline else b""
        rows = (
            w.encode() + b" " + struct.pack(f"<{dim}f", *v) + end
            for w, v in table.items()
        )
        return header + b"".join(rows)
    # word2vec leaves a space at the end of a line.
    end = " \n" if form == "word2vec" else "\n"
    rows = (f"{w} {' '.join(map(repr, v))}{end}".encode() for w, v in table.items())
    return (header if form == "word2vec" else b"") + b"".join(rows)


def read(tmp_path, content: bytes, wanted, name="vectors"):
    path = tmp_path / name
    path.write_bytes(content)
    return read_word_vectors(path, wanted)


@pytest.mark.parametrize("form", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables, newline=st.booleans())
def test_what_is_written_is_read(tmp_path, form, table, newline):
    wanted = ["no such word", *reversed(table), "nor this"]
    vectors, found = read(tmp_path, encode(table, form, newline), wanted)
    assert vectors.dtype == np.float32 and found.dtype == bool
    assert found.tolist() == [False, *[True] * len(table), False]
    expected = np.array([table[word] for word in reversed(table)], np.float32)
    np.testing.assert_array_equal(vectors[1:-1], expected)
    np.testing.assert_array_equal(vectors[[0, -1]], 0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_packed_files_are_known_by_their_content(tmp_path, form, pack):
    vectors, found = read(tmp_path, pack(encode(TABLE, form)), list(TABLE), "v.txt")
    assert found.all()
    np.testing.assert_array_equal(vectors, np.array([*TABLE.values()], np.float32))


def test_first_vector_of_a_word_wins_and_every_wish_is_served(tmp_path):
    vectors, found = read(tmp_path, b"a 1 2\nb 3 4\na 5 6\n", ["a", "b", "a", "A"])
    assert vectors.tolist() == [[1, 2], [3, 4], [1, 2], [0, 0]]
    assert found.tolist() == [True, True, True, False]


def test_glove_words_may_have_spaces(tmp_path):
    content = b"the 0.1 0.2\n. . . 0.3 0.4\nat name@domain.com 0.5 0.6\n5 0.7 0.8\n"
    wanted = [". . .", "at name@domain.com", "5", "at"]
    vectors, found = read(tmp_path, content, wanted)
    assert found.tolist() == [True, True, True, False]
    expected = np.array([[0.3, 0.4], [0.5, 0.6], [0.7, 0.8], [0, 0]], np.float32)
    np.testing.assert_array_equal(vectors, expected)


def test_line_ends_of_windows_and_tabs(tmp_path):
    vectors, _ = read(tmp_path, b"a\t1\t2\r\nb 3 4\r\n\r\n", ["b", "a"])
    assert vectors.tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        (b"\xef\xbb\xbfthe 1 2\na 3 4\n", ""),
        (b"2\t2\nthe\t1\t2\na\t3\t4\n", ""),
        (b"the 1 2\n  5 6\na 3 4\n", "Rows of .* a blank, left out: 1"),
        (b"the 1 2\n 5 6\na 3 4\n", "left out: 1"),
        (b"9 2\nthe 1 2\na 3 4\n", "has 2 rows and its line 1 promises 9"),
        (b"1 2\nthe 1 2\na 3 4\n", "has 2 rows and its line 1 promises 1"),
        (encode({" ": [5, 6], "the": [1, 2], "a": [3, 4]}, "binary"), "left out: 1"),
        (encode({"the": [1, 2], "a": [3, 4]}, "binary")[:-11], "has 1 rows"),
    ],
)
def test_oddities_of_published_files(tmp_path, content, remark):
    path, said = tmp_path / "odd.vec", []
    path.write_bytes(content)
    vectors, found = read_word_vectors(path, ["the", "", " ", "a"], said.append)
    assert vectors[0].tolist() == [1, 2] and found[:3].tolist() == [True, False, False]
    assert found[3] == ("has 1 rows" not in remark)
    assert len(said) == bool(remark) and re.search(remark, "".join(said))


@pytest.mark.parametrize("newline", [True, False])
def test_binary_words_may_have_spaces(tmp_path, newline):
    words = ["the", "New York", "a b c", "of", "in New York City", "x y z 1", "end"]
    rows = np.random.default_rng(0).normal(size=(len(words), 20)).astype(np.float32)
    content = encode(dict(zip(words, rows, strict=True)), "binary", newline)
    vectors, found = read(tmp_path, content, [*words, "York"])
    assert found.tolist() == [True] * len(words) + [False]
    np.testing.assert_array_equal(vectors[:-1], rows)


def test_no_words_wanted(tmp_path):
    vectors, found = read(tmp_path, encode(TABLE, "glove"), [])
    assert vectors.shape == (0, 3) and found.shape == (0,)


def test_binary_rows_longer_than_a_chunk(tmp_path):
    table = {f"w{i}": np.full(60_000, i).tolist() for i in range(30)}
    vectors, found = read(tmp_path, encode(table, "binary"), list(table))
    assert found.all()
    np.testing.assert_array_equal(vectors[:, -1], np.arange(30))


def test_binary_word_that_is_not_utf8_matches_nothing(tmp_path):
    content = encode({"ab": [1.0, 2.0], "cd": [3.0, 4.0]}, "binary")
    content = content.replace(b"ab", b"\xff\xfe")
    vectors, found = read(tmp_path, content, ["cd", "\udcff\udcfe", "��"])
    assert found.tolist() == [True, False, False]
    assert vectors[0].tolist() == [3, 4]


BINARY = encode(TABLE, "binary")
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("wiki.vec", "the 1 2\n")
FAULTS = {
    "empty": (b"", "is empty; give a word2vec"),
    "prose": (b"Call me Ishmael.\nSome years ago\n", "line 1 is neither"),
    "blank start": (b"\nthe 1 2\n", "line 1 is neither"),
    "short row": (b"the 1 2 3\na 1 2\n", "line 2 has 2 values where 3 are due"),
    "long row": (b"the 1 2\na 1.5 2.5 3.5\n", "line 2 has 3 values where 2 are due"),
    "short first row": (b"2 3\nthe 1 2\na 1 2 3\n", "line 2 has 2 values where 3"),
    "not a number": (b"2 2\nthe 1 2\na 1 zwei\n", r"line 3 has a value .*zwei"),
    "nan": (b"the 1 2\na 1 nan\n", "line 2 has a value that is infinite or not"),
    "beyond float32": (b"the 1 2\na 1 1e39\n", "line 2 has a value that is infinite"),
    "latin-1": (b"the 1 2\nr\xedo 1 2\na 1 2\n", "line 2 is not UTF-8"),
    "no width": (b"3 0\nthe\n", "line 1 promises vectors of 0 values"),
    "other words": (b"die 1 2\n", "has none of the 2 words asked for"),
    "one line": (b"the 1 2\n" + b"x" * (5 << 20), "line 2 is over 4,194,304 bytes"),
    "cut vector": (BINARY[:-4], "ends in vector 3"),
    "cut word": (BINARY[:-16], "ends in vector 3"),
    "cut first vector": (BINARY[:10], "ends in vector 1"),
    "binary goes on": (BINARY + b"x", "ends in vector 4"),
    "binary nan": (
        encode({"b": [0.0, 1.0], "a": [1.0, float("nan")]}, "binary"),
        "vector 2 has a value that is infinite or not",
    ),
    "no words in binary": (b"2 2\nthe " + b"\0" * (5 << 20), "has no end of a word"),
    "cut gzip": (gzip.compress(encode(TABLE, "glove"))[:-9], "cannot be read"),
    "cut xz": (lzma.compress(encode(TABLE, "glove"))[:-9], "cannot be read"),
    "broken bzip2": (b"BZh9 but not so", "cannot be read"),
    "later stream": (
        bz2.compress(b"the 1 2\n") + b"BZh9" + b"a 1 2\n" * 9,
        "cannot be read",
    ),
    "UTF-16": ("the 1 2\na 1 2\n".encode("utf-16"), "is in UTF-16; convert it"),
    "fastText": (b"\xba\x16\x4f\x2f" + bytes(99), "fastText's own .* the .vec file"),
    "zip": (ZIP.getvalue(), "is a ZIP archive of 'wiki.vec'"),
    "binary 1e26": (
        encode({"the": [1e26, 1.0], "b": [2.0, 1.0]}, "binary"),
        "vector 1 has a value that is infinite .* above 1,000,000",
    ),
    "broken gzip": (gzip.compress(b"")[:10] + b"\xff" * 40, "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(tmp_path, fault):
    content, message = FAULTS[fault]
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, content, ["the", "a"], "wrong.vec")
    assert "wrong.vec" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_no_such_file(tmp_path, name):
    with pytest.raises(InputError, match="cannot be read"):
        read_word_vectors(tmp_path / name, ["the"])

"""Prepared corpora: text as arrays of word ids, with a table of all word types.

`elmojax.text.prepare.prepare` makes a directory once; `Corpus.open` maps it into
memory. It holds

    vocabulary.txt  the words of the softmax, in bilm-tf's format
    types.txt       every distinct word, one a line: `<S>`, `</S>`, `<UNK>`, then by
                    falling count, equal counts by code point
    counts.npy      int64 [types]  how often each type occurs
    words.npy       int32 [words]  the running text, as rows of types.txt
    offsets.npy     int64 [sentences + 1]  where each sentence begins in words.npy
    corpus.json     what it was made of and what is in it; written last

Words outside the vocabulary keep their type, and so their characters; only as targets
they are `<UNK>`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from elmojax.cloud import bring
from elmojax.disk import Record, map_array, read_object, sha256_of
from elmojax.errors import InputError, reading
from elmojax.text.characters import byte_lengths
from elmojax.text.vocabulary import Vocabulary, read_words

FORMAT = 1
"""Version of the directory's layout, in corpus.json."""

PARTS = ("vocabulary.txt", "types.txt", "counts.npy", "words.npy", "offsets.npy")
SUMMARY = "corpus.json"


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared corpus. The big arrays are mapped from disk, not held in memory."""

    directory: Path
    info: dict[str, Any]
    """What corpus.json says."""
    fingerprint: str
    """SHA-256 over the hashes of its parts: equal for equal text and vocabulary,
    wherever the text came from."""
    vocabulary: Vocabulary
    types: list[str]
    """Every distinct word; the first three are `<S>`, `</S>`, `<UNK>`."""
    counts: np.ndarray
    """int64 [types]: how often each type occurs."""
    words: np.ndarray
    """int32 [words]: the running text, as places in `types`."""
    offsets: np.ndarray
    """int64 [sentences + 1]: sentence i is words[offsets[i]:offsets[i + 1]]."""

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Corpus:
        """Opens what `prepare` wrote.

        Every part is read once and compared with its SHA-256 in corpus.json, which
        takes a second or so a gigabyte: no other text is ever taken for this one.

        Raises `InputError` for a directory that is not a prepared corpus, or one
        whose parts are missing, changed, cut short or do not belong together.
        """
        directory = bring(directory, (SUMMARY, *PARTS).__contains__)
        info = _read_summary(directory)
        for name in PARTS:
            _check_part(directory / name, info["parts"][name])
        hashes = "".join(str(info["parts"][name]["sha256"]) for name in PARTS)
        return cls(
            directory=directory,
            info=info,
            fingerprint=hashlib.sha256(hashes.encode()).hexdigest(),
            vocabulary=Vocabulary.read(directory / "vocabulary.txt"),
            types=_read_types(directory / "types.txt", info["types"]),
            counts=_map(directory / "counts.npy", np.int64, info["types"]),
            words=_map(directory / "words.npy", np.int32, info["tokens"]),
            offsets=_map(directory / "offsets.npy", np.int64, info["sentences"] + 1),
        )

    @cached_property
    def bytes(self) -> int:
        """UTF-8 bytes of the text, with one space or line feed a word."""
        return int((self.counts * (byte_lengths(self.types) + 1)).sum())

    def targets(self, vocabulary: Vocabulary) -> np.ndarray:
        """The id of each type in a vocabulary: int32 [types]; 2 for unknown ones."""
        return vocabulary.ids(self.types)

    def target_counts(self, vocabulary: Vocabulary) -> np.ndarray:
        """How often each word of a vocabulary is predicted: [vocabulary].

        Each sentence ends once in each direction.
        """
        targets, size = self.targets(vocabulary), len(vocabulary)
        counts = np.bincount(targets, self.counts, minlength=size)
        counts[:2] += len(self.offsets) - 1
        return counts


def vocabulary_of(directory: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary of a prepared corpus, of which nothing else is read.

    Raises `InputError` as `Corpus.open` does.
    """
    name = PARTS[0]
    directory = bring(directory, (SUMMARY, name).__contains__)
    _check_part(directory / name, _read_summary(directory)["parts"][name])
    return Vocabulary.read(directory / name)


def _read_summary(directory: Path) -> dict[str, Any]:
    if not (directory / SUMMARY).is_file():
        what = "has no corpus.json" if directory.is_dir() else "is no directory"
        raise InputError(
            f"{directory} is not a prepared corpus (it {what}); make one with "
            f"`elmojax prepare --text FILES --out {directory}`."
        )
    path = directory / SUMMARY
    try:
        info = read_object(path)
        version = info["format"]
        sound = version != FORMAT or (
            all(type(info[key]) is int for key in ("types", "tokens", "sentences"))
            and set(info["parts"]) == set(PARTS)
            and all({"bytes", "sha256"} <= p.keys() for p in info["parts"].values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "cannot be understood") from error
    if version != FORMAT:
        raise InputError(
            f"{directory} was prepared in format {version}, and this elmojax reads "
            f"format {FORMAT}; run `elmojax prepare` again."
        )
    if not sound:
        raise _damaged(path, "does not describe a whole corpus")
    return info


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"The prepared corpus is damaged: {path} {what}. Run `elmojax prepare` again."
    )


def _check_part(path: Path, part: Record) -> None:
    """`InputError` unless a file is the one that was written, to the bit."""
    with reading(path):
        size = path.stat().st_size if path.is_file() else None
        if size != part["bytes"]:
            was = "is missing" if size is None else f"has {size} bytes"
            raise _damaged(path, f"{was}, and should have {part['bytes']}")
        if sha256_of(path) != part["sha256"]:
            raise _damaged(path, "has changed since it was made: its SHA-256 differs")


def _read_types(path: Path, count: int) -> list[str]:
    types = read_words(path.read_bytes(), path)
    if len(types) != count:
        raise _damaged(path, f"has {len(types)} lines, and should have {count}")
    return types


def _map(path: Path, dtype: type, length: int) -> np.ndarray:
    try:
        numbers = map_array(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    if numbers.dtype != dtype or numbers.shape != (length,):
        raise _damaged(path, f"holds {numbers.dtype} {numbers.shape}")
    return np.asarray(numbers)  # still mapped, but read faster than as a `memmap`

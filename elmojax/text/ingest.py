"""From lines of text to the files of a prepared corpus: once over the text, then ids.

The text is read once: each word gets a provisional number, in order of appearance, and
the numbers go to disk. When all counts are known, a second pass over the numbers, not
the text, turns them into ranks. Only the table of types is held in memory.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from elmojax.errors import InputError
from elmojax.text import characters, storage
from elmojax.text.files import TextBlock
from elmojax.text.vocabulary import (
    SPECIALS,
    UNKNOWN_ID,
    Vocabulary,
    rank,
    write_words,
)

FORMAT = 1
"""Version of the directory's layout, in corpus.json."""

PARTS = ("vocabulary.txt", "types.txt", "counts.npy", "words.npy", "offsets.npy")
SUMMARY = "corpus.json"

Progress = Callable[[float, int], None]
"""Called now and then with the share of the text that is read and the words so far."""


class Source(NamedTuple):
    """One text: its name for messages, its size, and its lines."""

    name: str
    size: int
    """In the unit of `TextBlock.position`."""
    blocks: Iterator[TextBlock]


class _Types(dict[str, int]):
    """Word -> number in order of appearance; looking up a new word adds it."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def build(
    directory: Path,
    sources: list[Source],
    request: dict[str, Any],
    vocabulary: Vocabulary | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Writes the files of a corpus into an empty directory, corpus.json last.

    `request` holds the settings and is copied into corpus.json, whose contents are
    returned. `InputError` for a source without words.
    """
    raw_words, raw_lengths = directory / "words.raw", directory / "lengths.raw"
    with open(raw_words, "xb") as words, open(raw_lengths, "xb") as lengths:
        seen, skipped = _ingest(sources, words, lengths, progress)
    types, counts, row = _ranked(seen, raw_words)
    if vocabulary is None:
        size, least = request["max_vocabulary"], request["min_count"]
        vocabulary = Vocabulary.from_counts(types, counts, size, least)
    sentences = raw_lengths.stat().st_size // 4
    tokens = raw_words.stat().st_size // 4
    ranked = (row[chunk] for chunk in storage.read_chunks(raw_words, "<i4"))
    text, numbers = storage.write_bytes, storage.write_array
    vocabulary_part, types_part, counts_part, words_part, offsets_part = (
        directory / name for name in PARTS
    )
    written = (
        text(vocabulary_part, write_words(vocabulary.words)),
        text(types_part, write_words(types)),
        numbers(counts_part, "<i8", len(types), [counts]),
        numbers(words_part, "<i4", tokens, ranked),
        numbers(offsets_part, "<i8", sentences + 1, _offsets(raw_lengths)),
    )
    raw_words.unlink()
    raw_lengths.unlink()
    info = {"format": FORMAT, **request, "sentences": sentences, "tokens": tokens}
    info |= {"positions": tokens + sentences}
    info |= _figures(types, counts, vocabulary, request["max_characters"])
    info |= {**skipped, "parts": dict(zip(PARTS, written, strict=True))}
    summary = json.dumps(info, indent=2) + "\n"
    storage.write_bytes(directory / SUMMARY, summary.encode("ascii"))
    return info


def _ingest(
    sources: list[Source],
    words_file: IO[bytes],
    lengths_file: IO[bytes],
    progress: Progress | None,
) -> tuple[list[str], dict[str, int]]:
    """Streams provisional ids and sentence lengths to disk; the words they mean."""
    blank = replaced = tokens = done = 0
    total = max(1, sum(source.size for source in sources))
    types = _Types((word, i) for i, word in enumerate(SPECIALS))
    number = types.__getitem__
    for source in sources:
        before = tokens
        for block in source.blocks:
            ids, lengths = array("i"), array("i")
            for line in block.lines:
                words = line.split()
                if words:
                    ids.extend(map(number, words))
                    lengths.append(len(words))
            words_file.write(ids)
            lengths_file.write(lengths)
            blank += len(block.lines) - len(lengths)
            replaced += block.replaced
            tokens += len(ids)
            if progress is not None:
                progress(min(1.0, (done + block.position) / total), tokens)
        if tokens == before:
            raise no_words(source.name)
        done += source.size
    return list(types), {"blank_lines": blank, "replaced_lines": replaced}


def no_words(name: str) -> InputError:
    """The refusal of a text that holds nothing: nearly always a failed download."""
    return InputError(
        f"{name} holds no words at all. Was it downloaded or written whole? Leave it "
        "out if it is meant to be empty."
    )


def _ranked(
    seen: list[str], raw_words: Path
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Types by falling count, their counts, and the rank of each provisional id."""
    counts = np.zeros(len(seen), np.int64)
    for chunk in storage.read_chunks(raw_words, "<i4"):
        counts += np.bincount(chunk, minlength=len(seen))
    order = np.arange(len(seen))
    first = len(SPECIALS)
    order[first:] = rank(seen[first:], counts[first:]) + first
    row = np.empty(len(seen), "<i4")
    row[order] = np.arange(len(seen))
    return [seen[i] for i in order], counts[order], row


def _offsets(raw_lengths: Path) -> Iterator[np.ndarray]:
    end = np.zeros(1, np.int64)
    yield end
    for chunk in storage.read_chunks(raw_lengths, "<i4"):
        ends = end[-1] + np.cumsum(chunk, dtype=np.int64)
        yield ends
        end = ends


def _figures(
    types: list[str], counts: np.ndarray, vocabulary: Vocabulary, max_characters: int
) -> dict[str, int | float]:
    """What corpus.json says of words; `bytes` has one space or line feed a word."""
    sizes, limit = characters.byte_lengths(types), characters.byte_limit(max_characters)
    unknown = int(counts[vocabulary.ids(types) == UNKNOWN_ID].sum())
    return {
        "types": len(types),
        "vocabulary": len(vocabulary),
        "out_of_vocabulary": unknown,
        "oov_rate": unknown / int(counts.sum()),
        "truncated_words": int(counts[sizes > limit].sum()),
        "bytes": int((counts * (sizes + 1)).sum()),
    }

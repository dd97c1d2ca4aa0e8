"""`prepare`: text files or a TFDS data set become a prepared corpus on disk.

What such a directory holds, and how to read it, is in `elmojax.text.corpus`. The text
is read once: each word gets a provisional number, in order of appearance, and the
numbers go to disk. When all counts are known, a second pass over the numbers, not the
text, turns them into ranks. Only the table of types is held in memory.

A text lies inside the package (`sample_corpora`): public-domain books, for a first run
and for tests. train: Doyle, The Adventures of Sherlock Holmes and The Hound of the
Baskervilles; Carroll, Alice's Adventures in Wonderland and Through the Looking-Glass;
Wells, The Time Machine; Dickens, A Christmas Carol. heldout: Doyle, The Sign of the
Four.
"""

from __future__ import annotations

import filecmp
import json
import os
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from elmojax import disk
from elmojax.arguments import checked
from elmojax.errors import InputError
from elmojax.text import characters, files
from elmojax.text.corpus import FORMAT, PARTS, SUMMARY, Corpus
from elmojax.text.files import Oddities
from elmojax.text.formats import Format, TextBlock
from elmojax.text.tfds import TfdsText, open_tfds
from elmojax.text.vocabulary import (
    SPECIALS,
    UNKNOWN_ID,
    Vocabulary,
    check_limits,
    order_by_count,
    write_words,
)

ProgressCallback = Callable[[float, int], None]
"""Called now and then with the share of the text that is read and the words so far."""


class Source(NamedTuple):
    """One text: its name for messages, its size, and its lines."""

    name: str
    size: int
    """In the unit of `TextBlock.position`."""
    blocks: Iterator[TextBlock]


def build(
    directory: Path,
    sources: list[Source],
    request: dict[str, Any],
    vocabulary: Vocabulary | None,
    progress: ProgressCallback | None,
) -> tuple[dict[str, Any], Oddities]:
    """Writes the files of a corpus into an empty directory, corpus.json last.

    `request` holds the settings and is copied into corpus.json, whose contents are
    returned with what is odd about the text. `InputError` for a source without words.
    """
    raw_words, raw_offsets = directory / "words.raw", directory / "offsets.raw"
    with open(raw_words, "xb") as words, open(raw_offsets, "xb") as offsets:
        columns = request["max_characters"]
        seen, skipped, odd = _ingest(sources, columns, words, offsets, progress)
    types, counts, row = _ranked(seen, raw_words)
    if vocabulary is None:
        size, least = request["max_vocabulary"], request["min_count"]
        vocabulary = Vocabulary.from_counts(types, counts, size, least)
    tokens = raw_words.stat().st_size // 4
    sentences = raw_offsets.stat().st_size // 8 - 1
    ranked = (row[chunk] for chunk in disk.read_chunks(raw_words, "<i4"))
    offsets_read = disk.read_chunks(raw_offsets, "<i8")
    vocabulary_part, types_part, counts_part, words_part, offsets_part = (
        directory / name for name in PARTS
    )
    written = (
        disk.write_bytes(vocabulary_part, write_words(vocabulary.words)),
        disk.write_bytes(types_part, write_words(types)),
        disk.write_array(counts_part, "<i8", len(types), [counts]),
        disk.write_array(words_part, "<i4", tokens, ranked),
        disk.write_array(offsets_part, "<i8", sentences + 1, offsets_read),
    )
    raw_words.unlink()
    raw_offsets.unlink()
    info = {"format": FORMAT, **request, "sentences": sentences, "tokens": tokens}
    info |= {"positions": tokens + sentences}
    info |= _figures(types, counts, vocabulary, request["max_characters"])
    info |= {**skipped, "parts": dict(zip(PARTS, written, strict=True))}
    summary = json.dumps(info, indent=2) + "\n"
    disk.write_bytes(directory / SUMMARY, summary.encode("ascii"))
    return info, odd


def _ingest(
    sources: list[Source],
    max_characters: int,
    words_file: IO[bytes],
    offsets_file: IO[bytes],
    progress: ProgressCallback | None,
) -> tuple[list[str], dict[str, int], Oddities]:
    """Streams provisional ids, and where sentences begin, to disk; the words they
    mean."""
    blank = replaced = tokens = done = 0
    odd = Oddities()
    total = max(1, sum(source.size for source in sources))
    types: defaultdict[str, int] = defaultdict(lambda: len(types))
    types.update((word, i) for i, word in enumerate(SPECIALS))
    offsets_file.write(bytes(8))
    number = types.__getitem__
    for source in sources:
        before = tokens
        for block in source.blocks:
            ids, ends = array("i"), array("q")
            odd.look(block.lines, max_characters, block.tabs)
            for words in block.sentences():
                if words:
                    ids.extend(map(number, words))
                    ends.append(tokens + len(ids))
            words_file.write(ids)
            offsets_file.write(ends)
            blank += len(block.lines) - len(ends)
            replaced += block.replaced
            tokens += len(ids)
            if progress is not None:
                progress(min(1.0, (done + block.position) / total), tokens)
        if tokens == before:
            raise no_words(source.name)
        done += source.size
    return list(types), {"blank_lines": blank, "replaced_lines": replaced}, odd


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
    for chunk in disk.read_chunks(raw_words, "<i4"):
        counts += np.bincount(chunk, minlength=len(seen))
    order = np.arange(len(seen))
    first = len(SPECIALS)
    order[first:] = order_by_count(seen[first:], counts[first:]) + first
    row = np.empty(len(seen), "<i4")
    row[order] = np.arange(len(seen))
    return [seen[i] for i in order], counts[order], row


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


@checked
def prepare(
    out: str | os.PathLike[str],
    *,
    patterns: files.Patterns = (),
    tfds: TfdsText | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    max_vocabulary: int | None = None,
    min_count: int = 1,
    errors: files.Errors = "strict",
    format: Format = "text",
    max_characters: int = 50,
    about: Sequence[str] = (),
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Makes the prepared corpus `out` from text files and globs, or from TFDS.

    One sentence a line, words set apart by spaces and tabs alone, or files of another
    `format` (see `elmojax.text.formats`). Memory grows with the number of types, not
    with the text. The vocabulary is the file given, or the most frequent words:
    `max_vocabulary` entries with the three special ones, each occurring `min_count`
    times or more; a word that holds a space is never among them. `errors="replace"`
    reads undecodable bytes as U+FFFD. The same text and settings give the same bytes.
    `about` says where the text comes from and under which licence, for the cards of
    models.

    Returns the contents of corpus.json, `status` ("written", "unchanged" or
    "replaced"), `seconds` and `words_per_second`, and `odd`, the fields of the
    text's `Oddities`. Raises `InputError`, leaving `out` as
    it was, for text, settings or an output directory that will not do; `overwrite`
    replaces a prepared corpus, and nothing else.
    """
    started = time.perf_counter()
    out = Path(os.path.realpath(disk.local(out)))
    request, sources = _sources(patterns, tfds, errors, format)
    max_vocabulary, min_count = check_limits(max_vocabulary, min_count)
    if vocabulary is not None and (max_vocabulary, min_count) != (None, 1):
        raise InputError(
            "--vocabulary gives the words; --max-vocabulary and --min-count are for a "
            "vocabulary that is counted from the text. Give one or the other."
        )
    given = None if vocabulary is None else Vocabulary.read(vocabulary)
    max_characters = characters.byte_limit(max_characters) + 2
    request |= {
        "vocabulary_file": None if vocabulary is None else os.fspath(vocabulary),
        "max_vocabulary": max_vocabulary,
        "min_count": min_count,
        "max_characters": max_characters,
        "errors": errors,
        **({"about": list(about)} if about else {}),
        **({"text_format": format} if format != "text" else {}),
    }
    with disk.new_directory(out) as partial:
        replaces = _check_out(out, request, overwrite)
        info, odd = build(partial, sources, request, given, progress)
        status = "replaced" if replaces else "written"
        names = [SUMMARY, *PARTS]
        same, _, _ = filecmp.cmpfiles(partial, out, names, shallow=False)
        if replaces and same == names:
            status = "unchanged"
        elif replaces and not overwrite:
            raise InputError(
                f"{out} already holds a corpus, and the same text and settings now "
                "give another: the text has changed, or that corpus is damaged. "
                "Choose another --out, or add --overwrite."
            )
        else:
            disk.install(partial, out, replaces)
    seconds = time.perf_counter() - started
    speed = info["tokens"] / seconds
    report = {"status": status, "seconds": seconds, "words_per_second": speed}
    return {**info, **report, "odd": vars(odd)}


def _sources(
    patterns: files.Patterns,
    tfds: TfdsText | None,
    errors: files.Errors,
    format: Format,
) -> tuple[dict[str, Any], list[Source]]:
    """What goes into corpus.json about the text, and the text itself."""
    if bool(patterns) == (tfds is not None):
        raise InputError("Give the text either as --text FILES or as --tfds NAME.")
    if tfds is not None and format != "text":
        raise InputError(f"--format {format} is for --text FILES; leave it out.")
    if tfds is not None:
        recorded, name, size, blocks = open_tfds(tfds, errors)
        return {"files": [], "tfds": recorded}, [Source(name, size, blocks)]
    sources = [
        Source(str(path), path.stat().st_size, files.read_blocks(path, errors, format))
        for path in files.expand(patterns)
    ]
    for source in sources:
        if not source.size and Path(source.name).is_file():
            raise no_words(source.name)
    listed = [{"name": source.name, "bytes": source.size} for source in sources]
    return {"files": listed, "tfds": None}, sources


def _check_out(out: Path, request: dict[str, Any], overwrite: bool) -> bool:
    """Whether a prepared corpus stands at `out`; `InputError` for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        info = disk.read_object(out / SUMMARY)
        known = info["format"] is not None
    except (OSError, ValueError, KeyError):
        known = False
    if not known:
        what = "holds other files" if out.is_dir() else "is a file"
        raise InputError(
            f"{out} {what} and is no prepared corpus, so it is left alone. Choose "
            "another --out, or remove it yourself."
        )
    changed = [key for key, value in request.items() if info.get(key) != value]
    if changed and not overwrite:
        raise InputError(
            f"{out} already holds a corpus made with other settings "
            f"({', '.join(changed)}). Choose another --out, or add --overwrite."
        )
    return True


SAMPLE_MIN_COUNT = 2
"""Words seen once stay out of the sample's vocabulary."""


def sample_corpora(directory: Path) -> tuple[Corpus, Corpus]:
    """Prepares both texts below `directory`, unless they are there, and opens them."""
    train, heldout = directory / "sample-train", directory / "sample-heldout"
    source = resources.files("elmojax") / "sample"
    for out, vocabulary in ((train, None), (heldout, train / "vocabulary.txt")):
        if (out / "corpus.json").exists():
            continue
        with resources.as_file(
            source / f"{out.name.removeprefix('sample-')}.txt.xz"
        ) as path:
            least = SAMPLE_MIN_COUNT if vocabulary is None else 1
            prepare(out, patterns=[str(path)], vocabulary=vocabulary, min_count=least)
    return Corpus.open(train), Corpus.open(heldout)

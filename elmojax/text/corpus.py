"""`prepare`: text files or a TFDS data set become a prepared corpus on disk.

What such a directory holds, and how to read it, is in `elmojax.text.prepared`.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elmojax.errors import InputError
from elmojax.text import characters, files, ingest, storage
from elmojax.text.prepared import Corpus as Corpus
from elmojax.text.vocabulary import Vocabulary, check_limits


class TfdsText(NamedTuple):
    """One split of a data set that TFDS has prepared on disk as array_record."""

    name: str
    """As for TFDS: name, name/config, and :version after either."""
    split: str = "train"
    data_dir: str | os.PathLike[str] | None = None
    """Where TFDS keeps its data; none = $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    feature: str = "text"


def prepare(
    out: str | os.PathLike[str],
    *,
    patterns: Sequence[str | os.PathLike[str]] = (),
    tfds: TfdsText | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    max_vocabulary: int | None = None,
    min_count: int = 1,
    errors: files.Errors = "strict",
    max_characters: int = 50,
    overwrite: bool = False,
    progress: ingest.Progress | None = None,
) -> dict[str, Any]:
    """Makes the prepared corpus `out` from text files and globs, or from TFDS.

    One sentence a line, words set apart by white space. Memory grows with the number
    of types, not with the text. The vocabulary is the file given, or the most
    frequent words: `max_vocabulary` entries with the three special ones, each
    occurring `min_count` times or more. `errors="replace"` reads undecodable bytes as
    U+FFFD. The same text and settings give the same bytes.

    Returns the contents of corpus.json, `status` ("written", "unchanged" or
    "replaced"), `seconds` and `words_per_second`. Raises `InputError`, leaving `out` as
    it was, for text, settings or an output directory that will not do; `overwrite`
    replaces a prepared corpus, and nothing else.
    """
    started = time.perf_counter()
    out = Path(os.path.realpath(out))
    request, sources = _sources(patterns, tfds, errors)
    given = _settings(vocabulary, max_vocabulary, min_count)
    characters.byte_limit(max_characters)
    request |= {
        "vocabulary_file": None if vocabulary is None else os.fspath(vocabulary),
        "max_vocabulary": max_vocabulary,
        "min_count": min_count,
        "max_characters": max_characters,
        "errors": errors,
    }
    with storage.new_directory(out) as partial:
        replaces = _check_out(out, request, overwrite)
        info = ingest.build(partial, sources, request, given, progress)
        status = "replaced" if replaces else "written"
        if replaces and _same(partial, out):
            status = "unchanged"
        elif replaces and not overwrite:
            raise InputError(
                f"{out} already holds a corpus, and the same text and settings now "
                "give another: the text has changed, or that corpus is damaged. "
                "Choose another --out, or add --overwrite."
            )
        else:
            storage.install(partial, out, replaces)
    seconds = time.perf_counter() - started
    speed = info["tokens"] / seconds
    return {**info, "status": status, "seconds": seconds, "words_per_second": speed}


def _settings(
    path: str | os.PathLike[str] | None, max_vocabulary: int | None, min_count: int
) -> Vocabulary | None:
    check_limits(max_vocabulary, min_count)
    if path is None:
        return None
    if max_vocabulary is not None or min_count != 1:
        raise InputError(
            "--vocabulary gives the words; --max-vocabulary and --min-count are for a "
            "vocabulary that is counted from the text. Give one or the other."
        )
    return Vocabulary.read(path)


def _sources(
    patterns: Sequence[str | os.PathLike[str]],
    tfds: TfdsText | None,
    errors: files.Errors,
) -> tuple[dict[str, Any], list[ingest.Source]]:
    """What goes into corpus.json about the text, and the text itself."""
    if errors not in ("strict", "replace"):
        raise InputError(f"errors is {errors!r}; it must be 'strict' or 'replace'.")
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [patterns]
    if bool(patterns) == (tfds is not None):
        raise InputError("Give the text either as --text FILES or as --tfds NAME.")
    if tfds is not None:
        recorded, source = _open_tfds(tfds, errors)
        return {"files": [], "tfds": recorded}, [source]
    paths = files.expand(patterns)
    listed = [{"name": str(path), "bytes": path.stat().st_size} for path in paths]
    for path in paths:
        if path.is_file() and not path.stat().st_size:
            raise ingest.no_words(str(path))
    sources = [
        ingest.Source(str(path), path.stat().st_size, files.read_blocks(path, errors))
        for path in paths
    ]
    return {"files": listed, "tfds": None}, sources


def _check_out(out: Path, request: dict[str, Any], overwrite: bool) -> bool:
    """Whether a prepared corpus stands at `out`; `InputError` for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        info = json.loads((out / ingest.SUMMARY).read_bytes())
        known = info["format"] is not None
    except (OSError, ValueError, KeyError, TypeError):
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


def _same(one: Path, other: Path) -> bool:
    names = (ingest.SUMMARY, *ingest.PARTS)
    whole = all((other / name).is_file() for name in names)
    return whole and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names
    )


def _open_tfds(
    text: TfdsText, errors: files.Errors
) -> tuple[dict[str, Any], ingest.Source]:
    """A TFDS split as a source, and what corpus.json says about it."""
    directory = _tfds_directory(text)
    # Imported here: slow, and needed for nothing else. It never loads TensorFlow.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    splits = list(builder.info.splits)
    if re.split(r"[\[+]", text.split)[0] not in splits:
        raise InputError(
            f"{text.name} in {directory} has no split {text.split!r}; it has "
            f"{', '.join(splits)}."
        )
    features = builder.info.features
    if features is None or text.feature not in features:
        raise InputError(
            f"{text.name} has no feature {text.feature!r}; it has "
            f"{', '.join(sorted(features or ()))}."
        )
    try:
        examples = builder.as_data_source(split=text.split)
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"Split {text.split!r} of {directory} cannot be read: "
            f"{str(error).splitlines()[0]} TFDS data must be prepared with "
            "file_format='array_record'."
        ) from error
    name = f"{builder.info.full_name} {text.split}"
    recorded = {
        "name": builder.info.full_name,
        "split": text.split,
        "feature": text.feature,
        "examples": len(examples),
    }
    blocks = _tfds_blocks(examples, text.feature, name, errors)
    return recorded, ingest.Source(name, len(examples), blocks)


def _tfds_directory(text: TfdsText) -> str:
    """The directory of the newest prepared version that the name can mean.

    Found by its files, so a data set whose code is not installed can be read, and
    nothing is ever downloaded.
    """
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = Path(text.data_dir or default).expanduser()
    name, _, version = text.name.partition(":")
    found = sorted(path.parent for path in root.glob("*/**/dataset_info.json"))
    found = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    paths = [path for path in found if path.parent == root / name]
    paths = [path for path in paths if version in ("", path.name)]
    if not paths:
        names = [path.relative_to(root) for path in found]
        there = ", ".join(f"{n.parent.as_posix()}:{n.name}" for n in names[:20])
        raise InputError(
            f"No TFDS data set {text.name!r} is prepared in {root}; there is "
            f"{there or 'none'}. Set --data-dir, or prepare it with TFDS first "
            "(file_format='array_record')."
        )
    numbers = [tuple(map(int, path.name.split("."))) for path in paths]
    return str(paths[numbers.index(max(numbers))])


def _tfds_blocks(
    examples: Any, feature: str, name: str, errors: files.Errors
) -> Iterator[files.TextBlock]:
    step = 1024
    for start in range(0, len(examples), step):
        stop = min(start + step, len(examples))
        try:
            batch = examples.__getitems__(range(start, stop))
        except Exception as error:  # array_record raises what it likes
            raise InputError(
                f"Examples {start} to {stop - 1} of {name} cannot be read: {error}"
            ) from error
        lines, replaced = [], 0
        for number, example in enumerate(batch, start):
            value = example[feature]
            if isinstance(value, str):
                value = value.encode("utf-8", "surrogateescape")
            if not isinstance(value, bytes):
                raise InputError(
                    f"Feature {feature!r} of {name} is no text but "
                    f"{type(value).__name__}; choose another --feature."
                )
            where = f"example {number} of {name}"
            text = value.removesuffix(b"\n")
            more, damaged = files.decode_lines(text, errors, where, 1)
            lines += more
            replaced += damaged
        yield files.TextBlock(start + 1, lines, replaced, stop)

"""Text of a data set that TensorFlow Datasets (TFDS) has prepared on disk.

Data sets are found by their files: nothing is downloaded, TensorFlow is not imported,
and no code but TFDS's own runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from elmojax.disk import local, parse_json
from elmojax.errors import InputError, one_line
from elmojax.text.files import Errors, decode_lines
from elmojax.text.formats import TextBlock


class TfdsText(NamedTuple):
    """One split of a data set that TFDS has prepared on disk as array_record."""

    name: str
    """As for TFDS: name, name/config, and :version after either."""
    split: str = "train"
    data_dir: str | os.PathLike[str] | None = None
    """Where TFDS keeps its data; none = $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    feature: str = "text"


def open_tfds(
    text: TfdsText, errors: Errors
) -> tuple[dict[str, Any], str, int, Iterator[TextBlock]]:
    """What corpus.json says about a split; its name, its examples and their lines."""
    directory = _directory_of(text)
    for name in ("features.json", "dataset_info.json"):
        _require_own_features(Path(directory, name))
    # Imported here: slow, and needed for nothing else. It never loads TensorFlow.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        splits = list(builder.info.splits)
    except Exception as error:  # whatever a damaged or edited file makes TFDS raise
        raise InputError(
            f"The data set in {directory} cannot be read ({type(error).__name__}: "
            f"{one_line(error)}): its dataset_info.json or features.json is damaged; "
            "prepare it again with TFDS."
        ) from error
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
        count = len(examples)
    except Exception as error:  # TFDS and array_record raise what they like
        raise InputError(
            f"Split {text.split!r} of {directory} cannot be read "
            f"({type(error).__name__}: {one_line(error)}). TFDS data must be whole, "
            "and prepared with file_format='array_record'."
        ) from error
    name = f"{builder.info.full_name} {text.split}"
    recorded = {
        "name": builder.info.full_name,
        "split": text.split,
        "feature": text.feature,
        "examples": count,
    }
    blocks = _blocks(examples, text.feature, name, errors)
    return recorded, name, count, blocks


_CLASS = ("pythonClassName", "python_class_name", "type")
_OWN_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.[\w.]+")


def _require_own_features(path: Path) -> None:
    """`InputError` for a file that names a class that is not TFDS's own.

    TFDS imports the module of any class that it reads there: a data set from elsewhere
    could run whatever Python finds.
    """
    classes: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and text.lstrip().startswith("{"):
                    with contextlib.suppress(ValueError):
                        parse(text)  # JSON in JSON, as TFDS reads it
            if key in _CLASS and isinstance(value, str) and "." in value:
                classes.append(value)

    parse = partial(json.loads, object_pairs_hook=look)
    try:
        if path.exists():
            parse_json(path.read_text("utf-8"), parse)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it.") from error
    for name in classes:
        if not _OWN_FEATURE.fullmatch(name):
            raise InputError(
                f"{path} names {name!r}, which is no feature of TFDS itself, and other "
                "code is not run. Prepare the data set with TFDS's own features."
            )


def _directory_of(text: TfdsText) -> str:
    """The directory of the newest prepared version that the name can mean.

    Found by its files, so a data set whose code is not installed can be read, and
    nothing is ever downloaded.
    """
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = local(os.path.expanduser(text.data_dir or default))
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


def _blocks(
    examples: Any, feature: str, name: str, errors: Errors
) -> Iterator[TextBlock]:
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
            more, damaged = decode_lines(text, errors, where, 1)
            lines += more
            replaced += damaged
        yield TextBlock(start + 1, lines, replaced, stop)

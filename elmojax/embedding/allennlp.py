"""The HDF5 file of AllenNLP 0.9's `ElmoEmbedder.embed_file`.

A data set a line, named by its number from 0, (layers + 1, words, vector) or (words,
vector); and `sentence_to_index`, one string: a JSON object from the text of each line
to its name, the last one where lines are equal. Or the text of a line is its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import h5py
import jax
import numpy as np

from elmojax.disk import local, replacing, unfailing
from elmojax.errors import InputError
from elmojax.text.files import read_blocks

TextFile = str | os.PathLike[str] | IO[str]


def read_sentences(input_file: TextFile) -> list[str]:
    """Lines without the spaces and tabs around them: all of a path's file, or what is
    left of an open one.

    Raises:
      InputError: for a path as `read_blocks`, for what is no open text.
    """
    if isinstance(input_file, (str, os.PathLike)):
        blocks = read_blocks(Path(input_file))
        return [line.strip(" \t") for block in blocks for line in block.lines]
    try:
        lines = list(input_file)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"input_file cannot be read ({error}); give the path of a text file, or "
            "one that is open for reading text."
        ) from error
    for line in lines:
        if not isinstance(line, str):
            raise InputError(
                f"input_file gives {line!r:.60} for a line of text; open it in text "
                "mode, with its encoding."
            )
    return [line.strip(" \t\r\n") for line in lines]


def write_sentences(
    out: Path,
    sentences: Sequence[str],
    vectors: Iterable[np.ndarray],
    *,
    forget: bool,
    as_keys: bool,
    overwrite: bool,
) -> None:
    """Writes the vectors of each sentence; `out` appears when it is whole.

    Args:
      out: any name; an existing file is replaced only with `overwrite`.
      sentences: text of each line.
      vectors: of each sentence, in the same order; nothing is taken before the names
        are known to be good ones.
      forget: leave `sentence_to_index` out.
      as_keys: name data sets by their sentences, and leave `sentence_to_index` out.

    Raises:
      InputError: if `out` is there or cannot be written, or a sentence is no name.
    """
    names = list(sentences) if as_keys else [str(i) for i in range(len(sentences))]
    if as_keys:
        advice = "leave use_sentence_keys out, and lines are named by their numbers"
        check_names(names, "Line", advice)
    if local(out).is_dir() or (out.exists() and not overwrite):
        raise InputError(
            f"{out} is there already; give another output_file_path, or overwrite=True "
            "to replace a file."
        )
    try:
        with (
            replacing(out) as made,
            unfailing(made) as (plain, check),
            h5py.File(plain, "w") as file,
        ):
            for name, array in zip(names, vectors, strict=True):
                check()
                file.create_dataset(name, data=array)
            if not (forget or as_keys):
                index = json.dumps(dict(zip(sentences, names, strict=True)))
                text = h5py.string_dtype()
                file.create_dataset("sentence_to_index", data=[index], dtype=text)
    except jax.errors.JaxRuntimeError:
        raise
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{out} cannot be written ({error}); choose another output_file_path, or "
            "make room."
        ) from error


def check_names(names: Sequence[str], what: str, advice: str) -> None:
    """`InputError` unless each can name a data set; slashes part the names of groups.

    `what` they are the names of, and the advice, are for the error.
    """
    keys = [tuple(p for p in name.split("/") if p not in ("", ".")) for name in names]
    groups = {key[:end] for key in keys for end in range(1, len(key))}
    seen: dict[tuple[str, ...], int] = {}
    for number, (name, key) in enumerate(zip(names, keys, strict=True)):
        wrong = None
        if not key or key in groups:
            wrong = f"is {name!r:.60}"
        elif key in seen:
            wrong = f"is that of {what.lower()} {seen[key]} again"
        elif any(c == "\0" or "\ud800" <= c <= "\udfff" for c in name):
            wrong = "holds a NUL character or half a character"
        if wrong is not None:
            raise InputError(
                f"{what} {number} (from 0) {wrong}, so it cannot name a data set; "
                f"{advice}."
            )
        seen[key] = number

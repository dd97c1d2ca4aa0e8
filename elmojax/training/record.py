"""What a run is: config.json and vocabulary.txt of its directory."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmojax.atomic import replaced
from elmojax.config import ElmoConfig, TrainConfig
from elmojax.config_json import from_json, to_json
from elmojax.errors import InputError
from elmojax.text.vocabulary import Vocabulary, write_words
from elmojax.training.step import LanguageModel

FORMAT = 1
"""Version of the layout of run directories, in config.json."""


@dataclass(frozen=True)
class RunRecord:
    """config.json of a run directory: all choices made, none left automatic."""

    train: TrainConfig
    corpus: str
    """Fingerprint of the training corpus."""
    vocabulary: int
    """Words of the softmax."""
    words: str = ""
    """SHA-256 of vocabulary.txt."""
    format: int = FORMAT
    elmojax: str = ""
    """Version that started the run."""
    jax: str = ""
    numpy: str = ""
    order: int = 0
    """Version of the order of sentences, `batches.ORDER`; 0 in records before it."""
    jax_threefry_partitionable: bool | None = None
    """JAX's switch of that name, which decides what a key draws; None = not known."""


def read_record(run: Path) -> RunRecord:
    """The record of a run directory.

    Raises `InputError` when there is none or it cannot be read.
    """
    path = run / "config.json"
    if not path.is_file():
        what = "has no config.json" if run.is_dir() else "is no directory"
        raise InputError(
            f"{run} is not a run directory: it {what}. Give the --workdir of "
            "`elmojax pretrain`."
        )
    record = from_json(RunRecord, _read(path), path)
    if record.format != FORMAT:
        raise InputError(
            f"{run} has format {record.format!r}, and this elmojax reads format "
            f"{FORMAT}; use elmojax {record.elmojax}, which made it."
        )
    return record


def model_config(run_directory: str | os.PathLike[str]) -> ElmoConfig:
    """The configuration of the model that a run trains, from its config.json.

    Raises:
      InputError: if it is not a run directory, or its config.json cannot be read.
    """
    return read_record(Path(run_directory)).train.model


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); restore it from a copy."
        ) from error


def fingerprint(vocabulary: Vocabulary) -> str:
    """SHA-256 of its file."""
    return hashlib.sha256(write_words(vocabulary.words)).hexdigest()


def read_vocabulary(run: Path, record: RunRecord) -> Vocabulary | None:
    """The words of a run's softmax; None for a model without.

    Raises `InputError` if they are not those that the run was trained with.
    """
    if not record.words and not record.vocabulary:
        return None  # converted from files that have no vocabulary
    path = run / "vocabulary.txt"
    vocabulary = Vocabulary.read(path)
    if record.vocabulary and len(vocabulary) != record.vocabulary:
        raise InputError(
            f"{path} has {len(vocabulary)} words and the run was trained with "
            f"{record.vocabulary}; put the original file back."
        )
    if record.words and fingerprint(vocabulary) != record.words:
        raise InputError(
            f"{path} holds other words than the run was trained with; put the "
            "original file back."
        )
    return vocabulary


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are there, whole or damaged, rising."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def create_run(run: Path, record: RunRecord, vocabulary: Vocabulary | None) -> None:
    """Makes a run directory; config.json comes last and makes it one."""
    if (run / "checkpoints").exists():
        raise InputError(
            f"{run} has checkpoints but no config.json; put its config.json back, or "
            "choose another --workdir."
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        for left in run.glob(".*.partial*"):  # by a process that was killed here
            left.unlink()
        if vocabulary is not None:
            vocabulary.write(run / "vocabulary.txt")
        _write(run, record)
    except OSError as error:
        raise _unwritable(run, error) from error


def replace_record(run: Path, record: RunRecord) -> None:
    """Another config.json for a run that is there."""
    try:
        _write(run, record)
    except OSError as error:
        raise _unwritable(run, error) from error


def _write(run: Path, record: RunRecord) -> None:
    with replaced(run / "config.json") as partial:
        partial.write_text(to_json(record), encoding="utf-8")


def _unwritable(run: Path, error: OSError) -> InputError:
    return InputError(
        f"The run directory {run} cannot be written: {error.strerror or error}. "
        "Choose another --workdir."
    )


def language_model(record: RunRecord, **options: Any) -> LanguageModel:
    """The shapes of a run, with dropout, precision and mesh as given."""
    train = record.train
    return LanguageModel(train.model, record.vocabulary, train.head, **options)

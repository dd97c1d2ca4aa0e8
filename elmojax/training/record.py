"""What a run directory says of its run, besides checkpoints and metrics.

config.json     what the run is (`RunRecord`); vocabulary.txt is its vocabulary
status.json     how it stands (`Status`)
.lock           held by the process that trains there (`lock_run`)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from elmojax.arguments import checked
from elmojax.cloud import bring, origin
from elmojax.config import ElmoConfig, TrainConfig, from_json, to_json
from elmojax.disk import Lock, Taken, local, read_object, read_utf8, replaced
from elmojax.errors import InputError, showable, writing
from elmojax.text.vocabulary import Vocabulary, write_words
from elmojax.training.remote import RECORD
from elmojax.training.step import LanguageModel

FORMAT = 1
"""Version of the layout of run directories, in config.json."""


FIXED = (
    "encoder",
    "model",
    "head",
    "optimizer",
    "rows",
    "window",
    "dropout",
    "seed",
    "freeze_steps",
)
"""What must not change when a run goes on."""
MODEL = ("model", "head")
"""What of this its vectors and probabilities depend on."""


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
    devices: str = ""
    """Devices that the run began on, in words."""


def fixed(config: TrainConfig) -> TrainConfig:
    """Only what must not change, as each checkpoint holds it."""
    return TrainConfig(**{name: getattr(config, name) for name in FIXED})


def difference(
    was: Any, now: Any, names: Iterable[str] | None = None
) -> tuple[str, Any, Any] | None:
    """The first field that two configurations differ in, by its dotted name, and both
    values; None where they agree. Of the fields `names`, if given."""
    for name in names or [field.name for field in fields(was)]:
        one, other = getattr(was, name), getattr(now, name)
        if one != other:
            if is_dataclass(one) and type(one) is type(other):
                inner = difference(one, other)
                assert inner is not None
                return f"{name}.{inner[0]}", *inner[1:]
            return name, one, other
    return None


def read_record(run: Path) -> RunRecord:
    """The record of a run directory.

    Raises `InputError` when there is none or it cannot be read.
    """
    path = local(run) / "config.json"
    if not path.is_file():
        what = "has no config.json" if run.is_dir() else "is no directory"
        raise InputError(
            f"{run} is not a run directory: it {what}. Give the --workdir of "
            "`elmojax pretrain`."
        )
    text = read_utf8(path, path, "; restore it from a copy")
    record = from_json(RunRecord, text, path)
    if record.format != FORMAT:
        raise InputError(
            f"{run} has format {record.format!r}, and this elmojax reads format "
            f"{FORMAT}; use elmojax {record.elmojax}, which made it."
        )
    return record


@checked
def model_config(run_directory: str | os.PathLike[str]) -> ElmoConfig:
    """The configuration of the model that a run trains, from its config.json.

    Raises:
      InputError: if it is not a run directory, or its config.json cannot be read.
    """
    run = bring(run_directory, re.compile(RECORD).fullmatch)
    return read_record(run).train.model


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
    if not path.exists():
        raise InputError(
            f"{path} is gone; put it back (the prepared corpus of the run has a copy)."
        )
    vocabulary = Vocabulary.read(path, trained=True)
    if record.vocabulary and len(vocabulary) != record.vocabulary:
        raise InputError(
            f"{path} has {len(vocabulary)} words and the run was trained with "
            f"{record.vocabulary}; put the original file back (the prepared corpus of "
            "the run has a copy)."
        )
    if record.words and fingerprint(vocabulary) != record.words:
        raise InputError(
            f"{path} holds other words than the run was trained with; put the "
            "original file back (the prepared corpus of the run has a copy)."
        )
    return vocabulary


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are there, whole or damaged, rising."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return sorted(
        int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,17}", name)
    )


def _writing(run: Path) -> AbstractContextManager[None]:
    return writing(f"The run directory {run}", "Choose another --workdir.")


def create_run(run: Path, record: RunRecord, vocabulary: Vocabulary | None) -> None:
    """Makes a run directory; config.json comes last and makes it one."""
    if (run / "checkpoints").exists():
        raise InputError(
            f"{run} has checkpoints but no config.json; put its config.json back, or "
            "choose another --workdir."
        )
    with _writing(run):
        run.mkdir(parents=True, exist_ok=True)
        for left in run.glob(".*.partial*"):  # by a process that was killed here
            if left.is_file() or left.is_symlink():
                left.unlink()
        if vocabulary is not None:
            vocabulary.write(run / "vocabulary.txt")
        write_record(run, record)


def write_record(run: Path, record: RunRecord) -> None:
    """Writes config.json, or replaces it."""
    train, source = record.train, record.train.init_from
    if source is not None:  # without what may be a password
        train = replace(train, init_from=showable(source))
    train = replace(train, workdir=Path(origin(train.workdir)))  # where it is sent
    text = to_json(replace(record, train=train))
    with _writing(run), replaced(run / "config.json") as partial:
        partial.write_text(text, encoding="utf-8")


def language_model(record: RunRecord, **options: Any) -> LanguageModel:
    """The shapes of a run, with dropout, precision and mesh as given."""
    train = record.train
    return LanguageModel(train.model, record.vocabulary, train.head, **options)


def lock_run(run: Path, patience: float = 0.0) -> Lock:
    """Keeps other processes from training in a run directory, made if need be.

    Waits up to `patience` seconds: a lock may outlive a machine for a while. Raises
    `InputError` if another process has it, naming that process.
    """
    try:
        with _writing(run):
            return Lock(run / LOCK, patience)
    except Taken as owner:
        raise InputError(
            f"Another process trains in {run} ({owner}); wait for it, stop it, or "
            "choose another --workdir."
        ) from owner


FILE, LOCK = "status.json", ".lock"


@dataclass(frozen=True)
class Status:
    """What the process that trains says of itself."""

    state: str
    """training, finished, stopped early, stopped, or failed."""
    step: int
    """Steps done when this was written."""
    steps: int
    """Length of the whole run."""
    why: str = ""
    """Why it stopped or failed."""
    written: float = 0.0
    """Seconds since 1970."""

    @classmethod
    def read(cls, run: Path) -> Status | None:
        """What status.json of a run says; None where it is not there or damaged."""
        try:
            status = cls(**read_object(run / FILE))
        except (OSError, ValueError, TypeError):
            return None
        steps = (status.step, status.steps)
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in steps):
            return None
        texts = (status.state, status.why)
        return status if all(type(text) is str for text in texts) else None

    def write(self, run: Path) -> None:
        """Replaces status.json of a run; a disk that is full changes nothing else."""
        values = asdict(self) | {"written": time.time()}
        with contextlib.suppress(OSError), replaced(run / FILE) as partial:
            partial.write_text(json.dumps(values) + "\n", encoding="utf-8")

"""What a run directory says of its run: what it is, how it stands, what came of it.

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
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from elmojax.arguments import checked
from elmojax.cloud import bring, origin
from elmojax.config import ElmoConfig, TrainConfig, from_json, to_json
from elmojax.disk import (
    Lock,
    Taken,
    is_locked,
    local,
    read_object,
    read_utf8,
    replacing,
)
from elmojax.errors import InputError, showable, writing
from elmojax.text.vocabulary import Vocabulary, write_words
from elmojax.training.metrics import (
    MEASURE,
    evaluations,
    read_metrics,
    step_seconds,
)
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


def fixed_fields(config: TrainConfig) -> TrainConfig:
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
    size, wrong = len(vocabulary), None
    if record.vocabulary and size != record.vocabulary:
        wrong = f"has {size} words and the run was trained with {record.vocabulary}"
    elif record.words and fingerprint(vocabulary) != record.words:
        wrong = "holds other words than the run was trained with"
    if wrong is not None:
        raise InputError(
            f"{path} {wrong}; put the original file back (the prepared corpus of the "
            "run has a copy)."
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
    with _writing(run), replacing(run / "config.json") as partial:
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
        with contextlib.suppress(OSError), replacing(run / FILE) as partial:
            partial.write_text(json.dumps(values) + "\n", encoding="utf-8")


def find_runs(directory: Path) -> list[Path]:
    """Run directories at and below `directory`, by name.

    Raises `InputError` where there is no such directory, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; give one that holds runs.")
    os.listdir(directory)  # `walk` passes over what it may not read
    runs = []
    for folder, below, files in os.walk(directory):
        other = any(name.endswith(".safetensors") for name in files)
        if {"config.json", "vocabulary.txt"} <= {*files} and not other:
            runs.append(Path(folder))
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith("."))
    if not runs:
        raise InputError(
            f"There is no run in {directory}; give the directory above some --workdir."
        )
    return sorted(runs)


def describe(run: Path, lines: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """One run in numbers, from its files alone; None for what is not known.

    `lines` are those of its metrics.jsonl, where they have been read already.

    Keys: run, state, step, steps, saved (step of the newest checkpoint), loss,
    perplexity (the last held-out one, geometric mean of both directions), best
    (the lowest), best_step, tokens_per_second, seconds_left, why.

    A run that says it trains, and whose lock nobody holds, was killed.
    """
    record, said = read_record(run), Status.read(run)
    lines = read_metrics(run / "metrics.jsonl") if lines is None else lines
    last = next((line for line in reversed(lines) if line.get("tokens")), {"step": 0})
    known = evaluations(lines).items()
    scores = [(found[MEASURE], step) for step, found in known if found.get(MEASURE)]
    state = "unknown" if said is None else said.state
    if state == "training" and is_locked(run / LOCK) is False:
        state = "killed"
    saved = checkpoint_steps(run)
    # At step 0 nothing is saved.
    best = min((score for score in scores if score[1]), default=(None, None))
    rate, left = last.get("tokens_per_second"), None
    if said is not None and state == "training" and rate and last["step"]:
        left = (said.steps - last["step"]) * last["tokens"] / last["step"] / rate
    return {
        "run": str(run),
        "state": state,
        "step": max([last["step"], 0 if said is None else said.step, *saved]),
        "steps": record.train.steps if said is None else said.steps,
        "saved": max(saved, default=None),
        "loss": last.get("loss", last.get("sampled_loss")),
        "perplexity": scores[-1][0] if scores else None,
        "best": best[0],
        "best_step": best[1],
        "tokens_per_second": rate,
        "seconds_left": None if left is None else max(0.0, left),
        "why": (said and said.why) or None,
    }


OWN = ("train.workdir", "format")
"""Entries of config.json in which any two runs may differ."""


def compare_configs(runs: Sequence[Path]) -> dict[str, list[Any]]:
    """Entries of config.json that are not the same in all runs: dotted name -> the
    value of each run, None where it has no such entry.

    Raises `InputError` for a run whose record cannot be read.
    """
    records = [_dotted(json.loads(to_json(read_record(run)))) for run in runs]
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return {
        name.removeprefix("train."): values
        for name, values in columns.items()
        if name not in OWN and any(value != values[0] for value in values)
    }


def _dotted(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        inner = isinstance(value, dict)
        found |= _dotted(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def results(run: Path, lines: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """`describe` of a run, and over all of its steps: `tokens` seen,
    `tokens_per_second` (median) and `seconds` that the steps took."""
    lines = read_metrics(run / "metrics.jsonl") if lines is None else lines
    rates = [
        line["tokens_per_second"] for line in lines if line.get("tokens_per_second")
    ]
    return describe(run, lines) | {
        "tokens": max((line.get("tokens") or 0 for line in lines), default=0),
        "tokens_per_second": statistics.median(rates) if rates else None,
        "seconds": step_seconds(lines),
    }

"""Every task with every kind of features, then the tables and the plots.

    python experiments/tasks/all.py --data tasks --vocabulary vocabulary.txt \\
        --text 'train-*.txt' --out results

Each run is a command of its own whose report goes to --out; what is there already is
not done again, so that the same command goes on after an interruption. A run that fails
is named at the end, and the others go on. --data has a folder for each task:
conll2000, senseval2, snli_small, sst2, ud_ewt, wnut17.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from task_options import run_command
from task_report import plot, read_reports, table, write_text

from elmojax import InputError
from elmojax.errors import writing

HERE = Path(__file__).resolve().parent
Task = Literal["senses", "chunking", "pos", "ner", "sentiment", "entailment"]
FILES: dict[Task, dict[str, str]] = {
    "senses": {"train": "senseval2/train.tsv", "test": "senseval2/test.tsv"},
    "chunking": {"train": "conll2000/train.txt", "test": "conll2000/test.txt"},
    "pos": {
        "train": "ud_ewt/train.txt",
        "dev": "ud_ewt/dev.txt",
        "test": "ud_ewt/test.txt",
    },
    "ner": {
        "train": "wnut17/train.txt",
        "dev": "wnut17/dev.txt",
        "test": "wnut17/test.txt",
    },
    "sentiment": {
        "train": "sst2/train.tsv",
        "dev": "sst2/dev.tsv",
        "test": "sst2/test.tsv",
    },
    "entailment": {
        "train": "snli_small/train_small.tsv",
        "test": "snli_small/test.tsv",
    },
}
KINDS = ("elmo", "random", "word2vec", "none", "characters", "glove", "transformer")
"""The most telling first."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Runs every task with every kind of features."""

    data: Path
    """Folder with the folders of the tasks."""
    out: Path
    """Folder of the reports, the static vectors, the tables and the plots."""
    model: str = "mini"
    vocabulary: Path | None = None
    """Of the static vectors: that of the model."""
    text: tuple[str, ...] = ()
    """Text that the model was trained on, for static vectors; none = without them."""
    transformer: Path | None = None
    """Directory of a BERT; none = without it."""
    tasks: tuple[Task, ...] = tuple(FILES)
    seeds: tuple[int, ...] = (0, 1, 2)
    layers: int = 3
    """Layers of the model; each is read alone, with the first seed."""
    dry: bool = False
    """Print the commands that are left, and run none."""


class Job(NamedTuple):
    """A command that makes a file."""

    makes: Path
    script: str
    flags: tuple[object, ...]

    def command(self) -> list[str]:
        script = str(HERE / self.script)
        return [sys.executable, script, *map(str, self.flags), "--out", str(self.makes)]


def vector_jobs(asked: Arguments) -> Iterator[Job]:
    """Static vectors of the text."""
    if not asked.text:
        return
    if asked.vocabulary is None:
        raise InputError("--text is for static vectors; give their --vocabulary, too.")
    given = ("--text", *asked.text, "--vocabulary", asked.vocabulary)
    for method, epochs in (("word2vec", 3), ("glove", 15)):
        flags = ("--method", method, "--epochs", epochs, *given)
        yield Job(asked.out / f"{method}.bin", "static_vectors.py", flags)


def task_jobs(asked: Arguments) -> Iterator[Job]:
    """Kind after kind, so that all tasks have the most telling ones first; then single
    layers, both places, a biLM that is trained too."""
    for kind in KINDS:
        flags: tuple[object, ...] = ("--features", kind)
        if kind in ("word2vec", "glove"):
            if not asked.text:
                continue
            flags += ("--vectors", asked.out / f"{kind}.bin")
        if kind == "transformer":
            if asked.transformer is None:
                continue
            flags += ("--vectors", asked.transformer)
        for task in asked.tasks:
            if (task, kind) != ("senses", "none"):
                yield _job(asked, task, kind, asked.seeds, *flags)
    for task in asked.tasks:
        for layer in range(asked.layers):
            name = f"elmo-layer{layer}"
            yield _job(asked, task, name, asked.seeds[:1], "--layer", layer)
    if "chunking" in asked.tasks:
        yield _job(asked, "chunking", "elmo-both", asked.seeds, "--place", "both")
    unfrozen: dict[Task, int] = {"pos": 3, "sentiment": 2}
    for task, epochs in unfrozen.items():
        if task in asked.tasks:
            yield _job(asked, task, "elmo-unfrozen", asked.seeds, "--unfreeze", epochs)


def _job(
    asked: Arguments, task: Task, name: str, seeds: Sequence[int], *flags: object
) -> Job:
    files = [
        part
        for flag, file in FILES[task].items()
        for part in (f"--{flag}", asked.data / file)
    ]
    given = (*files, "--model", asked.model, "--seeds", *seeds, *flags)
    return Job(asked.out / f"{task}-{name}.json", f"{task}.py", given)


def run_left(jobs: Sequence[Job]) -> list[Job]:
    """Runs what is not done; those that failed."""
    left, failed = [job for job in jobs if not job.makes.exists()], []
    for number, job in enumerate(left, 1):
        print(f"[{number}/{len(left)}] {job.makes.name}", flush=True)
        begin = time.perf_counter()
        log = job.makes.with_suffix(".log")
        with open(log, "w", encoding="utf-8") as file:
            done = subprocess.run(job.command(), stdout=file, stderr=file)
        if done.returncode:
            failed.append(job)
            print(f"  failed, status {done.returncode}: {log}", flush=True)
        else:
            print(f"  {time.perf_counter() - begin:.0f} s", flush=True)
    return failed


def write_tables(asked: Arguments, jobs: Sequence[Job]) -> None:
    """The tables and plots of the reports that are there: kinds of features, and what
    is varied with the biLM."""
    reports = [job.makes for job in jobs if job.makes.suffix == ".json"]
    varied = [path for path in reports if "-elmo-" in path.name]
    whole = [path for path in reports if path.name.endswith("-elmo.json")]
    for name, paths in (
        ("features", [path for path in reports if path not in varied]),
        ("variants", [path for path in reports if path in (*whole, *varied)]),
    ):
        there = read_reports(sorted(path for path in paths if path.exists()))
        if there:
            write_text(asked.out / f"{name}.md", table(there))
            plot(there, asked.out / f"{name}.png")
            plot(there, asked.out / f"{name}.svg")


def run(asked: Arguments) -> None:
    """Runs what is left, then the tables; status 1 if a run failed.

    Raises `InputError` for flags that do not go together.
    """
    jobs = [*vector_jobs(asked), *task_jobs(asked)]
    if asked.dry:
        for job in jobs:
            if not job.makes.exists():
                print(shlex.join(job.command()))
        return
    with writing(asked.out, "Name another folder."):
        asked.out.mkdir(parents=True, exist_ok=True)
    failed = run_left(jobs)
    write_tables(asked, jobs)
    if failed:
        names = ", ".join(job.makes.name for job in failed)
        print(f"all: failed: {names}; their logs are beside them.", file=sys.stderr)
        sys.exit(1)


def main(argv: Sequence[str] | None = None) -> None:
    run_command("all", Arguments, run, argv)


if __name__ == "__main__":
    main()

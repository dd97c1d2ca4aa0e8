"""Training on a CPU: elmojax, bilm-tf and PyTorch on the same text, in turns.

    python experiments/benchmarks/peers.py --text train-00[0-2].txt.xz \\
        --tf-python ~/tf1/bin/python --bilm-tf ~/bilm-tf --torch-python python \\
        --presets mini original original --rows 64 16 64 \\
        --vocabulary 30000 50000 50000 --out peers.json --plot peers.png

Each program is a process of its own Python (see `workers/`). It reads the same text
with the same vocabulary, builds its model, takes steps until it is warm, and then
waits. In each round every program trains for about `--seconds`, one at a time and in
another order. Printed, and written with all rounds to `--out`: tokens/s (a token is one
position trained in both directions; median and range of the rounds), CPU-seconds a
token, peak memory, and how many times as fast elmojax is (median and range of the
ratios of each round). `--programs` chooses among

    elmojax             adaptive softmax
    elmojax-sampled     sampled softmax, with as many negatives as bilm-tf
    bilm-tf             its own `train` (Python 3.7, tensorflow==1.15.5; a checkout)
    torch               `nn.LSTM(proj_size)`, no clips; characters of every position
    torch-clips         a loop over the steps with the clips, as AllenNLP has it
    torch-unique, torch-clips-unique    the same, each distinct word encoded once

The Python of PyTorch must have elmojax too, for the batches. Programs whose Python is
not given are left out. All use float32, dropout 0.1, Adagrad and gradient clipping.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peer_report import machine, plot, ratios, summary, table
from peer_turns import Worker, take_turns

from elmojax.config import CharCnnConfig, ElmoConfig, LstmConfig, TrainConfig
from elmojax.formats.published import options_of
from elmojax.text.characters import CHARACTERS
from elmojax.text.corpus import Corpus
from elmojax.text.prepare import prepare
from elmojax.training.choices import automatic_cutoffs

WORKERS = Path(__file__).resolve().parent / "workers"
PROGRAMS = {
    "elmojax": ("elmojax", "adaptive"),
    "elmojax-sampled": ("elmojax", "sampled"),
    "bilm-tf": ("bilm_tf", ""),
    "torch": ("torch", "lstm"),
    "torch-clips": ("torch", "clips"),
    "torch-unique": ("torch", "lstm-unique"),
    "torch-clips-unique": ("torch", "clips-unique"),
}
"""Name of each program: its worker and its variant."""

NEEDS = {"torch": "torch, elmojax", "bilm_tf": "tensorflow, bilm.training"}
"""What the Python of a peer must import."""

TOY = ElmoConfig(
    CharCnnConfig(((1, 8), (2, 8)), 4, 1, max_characters=16), LstmConfig(16, 8)
)
NEGATIVES = {"toy": 64, "mini": 1024, "small": 1024}
"""By preset; 8,192, as bilm-tf, for the others."""

SHARD = 500_000
"""Words of a text file, about. bilm-tf holds one as characters, for each direction, and
reads the next when it is through: keep a benchmark shorter than that."""

BUSY = 0.5
"""Load above which other programs are likely to disturb."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and batch, on one vocabulary."""

    preset: str
    rows: int
    window: int
    words: int
    negatives: int

    @property
    def config(self) -> ElmoConfig:
        return TOY if self.preset == "toy" else ElmoConfig.preset(self.preset)

    @property
    def title(self) -> str:
        return (
            f"{self.preset}, {self.rows} rows, window {self.window}, "
            f"{self.words:,} words, {self.negatives:,} negatives"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options()
    asked = parser.parse_args(arguments)
    try:
        cases = list(cases_of(asked))
    except ValueError as error:
        parser.error(str(error))
    for path in asked.text:
        if not path.is_file():
            parser.error(f"--text {path}: there is no such file.")
    programs = available(asked)
    about = machine()
    if about["load_at_start"] > BUSY:
        load = f"{about['load_at_start']:.2f}"
        print(f"Warning: the machine is busy (load {load}).", file=sys.stderr)
    given = {key: str(value) for key, value in vars(asked).items()}
    report: dict[str, Any] = {"machine": about, "date": time.strftime("%Y-%m-%d")}
    report |= {"arguments": given, "cases": []}
    with tempfile.TemporaryDirectory(prefix="peers-") as directory:
        text = Path(directory) / "text"
        split(read(asked.text), asked.words, text)
        for number, case in enumerate(cases):
            folder = Path(directory) / f"case-{number}"
            print(f"\n{case.title}", flush=True)
            found = compare(case, programs, text, folder, asked)
            report["cases"].append(found)
            print(table(found), flush=True)
            if asked.out:  # after each case: a later one may fail
                asked.out.write_text(json.dumps(report, indent=1) + "\n")
    if asked.plot:
        plot(report["cases"], asked.plot)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--words", type=int, default=3_000_000, help="of the text")
    parser.add_argument("--presets", nargs="+", default=["mini"])
    several = {"type": int, "nargs": "+"}
    parser.add_argument("--rows", default=[64], **several)
    parser.add_argument("--vocabulary", default=[30_000], **several)
    parser.add_argument("--negatives", default=[0], **several, help="0: by preset")
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument(
        "--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS)
    )
    parser.add_argument("--torch-python", default="")
    parser.add_argument("--tf-python", default="")
    parser.add_argument("--bilm-tf", type=Path, help="a checkout of allenai/bilm-tf")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser


def cases_of(asked: argparse.Namespace) -> Iterator[Case]:
    """A case for each preset; `ValueError` where the lists do not fit."""
    count = len(asked.presets)
    lists = []
    for name in ("rows", "vocabulary", "negatives"):
        values = getattr(asked, name)
        if len(values) not in (1, count):
            raise ValueError(f"--{name} needs one value, or one for each preset.")
        lists.append(values * count if len(values) == 1 else values)
    for preset, rows, words, negatives in zip(asked.presets, *lists, strict=True):
        negatives = negatives or NEGATIVES.get(preset, 8192)
        yield Case(preset, rows, asked.window, words, negatives)


def available(asked: argparse.Namespace) -> list[str]:
    """The programs asked for whose Python is given; refuses one that cannot work."""
    pythons = {"elmojax": sys.executable, "torch": asked.torch_python}
    pythons["bilm_tf"] = asked.tf_python if asked.bilm_tf else ""
    programs = [name for name in asked.programs if pythons[PROGRAMS[name][0]]]
    left = [name for name in asked.programs if name not in programs]
    if left:
        print(f"Left out, as their Python is not given: {', '.join(left)}.")
    for worker in {PROGRAMS[name][0] for name in programs} & set(NEEDS):
        command = [pythons[worker], "-c", f"import {NEEDS[worker]}"]
        variables = {**os.environ, **environment(worker, asked)}
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["it failed"])[-1]
            raise SystemExit(f"{pythons[worker]} must import {NEEDS[worker]}: {why}")
    return programs


def environment(worker: str, asked: argparse.Namespace) -> dict[str, str]:
    """What a worker's environment has besides ours: no GPU, UTF-8, its modules."""
    found = {"CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"}
    if worker == "elmojax":
        return {**found, "JAX_PLATFORMS": "cpu"}
    if worker == "bilm_tf":
        folder = str(asked.bilm_tf.resolve())
        return {**found, "PYTHONPATH": folder, "GOMP_SPINCOUNT": "0"}
    ours = str(WORKERS.parents[2])
    paths = filter(None, [ours, os.environ.get("PYTHONPATH", "")])
    return {**found, "PYTHONPATH": os.pathsep.join(paths)}


def read(paths: Iterable[Path]) -> Iterator[str]:
    """The lines of text files, packed with xz or not."""
    for path in paths:
        opened = lzma.open if path.suffix == ".xz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            yield from file


def split(lines: Iterable[str], words: int, folder: Path) -> None:
    """Writes the first lines, with so many words, to files of `SHARD` words or more."""
    folder.mkdir()
    kept, count = [], 0
    for line in lines:
        if count >= words:
            break
        if line.strip():
            kept.append(line)
            count += len(line.split())
    parts = max(1, count // SHARD)
    for number in range(parts):
        begin, end = (n * len(kept) // parts for n in (number, number + 1))
        path = folder / f"part-{number:03}.txt"
        path.write_text("".join(kept[begin:end]), encoding="utf-8")


def compare(
    case: Case, programs: list[str], text: Path, folder: Path, asked: argparse.Namespace
) -> dict[str, Any]:
    """Prepares the text and times all programs."""
    corpus_folder, pattern = folder / "corpus", text / "*.txt"
    folder.mkdir()
    prepare(corpus_folder, patterns=[pattern], max_vocabulary=case.words)
    corpus = Corpus.open(corpus_folder)
    if len(corpus.vocabulary) < case.words:
        raise SystemExit(
            f"The text has only {len(corpus.vocabulary):,} distinct words; give more "
            "of it (--text, --words), or a smaller --vocabulary."
        )
    task = describe(case, corpus, pattern)
    starts: dict[str, Callable[[], Worker]] = {
        name: partial(begin, name, task, folder, asked) for name in programs
    }
    found = take_turns(starts, asked.rounds, asked.seconds)
    return {
        "title": case.title,
        **dataclasses.asdict(case),
        "cutoffs": task["cutoffs"],
        "programs": {name: {**summary(it), **it} for name, it in found.items()},
        "ratios": ratios(found),
    }


def describe(case: Case, corpus: Corpus, pattern: Path) -> dict[str, Any]:
    """What all workers are told."""
    config, preset = case.config, "mini" if case.preset == "toy" else case.preset
    div_value = TrainConfig.preset(preset).head.div_value
    counts = corpus.target_counts(corpus.vocabulary)
    bilm: dict[str, Any] = options_of(config)
    bilm["char_cnn"]["n_characters"] = CHARACTERS  # 262 only after the training
    bilm |= {"bidirectional": True, "dropout": 0.1, "all_clip_norm_val": 10.0}
    bilm |= {"n_epochs": 1_000_000, "n_train_tokens": len(corpus.words)}
    bilm |= {"batch_size": case.rows, "unroll_steps": case.window}
    return {
        "config": json.dumps(dataclasses.asdict(config)),
        "rows": case.rows,
        "window": case.window,
        "negatives": case.negatives,
        "div_value": div_value,
        "cutoffs": automatic_cutoffs(counts, config.lstm.projection, div_value),
        "corpus": str(corpus.directory),
        "vocabulary": str(corpus.directory / "vocabulary.txt"),
        "text": str(pattern),
        "options": {**bilm, "n_negative_samples_batch": case.negatives},
    }


def begin(
    name: str, task: dict[str, Any], folder: Path, asked: argparse.Namespace
) -> Worker:
    """Starts the worker of a program."""
    worker, variant = PROGRAMS[name]
    pythons = {"torch": asked.torch_python, "bilm_tf": asked.tf_python}
    own = {"variant": variant, "workdir": str(folder / name)}
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**task, **own}), encoding="utf-8")
    script = str(WORKERS / f"{worker}_worker.py")
    command = [pythons.get(worker, sys.executable), script, str(file)]
    return Worker(name, command, environment(worker, asked), folder / f"{name}.log")


if __name__ == "__main__":
    main()

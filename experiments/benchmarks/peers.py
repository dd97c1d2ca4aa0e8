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
import json
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import harness
from harness import Row

from elmojax.config import (
    CharCnnConfig,
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    TrainConfig,
    to_json,
)
from elmojax.formats.published import options_of
from elmojax.text.characters import CHARACTERS
from elmojax.text.corpus import Corpus
from elmojax.text.prepare import prepare
from elmojax.training.choices import resolved

WORKERS = Path(__file__).resolve().parent / "workers"
sys.path.append(str(WORKERS))

from turns import Worker, take_turns  # noqa: E402

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

STEPS = 1_000_000
"""Length of a run: more than anybody waits for."""

OURS = "elmojax"
"""Programs with this prefix are compared with all others."""

BUSY = 0.5
"""Load above which other programs are likely to disturb."""


@dataclass(frozen=True)
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
    programs, load = available(asked), harness.machine()["load_at_start"]
    if load > BUSY:
        print(f"Warning: the machine is busy (load {load:.2f}).", file=sys.stderr)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="peers-") as directory:
        text = Path(directory) / "text"
        split(read(asked.text), asked.words, text)
        for number, case in enumerate(cases):
            folder = Path(directory) / f"case-{number}"
            harness.say(f"\n{case.title}")
            found.append(compare(case, programs, text, folder, asked))
            harness.say(page(found[-1]))
            # After each case: a later one may fail.
            harness.write(asked.out, asked, cases=found)
    titles = [case["title"] for case in found]
    harness.bars(asked.plot, *map(panels, found), titles=titles)


def options() -> argparse.ArgumentParser:
    parser = harness.options(
        __doc__,
        text=[Path],
        words=(3_000_000, "Words of the text that are taken."),
        presets=["mini"],
        rows=[64],
        vocabulary=[30_000],
        negatives=([0], "Negative samples; 0 is by preset."),
        window=20,
        rounds=5,
        seconds=(10.0, "Of a turn, about."),
        torch_python=("", "A Python that has PyTorch and elmojax."),
        tf_python=("", "A Python that has TensorFlow 1.15."),
        bilm_tf=(Path, "A checkout of allenai/bilm-tf."),
        out=Path,
        plot=Path,
    )
    every = list(PROGRAMS)
    parser.add_argument("--programs", nargs="+", choices=every, default=every)
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
    if worker == "bilm_tf":
        folder = str(asked.bilm_tf.resolve())
        return {**found, "PYTHONPATH": folder, "GOMP_SPINCOUNT": "0"}
    paths = [str(WORKERS.parents[2]), str(WORKERS.parent)]
    paths += filter(None, [os.environ.get("PYTHONPATH", "")])
    return {**found, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}


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
) -> Row:
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
    rates = {name: column(it, "tokens_per_second") for name, it in found.items()}
    ratios = {
        ours: {
            peer: harness.spread(harness.ratios(rates[ours], rates[peer]))
            for peer in found
            if peer != ours
        }
        for ours in found
        if ours.startswith(OURS)
    }
    return {
        "title": case.title,
        **asdict(case),
        "programs": {name: {**summary(it), **it} for name, it in found.items()},
        "ratios": ratios,
    }


def column(found: Row, key: str) -> list[float]:
    return [turn[key] for turn in found["turns"]]


def summary(found: Row) -> Row:
    """What a program's turns come to."""
    row: Row = {"last_loss": found["turns"][-1]["loss"]}
    for key in ("tokens_per_second", "cpu_seconds_per_token"):
        row[key], *row[f"{key}_range"] = harness.spread(column(found, key))
    for key in ("peak_bytes", "idle_cpu_seconds"):
        row[key] = max(column(found, key))
    return row


def page(case: Row) -> str:
    """The results of a case in Markdown."""
    rows = []
    for name, found in case["programs"].items():
        low, high = found["tokens_per_second_range"]
        row = {
            "": name,
            "tokens/s": f"{found['tokens_per_second']:,.4g} ({low:,.4g}-{high:,.4g})",
            "CPU ms/token": 1000 * found["cpu_seconds_per_token"],
            "peak GB": found["peak_bytes"] / 1e9,
            "start s": found["start_seconds"],
            "loss": f"{found['first_loss']:.2f} to {found['last_loss']:.2f}",
            "idle CPU s": found["idle_cpu_seconds"],
        }
        for ours, peers in case["ratios"].items():
            ratio = peers.get(name)
            row[f"{ours} is"] = ratio and "{:.2f}x ({:.2f}-{:.2f})".format(*ratio)
        rows.append(row)
    return f"\n{case['title']}\n\n{harness.table_of(rows)}\n"


def panels(case: Row) -> dict[str, dict[str, list[float]]]:
    """Bars with the range of the rounds."""
    keys = {
        "tokens/s": ("tokens_per_second", 1.0),
        "CPU ms a token": ("cpu_seconds_per_token", 1e3),
        "peak memory, GB": ("peak_bytes", 1e-9),
    }
    return {
        label: {
            name: [scale * v for v in (found[key], *found.get(f"{key}_range", ()))]
            for name, found in case["programs"].items()
        }
        for label, (key, scale) in keys.items()
    }


def describe(case: Case, corpus: Corpus, pattern: Path) -> Row:
    """What all workers are told."""
    preset = "mini" if case.preset == "toy" else case.preset
    div_value = TrainConfig.preset(preset).head.div_value
    config = TrainConfig(  # with the paper's optimiser and dropout, like all peers
        data=corpus.directory,
        model=case.config,
        head=HeadConfig("adaptive", (), div_value),
        steps=STEPS,
        rows=case.rows,
        window=case.window,
    )
    bilm: Row = options_of(case.config)
    bilm["char_cnn"]["n_characters"] = CHARACTERS  # 262 only after the training
    bilm |= {"bidirectional": True, "dropout": 0.1, "all_clip_norm_val": 10.0}
    bilm |= {"n_epochs": STEPS, "n_train_tokens": len(corpus.words)}
    bilm |= {"batch_size": case.rows, "unroll_steps": case.window}
    return {
        "config": to_json(resolved(config, corpus.target_counts(corpus.vocabulary))),
        "negatives": case.negatives,
        "vocabulary": str(corpus.directory / "vocabulary.txt"),
        "text": str(pattern),
        "rows": case.rows,
        "window": case.window,
        "options": {**bilm, "n_negative_samples_batch": case.negatives},
    }


def begin(name: str, task: Row, folder: Path, asked: argparse.Namespace) -> Worker:
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

"""Kills `pretrain` and `prepare` at random moments: whatever happens, the same bits.

    python -m tests.faults --kills 100 [--seed 0] [--signals] [--out DIR] [--json]

A small run (dropout, carried state, evaluations, a checkpoint every few steps) is made
without an interruption. The same command is then killed in other directories, again
and again, and in the end each of these runs must be the uninterrupted one: every array
of its checkpoints bit for bit, metrics.jsonl line by line, and no other file. Exit
status 1, and the first difference in a sentence, if one is not.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from itertools import cycle
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elmojax.errors import InputError
from elmojax.training.record import read_record
from elmojax.training.start import start

REPOSITORY = Path(__file__).resolve().parent.parent

STEPS, SAVED_EVERY, EVALUATED_EVERY = 60, 4, 10

CONFIG = f"""
from dataclasses import replace
from pathlib import Path

from elmojax import ElmoConfig, TrainConfig
from elmojax.config import CharCnnConfig, LstmConfig, MeshConfig

ENCODER = CharCnnConfig(
    filters=((1, 4), (2, 4)), embedding_dim=4, highway_layers=1, max_characters=16
)


def config() -> TrainConfig:
    return replace(
        TrainConfig.preset("mini"),
        data=Path(__file__).parent / "train",
        heldout=Path(__file__).parent / "heldout",
        model=ElmoConfig(ENCODER, LstmConfig(16, 8)),
        mesh=MeshConfig(data=1),
        rows=4,
        window=10,
        dropout=0.1,
        steps={STEPS},
        checkpoint_every={SAVED_EVERY},
        evaluate_every={EVALUATED_EVERY},
        log_every=1,
    )
"""
"""A model so small that its run takes seconds; its text is read almost twice."""

TIMES = {"tokens_per_second", "heldout_seconds"}
"""What may differ in metrics.jsonl."""

RUN_FILES = {
    ".lock",
    "card.md",
    "checkpoints",
    "config.json",
    "loss.png",
    "metrics.jsonl",
    "status.json",
    "vocabulary.txt",
}
"""Everything in the directory of a finished run; loss.png needs matplotlib."""

PATIENCE, AT_ONCE = 300, 30
"""Seconds after which a process hangs; after a second signal it has fewer."""


class Difference(Exception):
    """What is not as it would be without the kills, in a sentence."""


# --- comparisons ---------------------------------------------------------------------


def compare_arrays(
    one: Mapping[str, Any], other: Mapping[str, Any], where: str
) -> None:
    """Dtype, shape and every bit: -0.0 is not 0.0, and NaN is itself."""
    if one.keys() != other.keys():
        odd = sorted(one.keys() ^ other.keys())
        raise Difference(f"{where}: only one of both has {odd[0]}.")
    for name, value in one.items():
        a, b = np.asarray(value), np.asarray(other[name])
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            what = f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
            raise Difference(f"{where}: {name} is {what}.")
        bits = [np.ascontiguousarray(array).reshape(-1) for array in (a, b)]
        same = np.equal(*(v.view(np.uint8).reshape(v.size, -1) for v in bits)).all(1)
        if not same.all():
            first = int(np.argmin(same))
            raise Difference(
                f"{where}: {name} differs in {(~same).sum()} of {a.size} numbers, "
                f"first in number {first}: {bits[0][first]!r} and {bits[1][first]!r}."
            )


def compare_metrics(one: Path, other: Path) -> None:
    """The same lines in the same order, the same floats, but for what measures time."""
    a, b = _timeless(one), _timeless(other)
    for number, (x, y) in enumerate(zip(a, b, strict=False), 1):
        if x != y:
            raise Difference(f"{other} has in line {number} {y}, and {one} has {x}.")
    if len(a) != len(b):
        raise Difference(f"{other} has {len(b)} lines, and {one} has {len(a)}.")


def _timeless(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise Difference(f"The last line of {path} is cut short.")
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            values = json.loads(line)
        except ValueError:
            raise Difference(f"Line {number} of {path} is damaged: {line}") from None
        lines.append({name: v for name, v in values.items() if name not in TIMES})
    return lines


def compare_files(one: Path, other: Path) -> None:
    """The same names, all of them files, with the same bytes."""
    names = _names(one)
    if names != _names(other):
        odd = sorted(names ^ _names(other))
        raise Difference(f"Only one of {one} and {other} has {odd[0]}.")
    for name in sorted(names):
        if not filecmp.cmp(one / name, other / name, shallow=False):
            raise Difference(f"{other / name} has other bytes than {one / name}.")


def _names(directory: Path) -> set[str]:
    return set(os.listdir(directory)) if directory.is_dir() else set()


def compare_runs(one: Path, other: Path, stops: AbstractSet[int] = frozenset()) -> None:
    """Two finished runs; at `stops`, `other` was asked to stop and saved besides."""
    compare_leftovers(other)
    for name in ("config.json", "vocabulary.txt"):
        texts = [(run / name).read_text("utf-8") for run in (one, other)]
        if texts[0].replace(str(one), str(other)) != texts[1]:
            raise Difference(f"{other / name} is not {one / name}.")
    compare_metrics(one / "metrics.jsonl", other / "metrics.jsonl")
    a, b = states(one), states(other)
    if max(a) != max(b):
        raise Difference(f"{other} ends at step {max(b)}, and {one} at {max(a)}.")
    if len(a) != len(b) or not set(b) - set(a) <= stops:
        raise Difference(f"{other} keeps the steps {sorted(b)}, and {one} {sorted(a)}.")
    for step in sorted(set(a) & set(b), reverse=True):
        compare_arrays(a[step], b[step], f"Step {step} of {one} and {other}")


def compare_leftovers(run: Path) -> None:
    """Only what belongs into a finished run."""
    if odd := _names(run) - RUN_FILES:
        raise Difference(f"{run} is finished, and {sorted(odd)[0]} is left in it.")
    for path in (run / "checkpoints").rglob("*"):
        step = path.relative_to(run / "checkpoints").parts[0]
        if not step.isdigit() or "tmp" in path.name or "partial" in path.name:
            raise Difference(f"{run} is finished, and {path} is left in it.")


def states(run: Path) -> dict[int, dict[str, np.ndarray]]:
    """Every array of every checkpoint of a run, as going on would read them."""
    ready = start(read_record(run).train, "")
    try:
        rest = replace(ready.state, params={})
        like = jax.tree.map(_like, {"params": ready.state.params, "training": rest})
        saved = ready.checkpoints
        return {step: _named(saved.load(step, **like)) for step in saved.steps}
    except InputError as error:
        raise Difference(f"{run} is finished, and cannot be read: {error}") from error
    finally:
        ready.checkpoints.close()
        if ready.lock is not None:
            ready.lock.release()


def _like(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _named(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


# --- moments -------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """When to kill: `delay` seconds after an event was seen `count` times."""

    event: str
    """time: the process began. save: a temporary checkpoint is there. saved: it has its
    name, and an older one is deleted. metrics: metrics.jsonl grew. evaluation: it has
    the line of a step that is evaluated. Of `prepare`: partial: the hidden directory is
    there. whole: it has its last file."""
    count: int
    delay: float

    def __str__(self) -> str:
        if self.event == "time":
            return f"{self.delay:.2f} s after its beginning"
        return f"{self.delay * 1e3:.0f} ms after {self.event} {self.count}"


def seen(event: str, place: Path) -> set[str]:
    """What stands for the event now, in a run directory or beside a corpus."""
    if event == "metrics":
        return _metrics(place)
    if event == "evaluation":
        step = evaluated_after(place)
        return set() if step is None else {str(step)}
    if event in ("save", "saved"):
        names = _names(place / "checkpoints")
        return {name for name in names if name.isdigit() == (event == "saved")}
    if event == "time":
        return set()
    hidden = {n for n in _names(place.parent) if n.startswith(f".{place.name}.")}
    if event == "partial":
        return hidden
    assert event == "whole", event
    return {n for n in hidden if (place.parent / n / "corpus.json").exists()}


def _metrics(run: Path) -> set[str]:
    try:
        now = (run / "metrics.jsonl").stat()
    except FileNotFoundError:
        return set()
    return {f"{now.st_ino} {now.st_size}"}


def evaluated_after(run: Path) -> int | None:
    """The last step of metrics.jsonl, if it is evaluated and that is not yet there.

    The line of such a step is written just before its evaluation begins.
    """
    last = last_line(run)
    due = last.get("step", 1) % EVALUATED_EVERY == 0
    return last["step"] if due and "loss" in last else None


def last_line(run: Path) -> dict[str, Any]:
    """Of metrics.jsonl, but for one that is cut short; empty without any."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


def wait_for(moment: Moment, process: subprocess.Popen[bytes], place: Path) -> bool:
    """Whether the moment came before the process ended."""
    deadline, count = time.monotonic() + PATIENCE, moment.count
    known = seen(moment.event, place)
    while count > 0:
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise Difference(f"{place}: {moment} did not come in {PATIENCE} s.")
        time.sleep(0.001)
        now = seen(moment.event, place)
        count -= len(now - known)
        known = now
    time.sleep(moment.delay)
    return process.poll() is None


# --- processes ---------------------------------------------------------------------


class Command:
    """One `elmojax` command as a process, killed at the end of the context if need be.

    It runs on one device, and all share a cache of compiled programs.
    """

    def __init__(self, out: Path, *arguments: object) -> None:
        words = ["elmojax", *map(str, arguments)]
        self.line = " ".join(words)
        self._log = out / "log.txt"
        self._began = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                env=_environment(out),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def status(self, patience: float = PATIENCE) -> int:
        """At its end, as a shell gives it: 128 + N where signal N ended it."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            late = f"{self.line} still runs after {patience} s."
            raise Difference(late) from None
        self.seconds = time.monotonic() - self._began
        return status if status >= 0 else 128 - status

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8", errors="replace")


def _environment(out: Path) -> dict[str, str]:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def done(out: Path, *arguments: object) -> float:
    """Seconds of a command that nobody interrupts."""
    with Command(out, *arguments) as command:
        if status := command.status():
            raise Difference(f"{command.line} gave {status}: {command.said}")
        return command.seconds


def sample(name: str) -> list[str]:
    """Lines of a text inside the package."""
    packed = resources.files("elmojax") / "sample" / f"{name}.txt.xz"
    return lzma.decompress(packed.read_bytes()).decode("utf-8").splitlines()


# --- pretrain ------------------------------------------------------------------------

PHASES = {
    "start": "before the first step",
    "training": "in training",
    "evaluation": "in an evaluation",
    "end": "after the last checkpoint",
}

Signals = tuple[signal.Signals, ...]

KILL: Signals = (signal.SIGKILL,)
STOPS_ONCE: list[Signals] = [(signal.SIGTERM,), (signal.SIGINT,)]
STOPS = [*STOPS_ONCE, *(once * 2 for once in STOPS_ONCE)]


@dataclass(frozen=True)
class Kill:
    """Where one kill landed."""

    signals: Signals
    moment: Moment
    seconds: float
    phase: str
    run: str = ""
    step: int = 0
    """The last in metrics.jsonl."""
    saving: bool = False
    """A temporary checkpoint was there when the process was dead."""
    deleting: bool = False
    """An old checkpoint was there in part."""

    @property
    def name(self) -> str:
        return " and ".join(number.name for number in self.signals)

    def __str__(self) -> str:
        where = f"{self.run}, step {self.step}, " if self.run else ""
        where += PHASES.get(self.phase, self.phase)
        where += ", inside a save" if self.saving else ""
        where += ", inside a deletion" if self.deleting else ""
        return f"{self.name} {self.moment}: {where}; {self.seconds:.1f} s"


class Before:
    """A run directory as a process finds it."""

    def __init__(self, run: Path) -> None:
        self.run, self.newest = run, newest(run)
        self._metrics = seen("metrics", run)

    def phase(self) -> tuple[int, str]:
        """Last step and phase of the process, when it is dead."""
        last = last_line(self.run).get("step", 0)
        if newest(self.run) == STEPS:
            return last, "end"
        if seen("metrics", self.run) == self._metrics or last <= self.newest:
            return last, "start"
        evaluating = evaluated_after(self.run) is not None
        return last, "evaluation" if evaluating else "training"


def newest(run: Path) -> int:
    """Step of the newest checkpoint that has its name; 0 without any."""
    return max(map(int, seen("saved", run)), default=0)


def _deleting(run: Path) -> bool:
    """Whether a checkpoint lacks a part that another has."""
    parts = [_names(run / "checkpoints" / step) for step in seen("saved", run)]
    every = set().union(*parts)
    return any(not every <= there for there in parts)


def pretraining(out: Path, run: Path) -> tuple[object, ...]:
    return ("pretrain", "--config", out / "config.py", "--workdir", run)


def write_inputs(out: Path) -> None:
    """The configuration of the run, and its corpora."""
    out.joinpath("config.py").write_text(CONFIG, encoding="utf-8")
    train, heldout = out / "train", out / "heldout"
    for path, count in ((train, 80), (heldout, 40)):
        text = "\n".join(sample(path.name)[:count]) + "\n"
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    done(out, "prepare", "--text", f"{train}.txt", "--out", train)
    words = ("--vocabulary", train / "vocabulary.txt")
    done(out, "prepare", "--text", f"{heldout}.txt", "--out", heldout, *words)


def strike(
    out: Path, run: Path, moment: Moment, signals: Signals, pause: float
) -> Kill | None:
    """Starts the run, kills it and looks at it; None if it ended by itself."""
    before = Before(run)
    with Command(out, *pretraining(out, run)) as command:
        came = wait_for(moment, command.process, run)
        early = not _locked(run, command.process.pid)
        complete = newest(run) == STEPS
        if came:
            command.process.send_signal(signals[0])
        if came and len(signals) > 1:
            time.sleep(pause)
            command.process.send_signal(signals[1])
        status = command.status(PATIENCE if len(signals) == 1 else AT_ONCE)
    last, phase = before.phase()
    _check(command.said, before, early or phase == "start")
    if status == 0 and phase == "end":
        if came and not (early or complete):
            raise Difference(f"{run} did not hear {signals}: {command.said}")
        return None
    if not came or (status != 128 + signals[0] and not early):
        raise Difference(f"{run} ended with {status}: {command.said}")
    if signals in STOPS_ONCE and phase in ("training", "evaluation"):
        _check_stop(command.said, run, last)
    working = phase != "start"  # else it is what the kill before left
    return Kill(
        signals,
        moment,
        command.seconds,
        phase,
        run.name,
        last,
        saving=working and bool(seen("save", run)),
        deleting=working and _deleting(run),
    )


def _locked(run: Path, process: int) -> bool:
    """Whether a process has come as far as to lock its run.

    Before, Ctrl-C meets Python's imports, which may print it and go on.
    """
    path = run / ".lock"
    return path.exists() and path.read_text().startswith(f"process {process} ")


def _check(said: str, before: Before, early: bool) -> None:
    """What holds after any kill; an early one may be seen as a traceback."""
    run = before.run
    if "damaged" in said or (run / "damaged").exists():
        raise Difference(f"{run} takes what a kill left for damage: {said}")
    if "Traceback" in said and not early:
        raise Difference(f"{run} ended in a traceback: {said}")
    if newest(run) < before.newest:
        raise Difference(f"{run} had step {before.newest}, and now {newest(run)}.")
    found = re.search(r"Going on from the checkpoint of step (\d+)", said)
    if found and int(found[1]) != before.newest:
        raise Difference(f"{run} had step {before.newest} and went on from {found[1]}.")


def _check_stop(said: str, run: Path, last: int) -> None:
    """Asked to stop once, it has saved the last step that it logged."""
    found = re.search(r"Stopped by SIG\w+ after step (\d+)", said)
    if found is None or not int(found[1]) == last == newest(run):
        raise Difference(
            f"{run} was stopped after step {last}; its newest checkpoint is of step "
            f"{newest(run)}, and it said: {said}"
        )


# --- prepare -------------------------------------------------------------------------


NEW = "the new corpus there"


def after_prepare(corpus: Path, new: Path, old: Path | None) -> str:
    """What a kill left: a whole corpus, or one that the next call puts back."""
    if not corpus.exists():
        if old is None:
            return "nothing there"
        hidden = list(corpus.parent.glob(".corpus.replaced-*"))
        if len(hidden) != 1:
            raise Difference(f"The corpus that was at {corpus} is lost.")
        compare_files(old, hidden[0])
        return "between two renames"
    vocabulary = (corpus / "vocabulary.txt").read_bytes()
    if old is not None and vocabulary == (old / "vocabulary.txt").read_bytes():
        compare_files(old, corpus)
        return "the old corpus there"
    compare_files(new, corpus)
    return NEW


# --- the harness ---------------------------------------------------------------------


MOMENTS = {
    "time": (0, 0.0),
    "save": (4, 0.25),
    "saved": (4, 0.1),
    "metrics": (20, 0.1),
    "evaluation": (2, 0.05),
}
"""Largest count and delay; "time" is over a whole run."""


@dataclass
class Harness:
    """Kills, and where they landed."""

    out: Path
    """Folder for everything; what is in it at the end tells of a difference."""
    chance: random.Random
    say: Callable[[str], Any] = lambda text: None
    trained: list[Kill] = field(default_factory=list)
    prepared: list[Kill] = field(default_factory=list)
    runs: int = 0

    @cached_property
    def uninterrupted(self) -> tuple[Path, float]:
        """A run and its seconds; it is equal to another such run.

        That other one comes first and fills the cache of compiled programs.
        """
        if not (self.out / "config.py").exists():
            write_inputs(self.out)
        first, run = self.out / "first", self.out / "uninterrupted"
        done(self.out, *pretraining(self.out, first))
        seconds = done(self.out, *pretraining(self.out, run))
        compare_runs(run, first)
        self.say(f"uninterrupted: {seconds:.1f} s")
        return run, seconds

    def training(self, kills: int, signals: bool = False) -> None:
        """`kills` of `pretrain` in as many runs as it takes, each compared at its end.

        With `signals`, four in ten are SIGTERM or SIGINT, once or twice.
        """
        whole, seconds = self.uninterrupted
        while len(self.trained) < kills:
            self.runs += 1
            run, stops = self.out / f"killed-{self.runs}", set()
            while len(self.trained) < kills:
                stop = signals and self.chance.random() < 0.4
                how = self.chance.choice(STOPS) if stop else KILL
                moment, pause = self._moment(seconds), self.chance.uniform(0.001, 0.3)
                kill = strike(self.out, run, moment, how, pause)
                if kill is None:
                    break
                self.trained.append(kill)
                self.say(f"kill {len(self.trained)}: {kill}")
                if stop:
                    stops.add(newest(run))
                if kill.phase == "end":
                    break
            done(self.out, *pretraining(self.out, run))
            compare_runs(whole, run, stops)
            self.say(f"{run.name} is as if it had never been killed")

    def _moment(self, seconds: float) -> Moment:
        """A quarter at any time of a run, the rest where files change."""
        event = self.chance.choice([*MOMENTS, *("time", "save")])
        most, longest = MOMENTS[event]
        count = self.chance.randint(min(1, most), most)
        return Moment(event, count, self.chance.uniform(0, longest or seconds))

    def preparing(self, kills: int) -> None:
        """`kills` of `prepare`, into a new directory and over another corpus in turn.

        Up to four kills follow each other before one call is let through.
        """
        text, place = self.out / "long.txt", self.out / "place"
        text.write_text("\n".join(sample("train") * 10) + "\n", encoding="utf-8")
        place.mkdir()
        command, corpus = ("prepare", "--text", text, "--out"), place / "corpus"
        old, new = self.out / "old", self.out / "new"
        done(self.out, *command, old, "--max-vocabulary", 100)
        seconds = done(self.out, *command, new)
        for overwrite in cycle((False, True)):
            if len(self.prepared) >= kills:
                return
            if overwrite:
                shutil.copytree(old, corpus)
            again = (*command, corpus, *(["--overwrite"] if overwrite else []))
            for _ in range(min(self.chance.randint(1, 4), kills - len(self.prepared))):
                event, longest = self.chance.choice(
                    (("time", seconds), ("partial", seconds / 2), ("whole", 0.02))
                )
                count = 0 if event == "time" else 1
                moment = Moment(event, count, self.chance.uniform(0, longest))
                with Command(self.out, *again) as process:
                    wait_for(moment, process.process, corpus)
                    process.process.kill()
                    if process.status() == 0:
                        break
                phase = after_prepare(corpus, new, old if overwrite else None)
                kill = Kill(KILL, moment, process.seconds, phase)
                self.prepared.append(kill)
                self.say(f"prepare, kill {len(self.prepared)}: {kill}")
                if phase == NEW:
                    break
            done(self.out, *again)
            compare_files(new, corpus)
            if odd := _names(place) - {corpus.name}:
                raise Difference(f"{corpus} is done, and {min(odd)} is left beside it.")
            shutil.rmtree(corpus)

    def report(self) -> dict[str, Any]:
        """How many landed where."""
        return {
            "kills": len(self.trained),
            "runs": self.runs,
            **{phase: sum(k.phase == phase for k in self.trained) for phase in PHASES},
            "saving": sum(kill.saving for kill in self.trained),
            "deleting": sum(kill.deleting for kill in self.trained),
            "signals": dict(Counter(kill.name for kill in self.trained)),
            "prepare": dict(Counter(kill.phase for kill in self.prepared)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of pretrain")
    parser.add_argument("--prepare-kills", type=int, help="default: a quarter of them")
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    parser.add_argument("--out", type=Path, help="new folder to work in, kept")
    parser.add_argument("--signals", action="store_true", help="SIGTERM and SIGINT too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    kills, preparing = asked.kills, asked.prepare_kills
    out = asked.out or Path(tempfile.mkdtemp(prefix="elmojax-faults-"))
    out.mkdir(parents=True, exist_ok=True)
    began, verdict = time.monotonic(), "All ended with the same bits."
    harness = Harness(out.resolve(), random.Random(asked.seed), _say)
    try:
        harness.preparing(kills // 4 if preparing is None else preparing)
        harness.training(kills, asked.signals)
    except Difference as difference:
        verdict = f"{difference} Everything is in {out}."
    same = verdict.startswith("All")
    if asked.out is None and same:
        shutil.rmtree(out)
    report = harness.report() | {
        "seconds": round(time.monotonic() - began, 1),
        "same": same,
        "verdict": verdict,
    }
    print(json.dumps(report) if asked.json else _summary(report))
    sys.exit(not same)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _summary(report: dict[str, Any]) -> str:
    phases = ", ".join(f"{report[phase]} {words}" for phase, words in PHASES.items())
    return (
        f"{report['kills']} kills in {report['runs']} runs: {phases}; "
        f"{report['saving']} inside a save, {report['deleting']} inside a deletion. "
        f"{sum(report['prepare'].values())} kills of prepare. "
        f"{report['seconds']} s. {report['verdict']}"
    )


if __name__ == "__main__":
    main()

"""What the benchmarks share: options, text, training steps, clocks, reports, bars."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elmojax.config import MeshConfig, TrainConfig
from elmojax.estimate import StepPlan, memory_of, plan_step
from elmojax.text.batches import TrainingText
from elmojax.text.corpus import Corpus
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.choices import resolved
from elmojax.training.memory import StepMemory
from elmojax.training.sharding import make_mesh
from elmojax.training.sizes import TextStatistics, statistics_of, training_text
from elmojax.training.step import compile_train_step, init_state

Row = dict[str, Any]
Bar = Sequence[float]
"""Value, and the lowest and highest of the rounds; or a value alone."""

DTYPES = {"float32": jnp.float32, "bf16": jnp.bfloat16}

# --- options -------------------------------------------------------------------------

HELP = {
    "data": "A prepared corpus; without it the text is made up, by Zipf's law.",
    "text": "Text files, one tokenised sentence a line.",
    "preset": "The model's preset.",
    "rows": "Rows of a batch.",
    "window": "Positions of a row in a batch.",
    "vocabulary": "Words of the vocabulary.",
    "samples": "Negative samples of a sampled softmax.",
    "div_value": "How much narrower each tail of the softmax is.",
    "steps": "Steps of a round.",
    "rounds": "Rounds of which the median is taken.",
    "out": "Where to write the results as JSON.",
    "plot": "Where to draw the results; needs matplotlib.",
}


def options(about: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The command line of a benchmark.

    Args:
      defaults: of each option, which has its type: a list takes several values, False
        is a switch, `Path` may be missing and `[Path]` must not. (default, help) says
        more than `HELP` does, and (default, help, choices) what there is.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        told, choices = HELP.get(name), None
        if isinstance(default, tuple):
            default, told, choices = (*default, None)[:3]
        settings: Row = {"help": told}
        if default is False:
            settings["action"] = "store_true"
        elif isinstance(default, type):
            settings["type"] = default
        elif default == [Path]:
            settings |= {"type": Path, "nargs": "+", "required": True}
        elif isinstance(default, list):
            settings |= {"default": default, "type": type(default[0]), "nargs": "+"}
        else:
            settings |= {"default": default, "type": type(default)}
        if choices:
            settings["choices"] = choices
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    return parser


# --- text ----------------------------------------------------------------------------


def zipf_corpus(types: int, words: int = 0, share: np.ndarray | None = None) -> Corpus:
    """A corpus of made-up words, 24 a sentence: `share` of each, or 1/rank."""
    words = words or max(2_000_000, 60 * types)
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, types + 1) if share is None else share
    text = 3 + random.choice(types, size=words, p=share / share.sum()).astype(np.int32)
    lengths = random.integers(2, 18, types)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    drawn = letters[random.integers(0, 26, (types, 18))]
    pairs = zip(drawn, lengths, strict=True)
    names = [f"{''.join(row[:n])}{i}" for i, (row, n) in enumerate(pairs)]
    counts = np.bincount(text, minlength=types + 3)
    offsets = np.arange(0, words + 1, 24)
    offsets[-1] = words
    every = [*SPECIALS, *names]
    vocabulary = Vocabulary(tuple(every))
    return Corpus(Path("synthetic"), {}, "", vocabulary, every, counts, text, offsets)


def corpus_of(asked: argparse.Namespace) -> Corpus:
    """The text of --data, else one with --vocabulary words."""
    if asked.data:
        return Corpus.open(asked.data)
    return zipf_corpus(asked.vocabulary - 3, getattr(asked, "words", 0))


# --- training steps ------------------------------------------------------------------


def planned(
    config: TrainConfig,
    text: Corpus | TextStatistics,
    dtype: Any = jnp.float32,
    mesh: tuple[int, int] = (1, 1),
) -> tuple[StepPlan, TrainingText]:
    """The step of a run as shapes, and its batches.

    Args:
      text: statistics of one that has a corpus, where they are not to be counted.
      mesh: devices along `data` and `model`.
    """
    if isinstance(text, Corpus):
        text = statistics_of(text, "the benchmark's text")
    assert text.corpus is not None
    data, model = mesh
    config = replace(config, mesh=MeshConfig(data, model))
    config = resolved(config, text.counts)
    plan = plan_step(config, text, make_mesh(config.mesh), data, dtype)
    return plan, training_text(config, text.corpus, data)


class Steps:
    """Training steps: a program for each shape of a batch, and the state between."""

    def __init__(self, lm: Any, optimizer: Any, state: Any, *guard: Any) -> None:
        self.lm, self.state, self.loss = lm, state, float("nan")
        self.programs: dict[Any, Any] = {}
        self._step: Any = compile_train_step(lm, optimizer, state, *guard)
        self._memory = StepMemory()

    @classmethod
    def begun(cls, plan: StepPlan) -> Steps:
        """Of a new run."""
        places = jax.tree.map(lambda leaf: leaf.format, plan.state)
        rows = plan.config.rows
        create = partial(init_state, plan.lm, plan.optimizer, rows, plan.config.seed)
        state = jax.jit(create, out_shardings=places)()
        return cls(plan.lm, plan.optimizer, state)

    def program(self, batch: Any) -> Any:
        """The compiled step for batches of this shape."""
        shape = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
        if shape not in self.programs:
            with self._memory.of_step(self.state, compiles=True):
                program = self._step.lower(self.state, batch).compile()
            self.programs[shape] = program
        return self.programs[shape]

    def run(self, batches: Iterable[Any]) -> None:
        """Takes a step with each batch, and waits for the last."""
        for batch in batches:
            program = self.program(batch)
            with self._memory.of_step(self.state):
                self.state, metrics = program(self.state, batch)
        jax.block_until_ready(self.state)
        self.loss = float(metrics[self.lm.loss_name])

    @property
    def temporary(self) -> int:
        """Bytes that the largest program takes besides arguments and results."""
        return max(map(temporary_bytes, self.programs.values()))


def temporary_bytes(program: Any) -> int:
    return memory_of(program).temporary


# --- clocks --------------------------------------------------------------------------


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and CPU-seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(work: Callable[[], Any], rounds: int, times: int = 1) -> dict[str, float]:
    """Median seconds and CPU-seconds of each of `times` in a round, after a warm-up."""
    work()
    walls, cpus = zip(*(clocked(work) for _ in range(rounds)), strict=True)
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    return {"seconds": wall / times, "cpu": cpu / times}


def timed(
    function: Callable[..., Any], *arguments: Any, rounds: int, calls: int = 1
) -> Row:
    """Seconds of a call, of several that the device has in its queue; those that
    tracing and compiling took; and temporary memory."""
    begin = time.perf_counter()
    program: Any = jax.jit(function).lower(*arguments).compile()
    took = time.perf_counter() - begin

    def run() -> None:
        jax.block_until_ready([program(*arguments) for _ in range(calls)][-1])

    found = measure(run, rounds, calls)
    return {**found, "compile": took, "temporary": temporary_bytes(program)}


def matmul_rate(dtype: Any) -> float:
    """Floating-point operations a second of one large product, of random numbers: of
    ones or zeros a GPU makes it faster."""
    n, calls = (8192, 20) if jax.default_backend() == "gpu" else (2048, 1)
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    return 2 * n**3 / timed(jnp.matmul, a, a, rounds=5, calls=calls)["seconds"]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


def ratios(seconds: Sequence[float], others: Sequence[float]) -> list[float]:
    """Of the same rounds."""
    return [one / other for one, other in zip(seconds, others, strict=True)]


# --- processes and machines ----------------------------------------------------------


def alone(*command: Any, **environment: str) -> Row:
    """The JSON object that a process of its own prints last."""
    ran = subprocess.run(
        [*map(str, command)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def memory(field: str) -> int:
    """Bytes of this process by Linux: `VmRSS` now, `RssAnon` without the files that it
    maps, `VmHWM` at most so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def machine() -> Row:
    """The processor, how much of it there is, and how busy it was."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        model = re.search(r"model name\s*:\s*(.*)", info.read_text(encoding="utf-8"))
        name = model[1] if model else name
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "load_at_start": os.getloadavg()[0],
    }


# --- reports -------------------------------------------------------------------------


def write(out: Path | None, asked: argparse.Namespace, **found: Any) -> None:
    """JSON: the machine, jax, the date, the arguments, and then what was found."""
    if out is None:
        return
    report = {
        "machine": machine(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "arguments": {name: str(value) for name, value in vars(asked).items()},
    }
    out.write_text(json.dumps(report | found, indent=1) + "\n", encoding="utf-8")


def report(asked: argparse.Namespace, rows: Iterable[Row], **found: Any) -> list[Row]:
    """Says each row as it comes, prints a table of all, and writes them to --out."""
    known = []
    for row in rows:
        known.append(row)
        print(row, file=sys.stderr)
    say(table_of(known))
    write(asked.out, asked, **found, rows=known)
    return known


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    return "\n".join(map(line, (head, ["---"] * len(head), *rows)))


def line(cells: Iterable[Any]) -> str:
    """A line of a table."""
    shown = []
    for value in cells:
        if isinstance(value, float):
            value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        elif type(value) is int:
            value = f"{value:,}"
        shown.append("" if value is None else str(value).replace("|", "/"))
    return "| " + " | ".join(shown) + " |"


def table_of(rows: Sequence[Row]) -> str:
    """Markdown with a column for each number or text of the rows."""
    plain = (str, int, float, type(None))
    names = (k for row in rows for k, value in row.items() if isinstance(value, plain))
    columns = list(dict.fromkeys(names))
    return table(columns, ([row.get(key) for key in columns] for row in rows))


def bars(
    path: Path | None, *figures: Mapping[str, Mapping[str, Bar]], titles: Any = ()
) -> None:
    """Bars by their labels in a panel for each label of an axis, panels side by side
    and figures one below the other; needs matplotlib."""
    if path is None:
        return
    from matplotlib.figure import Figure

    heights = [1 + 0.35 * max(map(len, panels.values())) for panels in figures]
    columns = max(map(len, figures))
    figure = Figure(figsize=(5 * columns, sum(heights)), layout="constrained")
    grid = figure.subplots(len(figures), columns, squeeze=False, height_ratios=heights)
    for number, (axes, panels) in enumerate(zip(grid, figures, strict=True)):
        for axis, (label, values) in zip(axes, panels.items(), strict=False):
            ends = [(bar[0], min(bar), max(bar)) for bar in values.values()]
            middle = [value for value, _, _ in ends]
            low = [value - least for value, least, _ in ends]
            high = [most - value for value, _, most in ends]
            axis.barh(list(values), middle, xerr=[low, high], capsize=3)
            axis.invert_yaxis()
            axis.set_xlabel(label)
        if titles:
            axes[0].set_title(titles[number], loc="left", fontsize=10)
    figure.savefig(path, dpi=120)


say = partial(print, flush=True)

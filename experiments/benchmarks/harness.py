"""What the benchmarks share: options, text, training steps, clocks, reports, bars."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elmojax.config import ElmoConfig, HeadConfig, OptimizerConfig
from elmojax.estimate import memory_of
from elmojax.text.batches import TrainingText
from elmojax.text.corpus import Corpus
from elmojax.text.tables import WordTables
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.choices import automatic_cutoffs
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import memory_layouts, sharded_shapes, shardings
from elmojax.training.step import LanguageModel, compile_train_step, init_state

Row = dict[str, Any]
Bar = Sequence[float]
"""Value, and the lowest and highest of the rounds; or a value alone."""

# --- options -------------------------------------------------------------------------

HELP = {
    "data": "A prepared corpus; without it the text is made up, by Zipf's law.",
    "text": "Text files, one tokenised sentence a line.",
    "preset": "The model's preset.",
    "rows": "Rows of a batch.",
    "window": "Positions of a row in a batch.",
    "vocabulary": "Words of the vocabulary.",
    "samples": "Negative samples of a sampled softmax.",
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
        more than `HELP` does.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag, told = "--" + name.replace("_", "-"), HELP.get(name)
        if isinstance(default, tuple):
            default, told = default
        if default is False:
            parser.add_argument(flag, action="store_true", help=told)
        elif isinstance(default, type):
            parser.add_argument(flag, type=default, help=told)
        elif default == [Path]:
            parser.add_argument(flag, type=Path, nargs="+", required=True, help=told)
        elif isinstance(default, list):
            kind = type(default[0])
            parser.add_argument(flag, default=default, type=kind, nargs="+", help=told)
        else:
            parser.add_argument(flag, default=default, type=type(default), help=told)
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


def adaptive(corpus: Corpus, config: ElmoConfig, div_value: float = 4.0) -> HeadConfig:
    """The adaptive softmax that a run on this text has."""
    counts = np.sort(corpus.target_counts(corpus.vocabulary).astype(np.float64))[::-1]
    cutoffs = automatic_cutoffs(counts, config.lstm.projection, div_value)
    return HeadConfig("adaptive", cutoffs, div_value)


def reader(
    corpus: Corpus,
    config: ElmoConfig,
    head: HeadConfig,
    rows: int,
    window: int,
    mesh: tuple[int, int] = (1, 1),
    each_position: bool = False,
) -> TrainingText:
    """The batches of a text; arguments as of `WordTables`."""
    data, model = mesh
    words = WordTables(
        corpus, corpus.vocabulary, config, data, each_position, head, model
    )
    samples = head.samples if head.kind == "sampled" else 0
    return TrainingText(corpus, words, rows, window, 0, samples)


# --- training steps ------------------------------------------------------------------


class Steps:
    """Training steps: a program for each shape of a batch, and the state between."""

    def __init__(self, lm: LanguageModel, optimizer: Any, state: Any, *guard: Any):
        self.lm, self.state, self.loss = lm, state, float("nan")
        self.programs: dict[Any, Any] = {}
        self._step: Any = compile_train_step(lm, optimizer, state, *guard)

    @classmethod
    def begun(cls, lm: LanguageModel, rows: int, shapes: bool = False) -> Steps:
        """Of a new run by the paper's recipe; `shapes` instead of arrays for state."""
        optimizer = make_optimizer(OptimizerConfig(), 1000)
        create = partial(init_state, lm, optimizer, rows, 0)
        state = jax.eval_shape(create)
        # Named, or the second step is compiled once more.
        places = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = jax.tree.map(lambda leaf: places, state)
        if lm.mesh is not None:
            sampled = lm.head.kind == "sampled"
            places = shardings(lm.mesh, state, sampled=sampled)
        state = sharded_shapes(state, places)
        places = memory_layouts(state)
        if shapes:
            state = sharded_shapes(state, places)
        else:
            state = jax.jit(create, out_shardings=places)()
        return cls(lm, optimizer, state)

    def program(self, batch: Any) -> Any:
        """The compiled step for batches of this shape."""
        shape = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
        if shape not in self.programs:
            self.programs[shape] = self._step.lower(self.state, batch).compile()
        return self.programs[shape]

    def run(self, batches: Iterable[Any]) -> None:
        """Takes a step with each batch, and waits for the last."""
        for batch in batches:
            self.state, metrics = self.program(batch)(self.state, batch)
        jax.block_until_ready(self.state.params)
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


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The program, and the seconds that tracing and compiling it took."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - begin


def matmul_rate(dtype: Any) -> float:
    """Floating-point operations a second of one large product, of random numbers: of
    ones or zeros a GPU makes it faster."""
    n, times = (8192, 20) if jax.default_backend() == "gpu" else (2048, 1)
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(jnp.matmul)

    def work() -> None:
        jax.block_until_ready([product(a, a) for _ in range(times)][-1])

    work()
    return 2 * n**3 * times / min(clocked(work)[0] for _ in range(5))


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
    device = "" if "machine" in found else jax.devices()[0].device_kind
    report = {
        "machine": f"{device}, {platform.platform()}",
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "arguments": {name: str(value) for name, value in vars(asked).items()},
    }
    out.write_text(json.dumps(report | found, indent=1) + "\n", encoding="utf-8")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    return "\n".join(map(line, (head, ["---"] * len(head), *rows)))


def line(cells: Iterable[Any]) -> str:
    """A line of a table."""
    shown = []
    for value in cells:
        if isinstance(value, float):
            value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        shown.append("" if value is None else str(value).replace("|", "/"))
    return "| " + " | ".join(shown) + " |"


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

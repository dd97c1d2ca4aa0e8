"""What every task can be told, and how its command begins and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from elmojax import InputError
from elmojax.arguments import Range, check_fields
from elmojax.cli.common import print_json, run_tyro
from elmojax.config import Count, CountOrZero, NonNegative, Positive, Width
from elmojax.errors import writing

Kind = Literal[
    "elmo", "characters", "random", "word2vec", "glove", "transformer", "none"
]
Place = Literal["input", "output", "both"]
Rate = Annotated[float, Range(0, 0.99)]
Seed = Annotated[int, Range(0, 2**31 - 2)]


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Which vectors of words a task reads."""

    features: Kind = "elmo"
    """elmo: all layers of a biLM; characters: its layer 0 alone; random: a vector drawn
    for each word; word2vec, glove: vectors of a file; transformer: all layers of a
    BERT; none."""
    model: str = "mini"
    """biLM of elmo and characters: bundled name, run directory, directory with
    options.json and weights.hdf5, address."""
    vectors: Path | None = None
    """File of word2vec or glove, or directory of the transformer."""
    width: Width = 128
    """Of random vectors."""
    layer: int | None = None
    """The one layer to read, from 0; none = a mix of all."""


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions(FeatureOptions):
    """Whether the biLM is trained with the task."""

    unfreeze: CountOrZero = 0
    """Epoch after which the biLM is trained, too: its top layer, and after each later
    epoch one more; 0 = never."""
    unfreeze_speed: Positive = 0.1
    """Learning rate of the biLM, over that of the network."""

    @property
    def variant(self) -> str | None:
        """How reports name it."""
        return f"unfrozen after {self.unfreeze} epochs" if self.unfreeze else None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(FeatureOptions):
    """How a task is trained on them."""

    place: Place = "input"
    """Where the task's network gets the mix of layers."""
    seeds: tuple[Seed, ...] = (0,)
    """One training for each; they change initial parameters, dropout and order."""
    rows: Count = 32
    """Sentences of a batch."""
    epochs: Count = 20
    patience: Count = 3
    """Epochs without a better dev score after which training ends; the learning rate
    is halved after each of them."""
    learning_rate: Positive = 0.003
    gradient_norm: Positive = 5.0
    """Gradients are clipped to this norm."""
    dropout: Rate = 0.5
    elmo_dropout: Rate = 0.5
    """On the mixes."""
    penalty: NonNegative = 0.001
    """Lambda of the L2 penalty on the weights of the mixes."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"--seeds is {' '.join(map(str, self.seeds)) or 'empty'}; give one or "
                "more whole numbers, none of them twice."
            )


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is done with the report."""

    out: Path | None = None
    """Where to write the report, as JSON."""
    overwrite: bool = False
    """Replace what is to be written, if it is there already."""
    json: bool = False
    """Print exactly one JSON object on standard output."""


Asked = TypeVar("Asked")
Reported = TypeVar("Reported", bound=ReportOptions)


def check_place(path: Path | None, overwrite: bool) -> None:
    """`InputError` where a file cannot be written, or would replace another; what takes
    hours asks before it begins. Directories that are missing are made later."""
    if path is None:
        return
    with writing(path, "Name another file."):
        there = next(p for p in (path, *path.parents) if p.exists())
    if there == path and not (overwrite and path.is_file()):
        raise InputError(
            f"{path} is there already; name another file, or give --overwrite to "
            "replace it (a file only)."
        )
    if there != path and not there.is_dir():
        raise InputError(
            f"{path} cannot be written: {there} is no directory; name another file."
        )


def run_command(
    name: str,
    kind: type[Asked],
    run: Callable[[Asked], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Reads the flags of a command and runs it; status 2 for wrong input.

    Args:
      name: stands before errors.
      kind: the dataclass of its flags.
      run: what the command does.
      argv: flags; None = those that were typed.
    """
    try:
        options = run_tyro(kind, f"{name}.py", args=argv)
        check_fields(options, flags=True)
        run(options)
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


def command(
    name: str,
    kind: type[Reported],
    run: Callable[[Reported], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> None:
    """`run_command` of a task, where `run` makes the report."""
    # Imported here, for the report is not needed for flags.
    from task_report import readable, write_json

    def run_and_report(options: Reported) -> None:
        for field in ("out", "answers", "translations"):
            check_place(getattr(options, field, None), options.overwrite)
        report = run(options)
        if options.out is not None:
            write_json(options.out, report)
        if options.json:
            print_json(report)
        else:
            print(readable(report))

    run_command(name, kind, run_and_report, argv)

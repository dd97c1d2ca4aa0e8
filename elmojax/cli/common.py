"""What commands share: flags (those of a pretraining run too), parsing, printing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro
from tqdm import tqdm

from elmojax.config import HeadConfig, OptimizerConfig, TrainConfig
from elmojax.errors import InputError
from elmojax.model import ops
from elmojax.text.files import Errors

arg = tyro.conf.arg
Model = Annotated[
    str,
    tyro.conf.Positional,
    arg(
        metavar="MODEL",
        help="Model: a run directory, a directory with options.json and weights.hdf5, "
        "or an address.",
    ),
]
Files = Annotated[
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    arg(metavar="FILE [FILE ...]", help_behavior_hint="(may be repeated)"),
]
Step = Annotated[
    int | None, arg(help="Step of the checkpoint to use; the newest one by default.")
]
BadBytes = Annotated[Errors, arg(help="How to treat bytes that are not UTF-8.")]
Precision = Annotated[
    ops.Precision,
    arg(
        help="Data type of matrix products. bf16 rounds their factors to bfloat16, "
        "which is faster on accelerators and moves vectors by about 0.2 %. Sums are "
        "float32 in both."
    ),
]
Overwrite = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    arg(help="Replace the output if it already exists."),
]
Json = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    arg(help="Print exactly one JSON object on standard output."),
]


def say(message: str) -> None:
    """A remark on standard error."""
    tqdm.write(f"elmojax: {message}", file=sys.stderr)


def keep_compiled_programs() -> None:
    """Compiled programs stay on the disk, so that the next command need not wait.

    Where JAX_COMPILATION_CACHE_DIR says, else in elmojax's own cache directory.
    """
    import jax

    from elmojax.formats.fetch import cache_directory

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    with contextlib.suppress(InputError):  # without a home, programs are made anew
        programs = cache_directory() / "programs"
        jax.config.update("jax_compilation_cache_dir", str(programs))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def parse(kind: Callable[..., Any], command: str, argv: list[str], **more: Any) -> Any:
    """The arguments of a command; --help and wrong flags end the process."""
    plain = (tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone)
    prog = f"elmojax {command}"
    return tyro.cli(kind, prog=prog, args=argv, config=plain, **more)


def print_json(report: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(_finite(report), default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON knows no number that is not finite: null."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


ALIASES: dict[type, dict[str, tuple[str, ...]]] = {
    TrainConfig: {
        "rows": ("--batch-size",),
        "window": ("--unroll", "--seq-len"),
        "heldout": ("--eval-data",),
        "accumulate": ("--grad-accum",),
    },
    HeadConfig: {"samples": ("--num-negatives",)},
    OptimizerConfig: {"gradient_norm": ("--max-grad-norm",)},
}
"""Other names of flags, which people know from other programs."""

# Tyro reads them with the types, and configurations are to load without tyro.
for _kind, _fields in ALIASES.items():
    for _name, _aliases in _fields.items():
        _type = get_type_hints(_kind)[_name]
        _kind.__annotations__[_name] = Annotated[_type, arg(aliases=_aliases)]


@dataclass(frozen=True)
class RecipeArguments(TrainConfig):
    """What commands about a run that is to be share."""

    start_from: Annotated[
        Literal["mini", "small", "medium", "original"], arg(name="preset")
    ] = "mini"
    """Model size and training recipe to start from; other flags change single
    settings."""
    config: Path | None = None
    """File with the settings to start from: TOML or JSON with fields of TrainConfig
    (such as the config.json of a run), or Python with a function `config()`."""


Recipe = TypeVar("Recipe", bound=RecipeArguments)


def train_config(asked: RecipeArguments) -> TrainConfig:
    """The run that flags describe, without the flags of the command."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return TrainConfig(**{name: getattr(asked, name) for name in names})


def defaults(kind: type[Recipe], found: Typed) -> Recipe:
    """What flags fall back to: the run that is there, else --config, else --preset."""
    from elmojax.initialization import read_config
    from elmojax.training.record import read_record

    for one, other in (("preset", "config"), ("steps", "epochs")):
        if None not in (getattr(found, one), getattr(found, other)):
            raise InputError(f"Give --{one} or --{other}, not both.")
    chosen: dict[str, Any] = {}
    if found.config is not None:
        chosen["config"] = found.config
        base = read_config(found.config)
    else:
        chosen["start_from"] = found.preset or "mini"
        base = TrainConfig.preset(chosen["start_from"])
        run = found.workdir or base.workdir
        if found.preset is None and (run / "config.json").exists():
            base = dataclasses.replace(read_record(run).train, workdir=run)
    if found.epochs is not None:
        base = dataclasses.replace(base, steps=None)
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)}
    return kind(**values, **chosen)


@dataclass(frozen=True)
class Typed:
    """Flags that say what others fall back on, where they were given."""

    preset: str | None = None
    config: Path | None = None
    workdir: Path | None = None
    data: Path | None = None
    steps: str | None = None
    epochs: str | None = None


def typed(argv: list[str]) -> Typed:
    """What was given of these flags: read before all others."""
    found: Typed
    found, _ = tyro.cli(Typed, args=argv, add_help=False, return_unknown_args=True)
    return found

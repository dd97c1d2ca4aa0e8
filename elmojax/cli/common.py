"""What all commands share: kinds of flags, parsing, and printing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from elmojax.model import casting
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
    casting.Precision,
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

    from elmojax.formats.download import cache_directory

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
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
    print(json.dumps(report, default=str))

"""The command line: the only package that parses arguments or prints.

Results go to standard output (with --json exactly one JSON object), progress and
remarks to standard error. Exit status: 0 done, 2 bad input (one clear sentence), 75
the same command, given again, goes on (another process of the run was lost), 128 + N
stopped by signal N (130 Ctrl-C, 143 SIGTERM; training saves a checkpoint).
"""

from __future__ import annotations

import atexit
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

import elmojax
from elmojax.cli.common import say
from elmojax.cli.embed import embed
from elmojax.cli.estimate import estimate
from elmojax.cli.evaluate import evaluate
from elmojax.cli.export import export
from elmojax.cli.models import convert, verify
from elmojax.cli.prepare import prepare
from elmojax.cli.pretrain import pretrain
from elmojax.cli.runs import runs
from elmojax.cli.score import score
from elmojax.config import short
from elmojax.errors import AGAIN, InputError, TryAgain

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "prepare": prepare,
    "pretrain": pretrain,
    "estimate": estimate,
    "runs": runs,
    "evaluate": evaluate,
    "score": score,
    "embed": embed,
    "convert": convert,
    "verify": verify,
    "export": export,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `elmojax`."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        print(f"elmojax {elmojax.__version__}")
        sys.exit(0)
    if argv[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        _fail(f"there is no command {short(argv[0])}; choose one of {known}.")
    _quieten()
    # Once a command is done, Ctrl-C has nothing to stop but JAX's own clearing up.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    # What a user's own program must not move by accident, a command moves on purpose.
    jax.config.update("jax_transfer_guard", "allow")
    try:
        COMMANDS[argv[0]](argv[1:])
    except InputError as error:
        _fail(str(error))
    except TryAgain as error:
        say(str(error))
        sys.exit(AGAIN)
    except KeyboardInterrupt:
        say("interrupted; what was whole stays, and the same command goes on.")
        sys.exit(130)


_report = sys.unraisablehook


def _report_others(unraisable: Any) -> None:
    """Where one array of a checkpoint fails, Orbax does not wait for the others."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _report(unraisable)


def _quieten() -> None:
    """What Orbax leaves behind of a file that it cannot read or write, we say once."""
    sys.unraisablehook = _report_others
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    warnings.filterwarnings("ignore", "Enable tracemalloc")


def _fail(message: str) -> None:
    say(message)
    sys.exit(2)


def _overview() -> str:
    lines = [f"  {name:9} {run.__doc__}" for name, run in COMMANDS.items()]
    return "\n".join(
        [
            "ELMo in JAX: pretrain bidirectional language models, embed, evaluate.",
            "",
            "usage: elmojax COMMAND [OPTIONS]      (elmojax COMMAND --help)",
            "",
            *lines,
            "",
            "First run: `elmojax pretrain` trains a small model on a text that ships "
            "inside.",
        ]
    )

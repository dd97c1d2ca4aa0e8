"""The command line: the only package that parses arguments or prints.

Results go to standard output (with --json exactly one JSON object), progress and
remarks to standard error. Exit status: 0 done, 2 bad input (one clear sentence), 75
the same command, given again, goes on (another process of the run was lost), 128 + N
stopped by signal N (130 Ctrl-C, 143 SIGTERM; training saves a checkpoint). Streams
and Ctrl-C are those of the process, in `elmojax.__main__`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

import elmojax
from elmojax.arguments import shown
from elmojax.cli.common import say
from elmojax.cli.embed import embed
from elmojax.cli.estimate import estimate
from elmojax.cli.evaluate import evaluate
from elmojax.cli.export import export
from elmojax.cli.minimal_pairs import minimal_pairs
from elmojax.cli.models import convert, verify
from elmojax.cli.plot import plot
from elmojax.cli.prepare import prepare
from elmojax.cli.pretrain import pretrain
from elmojax.cli.report import report
from elmojax.cli.runs import runs
from elmojax.cli.score import score
from elmojax.cli.similar import similar
from elmojax.cli.static import static
from elmojax.errors import AGAIN, InputError, Remark, TryAgain, one_line

NO_BACKEND = "Unable to initialize backend"
"""How JAX begins to say so; of a backend that is known and not there it says nothing,
in its `xla_bridge.py`."""

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "prepare": prepare,
    "pretrain": pretrain,
    "estimate": estimate,
    "runs": runs,
    "report": report,
    "evaluate": evaluate,
    "score": score,
    "minimal-pairs": minimal_pairs,
    "embed": embed,
    "static": static,
    "similar": similar,
    "plot": plot,
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
        _fail(f"there is no command {shown(argv[0])}; choose one of {known}.")
    if any(not value or re.fullmatch("--[^=]+=", value) for value in argv):
        _fail("One of the arguments is empty; leave it out or say what it is.")
    _quieten()
    # What a user's own program must not move by accident, a command moves on purpose.
    jax.config.update("jax_transfer_guard", "allow")
    try:
        COMMANDS[argv[0]](argv[1:])
    except InputError as error:
        _fail(str(error))
    except TryAgain as error:
        say(str(error))
        sys.exit(AGAIN)
    except OSError as error:
        _fail(_refused(error))
    except (RuntimeError, AssertionError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if not (str(error).startswith(NO_BACKEND) or where.endswith("xla_bridge.py")):
            raise
        _fail(_no_backend(error))


_report = sys.unraisablehook


def _report_others(unraisable: Any) -> None:
    """Where one array of a checkpoint fails, Orbax does not wait for the others."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _report(unraisable)


_formatted = warnings.formatwarning


def _plain(message: Any, category: type[Warning], *where: Any, **line: Any) -> str:
    """A `Remark` as all that commands say; other warnings as Python has them."""
    if issubclass(category, Remark):
        return f"elmojax: {message}\n"
    return _formatted(message, category, *where, **line)


def _quieten() -> None:
    """What Orbax leaves behind of a file that it cannot read or write, we say once."""
    os.environ["MPLBACKEND"] = "agg"  # whatever is set need not be installed
    sys.unraisablehook = _report_others
    warnings.formatwarning = _plain
    for name in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    warnings.filterwarnings("ignore", "Enable tracemalloc")


def _refused(error: OSError) -> str:
    """What the operating system refused, where nobody below knew better advice."""
    try:
        os.getcwd()
    except OSError:
        return "The current directory is gone; change to one that is there."
    what = error.filename2 or error.filename
    name = "A file" if what is None else os.fsdecode(what)
    if len(name) > 200:
        name = f"{name[:80]}...{name[-80:]}"
    why = error.strerror or one_line(error)
    return f"{name} cannot be used: {why}. Put it right, or name another."


def _no_backend(error: Exception) -> str:
    why = one_line(error) or "it is not there"
    return (
        f"JAX cannot compute on JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} "
        f"({why:.100}); set it to cpu, or leave it out to take what is there."
    )


def _fail(message: str) -> None:
    say(message)
    sys.exit(2)


def _overview() -> str:
    lines = [f"  {name:13} {run.__doc__}\n" for name, run in COMMANDS.items()]
    return (
        "ELMo in JAX: pretrain bidirectional language models, embed, evaluate.\n\n"
        "usage: elmojax COMMAND [OPTIONS]      (elmojax COMMAND --help)\n\n"
        f"{''.join(lines)}\n"
        "First run: `elmojax pretrain` trains a small model on a text that ships "
        "inside."
    )

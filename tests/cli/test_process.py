"""The command as a process: streams that are closed, full or narrow; Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _sigint_is_heard() -> Iterator[None]:
    """In the background of a script it is ignored, and processes would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


COMMAND = [sys.executable, "-m", "elmojax"]
INSTEAD = """
    import os, signal, sys, types
    module = types.ModuleType("elmojax.cli")
    sys.modules["elmojax.cli"] = module  # in place of the commands

    def main():
    {body}

    module.main = main
    from elmojax.__main__ import main
    main()
"""


def under(shell: str) -> list[str]:
    """What a shell does before it becomes a command."""
    return ["sh", "-c", f'{shell} exec "$@"', "sh"]


def ended(body: str, shell: str = "", **how) -> tuple[int, str, str]:
    """Status and streams of a process whose command is `body`."""
    code = textwrap.dedent(INSTEAD).format(body=textwrap.indent(body, "    "))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    command = [*under(shell), sys.executable, "-c", code]
    process = subprocess.run(command, text=True, **streams)
    return process.returncode, process.stdout or "", process.stderr or ""


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("closed pipe", 141, ""),
        ("/dev/full", 2, "No space left on device"),
        ("closed", 2, "Bad file descriptor"),
    ],
)
def test_results_that_nobody_takes(name, status, says):
    how = {"stdout": None}
    if name == "closed pipe":
        reader, how["stdout"] = os.pipe()
        os.close(reader)
    elif name == "closed":
        how = {"shell": "exec >&-;"}
    else:
        how["stdout"] = os.open(name, os.O_WRONLY)
    found, _, err = ended("print('x' * 100)", **how)
    assert found == status
    assert says in err and err.count("\n") == bool(says) and "Traceback" not in err


@pytest.mark.parametrize("name", ["closed pipe", "/dev/full", "closed"])
def test_progress_that_nobody_hears_ends_nothing(name):
    body = "sys.stderr.write('x' * 9999 + '\\n'); print('done')"
    if name == "closed":
        how = {"shell": "exec 2>&-;"}
    elif name == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        how = {"stderr": writer}
    else:
        how = {"stderr": os.open(name, os.O_WRONLY)}
    assert ended(body, **how)[:2] == (0, "done\n")


def test_what_an_encoding_lacks_is_escaped_and_results_stay_alone():
    narrow = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    body = "os.write(1, b'a library\\n'); print('caf\\u00e9')"
    assert ended(body, env=narrow) == (0, "caf\\xe9\n", "a library\n")


@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)",
        # swallowed, called something else, in an import, and deaf
        "try: signal.raise_signal(2)\nexcept BaseException: pass\nprint('went on')",
        "try: signal.raise_signal(2)\nexcept BaseException: sys.exit(2)",
        "import builtins\nbuiltins.exec('raise SystemExit(signal.raise_signal(2))')",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [2]); os.kill(os.getpid(), 2)\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [2])",
    ],
)
def test_ctrl_c_is_one_sentence_and_status_130(body):
    status, _, err = ended(body)
    assert status == 130
    assert err == (
        "elmojax: interrupted; what was whole stays, and the same command goes on.\n"
    )


def test_a_second_ctrl_c_ends_at_once():
    body = """
try: signal.raise_signal(2)
except BaseException: pass
try: print('cleared', flush=True); signal.raise_signal(2)
finally: print('never', flush=True)
"""
    assert ended(body)[:2] == (130, "cleared\n")


def test_ctrl_c_during_the_imports():
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines = iter(process.stderr)
        next(line for line in lines if line.rstrip().endswith("numpy._core.multiarray"))
        process.send_signal(signal.SIGINT)
        rest = list(lines)
    assert process.returncode == 130
    assert "elmojax: interrupted" in rest[-1] and "Traceback" not in "".join(rest)


def test_a_full_disk_is_no_crash_of_hdf5(tmp_path):
    """In a process of its own, which would end by a segmentation fault."""
    code = (
        "import h5py, signal, sys\n"
        "from pathlib import Path\n"
        "from elmojax.disk import unfailing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    with unfailing(Path(sys.argv[1])) as (plain, _):\n"
        "        with h5py.File(plain, 'w') as file: file['a/b'] = [0] * 99999\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run(
        [*under("ulimit -f 100;"), sys.executable, "-c", code, tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "File too large\n", "")
    assert not list(tmp_path.iterdir())

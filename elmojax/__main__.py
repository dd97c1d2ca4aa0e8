"""The `elmojax` command as a process: its streams and Ctrl-C, before JAX is imported.

Standard error is for progress and remarks: whether anybody can read them never decides
whether work goes on. Standard output is for results: where nobody reads them any more,
the command ends quietly like other Unix tools; where they cannot be written, with a
sentence and status 2. Ctrl-C ends any command with a sentence and status 130 (a run
that trains saves first, see `Stop`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, TextIO

GRACE = 3
"""Seconds in which a command that was interrupted clears away what is not whole."""

INTERRUPTED = "interrupted; what was whole stays, and the same command goes on."


def main() -> None:
    """Entry point of `elmojax`."""
    _open_streams()
    _hear()
    try:
        try:
            from elmojax.cli import main as command

            command()
        finally:
            sys.stdout.flush()
    finally:
        if _interrupted.is_set():  # whatever became of the exception on its way
            _say_interrupted()
            os._exit(128 + signal.SIGINT)  # threads of libraries crash while they end
        # Now it would stop only JAX's own clearing up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- streams -------------------------------------------------------------------------


class _Remarks(io.FileIO):
    """Standard error: what it does not take is lost, and nothing else."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


class _Results(io.FileIO):
    """Standard output: where it takes nothing more, the command ends."""

    _lost = False

    def write(self, data: Any) -> int:
        if self._lost:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self._lost = True
            if error.errno == errno.EPIPE:
                sys.exit(128 + signal.SIGPIPE)
            why = f"{error.strerror}; send it to a file with room, or to a reader"
            sys.stderr.write(f"elmojax: standard output takes nothing: {why}.\n")
            sys.exit(2)


def _open_streams() -> None:
    """Puts our streams in place of Python's.

    Nothing else gets the number of a stream that was closed, and what libraries print
    to standard output (Gloo does) goes to standard error: results stay alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest free number is given to what is opened next
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = _text(_Results(results, "w"), sys.stdout)
    sys.stderr = _text(_Remarks(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, was: Any) -> TextIO:
    """A stream as Python made it (`was`), but a character that the encoding lacks is
    escaped."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        was.encoding if was else "utf-8",
        "backslashreplace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
        write_through=bool(was and was.write_through),
    )


# --- Ctrl-C --------------------------------------------------------------------------

_interrupted = threading.Event()
_saying = threading.Lock()
_said = False


def _hear() -> None:
    """One handler for all commands; where SIGINT is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _interrupt)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Libraries may swallow what is raised, or call it something else."""
    if _interrupted.is_set():
        os._exit(128 + number)
    _interrupted.set()
    _say_interrupted()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            # Libraries in C++ do not survive an exception in their import.
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Hears signals also while the main thread is deep inside a library.

    The second ends the process at once, and so does the time after the first one.
    """
    heard = 0
    while number := os.read(reader, 1)[0]:
        if number not in (signal.SIGINT, signal.SIGTERM):
            continue
        heard += 1
        if heard > 1:
            os._exit(128 + number)
        if signal.getsignal(number) is _interrupt:
            _say_interrupted()
            ending = threading.Timer(GRACE, os._exit, (128 + number,))
            ending.daemon = True
            ending.start()


def _say_interrupted() -> None:
    """The last that anybody hears: libraries complain of what was interrupted."""
    global _said
    with _saying:
        if not _said:
            _said = True
            start = "\n" if os.isatty(2) else ""  # below a bar
            with contextlib.suppress(OSError):
                os.write(2, f"{start}elmojax: {INTERRUPTED}\n".encode())
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    main()

"""Being asked to stop: Ctrl-C, Slurm, a machine that is taken away."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from elmojax.training.processes import joined

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """While this context is open, SIGINT and SIGTERM ask to stop instead of killing.

    The first sets `signal`; whoever works looks at it between two steps. The second
    ends the process at once, with status 128 + its number, also after the context;
    checkpoints are renamed into place when they are whole, so none is harmed. Outside
    the main thread signals are left alone. It may be opened again inside.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._depth = 0

    def __enter__(self) -> Stop:
        self._depth += 1
        if self._depth > 1:
            return self
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._heard) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth or self.signal is not None:
            return  # a second signal may still come before the process has ended
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    def hear(self, asked: int) -> None:
        """Raises `Stopped` if the processes agree to stop, for the signal `asked`.

        A process on its own asks nobody.
        """
        if not joined():
            return self.check()
        if asked:
            self.signal = asked
            self.check()

    def check(self, *_: object) -> None:
        """Raises `Stopped` if a signal was heard."""
        if self.signal is not None:
            raise Stopped(signal.Signals(self.signal).name)


class Stopped(Exception):
    """A signal asked to stop; its name is the argument."""

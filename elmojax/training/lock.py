"""One run at a time in a directory."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from elmojax.errors import InputError


class RunLock:
    """Held on `.lock` of a run directory until `release`, or the end of the process.

    However a process ends, its lock ends with it; the file stays and means nothing.
    """

    def __init__(self, run: Path, patience: float = 0.0) -> None:
        """Waits up to `patience` seconds: a lock may outlive a machine for a while.

        Raises `InputError` if another process has it, naming that process.
        """
        path = run / ".lock"
        try:
            run.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"The run directory {run} cannot be written: "
                f"{error.strerror or error}. Choose another --workdir."
            ) from error
        try:
            self._take(time.monotonic() + patience)
        except OSError as error:
            owner = os.read(self._file, 100).decode("utf-8", "replace").strip()
            os.close(self._file)
            raise InputError(
                f"Another process trains in {run} ({owner or 'unnamed'}); wait for it, "
                "stop it, or choose another --workdir."
            ) from error
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {os.uname().nodename}".encode())

    def _take(self, until: float) -> None:
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= until:
                    raise
                time.sleep(1)

    def release(self) -> None:
        """Lets others in. Safe to call again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_locked(run: Path) -> bool:
    """Whether a process trains in a run directory just now."""
    try:
        file = os.open(run / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False

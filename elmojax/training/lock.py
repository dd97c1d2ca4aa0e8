"""One run at a time in a directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from elmojax.errors import InputError


class RunLock:
    """Held on `.lock` of a run directory until `release`, or the end of the process.

    However a process ends, its lock ends with it; the file stays and means nothing.
    """

    def __init__(self, run: Path) -> None:
        """Raises `InputError` if another process has it, naming that process."""
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
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._file, 100).decode("utf-8", "replace").strip()
            os.close(self._file)
            raise InputError(
                f"Another process trains in {run} ({owner or 'unnamed'}); wait for it, "
                "stop it, or choose another --workdir."
            ) from error
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {os.uname().nodename}".encode())

    def release(self) -> None:
        """Lets others in. Safe to call again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

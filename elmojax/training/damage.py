"""Checkpoints that cannot be used or made: what to say, and where to put them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax

from elmojax.errors import InputError

PASSING = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "ABORTED")
"""In the text of errors that say nothing of the checkpoint itself."""


def damaged_or_busy(path: Path, error: BaseException) -> InputError:
    """What is wrong with a checkpoint, or with the machine that reads it."""
    here = MemoryError | PermissionError | TimeoutError | jax.errors.JaxRuntimeError
    root = root_of(error)
    why = " ".join(f"{type(root).__name__}: {root}".split())[:200]
    machine = isinstance(error, here) or isinstance(root, here)
    if machine or any(word in f"{error} {root}" for word in PASSING):
        return InputError(
            f"The checkpoint {path} cannot be read here and now ({why}); it is left as "
            "it is. See to the memory, the permissions or the disk, and try again."
        )
    return DamagedCheckpoint(path, why)


def root_of(error: BaseException) -> BaseException:
    """What it all began with."""
    while before := error.__cause__ or error.__context__:
        error = before
    return error


class DamagedCheckpoint(InputError):
    """A checkpoint that is there and cannot be used."""

    def __init__(self, path: Path, why: object) -> None:
        self.path = path
        self.why = " ".join(str(why).split())[:200]
        super().__init__(
            f"The checkpoint {path} cannot be read ({self.why}). Restore it from a "
            "copy or take an earlier --step; `elmojax pretrain` sets it aside and goes "
            "on from the one before."
        )

    def set_aside(self) -> Path:
        """Moves it to `damaged/` beside the others' directory, and says where to."""
        folder = self.path.parent.with_name("damaged")
        folder.mkdir(exist_ok=True)
        number, target = 1, folder / self.path.name
        while target.exists():
            number, target = number + 1, folder / f"{self.path.name}-{number}"
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.replace(self.path, target)
        return target


class SaveFailed(InputError):
    """A checkpoint that could not be written; those before it are whole."""

    def __init__(self, step: int, before: int | None, error: BaseException) -> None:
        why = " ".join(str(root_of(error)).split())[:200]
        whole = "there is none yet" if before is None else f"that of step {before} is"
        super().__init__(
            f"The checkpoint of step {step} could not be saved ({why}); the newest "
            f"whole one: {whole}. Make room, or see to the disk."
        )

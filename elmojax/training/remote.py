"""Runs in object stores: their copy on this machine trains, and is sent as it goes.

A run is sent when it begins, after each checkpoint, and when it ends. What a lost
machine loses is what came after the last checkpoint that was sent; a process that is
killed loses nothing of it, as the copy stays. An object store has no locks: whoever
trains writes its name there, and stops at its next checkpoint if another has come.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from pathlib import Path

from elmojax.cloud import (
    OWNER,
    address,
    bring,
    files_below,
    listing,
    mark_checkpoints,
    origin,
    read,
    remove,
    send,
    write,
)
from elmojax.disk import replacing
from elmojax.errors import InputError

RECORD = r"config\.json|vocabulary\.txt|card\.md"
FILES = re.compile(
    rf"({RECORD}|(status|metrics)\.jsonl?|loss\.png|report\.html|tracker-id\.txt"
    r"|checkpoints/\d+/.*|(sample-train|sample-heldout|tensorboard|wandb|profile)/.*)"
)
"""Names of the files of a run that are sent and brought."""


def bring_run(run: str | os.PathLike[str]) -> Path:
    """A whole run as it is in its object store; a local one as it is."""
    return bring(run, FILES.fullmatch)


def bring_model(run: str | os.PathLike[str], step: int | None = None) -> Path:
    """What a model needs of a run: its record, and one checkpoint without what only
    going on needs. A path of this machine is given back as it is."""
    found = address(run)
    if found is None:
        return Path(run)
    steps = [n for n in map(step_of, listing(found)) if n is not None]
    chosen = max(steps, default=None) if step is None else step

    def wanted(name: str) -> bool:
        if step_of(name) is None:
            return re.fullmatch(RECORD, name) is not None
        return step_of(name) == chosen and "/training/" not in name

    return bring(found, wanted, FILES.fullmatch)  # none of an earlier run stays


def just_begun(workdir: object) -> InputError:
    """Where a fresh run was to begin, another one has."""
    return InputError(
        f"Another run has just begun in {workdir}; give the command again to go on "
        "with it, or another --workdir."
    )


class Sending:
    """Sends a run directory that is the copy of one in an object store."""

    def __init__(self, run: Path) -> None:
        """For any other run directory, all of its methods do nothing."""
        self._run, self._found = run, address(origin(run))
        self._sent: dict[str, tuple[int, int]] | None = None
        self._owner = b""

    def claim(self) -> list[str]:
        """Makes the directory that of this copy.

        Returns a remark where another process seems to train there.
        """
        if self._found is None:
            return []
        path = self._run / OWNER
        if not path.exists():
            name = f"a process on {socket.gethostname()} ({secrets.token_hex(8)})\n"
            with replacing(path) as partial:
                partial.write_text(name, encoding="utf-8")
        self._owner = path.read_bytes()
        before = read(self._found, OWNER)
        if before == self._owner:
            return []
        if not write(self._found, OWNER, self._owner, new=before is None):
            raise just_begun(self._found)
        status = read(self._found, "status.json") or b""
        if before is None or b'"training"' not in status:
            return []
        return [
            f"{self._found} says that {_owner_name(before)} trains there. If it still "
            "does, it stops at its next checkpoint: from here on the run is that of "
            "this process."
        ]

    def send(self) -> None:
        """Sends what has changed, and deletes the checkpoints that are gone.

        Raises:
          Unreachable: if the object store cannot be read or written; the next call
            sends it all the same.
          InputError: if another process has taken the run over.
        """
        if self._found is None:
            return
        if (owner := read(self._found, OWNER)) != self._owner:
            what = f"The run was removed from {self._found}"
            if owner is not None:
                what = f"{self._found} was taken over by {_owner_name(owner)}"
            raise InputError(
                f"{what}, so this process stops. What it did is in {self._run}, until "
                "that address is used here again."
            )
        mark_checkpoints(self._run)
        there = listing(self._found, halves=True)
        here = _sizes_and_times(self._run)
        if self._sent is None:  # checkpoints that an earlier process sent
            self._sent = {
                name: state
                for name, state in here.items()
                if step_of(name) is not None and _same(state, there.get(name))
            }
        changed = [n for n, state in here.items() if self._sent.get(n) != state]
        send(self._run, self._found, changed)
        self._sent |= {name: here[name] for name in changed}
        kept = {None, *map(step_of, here)}
        remove(self._found, [name for name in there if step_of(name) not in kept])


def step_of(name: str) -> int | None:
    """Of the checkpoint that a file of a run belongs to, if it does to one."""
    match = re.match(r"checkpoints/(\d+)/", name)
    return int(match[1]) if match else None


def _sizes_and_times(run: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change, in ns, of the files of a run that are sent."""
    found = {}
    for name in filter(FILES.fullmatch, files_below(run)):
        with contextlib.suppress(FileNotFoundError):  # a tracker has removed it
            known = (run / name).stat()
            found[name] = known.st_size, known.st_mtime_ns
    return found


def _same(state: tuple[int, int], there: tuple[int, float] | None) -> bool:
    """Whether what is there is not older, and as long."""
    size, changed = state
    return there is not None and there[0] == size and there[1] >= changed // 10**9


def _owner_name(owner: bytes) -> str:
    return owner.decode("utf-8", "replace").partition(" (")[0][:100] or "another"

"""A process that writes some of the texts of an output, whoever sends it there."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from elmojax import __version__
from elmojax.embedding.devices import local_mesh, whole
from elmojax.embedding.files import Job
from elmojax.embedding.outputs import Form, read_text
from elmojax.embedding.outputs.partial import locked, writing
from elmojax.embedding.outputs.texts import Progress
from elmojax.errors import InputError
from elmojax.text.files import Errors

_DEATHS = 3
"""Workers that may die at the same place of a text."""
_PATIENCE = 60.0
"""Seconds that a worker waits for another, given up by all, to let go of a text; and
how late a network file system may show what another machine wrote."""


Accelerator: TypeAlias = Literal["GPU", "TPU"]
"""As Ray calls them."""
_EXTRAS: dict[Accelerator, str] = {"GPU": "cuda", "TPU": "tpu"}


@dataclass(frozen=True)
class Task:
    """What every worker must know."""

    job: Job
    """Leaves of its parameters are NumPy's."""
    names: tuple[str, ...]
    """Of all text files; numbers count them from 0."""
    home: Path
    """Where names begin that are not absolute."""
    directory: Path
    """Of the output, absolute."""
    form: Form
    errors: Errors
    overwrite: bool
    on_cpu: bool
    """Whatever else there is; otherwise on JAX's default devices."""
    accelerator: Accelerator | None
    """Of which each worker has one; None where no machine has any."""
    threads: int | None
    """Of one worker's CPU, so that several on a machine are not in each other's way;
    None = as many as there are cores. Vectors do not depend on it."""
    run: str
    """Of all runs, only this one has it."""


class Worker:
    """Embeds texts by number, each with a new Embedder, as one machine does."""

    def __init__(self, task: Task) -> None:
        """In a process that has not used JAX before. Loads nothing yet."""
        self._task = task
        self._job: Job | None = None

    def embed(self, number: int) -> tuple[int, int]:
        """Writes all parts of a text that are not there.

        Returns:
          Its lines and words.

        Raises:
          InputError: what `read_text`, `Embedder` and `ParquetWriter` raise; if this
            machine does not have the directory; if workers keep dying here.
        """
        from elmojax.embedding.outputs.parquet import ParquetWriter

        task = self._task
        name = task.names[number]
        self._require_files(name)
        with _alone(task, number):
            job = self._load()
            text = read_text(Path(name), task.errors)
            with ParquetWriter(
                task.directory, number, text, task.form, task.overwrite
            ) as writer:
                if writer.done < len(text.sizes):
                    sentences = text.sentences()
                    for block in job.embedder().blocks(sentences, writer.done):
                        writer.write(block)
                writer.finish()
        return len(text.sizes), int(text.sizes.sum(dtype=np.int64))

    def _require_files(self, name: str) -> None:
        """Has names mean what they meant where the command was given."""
        where, shared = socket.gethostname(), "that all machines of the cluster share"
        if not self._task.directory.is_dir():
            raise InputError(
                f"{self._task.directory} is not on {where}; name an --out in a "
                f"directory {shared}."
            )
        if not os.path.isabs(name):
            try:
                os.chdir(self._task.home)
            except OSError as error:
                raise InputError(
                    f"{self._task.home} is not on {where}; run this in a directory "
                    f"{shared}, or give {name} and all others by absolute names."
                ) from error

    def _load(self) -> Job:
        """The job, its parameters on the device."""
        if self._job is None:
            task, job = self._task, self._task.job
            if task.threads is not None:
                os.environ["NPROC"] = str(task.threads)  # XLA reads it
            if task.on_cpu:
                jax.config.update("jax_platforms", "cpu")
            elif task.accelerator and jax.default_backend() == "cpu":
                raise InputError(
                    f"JAX on {socket.gethostname()} does not use its "
                    f"{task.accelerator}: pip install "
                    f"'elmojax[{_EXTRAS[task.accelerator]}]' there, or set "
                    "JAX_PLATFORMS=cpu here."
                )
            mesh = local_mesh()
            params = jax.device_put(job.params, whole(mesh))
            self._job = replace(job, params=params, mesh=mesh)
        return self._job


class Actor:
    """A worker as Ray Data has it: from the number of a text to what became of it."""

    def __init__(self, load: Callable[[], Task], version: str) -> None:
        """
        Args:
          load: gets the Task, here.
          version: of elmojax where the command was given.
        """
        self._load, self._version = load, version
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """A report: `error` is the sentence of an `InputError`, or empty."""
        (number,) = batch["number"].tolist()
        lines, words, error = 0, 0, ""
        try:
            lines, words = self._begun().embed(number)
        except InputError as wrong:
            # Names of files need not be Unicode.
            error = str(wrong).encode("utf-8", "backslashreplace").decode("utf-8")
        report = {"number": number, "lines": lines, "words": words, "error": error}
        report["machine"] = socket.gethostname()
        return {name: [value] for name, value in report.items()}

    def _begun(self) -> Worker:
        """Not made by `__init__`, where Ray has no place for our errors."""
        if self._worker is None:
            if self._version != __version__:
                raise InputError(
                    f"{socket.gethostname()} has elmojax {__version__} and the command "
                    f"was given by {self._version}; install the same everywhere."
                )
            self._worker = Worker(self._load())
        return self._worker


def require_seen(task: Task, machines: dict[int, str]) -> None:
    """`InputError` unless the files that workers wrote are here, too."""
    end = time.monotonic() + _PATIENCE
    for number, machine in machines.items():
        while True:
            os.listdir(task.directory)  # has a network file system look again
            found = Progress.read(task.directory, number)
            if found is not None and found.done == found.lines:
                break
            if time.monotonic() > end:
                raise InputError(
                    f"{machine} wrote vectors of {task.names[number]} to "
                    f"{task.directory}, and they are not there seen from here. Name an "
                    "--out in a directory that all machines of the cluster share."
                )
            time.sleep(0.2)


@contextlib.contextmanager
def _alone(task: Task, number: int) -> Iterator[None]:
    """Holds a text. Its lock file has a line for each worker that died with it.

    A worker that is thought to be dead, or whose command was killed, may live on for a
    while; the next one waits for it.
    """
    name, found = task.names[number], Progress.read(task.directory, number)
    place = f"{task.run} {found.done if found else 0}"
    with writing(task.directory):
        path = task.directory / f"_{number:05d}.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        end = time.monotonic() + _PATIENCE
        while not locked(lock):
            if time.monotonic() > end:
                raise InputError(
                    f"Another process is writing vectors of {name}. End it, and run "
                    "the same command again to go on."
                )
            time.sleep(0.1)
        deaths = os.pread(lock, 1 << 20, 0).decode().splitlines().count(place)
        if deaths >= _DEATHS:
            raise InputError(
                f"{deaths} workers died with {name} at line {place.split()[1]} (from "
                "0): killed, or out of memory. Give fewer --workers or --batch-tokens, "
                "and run the command again."
            )
        with writing(task.directory):
            os.write(lock, f"{place}\n".encode())
        try:
            yield
        finally:
            os.ftruncate(lock, 0)
    finally:
        os.close(lock)

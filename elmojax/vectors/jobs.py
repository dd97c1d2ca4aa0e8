"""From text files to files of vectors: a job, and the processes that do it.

`embed_files` is the one machine; a `Worker` writes some of the texts of an output,
whoever sends it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from elmojax import __version__
from elmojax.config import UnicodeCnnConfig, WordTableConfig
from elmojax.disk import Lock, Taken
from elmojax.embedding.embedder import BATCH_TOKENS, Embedder
from elmojax.embedding.engine import Select, VectorDtype
from elmojax.embedding.export import named_weights, weights_hash
from elmojax.embedding.pooling import Block, Pooling
from elmojax.embedding.words import WordIndex
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams
from elmojax.model.ops import local_mesh, precision_of, replicated
from elmojax.text.files import Errors, Oddities, Text, read_text
from elmojax.text.formats import Format
from elmojax.text.uses import Occurrences, occurrences_of
from elmojax.text.vocabulary import Vocabulary
from elmojax.vectors.output import check_replaceable, open_output
from elmojax.vectors.unfinished import TextProgress, writing_output
from elmojax.vectors.writer import Form

ProgressCallback = Callable[[int, int], None]
"""Called with words done (those of an earlier run too) and words in all."""


@dataclass(frozen=True)
class Job:
    """Which vectors are made of a text, and by which model."""

    params: ElmoParams
    vocabulary: Vocabulary | WordIndex | None = None
    batch_tokens: int = BATCH_TOKENS
    layers: Select = "all"
    gammas: tuple[float, ...] | None = None
    dtype: VectorDtype = "float32"
    pool: Pooling | None = None
    compression: str | None = None
    format: Format = "text"
    """Of the texts."""
    only: frozenset[str] | None = None
    """Words whose vectors are kept; None = of all words."""
    mesh: Mesh | None = None
    """Whose devices are used; what comes is the same within float32 rounding."""

    def embedder(self) -> Embedder:
        """A new one for each text: its vectors depend on no other text, to the bit."""
        return Embedder(
            self.params,
            self.vocabulary,
            self.batch_tokens,
            layers=self.layers,
            gammas=self.gammas,
            # Pooling comes before rounding.
            dtype="float32" if self.pool else self.dtype,
            mesh=self.mesh,
        )

    def read(self, path: Path, errors: Errors) -> Text:
        """A text, read through for this model."""
        columns = self.params.config.max_characters
        text = read_text(path, errors, columns, self.format)
        return text if self.only is None else occurrences_of(self.only, text)

    def blocks(self, text: Text, start: int) -> Iterator[Block]:
        """The vectors of a text that was read, from line `start`."""
        blocks = self.embedder().blocks(text.sentences(), skip=start)
        if isinstance(text, Occurrences):
            return _kept(blocks, text, start)
        return blocks

    def form(self) -> Form:
        """What an output needs to know of the vectors."""
        lstm = self.params.config.lstm
        axes = (lstm.layers + 1,) if self.layers == "all" else ()
        settings = {
            "model": self._model(),
            "precision": precision_of(self.params),
            "layers": self.layers,
            "gammas": None if self.gammas is None else list(self.gammas),
            "batch_tokens": self.batch_tokens,
            **({"text_format": self.format} if self.format != "text" else {}),
            **({"only": sorted(self.only)} if self.only is not None else {}),
        }
        shape = (*axes, 2 * lstm.projection)
        return Form(shape, self.dtype, self.pool, self.compression, settings)

    def _model(self) -> str:
        """SHA-256 of the model: weights, configuration, and words if it reads ids."""
        parts = [weights_hash(named_weights(self.params)), repr(self.params.config)]
        encoder = self.params.config.encoder
        if isinstance(encoder, UnicodeCnnConfig):
            parts += [*encoder.words, *encoder.alphabet]
        elif isinstance(encoder, WordTableConfig):
            parts += self.vocabulary.words if self.vocabulary else ()
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _kept(blocks: Iterator[Block], text: Occurrences, line: int) -> Iterator[Block]:
    """Of the vectors of all words, from line `line`, those that are kept."""
    first = 0  # of the words of the line, the first of the next block
    for block in blocks:
        rows, sizes, begin, more = [], [], 0, False
        for number, size in enumerate(block.sizes):
            positions = text.positions_in(line) - first
            here = positions[(positions >= 0) & (positions < size)]
            if len(here):
                rows.append(begin + here)
                sizes.append(len(here))
                more = bool(positions[-1] >= size)
            begin += size
            ends = number < len(block.sizes) - 1 or not block.more
            line, first = (line + 1, 0) if ends else (line, first + size)
        if sizes:
            yield Block(tuple(sizes), block.vectors[np.concatenate(rows)], more)


def embed_files(
    job: Job,
    paths: Sequence[Path],
    out: Path,
    *,
    errors: Errors = "strict",
    overwrite: bool = False,
    report: ProgressCallback = lambda done, total: None,
    remark: Callable[[Oddities], object] = lambda odd: None,
    told: Callable[[Counter[str]], object] = lambda found: None,
) -> tuple[int, int]:
    """Writes the vectors of text files (see `elmojax.vectors.output`).

    A run that was cut short is taken up where it stopped, and the result is the same
    to the byte, or with other devices within float32 rounding.

    Args:
      job: model and kind of vectors.
      paths: texts, one tokenised sentence a line; several only as Parquet.
      out: .hdf5 or .h5 file, .parquet directory, or directory of .npy arrays.
      errors: what to do with bytes that are not UTF-8.
      overwrite: replace `out`, and forget an unfinished output of another request.
      report: called at first and after every batch.
      remark: called once all texts are read, with what is odd about them.
      told: called then, if only some words are kept, with how often each is there.

    Returns:
      Lines and words in all, or those that are kept.

    Raises:
      InputError: for a text that cannot be read or an output that cannot be written.
    """
    check_replaceable(out, overwrite)  # before hours of reading
    texts, odd = [job.read(path, errors) for path in paths], Oddities()
    for text in texts:
        odd.add(text.odd)
    some = [text for text in texts if len(text.sizes)]
    if job.only is not None and not some:
        raise _none_there(job.only, paths)
    remark(odd)
    if job.only is not None:
        told(sum((t.found for t in texts if isinstance(t, Occurrences)), Counter()))
    texts = some
    words = [int(text.sizes.sum()) for text in texts]

    def blocks(text: Text, start: int) -> Iterator[Block]:
        done = sum(words[: texts.index(text)]) + int(text.sizes[:start].sum())
        report(done, sum(words))
        for block in job.blocks(text, start):
            yield block
            done += sum(block.sizes)
            report(done, sum(words))

    with open_output(out, texts, job.form(), overwrite=overwrite) as output:
        output.fill(blocks)
        output.finish()
    return sum(len(text.sizes) for text in texts), sum(words)


def _none_there(words: frozenset[str], paths: Sequence[Path]) -> InputError:
    listed = ", ".join(repr(word) for word in sorted(words)[:3])
    listed = f"{listed:.200}{', ...' if len(words) > 3 else ''}"
    where = f"{paths[0]} has" if len(paths) == 1 else f"The {len(paths)} texts have"
    return InputError(
        f"{where} none of the words of --only ({listed}); they must be spelled as in "
        "the text, where spaces set them apart."
    )


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

    def __init__(self, get: Callable[[], Task], version: str = __version__) -> None:
        """In a process that has not used JAX before. Loads nothing yet: Ray has no
        place for our errors here.

        Args:
          get: gets the Task.
          version: of elmojax where the command was given.
        """
        self._get, self._version = get, version
        self._job: Job | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """As Ray Data has it, from the number of a text to what became of it.

        `error` is the sentence of an `InputError`, or empty; `odd` are the fields of
        `Oddities`, as JSON.
        """
        (number,) = batch["number"].tolist()
        lines, words, error, odd = 0, 0, "", Oddities()
        try:
            text = self.embed(number)
            lines, words = len(text.sizes), int(text.sizes.sum(dtype=np.int64))
            odd = text.odd
        except InputError as wrong:
            # Names of files need not be Unicode.
            error = str(wrong).encode("utf-8", "backslashreplace").decode("utf-8")
        report = {"number": number, "lines": lines, "words": words, "error": error}
        report |= {"machine": socket.gethostname(), "odd": json.dumps(vars(odd))}
        return {name: [value] for name, value in report.items()}

    @cached_property
    def _task(self) -> Task:
        if self._version != __version__:
            raise InputError(
                f"{socket.gethostname()} has elmojax {__version__} and the command was "
                f"given by {self._version}; install the same everywhere."
            )
        return self._get()

    def embed(self, number: int) -> Text:
        """Writes all parts of a text that are not there, and returns it.

        Raises:
          InputError: what `read_text`, `Embedder` and `ParquetWriter` raise; if this
            machine has another elmojax or does not have the directory; if workers keep
            dying here.
        """
        from elmojax.vectors.parquet import ParquetWriter

        task = self._task
        name = task.names[number]
        self._require_files(name)
        with _alone(task, number):
            job = self._load()
            text = job.read(Path(name), task.errors)
            writer = ParquetWriter(
                task.directory, number, text, task.form, task.overwrite
            )
            writer.fill(job.blocks)
        return text

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
            params = jax.device_put(job.params, replicated(mesh))
            self._job = replace(job, params=params, mesh=mesh)
        return self._job


def require_seen(task: Task, machines: dict[int, str]) -> None:
    """`InputError` unless the files that workers wrote are here, too."""
    end = time.monotonic() + _PATIENCE
    for number, machine in machines.items():
        while True:
            os.listdir(task.directory)  # has a network file system look again
            found = TextProgress.read(task.directory, number)
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
    """Holds a text. A file beside its lock has a line for each worker it died with.

    A worker that is thought to be dead, or whose command was killed, may live on for a
    while; the next one waits for it.
    """
    name, found = task.names[number], TextProgress.read(task.directory, number)
    place = f"{task.run} {found.done if found else 0}"
    path = task.directory / f"_{number:05d}.lock"
    died = path.with_suffix(".died")
    try:
        with writing_output(task.directory):
            lock = Lock(path, _PATIENCE)
    except Taken as owner:
        raise InputError(
            f"Another process is writing vectors of {name} ({owner}). End it, and run "
            "the same command again to go on."
        ) from owner
    with lock:
        before = died.read_text() if died.exists() else ""
        deaths = before.splitlines().count(place)
        if deaths >= _DEATHS:
            raise InputError(
                f"{deaths} workers died with {name} at line {place.split()[1]} (from "
                "0): killed, or out of memory. Give fewer --workers or --batch-tokens, "
                "and run the command again."
            )
        with writing_output(task.directory), open(died, "a") as file:
            file.write(f"{place}\n")
        try:
            yield
        finally:
            died.unlink(missing_ok=True)

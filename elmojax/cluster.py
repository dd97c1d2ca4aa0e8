"""Many text files to Parquet by the workers of a Ray cluster, as one machine does it.

A worker is an actor of Ray Data: it holds the model and takes one text file after the
other, each with an `Embedder` of its own, so that the parts are those of a run without
Ray, bit for bit on as many devices as a worker has. It writes them itself: text files
and `--out` lie in directories that all machines of the cluster see under the same
names. A run that was ended goes on where the parts end; so does a text whose worker was
killed.

Ray is an extra, `pip install 'elmojax[ray]'`, and this is the one module that knows it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from elmojax import __version__
from elmojax.arguments import require
from elmojax.config import Count
from elmojax.errors import InputError, one_line
from elmojax.text.files import Errors, Oddities
from elmojax.vectors.jobs import Accelerator, Job, Task, Worker, require_seen
from elmojax.vectors.output import Output

_HEALTH = 30.0
"""Seconds that a cluster has to answer."""


def embed_files(
    job: Job,
    texts: Sequence[Path],
    output: Output,
    *,
    errors: Errors = "strict",
    overwrite: bool = False,
    workers: int | None = None,
    address: str | None = None,
    report: Callable[[int], object] | None = None,
    remark: Callable[[Oddities], object] = lambda odd: None,
) -> tuple[int, int]:
    """What `Output.fill` does, by workers of Ray; `Output.finish` comes next.

    Args:
      job: model and kind of vectors.
      texts: those that `output` was opened with, as Paths.
      output: of Parquet.
      errors, overwrite: as `read_text` and `open_output` have them.
      workers, address: see `connected`. With JAX_PLATFORMS=cpu they take no GPUs and
        no TPUs; otherwise each uses JAX's default devices on its machine.
      report: called with the words of each text that is whole.
      remark: called at the end, with what is odd about the texts.

    Returns:
      Lines and words of all texts.

    Raises:
      InputError: what one machine would raise, once the first worker does: texts that
        are whole stay, and the next run goes on; if there is no such cluster; if a
        machine does not see the files; if workers keep dying.
    """
    assert texts
    # Ray tells of trouble on standard output, which is not its own.
    with contextlib.redirect_stdout(sys.stderr), connected(address, workers):
        import ray

        on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
        accelerator, some = (None, 0) if on_cpu else _accelerators()
        machines = sum(node["Alive"] for node in ray.nodes())
        count = workers or some or machines
        params = jax.tree.map(np.asarray, job.params)
        task = Task(
            job=replace(job, params=params, mesh=None),
            names=tuple(map(os.fspath, texts)),
            home=Path.cwd(),
            directory=Path(os.path.abspath(output.directory)),
            form=output.form,
            errors=errors,
            overwrite=overwrite,
            on_cpu=on_cpu,
            accelerator=accelerator,
            threads=max(1, (os.cpu_count() or 1) // count) if machines == 1 else None,
            run=uuid.uuid4().hex,
        )
        lines, words, seen, odd = 0, 0, dict[int, str](), Oddities()
        with contextlib.closing(_reports(task, min(count, len(texts)))) as reports:
            for done in reports:
                if done["error"]:
                    raise InputError(done["error"])
                lines, words = lines + done["lines"], words + done["words"]
                seen[done["number"]] = done["machine"]
                odd.add(Oddities(**json.loads(done["odd"])))
                if report is not None:
                    report(done["words"])
        require_seen(task, seen)
    remark(odd)
    return lines, words


@contextlib.contextmanager
def connected(address: str | None = None, workers: int | None = None) -> Iterator[None]:
    """A Ray cluster: the one this process is in already, if any, and it stays.

    Args:
      address: HOST:PORT of a running cluster that this machine is part of, or "auto"
        for the one started here; it is left running. None starts one of this machine
        alone, which others cannot reach (unless Ray was imported before), and ends it.
      workers: how many a run has at most. None = one a GPU, or one a TPU chip, or one
        a machine if there are none; each has one of them, if there are any.

    Raises:
      InputError: without Ray, if there is no such cluster, or it does not fit.
    """
    require("--workers", workers, Count | None)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What Ray's C++ says, it says on our standard error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:  # Ray's name for listening on the loopback interface alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "Ray is needed and not installed: pip install 'elmojax[ray]'."
        ) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        gpus = 0 if os.environ.get("JAX_PLATFORMS") == "cpu" else None
        options |= {"num_cpus": workers or 1, "num_gpus": gpus}
    else:
        _require_healthy(address)
    try:
        with _silence(), warnings.catch_warnings():
            # What it starts are new programs, not copies of this process.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(address or "local", include_dashboard=False, **options)
    except (OSError, RuntimeError, ValueError) as error:
        why = one_line(error, 300).rstrip(".")
        raise InputError(
            f"Ray cluster {address or 'of this machine'}: {why}. Name one that runs "
            "with the same Ray and Python, and that this machine is part of."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No standard error: Ray's C++ tells there how quiet it was asked to be."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _require_healthy(address: str) -> None:
    """`InputError` if no cluster answers soon; Ray itself would wait for minutes."""
    if address.startswith("ray://"):
        raise InputError(
            f"--ray-address {address}: a client outside the cluster would not see its "
            "files. Run this on a machine of the cluster, with HOST:PORT or auto."
        )
    if address == "auto":
        return
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    command = [*ray, "health-check", "--address", address]
    with contextlib.suppress(subprocess.TimeoutExpired):
        if not subprocess.run(command, capture_output=True, timeout=_HEALTH).returncode:
            return
    raise InputError(
        f"There is no Ray cluster at {address}; start one with `ray start --head`, or "
        "leave --ray-address out for one of this machine alone."
    )


def _accelerators() -> tuple[Accelerator | None, int]:
    """The kind that machines of the cluster have, and their number."""
    import ray

    found = ray.cluster_resources()
    for kind in get_args(Accelerator):
        if found.get(kind, 0) >= 1:
            return kind, int(found[kind])
    return None, 0


def _reports(task: Task, workers: int) -> Generator[dict[str, Any], None, None]:
    """What actors return, as it comes."""
    import ray

    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    numbers = [{"number": number} for number in range(len(task.names))]
    data = ray.data.from_items(numbers, override_num_blocks=len(numbers))
    reports = data.map_batches(
        Worker,
        fn_constructor_args=(functools.partial(_get, ray.put(task)), __version__),
        batch_size=1,
        num_cpus=1,
        num_gpus=1 if task.accelerator == "GPU" else None,
        resources={"TPU": 1} if task.accelerator == "TPU" else None,
        # No text waits for a worker while another has nothing to do.
        compute=ray.data.ActorPoolStrategy(
            size=workers, max_tasks_in_flight_per_actor=1
        ),
    )
    try:
        yield from reports.iter_rows()
    except ray.exceptions.RayError as error:
        if "No module named 'elmojax" in str(error):
            raise InputError(
                "A machine of the Ray cluster has no elmojax; install the same version "
                "on all of them."
            ) from error
        if isinstance(error, ray.exceptions.RayTaskError):
            raise  # a bug of ours
        why = one_line(error, 300).rstrip(".")
        raise InputError(
            f"The Ray cluster failed: {why}. Run the same command again to go on."
        ) from error
    finally:
        context.enable_progress_bars = bars


def _get(task: Any) -> Task:
    """In a worker, the Task of a reference."""
    import ray

    # Ray 2.60 can wait for itself as a process exits, which then holds its GPU forever.
    atexit.register(os._exit, 0)
    return ray.get(task)

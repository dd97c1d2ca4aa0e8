"""Memory: that of the C library, and what to say when there is not enough.

XLA takes the memory of a step's intermediate results anew for every step on a CPU. By
default glibc hands so large a piece back to the system at the end of the step, which
must then clear its pages again: a quarter of the time of a step of the mini preset.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib.util
import math
import os
import resource
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from elmojax.cloud import origin
from elmojax.config import TrainConfig
from elmojax.errors import InputError

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1
"""Numbers of mallopt's parameters, from glibc's malloc.h."""
NEVER = 2**31 - 1
PLUGINS = ("jax_plugins", "libtpu")
"""Packages by which JAX finds other devices."""
DEVICES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")
"""Files of GPUs (NVIDIA, the same under Windows, AMD) and TPUs."""
GROWN = 1.1
"""Times as much memory as after the first steps; then what is idle is given back."""


def keep_freed_memory() -> None:
    """From now on freed memory stays with this process, in one place for all threads.

    For programs whose steps take the same memory again and again; to be called before
    JAX starts its threads. Does nothing where JAX will run on something else than a
    CPU, or where the C library has no such choice.
    """
    if not begins_on_cpu():
        return
    with contextlib.suppress(OSError, AttributeError):
        choose = ctypes.CDLL(None).mallopt
        for parameter, value in (ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER):
            choose(parameter, value)


def begins_on_cpu() -> bool:
    """Whether JAX will run on the CPU, told without having it begin.

    So it does if it is told to, and if it lacks a plugin for anything else, or the
    system a device.
    """
    asked = jax.config.values["jax_platforms"]
    if asked:
        return str(asked).split(",")[0] == "cpu"
    plugins = any(importlib.util.find_spec(name) for name in PLUGINS)
    return not (plugins and any(glob.glob(pattern) for pattern in DEVICES))


def return_freed_memory() -> None:
    """Freed memory goes back to the system now: what a compiler or a save left."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class StepMemory:
    """The memory of the steps of a run, which a CPU takes from the C library.

    There XLA takes a step's memory when the step is handed over, not when it begins:
    two steps at once would hold theirs twice, so a step waits for the one before, and
    a CPU has it within a millisecond. Other devices queue steps in one memory of their
    own, and nothing waits. Memory that lies idle goes back to the system where a step
    does not find its place any more, because something small lies in it by now.
    """

    def __init__(self) -> None:
        self._usual: int | None = None

    @contextlib.contextmanager
    def of_step(self, last: Any, compiles: bool = False) -> Iterator[None]:
        """Around the call that hands a step over.

        Args:
          last: arrays that the step before makes.
          compiles: whether the call compiles first, which takes hundreds of megabytes:
            not besides those of a step.
        """
        grown = False
        if jax.default_backend() == "cpu":
            jax.block_until_ready(last)
            now = resident()
            self._usual = self._usual or now
            grown = now > GROWN * self._usual
        if compiles or grown:
            return_freed_memory()
            self._usual = None
        yield
        if compiles:
            return_freed_memory()


def resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * resource.getpagesize()
    return 0


def memory_of_machine() -> int:
    """Bytes that this process may have: those of the machine, or of its container."""
    most = os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        path = Path("/sys/fs/cgroup/memory.max")
        most = min(most, int(path.read_text(encoding="ascii")))
    return most


def require_room(config: TrainConfig, state: Any, data: int) -> None:
    """`InputError` for a run that a CPU cannot have memory for, before it takes any.

    Linux hands out more memory than there is and kills who uses it; other devices
    refuse what they do not have. Counted is what a step takes at least: the state,
    and the gates of the LSTM, which the backward pass reads.

    Args:
      state: of the run, as shapes and dtypes.
      data: devices along `data`; those of a CPU share its memory.
    """
    if jax.default_backend() != "cpu":
        return
    lstm = config.model.lstm
    positions = config.rows * config.window // config.accumulate
    size = 2 if config.precision == "bf16" else 4
    gates = positions * lstm.layers * 2 * 4 * lstm.dim * size
    leaves = jax.tree.leaves(state)
    arrays = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    # Those of other processes are not here: at least one device along `data` is.
    gates //= data if jax.process_count() > 1 else 1
    arrays //= config.mesh.model if jax.process_count() > 1 else 1
    least, most = arrays + gates, memory_of_machine()
    if least > most:
        raise InputError(
            f"A step of {positions:,} positions needs {least / 1e9:,.1f} GB of memory "
            f"or more, {arrays / 1e9:,.1f} GB of it for the parameters and their "
            f"optimizer, and there are {most / 1e9:,.1f} GB; take fewer --rows, more "
            "--accumulate, or a smaller model."
        )


SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc")
"""What JAX's messages hold where an array or a program found no room."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of a device, or of the host."""
    if isinstance(error, MemoryError):
        return True
    messages = str(error)
    known = isinstance(error, jax.errors.JaxRuntimeError)
    return known and any(sign in messages for sign in SIGNS)


@contextmanager
def explain_out_of_memory(
    config: TrainConfig, where: Callable[[], str]
) -> Iterator[None]:
    """Turns running out of memory inside into an `InputError`.

    Args:
      where: says what was being done, for example "in step 3".
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(_sentence(config, where())) from error


def _sentence(config: TrainConfig, where: str) -> str:
    model = config.mesh.model
    data = config.mesh.data or max(1, jax.device_count() // model)
    command = ["elmojax", "estimate", "--workdir", origin(config.workdir)]
    command += ["--mesh.data", str(data)]
    command += ["--mesh.model", str(model)] if model > 1 else []
    microbatches = config.accumulate
    command += ["--accumulate", str(microbatches)] if microbatches > 1 else []
    rows = config.rows // data
    share = f" ({rows:,} a device)" if data > 1 else ""
    more = [k for k in range(microbatches + 1, rows + 1) if rows % k == 0]
    remedy = ""
    if more:
        remedy = f"give --accumulate {more[0]} (the same step in less memory), or "
    return (
        f"Memory ran out {where} with --rows {config.rows:,}{share}; checkpoints are "
        f"as they were. `{shlex.join(command)}` shows what the run needs; {remedy}"
        "take fewer --rows in another --workdir."
    )

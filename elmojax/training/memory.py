"""The C library's memory: what one step gives back is there for the next one.

XLA takes the memory of a step's intermediate results anew for every step on a CPU. By
default glibc hands so large a piece back to the system at the end of the step, which
must then clear its pages again: a quarter of the time of a step of the mini preset.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import jax

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1
"""Numbers of mallopt's parameters, from glibc's malloc.h."""
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """From now on freed memory stays with this process, in one place for all threads.

    For programs whose steps take the same memory again and again; to be called before
    JAX starts its threads. Does nothing where the C library has no such choice.
    """
    with contextlib.suppress(OSError, AttributeError):
        choose = ctypes.CDLL(None).mallopt
        for parameter, value in (ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER):
            choose(parameter, value)


def return_freed_memory() -> None:
    """Freed memory goes back to the system now: what a compiler or a save left."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def room_to_compile(needed: bool = True) -> Iterator[None]:
    """Compiling takes hundreds of megabytes: not besides those of a step."""
    if needed:
        return_freed_memory()
    yield
    if needed:
        return_freed_memory()


def wait_on_cpu(last: Any) -> None:
    """Waits for the step before, on a CPU: its memory serves the next one.

    There XLA takes the memory of a step when it is handed over, not when it begins, so
    that two steps at once hold theirs twice; and a CPU has the next one within
    a millisecond. Other devices queue their steps in one memory, and nothing waits.

    Args:
      last: arrays that the step before makes.
    """
    if jax.default_backend() == "cpu":
        jax.block_until_ready(last)

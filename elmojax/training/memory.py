"""The C library's memory: what one step gives back is there for the next one.

XLA takes the memory of a step's intermediate results anew for every step on a CPU. By
default glibc hands so large a piece back to the system at the end of the step, which
must then clear its pages again: a quarter of the time of a step of the mini preset.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1
"""Numbers of mallopt's parameters, from glibc's malloc.h."""
NEVER = 2**31 - 1
GROWN = 1.1
"""Times as much memory as after the first steps; then what is idle is given back."""


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

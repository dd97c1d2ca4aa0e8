"""Checkpoints that cannot be used or made: how it is found, what to say of it.

`digests` are sums over arrays, by which a flipped bit is found. Two words of 32 bits an
array: sums, modulo 2**32, of its bits times odd numbers that differ from place to
place. Any one changed bit changes them, and other changes do but for one chance in
about 2**60. They do not depend on how an array lies on devices or processes: each
device sums what it has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from elmojax.errors import InputError, one_line

PASSING = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "ABORTED")
"""In the text of errors that say nothing of the checkpoint itself."""


def damaged_or_busy(path: Path, error: BaseException) -> InputError:
    """What is wrong with a checkpoint, or with the machine that reads it."""
    here = MemoryError | PermissionError | TimeoutError | jax.errors.JaxRuntimeError
    root = root_of(error)
    why = one_line(f"{type(root).__name__}: {root}")
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
        self.why = one_line(why)
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
        why = one_line(root_of(error))
        whole = "there is none yet" if before is None else f"that of step {before} is"
        super().__init__(
            f"The checkpoint of step {step} could not be saved ({why}); the newest "
            f"whole one: {whole}. Make room, or see to the disk."
        )


UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
"""By bytes; longer numbers are read as several words."""


def digest(array: Array) -> Array:
    """uint32 [2] of an array's bits and their places."""
    bits = _words(jnp.asarray(array))
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        count = lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + count * jnp.uint32(stride % (1 << 32))
        stride *= bits.shape[axis]
    mixed = (place * jnp.uint32(0x9E3779B1)) ^ (place >> jnp.uint32(15))
    mixed_bits = bits ^ (bits >> jnp.uint32(16))
    odd = jnp.uint32(1)
    terms = bits * (place * jnp.uint32(2) + odd), mixed_bits * (mixed | odd)
    return jnp.stack([jnp.sum(term, dtype=jnp.uint32) for term in terms])


def _words(array: Array) -> Array:
    """An array's bits as uint32, one a number (two for numbers of eight bytes)."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    unsigned = UNSIGNED.get(array.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


@jax.jit
def _digests(arrays: list[Array]) -> Array:
    rows = [digest(array) for array in arrays]
    return jnp.stack(rows) if rows else jnp.zeros((0, 2), jnp.uint32)


def digests(arrays: Mapping[str, Array]) -> np.ndarray:
    """uint32 [arrays, 2], by the order of their names; they may lie on any devices."""
    groups: dict[Any, list[str]] = {}
    for name in sorted(arrays):
        place = getattr(arrays[name], "sharding", None)  # NumPy arrays have none
        groups.setdefault(place and frozenset(place.device_set), []).append(name)
    sums: dict[str, np.ndarray] = {}
    for names in groups.values():
        rows = np.asarray(_digests([arrays[name] for name in names]))
        sums.update(zip(names, rows, strict=True))
    return np.array([sums[name] for name in sorted(sums)], np.uint32).reshape(-1, 2)

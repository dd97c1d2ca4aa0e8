"""Sums over arrays, by which a flipped bit in a checkpoint is found.

Two words of 32 bits an array: sums, modulo 2**32, of its bits times odd numbers that
differ from place to place. Any one changed bit changes them, and other changes do but
for one chance in about 2**60. They do not depend on how an array lies on devices.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

CHUNK = 1 << 20


def digest(array: ArrayLike) -> np.ndarray:
    """uint32 [2] of an array's bits and their places."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    data = np.pad(data, (0, -len(data) % 4)).view(np.uint32)
    sums = np.zeros(2, np.uint32)
    for start in range(0, len(data), CHUNK):
        bits = data[start : start + CHUNK]
        place = np.arange(start, start + len(bits), dtype=np.uint32)
        mixed = (place * np.uint32(0x9E3779B1)) ^ (place >> np.uint32(15))
        turned = bits ^ (bits >> np.uint32(16))
        terms = np.stack(
            [
                bits * (place * np.uint32(2) + np.uint32(1)),
                turned * (mixed | np.uint32(1)),
            ]
        )
        sums += terms.sum(axis=1, dtype=np.uint32)
    return sums


def digests(arrays: Mapping[str, ArrayLike]) -> np.ndarray:
    """uint32 [arrays, 2], by the order of their names."""
    rows = [digest(arrays[name]) for name in sorted(arrays)]
    return np.stack(rows) if rows else np.zeros((0, 2), np.uint32)

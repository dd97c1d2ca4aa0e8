"""What is written of each word or sentence, whatever the format of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import ml_dtypes
import numpy as np

from elmojax.embedding.engine import Dtype
from elmojax.embedding.outputs.text import Text
from elmojax.embedding.pooling import Pooling
from elmojax.errors import InputError


@dataclass(frozen=True)
class Form:
    """The vectors of an output. Raises `InputError` for an unknown dtype or pooling."""

    shape: tuple[int, ...]
    """Of what blocks hold of a word: (layers + 1, vector), or (vector,) for one mix
    or the top layer."""
    dtype: Dtype = "float32"
    pool: Pooling | None = None
    """One vector a sentence instead of one a word."""
    compression: str | None = None
    """`NAME` or `NAME:LEVEL`; which there are depends on the format."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the numbers, for JSON: the model's hash, layers, gammas,
    positions a batch. Without paths and times, so that equal runs make equal bytes."""

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, get_args(Dtype))
        if self.pool is not None:
            _one_of("pooling", self.pool, get_args(Pooling))

    @property
    def numpy(self) -> np.dtype:
        """The dtype of vectors in memory."""
        return np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one word, or of one sentence if they are pooled."""
        return math.prod(self.shape) * self.numpy.itemsize

    @property
    def axes(self) -> str:
        """Names of the axes of one line's vectors."""
        names = ["layer"] * (len(self.shape) - 1) + ["word", "vector"]
        return ", ".join(n for n in names if n != "word" or self.pool is None)

    def rows(self, text: Text) -> np.ndarray:
        """How many vectors each line of a text has: its words, or one."""
        return text.sizes if self.pool is None else np.ones_like(text.sizes)

    def request(self) -> dict[str, Any]:
        """All of it for JSON. Two outputs of one text and one request are equal."""
        return {
            **self.settings,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "pool": self.pool,
            "compression": self.compression,
        }

    def packing(self, levels: Mapping[str, range]) -> tuple[str, int | None] | None:
        """Name and level of the compression, if there is one.

        Args:
          levels: the levels of each compression that the format has; an empty range
            for one without.

        Raises:
          InputError: for another name or level.
        """
        if self.compression is None:
            return None
        name, colon, level = self.compression.partition(":")
        if not levels:
            raise InputError(
                f"--compression {self.compression} is not for this format; leave it "
                "out, or write HDF5 (.hdf5) or Parquet (.parquet)."
            )
        _one_of("compression", name, tuple(levels))
        if not colon:
            return name, None
        if not level.isascii() or not level.isdigit() or int(level) not in levels[name]:
            allowed = levels[name]
            span = f"a level from {min(allowed)} to {max(allowed)}" if allowed else ""
            raise InputError(
                f"--compression {self.compression}: {name} takes {span or 'no level'}."
            )
        return name, int(level)


def _one_of(what: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise InputError(
            f"There is no {what} {name!r} here; choose one of {', '.join(allowed)}."
        )

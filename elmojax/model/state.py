"""The LSTM state of all layers, as it is carried, repeated for rows, and compared."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from elmojax.arguments import checked
from elmojax.config import LstmConfig


@flax.struct.dataclass
class LstmState:
    """State of all layers and directions, zeros at the start of a stream.

    cell is [layers, two, batch, dim], hidden [layers, two, batch, projection], both
    float32. Without the batch axis it is the same start for every sentence.
    """

    cell: Any  # an array, or what stands for one while shapes are worked out
    hidden: Any

    @classmethod
    @checked
    def zeros(cls, config: LstmConfig, *batch: Any) -> LstmState:
        """The state before any text, for `batch` rows (or none: one for all)."""
        lead = (config.layers, 2, *batch)
        return cls(
            jnp.zeros((*lead, config.dim), jnp.float32),
            jnp.zeros((*lead, config.projection), jnp.float32),
        )

    def for_batch(self, batch: Any, start: LstmState | None = None) -> LstmState:
        """The state of `batch` rows, a number or a symbolic dimension.

        Without a batch axis it is repeated. With one, its first rows are taken; rows
        that it lacks begin as `start` (without a batch axis; None = zeros).
        """
        if self.cell.ndim == 3:
            repeat = partial(jnp.repeat, repeats=batch, axis=2)
            return jax.tree.map(lambda leaf: repeat(leaf[:, :, None]), self)
        more = batch - self.cell.shape[2]
        if more <= 0:
            return jax.tree.map(lambda leaf: leaf[:, :, :batch], self)
        if start is None:
            start = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, :, 0]), self)
        return self.joined(start.for_batch(more))

    def joined(self, further: LstmState) -> LstmState:
        """The rows of both, one after the other."""
        join = partial(jnp.concatenate, axis=2)
        return jax.tree.map(lambda one, other: join([one, other]), self, further)

    def constant(self) -> LstmState:
        """The same numbers as read-only float32 arrays of NumPy, for the metadata of a
        pytree; itself if they are that. `TypeError` if JAX traces them."""
        both = (self.cell, self.hidden)
        if all(isinstance(a, np.ndarray) and not a.flags.writeable for a in both):
            if self.cell.dtype == self.hidden.dtype == np.float32:
                return self
        copies = [np.array(leaf, np.float32) for leaf in both]
        for array in copies:
            array.flags.writeable = False
        return LstmState(*copies)

    def __eq__(self, other: object) -> bool:
        """Whether all numbers are the same, bit for bit."""
        if not isinstance(other, LstmState):
            return NotImplemented
        return self is other or self._content() == other._content()

    def __hash__(self) -> int:
        if "_hash" not in self.__dict__:  # once: programs are looked up by it
            object.__setattr__(self, "_hash", hash(self._content()))
        return int(self.__dict__["_hash"])

    def _content(self) -> tuple[Any, ...]:
        arrays = (np.asarray(self.cell), np.asarray(self.hidden))
        return tuple((a.shape, a.dtype.str, a.tobytes()) for a in arrays)

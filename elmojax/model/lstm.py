"""The bidirectional LSTM with projection: the state of its layers, and they in Linen.

`recurrence` has the equations of a layer and its loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from elmojax.arguments import checked
from elmojax.config import LstmConfig
from elmojax.model.ops import Dtype, Platform, apply_dropout
from elmojax.model.recurrence import (
    LayerOptions,
    Reset,
    State,
    Weights,
    recurrence,
)
from elmojax.shapes import Inputs, Lengths


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


class BiLstm(nn.Module):
    """All layers: inputs -> outputs [layers, time, two, batch, projection], state.

    With `dropout` above 0 and keys of its rows, inputs of each layer are dropped out
    (and with a skip connection the dropped input is added), as bilm-tf trains.
    """

    config: LstmConfig
    dropout: float = 0.0
    mesh: Mesh | None = None
    directions: int = 2
    dtype: Dtype = None
    """Of matrix products; None = that of the weights."""
    platform: Platform = None

    @nn.compact
    def __call__(
        self,
        inputs: Inputs,
        state: LstmState,
        lengths: Lengths | None = None,
        reset: Reset | None = None,
        row_keys: Array | None = None,
    ) -> tuple[Array, LstmState]:
        outputs, cells, hiddens = [], [], []
        x, valid = inputs, None
        if lengths is not None:
            time = jnp.arange(x.shape[0], dtype=jnp.int32)  # may be a symbol
            valid = (time[:, None] < lengths[None])[:, None, :, None]
        for number in range(self.config.layers):
            if self.dropout and row_keys is not None:
                x = apply_dropout(x, self.dropout, row_keys, number)
            before = State(state.cell[number], state.hidden[number])
            again = reset
            if reset is not None:
                start = State(reset.start.cell[number], reset.start.hidden[number])
                again = Reset(reset.here, start)
            y, after = self._layer(number, x, before, lengths, again)
            x = y + x if number and self.config.skip_connections else y
            x = x if valid is None else jnp.where(valid, x, 0.0)
            outputs.append(x)
            cells.append(after.cell)
            hiddens.append(after.hidden)
        return jnp.stack(outputs), LstmState(jnp.stack(cells), jnp.stack(hiddens))

    def _layer(
        self,
        number: int,
        x: Array,
        state: State,
        lengths: Array | None,
        reset: Reset | None,
    ) -> tuple[Array, State]:
        width, dim, out = x.shape[-1], self.config.dim, self.config.projection
        start = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=-3, out_axis=(-2, -1), batch_axis=0
        )
        # Glorot over inputs and hidden state together, one matrix as in TensorFlow.
        shape: tuple[int, ...] = (self.directions, width + out, 4, dim)
        kernel = self.param(f"kernel_{number}", start, shape, jnp.float32)
        zeros, shape = nn.initializers.zeros, (self.directions, 4, dim)
        bias = self.param(f"bias_{number}", zeros, shape, jnp.float32)
        start = nn.initializers.glorot_uniform(batch_axis=0)
        shape = (self.directions, dim, out)
        projection = self.param(f"projection_{number}", start, shape, jnp.float32)
        options = LayerOptions(
            self.config.cell_clip,
            self.config.projection_clip,
            self.dtype or kernel.dtype,
            "model" if self.mesh and self.mesh.shape["model"] > 1 else None,
            self.platform,
        )
        run: Callable[..., Any] = partial(recurrence, options)
        if self.mesh is not None:
            run = _sharded(run, self.mesh, reset is not None)
        return run(x, Weights(kernel, bias, projection), state, lengths, reset)


def _sharded(run: Callable[..., Any], mesh: Mesh, resets: bool) -> Callable[..., Any]:
    """`recurrence` with rows split over `data` and cells over `model`."""
    rows: Any = P(None, None, "data")
    cell: Any = P(None, "data", "model")
    hidden: Any = P(None, "data")
    kernel: Any = P(None, None, None, "model")
    bias: Any = P(None, None, "model")
    dim: Any = P(None, "model")
    whole: Any = P()
    state, weights = State(cell, hidden), Weights(kernel, bias, dim)
    reset = Reset(rows, State(dim, whole)) if resets else None
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(rows, weights, state, P("data"), reset),
        out_specs=(rows, state),
        check_vma=False,
    )

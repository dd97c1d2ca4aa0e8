"""The bidirectional LSTM with projection: layers of `recurrence`, in Linen.

Both directions are stacked on a leading axis of size two: 0 reads the sentence forward,
1 reads it backward. Callers hand over both inputs in reading order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from elmojax.config import LstmConfig
from elmojax.model.cell import Backend, Options, State, Weights
from elmojax.model.dropout import dropped
from elmojax.model.recurrence import Restarts, recurrence
from elmojax.shapes import Inputs, Valid


@flax.struct.dataclass
class LstmState:
    """State of all layers and directions, zeros at the start of a stream.

    cell is [layers, two, batch, dim], hidden [layers, two, batch, projection], both
    float32. Without the batch axis it is the same start for every sentence.
    """

    cell: Any  # an array, or what stands for one while shapes are worked out
    hidden: Any

    @classmethod
    def zeros(cls, config: LstmConfig, *batch: int) -> LstmState:
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


class SentenceStarts(NamedTuple):
    """Where sentences begin in rows that hold several, one after the other."""

    here: Array
    """bool [time, two, batch]: set the state back before this position is read."""
    state: LstmState
    """Without a batch axis: what every sentence starts from."""

    def of_layer(self, number: int) -> Restarts:
        start = State(self.state.cell[number], self.state.hidden[number])
        return Restarts(self.here, start)


class BiLstm(nn.Module):
    """All layers: inputs -> outputs [layers, time, two, batch, projection], state.

    With `dropout` above 0 and keys of its rows, inputs of each layer are dropped out
    (and with a skip connection the dropped input is added), as bilm-tf trains.
    """

    config: LstmConfig
    dropout: float = 0.0
    mesh: Mesh | None = None
    backend: Backend = Backend.LEAN
    directions: int = 2

    @nn.compact
    def __call__(
        self,
        inputs: Inputs,
        state: LstmState,
        valid: Valid | None = None,
        restarts: SentenceStarts | None = None,
        row_keys: Array | None = None,
    ) -> tuple[Array, LstmState]:
        outputs, cells, hiddens = [], [], []
        x = inputs
        for number in range(self.config.layers):
            if self.dropout and row_keys is not None:
                x = dropped(x, self.dropout, row_keys, number)
            before = State(state.cell[number], state.hidden[number])
            again = None if restarts is None else restarts.of_layer(number)
            y, after = self._layer(number, x, before, valid, again)
            x = y + x if number and self.config.skip_connections else y
            if valid is not None:  # a skip connection adds the input of padding too
                x = jnp.where(valid[:, None, :, None], x, 0.0)
            outputs.append(x)
            cells.append(after.cell)
            hiddens.append(after.hidden)
        return jnp.stack(outputs), LstmState(jnp.stack(cells), jnp.stack(hiddens))

    def _layer(
        self,
        number: int,
        x: Array,
        state: State,
        valid: Array | None,
        restarts: Restarts | None,
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
        weights = Weights(kernel, bias, projection)
        clips = (self.config.cell_clip, self.config.projection_clip)
        if self.mesh is None:
            options = Options(*clips, None, self.backend)
            return _run_layer(options, x, weights, state, valid, restarts)
        assert restarts is None, "rows of several sentences are for one device"
        options = Options(*clips, "model", self.backend)
        return self._sharded(options)(x, weights, state, valid)

    def _sharded(self, options: Options) -> Callable[..., tuple[Array, State]]:
        """The layer with rows split over `data` and cells over `model`."""
        rows = P(None, None, "data")
        cell: Any = P(None, "data", "model")
        hidden: Any = P(None, "data")
        state = State(cell, hidden)
        kernel: Any = P(None, None, None, "model")
        bias: Any = P(None, None, "model")
        projection: Any = P(None, "model")
        weights = Weights(kernel, bias, projection)
        return jax.shard_map(
            partial(_run_layer, options),
            mesh=self.mesh,
            in_specs=(rows, weights, state, P(None, "data")),
            out_specs=(rows, state),
            check_vma=False,
        )


def _run_layer(
    options: Options,
    x: Array,
    weights: Weights,
    state: State,
    valid: Array | None,
    restarts: Restarts | None = None,
) -> tuple[Array, State]:
    """One layer on one device's share of rows and cells; gates side by side."""
    kernel, bias, projection = weights
    flat = Weights(
        kernel.reshape(*kernel.shape[:2], -1),
        bias.reshape(len(bias), -1),
        projection,
    )
    return recurrence(x, flat, state, options, valid, restarts)

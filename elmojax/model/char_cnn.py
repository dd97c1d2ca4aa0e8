"""Words to vectors: the character CNN, and a table of words as its alternative.

Sources: Kim et al. 2016 (character-aware language models), Jozefowicz et al. 2016
(the CNN inputs of "Exploring the limits of language modeling"), Srivastava et al. 2015
(highway networks), with the initial values of bilm-tf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from elmojax.config import CharCnnConfig, WordTableConfig
from elmojax.model.precision import contract
from elmojax.model.windows import Kernels, pooled_responses

CARRY_BIAS = -2.0
"""Start of the highway gates: mostly the transformed input, as bilm-tf has it."""


class CharCnn(nn.Module):
    """Character ids [words, characters] -> vectors [words, projection].

    Embedding, one convolution a filter width with max-pooling over the word, relu or
    tanh, highway layers, linear projection. Id 0 (no word) is looked up as row 0; its
    vectors mean nothing and callers mask them.
    """

    config: CharCnnConfig
    projection: int
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        config = self.config
        shape = (config.characters, config.embedding_dim)
        table = self.param("embedding", _uniform(1.0), shape, jnp.float32)
        kernels, biases = zip(
            *map(self._filters, range(len(config.filters))), strict=True
        )
        lead, columns = ids.shape[:-1], ids.shape[-1]
        rows = jnp.maximum(ids - 1, 0).reshape(-1, columns)
        x = self._pooled()(table, kernels, rows).reshape(*lead, config.filter_count)
        x = _add_bias(x, jnp.concatenate(biases))
        x = jax.nn.relu(x) if config.activation == "relu" else jnp.tanh(x)
        for number in range(config.highway_layers):
            x = self._highway(x, number)
        if not config.project:
            return x
        return self._linear("projection", x, self.projection, 0.0)

    def _filters(self, number: int) -> tuple[Array, Array]:
        """Kernel [width, dim, filters] and bias of one filter width."""
        config = self.config
        width, count = config.filters[number]
        kernel = self.param(
            f"convolution_{number}_kernel",
            _uniform(0.05)
            if config.activation == "relu"
            else nn.initializers.normal((width * config.embedding_dim) ** -0.5),
            (width, config.embedding_dim, count),
            jnp.float32,
        )
        zeros, name = nn.initializers.zeros, f"convolution_{number}_bias"
        bias = self.param(name, zeros, (count,), jnp.float32)
        return kernel, bias

    def _pooled(self) -> Callable[[Array, Kernels, Array], Array]:
        """The convolutions; with a mesh, each device takes its own words."""
        if self.mesh is None:
            return pooled_responses
        return jax.shard_map(
            pooled_responses,
            mesh=self.mesh,
            in_specs=(P(), P(), P("data")),
            out_specs=P("data"),
            check_vma=False,
        )

    def _highway(self, x: Array, number: int) -> Array:
        width = x.shape[-1]
        gate = self._linear(f"highway_{number}_carry", x, width, CARRY_BIAS)
        carry = jax.nn.sigmoid(gate)
        transform = jax.nn.relu(
            self._linear(f"highway_{number}_transform", x, width, 0.0)
        )
        return carry * transform + (1 - carry) * x

    def _linear(self, name: str, x: Array, width: int, bias: float) -> Array:
        start = nn.initializers.normal(x.shape[-1] ** -0.5)
        shape = (x.shape[-1], width)
        kernel = self.param(f"{name}_kernel", start, shape, jnp.float32)
        start = nn.initializers.constant(bias)
        offset = self.param(f"{name}_bias", start, (width,), jnp.float32)
        product = contract("...i,io->...o", x, kernel, kernel.dtype)
        return _add_bias(product, offset)


class WordTable(nn.Module):
    """Word ids [...] (0 = padding, row = id - 1) -> vectors [..., projection].

    The alternative encoder: one row a word, followed by a linear projection where the
    rows have another width than the LSTM takes. An id past the table gives NaN, never
    the vector of another word.
    """

    config: WordTableConfig
    projection: int

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        size, dim = self.config.size, self.config.dim
        start = nn.initializers.normal(dim**-0.5)
        table = self.param("embedding", start, (size, dim), jnp.float32)
        rows = jnp.maximum(ids - 1, 0)
        x = table.at[rows].get(mode="fill", fill_value=jnp.nan)
        if dim == self.projection:
            return x.astype(jnp.float32)
        start = nn.initializers.normal(dim**-0.5)
        shape = (dim, self.projection)
        kernel = self.param("projection_kernel", start, shape, jnp.float32)
        return contract("...i,io->...o", x, kernel, kernel.dtype)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def start(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return start


def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))

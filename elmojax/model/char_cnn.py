"""Words to vectors: the character CNN, and a table of words as its alternative.

Sources: Kim et al. 2016 (character-aware language models), Jozefowicz et al. 2016
(the CNN inputs of "Exploring the limits of language modeling"), Srivastava et al. 2015
(highway networks), with the initial values of bilm-tf.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.config import CharCnnConfig, WordTableConfig
from elmojax.model.platforms import Platform, by_platform
from elmojax.model.precision import Dtype, contract
from elmojax.model.windows import pooled_responses

CARRY_BIAS = -2.0
"""Start of the highway gates: mostly the transformed input, as bilm-tf has it."""


class CharCnn(nn.Module):
    """Character ids [words, characters] -> vectors [words, projection].

    Embedding, one convolution a filter width with max-pooling over the word, relu or
    tanh, highway layers, linear projection. Id 0 (no word) is looked up as row 0; its
    vectors mean nothing and callers mask them. Of several tables, of words of different
    lengths, the vectors stand one table after the other.

    On a mesh, rows of each table lie in shards along `data`. Every device encodes its
    share of them; the vectors of a shard then lie on all of its devices, tables one
    after the other within a shard.
    """

    config: CharCnnConfig
    projection: int
    mesh: Mesh | None = None
    dtype: Dtype = None
    """Of matrix products; None = that of the weights."""
    platform: Platform = None

    @nn.compact
    def __call__(self, ids: Array | tuple[Array, ...]) -> Array:
        config = self.config
        shape = (config.characters, config.embedding_dim)
        table = self.param("embedding", _uniform(1.0), shape, jnp.float32)
        kernels, biases = zip(
            *map(self._filters, range(len(config.filters))), strict=True
        )
        tables = ids if isinstance(ids, tuple) else (ids,)
        lead, dtype = tables[0].shape[:-1], self.dtype or table.dtype
        rows = [jnp.maximum(t - 1, 0).reshape(-1, t.shape[-1]) for t in tables]
        pooled = [self._pooled()(table, kernels, each) for each in rows]
        x = _add_bias(_together(self.mesh, pooled), jnp.concatenate(biases))
        x = jax.nn.relu(x) if config.activation == "relu" else jnp.tanh(x)
        for number in range(config.highway_layers):
            x = self._highway(x.astype(dtype), number)
        if config.project:
            sizes = (x.shape[-1], self.projection)
            kernel, bias = self._weights("projection", *sizes, 0.0)
            x = _add_bias(self._product(x, kernel), bias)
        x = _by_shard(self.mesh, x, [each.shape[0] for each in rows])
        return x if len(tables) > 1 else x.reshape(*lead, -1)

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

    def _pooled(self) -> Callable[[Array, tuple[Array, ...], Array], Array]:
        """The convolutions; with a mesh, each device takes its own words."""
        run = partial(pooled_responses, dtype=self.dtype, platform=self.platform)
        if self.mesh is None:
            return run
        return jax.shard_map(
            run,
            mesh=self.mesh,
            in_specs=(P(), P(), P(("data", "model"))),
            out_specs=P(("data", "model")),
            check_vma=False,
        )

    def _highway(self, x: Array, number: int) -> Array:
        """Both products in one, but on a CPU: a copy of weights costs more there."""
        gates = (("carry", CARRY_BIAS), ("transform", 0.0))
        pairs = [
            self._weights(f"highway_{number}_{name}", x.shape[-1], x.shape[-1], bias)
            for name, bias in gates
        ]
        kernels, biases = zip(*pairs, strict=True)

        def apart(x: Array, *kernels: Array) -> Array:
            return jnp.stack([self._product(x, each) for each in kernels])

        def joined(x: Array, *kernels: Array) -> Array:
            kernel = jnp.stack(kernels)
            return contract("ni,gio->gno", x, kernel, self.dtype or kernel.dtype)

        both = by_platform(self.platform, x, *kernels, cpu=apart, accelerator=joined)
        offsets = jnp.stack(biases).astype(jnp.float32)[:, None]
        return _mixed((both + offsets).astype(x.dtype), x)

    def _product(self, x: Array, kernel: Array) -> Array:
        return contract("ni,io->no", x, kernel, self.dtype or kernel.dtype)

    def _weights(
        self, name: str, inputs: int, width: int, bias: float
    ) -> tuple[Array, Array]:
        """Kernel and bias of a linear map."""
        start = nn.initializers.normal(inputs**-0.5)
        kernel = self.param(f"{name}_kernel", start, (inputs, width), jnp.float32)
        start = nn.initializers.constant(bias)
        return kernel, self.param(f"{name}_bias", start, (width,), jnp.float32)


class WordTable(nn.Module):
    """Word ids [...] (0 = padding, row = id - 1) -> vectors [..., projection].

    The alternative encoder: one row a word, followed by a linear projection where the
    rows have another width than the LSTM takes. An id past the table gives NaN, never
    the vector of another word.
    """

    config: WordTableConfig
    projection: int
    mesh: Mesh | None = None
    dtype: Dtype = None

    @nn.compact
    def __call__(self, ids: Array | tuple[Array, ...]) -> Array:
        (ids,) = ids if isinstance(ids, tuple) else (ids,)
        size, dim = self.config.size, self.config.dim
        start = nn.initializers.normal(dim**-0.5)
        table = self.param("embedding", start, (size, dim), jnp.float32)
        rows = jnp.maximum(ids - 1, 0)
        x = table.at[rows].get(mode="fill", fill_value=jnp.nan)
        if dim == self.projection:
            x = x.astype(jnp.float32)
        else:
            shape = (dim, self.projection)
            kernel = self.param("projection_kernel", start, shape, jnp.float32)
            x = contract("...i,io->...o", x, kernel, self.dtype or kernel.dtype)
        return _by_shard(self.mesh, x, [x.shape[0]])


@jax.checkpoint
def _mixed(gates: Array, x: Array) -> Array:
    """A highway from its products; nothing else is kept for the way back."""
    carry, transform, old = (a.astype(jnp.float32) for a in (*gates, x))
    carry = jax.nn.sigmoid(carry)
    return (carry * jax.nn.relu(transform) + (1 - carry) * old).astype(x.dtype)


def _together(mesh: Mesh | None, tables: list[Array]) -> Array:
    """Rows of several tables as rows of one, those of a device one after the other."""
    devices = 1 if mesh is None else mesh.size
    shares = [table.reshape(devices, -1, table.shape[-1]) for table in tables]
    return jnp.concatenate(shares, axis=1).reshape(-1, tables[0].shape[-1])


def _by_shard(mesh: Mesh | None, vectors: Array, sizes: list[int]) -> Array:
    """Rows of `_together`, out of tables of these sizes, as each shard wants them."""
    if mesh is None:
        return vectors
    vectors = lax.with_sharding_constraint(vectors, NamedSharding(mesh, P("data")))
    shards, parts = mesh.shape["data"], mesh.shape["model"]
    ends = [end // mesh.size for end in accumulate(sizes)][:-1]
    shares = vectors.reshape(shards, parts, -1, vectors.shape[-1])
    tables = jnp.split(shares, ends, axis=2)
    tables = [table.reshape(shards, -1, vectors.shape[-1]) for table in tables]
    return jnp.concatenate(tables, axis=1).reshape(vectors.shape)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def start(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return start


def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias.astype(jnp.float32)[None]

"""Words to vectors: the character CNN, and a table of words as its alternative.

Sources: Kim et al. 2016 (character-aware language models), Jozefowicz et al. 2016
(the CNN inputs of "Exploring the limits of language modeling"), Srivastava et al. 2015
(highway networks), with the initial values of bilm-tf.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import accumulate
from typing import Any, cast

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

GATES = {"carry": -2.0, "transform": 0.0}
"""The linear maps of a highway layer, and where their biases start: mostly the
transformed input, as bilm-tf has it."""

Linear = tuple[Array, Array]  # kernel and bias


class CharCnn(nn.Module):
    """Character ids [words, characters] -> vectors [words, projection].

    Embedding, one convolution a filter width with max-pooling over the word, relu or
    tanh, highway layers, linear projection. Id 0 (no word) is looked up as row 0; its
    vectors mean nothing and callers mask them. Of several tables, of words of different
    lengths, the vectors stand one table after the other.

    On a mesh, rows of each table lie in shards along `data`, and every device encodes
    its share of them; the vectors of a shard then lie together on all of its devices.
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
        dim, width = config.embedding_dim, sum(count for _, count in config.filters)
        shape = (config.characters, dim)
        table = self.param("embedding", _uniform(1.0), shape, jnp.float32)
        start = _uniform(0.05) if config.activation == "relu" else None
        convolutions = [
            self._linear(f"convolution_{n}", (size, dim, count), start=start)
            for n, (size, count) in enumerate(config.filters)
        ]
        square = (width, width)
        highways = [
            [self._linear(f"highway_{n}_{gate}", square, GATES[gate]) for gate in GATES]
            for n in range(config.highway_layers)
        ]
        names = ["projection"] if config.project else []
        last = [self._linear(name, (width, self.projection)) for name in names]
        tables = ids if isinstance(ids, tuple) else (ids.reshape(-1, ids.shape[-1]),)
        run = self._encode
        if self.mesh is not None:
            words = P(("data", "model"))
            places: Any = {"in_specs": (P(), words), "out_specs": words}
            run = jax.shard_map(run, mesh=self.mesh, check_vma=False, **places)
        x = _by_shard(self.mesh, run((table, convolutions, highways, last), tables))
        return x if isinstance(ids, tuple) else x.reshape(*ids.shape[:-1], x.shape[-1])

    def _linear(
        self, name: str, shape: tuple[int, ...], bias: float = 0.0, start: Any = None
    ) -> Linear:
        start = start or nn.initializers.normal(math.prod(shape[:-1]) ** -0.5)
        kernel = self.param(f"{name}_kernel", start, shape, jnp.float32)
        start = nn.initializers.constant(bias)
        return kernel, self.param(f"{name}_bias", start, shape[-1:], jnp.float32)

    @nn.nowrap
    def _encode(self, weights: Any, tables: tuple[Array, ...]) -> list[Array]:
        """The words of each table, in products over all of them."""
        table, convolutions, highways, last = weights
        dtype = self.dtype or table.dtype
        kernels, biases = zip(*convolutions, strict=True)
        pool = partial(pooled_responses, dtype=dtype, platform=self.platform)
        pooled = [pool(table, kernels, jnp.maximum(ids - 1, 0)) for ids in tables]
        x = jnp.concatenate(pooled) + jnp.concatenate(biases).astype(jnp.float32)[None]
        x = jax.nn.relu(x) if self.config.activation == "relu" else jnp.tanh(x)
        for gates in highways:
            x = x.astype(dtype)
            x = _mixed(_products(dtype, self.platform, x, gates).astype(dtype), x)
        if last:
            (x,) = _products(dtype, self.platform, x, last)
        return jnp.split(x, list(accumulate(t.shape[0] for t in tables[:-1])))


def _products(dtype: Dtype, platform: Platform, x: Array, maps: list[Linear]) -> Array:
    """[maps, words, width] from words [words, width]."""

    def apart(x: Array, *kernels: Array) -> Array:
        return jnp.stack([contract("ni,io->no", x, each, dtype) for each in kernels])

    def joined(x: Array, *kernels: Array) -> Array:  # a CPU is slow to join weights
        return contract("ni,gio->gno", x, jnp.stack(kernels), dtype)

    kernels, biases = zip(*maps, strict=True)
    products = by_platform(platform, x, *kernels, cpu=apart, accelerator=joined)
    return cast(Array, products + jnp.stack(biases).astype(jnp.float32)[:, None])


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
        return _by_shard(self.mesh, [x])


@jax.checkpoint
def _mixed(gates: Array, x: Array) -> Array:
    """A highway from its products; nothing else is kept for the backward pass."""
    carry, transform, old = (a.astype(jnp.float32) for a in (*gates, x))
    carry = jax.nn.sigmoid(carry)
    return (carry * jax.nn.relu(transform) + (1 - carry) * old).astype(x.dtype)


def _by_shard(mesh: Mesh | None, tables: list[Array]) -> Array:
    """The vectors of each shard together, one table after the other, on its devices."""
    if mesh is None:
        return jnp.concatenate(tables)
    tables = lax.with_sharding_constraint(tables, NamedSharding(mesh, P("data")))
    shards, width = mesh.shape["data"], tables[0].shape[-1]
    shares = [table.reshape(shards, -1, width) for table in tables]
    return jnp.concatenate(shares, axis=1).reshape(-1, width)


def _uniform(bound: float) -> nn.initializers.Initializer:
    return partial(jax.random.uniform, minval=-bound, maxval=bound)

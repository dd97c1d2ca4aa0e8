"""Words to vectors: the character CNN, a table of words as its alternative, and both.

Sources: Kim et al. 2016 (character-aware language models), Jozefowicz et al. 2016
(the CNN inputs of "Exploring the limits of language modeling"), Srivastava et al. 2015
(highway networks), with the initial values of bilm-tf.

A convolution of width w gives one response a filter and window of w characters; the
largest over the word is kept. For the gradient the window of each maximum is enough:
one number a word and filter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.config import CharCnnConfig, UnicodeCnnConfig, WordTableConfig
from elmojax.model.ops import (
    Dtype,
    Platform,
    alike,
    by_platform,
    contract,
    varying_as,
)

CPU_BLOCK = 32
"""Words at a time on a CPU, so that their responses stay in its cache."""
BLOCK = 2**17
"""Characters at a time elsewhere: 0.5 GB of responses to the widest published filter,
where the compiler does not take the maxima inside of the product."""

Kernels = tuple[Array, ...]


def pooled_responses(
    table: Array,
    kernels: Kernels,
    ids: Array,
    dtype: Dtype = None,
    platform: Platform = None,
) -> Array:
    """The largest response of every filter in each word.

    Args:
      table: [characters, dim], a vector for each character.
      kernels: [width, dim, filters], one array a width.
      ids: int32 [words, columns], rows of `table`; at least as many columns as the
        widest filter.
      dtype: of the products; None = that of the table.

    Returns:
      float32 [words, filters of all widths, in the order of `kernels`]. The gradient
      goes to the first of equal maxima.
    """
    return _pooled(dtype or table.dtype, platform, *alike((table, kernels, ids)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pooled(
    dtype: Dtype, platform: Platform, table: Array, kernels: Kernels, ids: Array
) -> Array:
    return _forward(dtype, platform, table, kernels, ids, gradient=False)[0]


def _forward(
    dtype: Dtype,
    platform: Platform,
    table: Array,
    kernels: Kernels,
    ids: Array,
    gradient: bool = True,
) -> tuple[Array, tuple[Any, ...]]:
    def run(axis: int, argmax: Callable[..., Array], ids: Array) -> list[Array]:
        # Columns are axis 1 on a CPU, where the responses of a word lie together.
        characters = table.astype(dtype)[ids if axis else ids.T]
        read, found = _windows(characters, max(map(len, kernels)), axis), []
        for kernel in kernels:
            flat, windows = _flat(kernel), ids.shape[1] - len(kernel) + 1
            own = lax.slice_in_dim(read, 0, windows, axis=axis)[..., : len(flat)]
            x = contract("abk,kf->abf", own, flat, dtype)
            found.append((x.max(axis), argmax(x, axis)))
        return [jnp.concatenate(x, axis=-1) for x in zip(*found, strict=True)]

    def by_blocks(characters: int, run: Any, ids: Array) -> list[Array]:
        found = _in_blocks(characters, run, ids)
        in_order = (x.swapaxes(0, 1).reshape(-1, x.shape[-1]) for x in found)
        return [x[: ids.shape[0]] for x in in_order]

    cpu = partial(by_blocks, CPU_BLOCK * ids.shape[1], partial(run, 1, _first_equal))
    # One pass with the maxima; for a TPU XLA fuses both into the product.
    argmax = partial(lax.argmax, index_dtype=jnp.int32)
    accelerator = partial(by_blocks, BLOCK, partial(run, 0, argmax))
    running = partial(by_blocks, BLOCK, partial(_running, dtype, table, kernels))
    tpu = None if gradient else running
    best, where = by_platform(platform, ids, cpu=cpu, accelerator=accelerator, tpu=tpu)
    return best, (table, kernels, ids, where)


def _running(
    dtype: Dtype, table: Array, kernels: Kernels, ids: Array
) -> tuple[Array, Array]:
    """The maxima alone, window after window, with all widths in one product.

    A TPU's compiler keeps them on chip: a quarter of the cycles of the other form.
    """
    table, kernel = _one_kernel(table, kernels)
    (words, columns), (widest, dim, _) = ids.shape, kernel.shape
    sizes = [len(own) for own in kernels for _ in range(own.shape[2])]
    windows = columns + 1 - jnp.array(sizes, jnp.int32)[None]
    read = table.astype(dtype)[ids].reshape(words, columns * dim)
    read = jnp.pad(read, ((0, 0), (0, (widest - 1) * dim)))
    best = jnp.full((words, kernel.shape[2]), -jnp.inf, jnp.float32)
    for n in range(columns):
        own = lax.slice_in_dim(read, n * dim, (n + widest) * dim, axis=1)
        x = contract("nk,kf->nf", own, _flat(kernel), dtype)
        best = jnp.maximum(best, jnp.where(n < windows, x, -jnp.inf))
    return best, varying_as(best, jnp.zeros(best.shape, jnp.int32))


def _backward(
    dtype: Dtype, platform: Platform, saved: tuple[Any, ...], d_best: Array
) -> tuple[Array, Kernels, None]:
    table, kernels, *words = saved
    weights, apart = jax.vjp(_one_kernel, table, kernels)
    cpu, accelerator = (
        partial(_in_blocks, BLOCK, partial(form, dtype, *weights))
        for form in (_by_character, _by_window)
    )
    found = by_platform(platform, *words, d_best, cpu=cpu, accelerator=accelerator)
    return *apart(jax.tree.map(lambda x: x.sum(axis=0), found)), None


_pooled.defvjp(_forward, _backward)


def _first_equal(x: Array, axis: int) -> Array:
    """`argmax` in loops that a CPU's compiler vectorises."""
    numbers = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    equal = x == x.max(axis, keepdims=True)
    return jnp.where(equal, numbers, x.shape[axis]).min(axis)


def _flat(kernel: Array) -> Array:
    """[width, dim, filters] -> [width * dim, filters]."""
    return kernel.reshape(-1, kernel.shape[2])


def _one_kernel(table: Array, kernels: Kernels) -> tuple[Array, Array]:
    """Kernels as one [widest, dim, filters], zeros below the narrow ones; float32."""
    widest = max(map(len, kernels))
    fills = [((0, widest - len(kernel)), (0, 0), (0, 0)) for kernel in kernels]
    kernel = jnp.concatenate(list(map(jnp.pad, kernels, fills)), axis=-1)
    return table.astype(jnp.float32), kernel.astype(jnp.float32)


def _in_blocks(characters: int, run: Callable[..., Any], *arrays: Array) -> Any:
    """`run` on blocks of words, zeros added at the end: results [blocks, ...].

    Of `count` blocks, block n has the words n, n + count, n + 2 * count and so on: each
    shard of the words has as many of them, and keeps its own.
    """
    words: Any = arrays[0].shape[0]
    # A symbolic number, of a program for any number of words, is one block.
    count = -(-arrays[0].size // characters) if isinstance(words, int) else 1
    if count < 2:
        return jax.tree.map(lambda x: x[None], run(*arrays))
    fill = ((0, -words % count), (0, 0))
    every = (jnp.pad(a, fill).reshape(-1, count, a.shape[1]) for a in arrays)
    return lax.map(lambda block: run(*block), [a.swapaxes(0, 1) for a in every])


def _windows(characters: Array, width: int, axis: int = 0) -> Array:
    """The characters of each window side by side: [.., width * dim], zeros past the
    end. `axis` is that of columns, the other one has the words."""
    fill = [(0, 0)] * 3
    fill[axis] = (0, width - 1)
    padded, columns = jnp.pad(characters, fill), characters.shape[axis]
    shifts = [lax.slice_in_dim(padded, k, k + columns, axis=axis) for k in range(width)]
    return jnp.concatenate(shifts, axis=-1)


def _by_character(
    dtype: Dtype, table: Array, kernel: Array, ids: Array, where: Array, d_best: Array
) -> Any:
    """The gradient out of sums over words, one a character, offset and filter.

    A filter meets one window a word, and there are few characters: after these sums,
    cheap on a CPU, the products are as small as the parameters.
    """
    filters = jnp.arange(kernel.shape[2], dtype=jnp.int32)[None]
    none = jnp.zeros((len(table), kernel.shape[2]), jnp.float32)
    places = (where + k for k in range(len(kernel)))
    met = (jnp.take_along_axis(ids, at, axis=1, mode="clip") for at in places)
    received = jnp.stack([none.at[rows, filters].add(d_best) for rows in met])
    run = partial(contract, "ce,wef->wcf", dtype=dtype)
    return jax.vjp(run, table, kernel)[1](received)


def _by_window(
    dtype: Dtype, table: Array, kernel: Array, ids: Array, where: Array, d_best: Array
) -> Any:
    """The gradient by products over all windows, 0 where a response is not the best."""

    def responses(table: Array, kernel: Array) -> Array:
        named = jax.nn.one_hot(ids.T, len(table), dtype=dtype)
        read = _windows(contract("wnc,cd->wnd", named, table, dtype), len(kernel))
        return contract("wnk,kf->wnf", read, _flat(kernel), dtype)

    number = lax.broadcasted_iota(jnp.int32, (ids.shape[1], *where.shape), 0)
    d_responses = jnp.where(number == where[None], d_best[None], 0)
    return jax.vjp(responses, table, kernel)[1](d_responses)


HIGHWAY_BIAS = {"carry": -2.0, "transform": 0.0}
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

    config: CharCnnConfig | UnicodeCnnConfig
    projection: int
    mesh: Mesh | None = None
    dtype: Dtype = None
    """Of matrix products; None = that of the weights."""
    platform: Platform = None

    @nn.compact
    def __call__(self, ids: Array | tuple[Array, ...]) -> Array:
        config = self.config
        dim, width = config.embedding_dim, sum(count for _, count in config.filters)
        if isinstance(config, UnicodeCnnConfig):
            shape, project = (len(config.alphabet), dim), True
        else:
            shape, project = (config.characters, dim), config.project
        table = self.param("embedding", _uniform(1.0), shape, jnp.float32)
        start = _uniform(0.05) if config.activation == "relu" else None
        convolutions = [
            self._linear(f"convolution_{n}", (size, dim, count), start=start)
            for n, (size, count) in enumerate(config.filters)
        ]
        square = (width, width)
        highways = [
            [
                self._linear(f"highway_{n}_{gate}", square, HIGHWAY_BIAS[gate])
                for gate in HIGHWAY_BIAS
            ]
            for n in range(config.highway_layers)
        ]
        names = ["projection"] if project else []
        last = [self._linear(name, (width, self.projection)) for name in names]
        tables = ids if isinstance(ids, tuple) else (ids.reshape(-1, ids.shape[-1]),)
        run = self._encode
        if self.mesh is not None:
            words = P(("data", "model"))
            specs: Any = {"in_specs": (P(), words), "out_specs": words}
            run = jax.shard_map(run, mesh=self.mesh, check_vma=False, **specs)
        x = _shards_together(
            self.mesh, run((table, convolutions, highways, last), tables)
        )
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
        return jnp.stack(
            [contract("ni,io->no", x, kernel, dtype) for kernel in kernels]
        )

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
        return _shards_together(self.mesh, [x])


class UnicodeCnn(nn.Module):
    """Ids [..., 1 + characters], of a word and its characters -> [..., projection].

    The character CNN beside a word table. ELMoForManyLangs projects both side by side,
    which is the sum of two products.
    """

    config: UnicodeCnnConfig
    projection: int
    dtype: Dtype = None
    platform: Platform = None

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        config, out = self.config, self.projection
        cnn = CharCnn(config, out, None, self.dtype, self.platform)
        nn.share_scope(self, cnn)
        start = nn.initializers.normal(config.word_dim**-0.5)
        sizes = (len(config.words), config.word_dim)
        table = self.param("word_embedding", start, sizes, jnp.float32)
        shape = (config.word_dim, out)
        kernel = self.param("word_projection_kernel", start, shape, jnp.float32)
        words = table[jnp.maximum(ids[..., 0] - 1, 0)]
        projected = contract("...i,io->...o", words, kernel, self.dtype or kernel.dtype)
        return cnn(ids[..., 1:]) + projected


@jax.checkpoint
def _mixed(gates: Array, x: Array) -> Array:
    """A highway from its products; nothing else is kept for the backward pass."""
    carry, transform, old = (a.astype(jnp.float32) for a in (*gates, x))
    carry = jax.nn.sigmoid(carry)
    return (carry * jax.nn.relu(transform) + (1 - carry) * old).astype(x.dtype)


def _shards_together(mesh: Mesh | None, tables: list[Array]) -> Array:
    """The vectors of each shard together, one table after the other, on its devices."""
    if mesh is None:
        return jnp.concatenate(tables)
    tables = lax.with_sharding_constraint(tables, NamedSharding(mesh, P("data")))
    shards, width = mesh.shape["data"], tables[0].shape[-1]
    shares = [table.reshape(shards, -1, width) for table in tables]
    return jnp.concatenate(shares, axis=1).reshape(-1, width)


def _uniform(bound: float) -> nn.initializers.Initializer:
    return partial(jax.random.uniform, minval=-bound, maxval=bound)

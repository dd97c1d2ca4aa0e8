"""Convolutions over the characters of a word with max-pooling, and their gradient.

A convolution of width w gives one response a filter and window of w characters; the
largest over the word is kept (Kim et al. 2016). For the gradient the window of each
maximum is enough: one number a word and filter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.platforms import Platform, by_platform
from elmojax.model.precision import Dtype, contract
from elmojax.model.varying import alike

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
    return _forward(dtype, platform, table, kernels, ids)[0]


def _forward(
    dtype: Dtype, platform: Platform, table: Array, kernels: Kernels, ids: Array
) -> tuple[Array, tuple[Any, ...]]:
    def run(axis: int, first: Callable[[Array, int], Array], ids: Array) -> list[Array]:
        characters = table.astype(dtype)[ids if axis else ids.T]
        read, found = _windows(characters, max(map(len, kernels)), axis), []
        for kernel in kernels:
            flat, windows = _flat(kernel), ids.shape[1] - len(kernel) + 1
            own = lax.slice_in_dim(read, 0, windows, axis=axis)[..., : len(flat)]
            x = contract("abk,kf->abf", own, flat, dtype)
            found.append((x.max(axis), first(x, axis)))
        return [jnp.concatenate(x, axis=-1) for x in zip(*found, strict=True)]

    def in_blocks(characters: int, axis: int, first: Any, ids: Array) -> list[Array]:
        found = _in_blocks(characters, partial(run, axis, first), ids)
        in_order = (x.swapaxes(0, 1).reshape(-1, x.shape[-1]) for x in found)
        return [x[: ids.shape[0]] for x in in_order]

    cpu = partial(in_blocks, CPU_BLOCK * ids.shape[1], 1, _first_equal)
    # Taken in one pass with the maxima, by the compiler of a TPU inside of the product.
    argmax = partial(lax.argmax, index_dtype=jnp.int32)
    accelerator = partial(in_blocks, BLOCK, 0, argmax)
    best, where = by_platform(platform, ids, cpu=cpu, accelerator=accelerator)
    return best, (table, kernels, ids, where)


def _backward(
    dtype: Dtype, platform: Platform, saved: tuple[Any, ...], d_best: Array
) -> tuple[Array, Kernels, None]:
    table, kernels, *words = saved
    weights, apart = jax.vjp(_joined, table, kernels)
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


def _joined(table: Array, kernels: Kernels) -> tuple[Array, Array]:
    """Kernels as one [widest, dim, filters], zeros below the narrow ones; float32."""
    widest = max(map(len, kernels))
    fills = [((0, widest - len(kernel)), (0, 0), (0, 0)) for kernel in kernels]
    kernel = jnp.concatenate(list(map(jnp.pad, kernels, fills)), axis=-1)
    return table.astype(jnp.float32), kernel.astype(jnp.float32)


def _in_blocks(characters: int, run: Callable[..., Any], *arrays: Array) -> Any:
    """`run` on blocks of words, zeros added at the end: results [blocks, ...].

    Block n has every word whose number leaves n, so that words in shards stay there.
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
    received = jnp.stack([none.at[each, filters].add(d_best) for each in met])
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

"""Convolutions over the characters of a word with max-pooling, and their gradient.

A convolution of width w gives one response a filter and window of w characters; the
largest over the word is kept (Kim et al. 2016). Words are taken in blocks, so that the
responses of a block stay in the cache of a CPU and never fill the memory of a device.
For the gradient the place of each maximum is enough: one number a word and filter.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.precision import contract
from elmojax.model.varying import varying_as

CPU_BLOCK = 64
"""Words at a time on a CPU: 1,024 words of the mini preset took 12 ms instead of 40."""
BLOCK = 2048
"""Words at a time elsewhere: 0.4 GB of responses to the widest published filter."""

Kernels: TypeAlias = tuple[Array, ...]
"""One [width, dim, filters] for each width."""
Saved: TypeAlias = tuple[Array, Kernels, Array, Array]


def pooled_responses(table: Array, kernels: Kernels, ids: Array) -> Array:
    """The largest response of every filter in each word.

    Args:
      table: [characters, dim], a vector for each character.
      kernels: [width, dim, filters], one array a width.
      ids: int32 [words, columns], rows of `table`; at least as many columns as the
        widest filter.

    Returns:
      float32 [words, filters of all widths, in the order of `kernels`]. The gradient
      goes to the first of equal maxima.
    """
    for other in (ids, table, *kernels):
        table = varying_as(other, table)
    return _pooled(table, tuple(varying_as(table, kernel) for kernel in kernels), ids)


@jax.custom_vjp
def _pooled(table: Array, kernels: Kernels, ids: Array) -> Array:
    return _in_blocks(table, kernels, ids)[0]


def _forward(table: Array, kernels: Kernels, ids: Array) -> tuple[Array, Saved]:
    best, where = _in_blocks(table, kernels, ids)
    return best, (table, kernels, ids, where)


def _backward(saved: Saved, d_best: Array) -> tuple[Array, Kernels, None]:
    d_table, d_kernels = lax.platform_dependent(
        *saved, d_best, cpu=_by_character, default=_by_window
    )
    return d_table, d_kernels, None


_pooled.defvjp(_forward, _backward)


def _in_blocks(table: Array, kernels: Kernels, ids: Array) -> tuple[Array, Array]:
    """Maxima, and the window where each is first: [words, filters]."""
    words: Any = ids.shape[0]
    if not isinstance(words, int):  # symbolic: a program for any number of words
        return _whole(table, kernels, ids)
    return lax.platform_dependent(
        table,
        kernels,
        ids,
        cpu=partial(_mapped, CPU_BLOCK),
        default=partial(_mapped, BLOCK),
    )


def _mapped(
    block: int, table: Array, kernels: Kernels, ids: Array
) -> tuple[Array, Array]:
    if len(ids) <= block:
        return _whole(table, kernels, ids)
    return lax.map(partial(_whole, table, kernels), ids, batch_size=block)


def _whole(table: Array, kernels: Kernels, ids: Array) -> tuple[Array, Array]:
    best, where = [], []
    for kernel in kernels:
        responses = _responses(table, kernel, ids)
        most = responses.max(axis=-2)
        equal = responses == most[..., None, :]
        number = lax.broadcasted_iota(jnp.int32, responses.shape, responses.ndim - 2)
        numbers = jnp.where(equal, number, responses.shape[-2])
        best.append(most)
        where.append(numbers.min(axis=-2))
    return jnp.concatenate(best, -1), jnp.concatenate(where, -1)


def _responses(table: Array, kernel: Array, ids: Array) -> Array:
    """[..., columns] -> [..., windows, filters], as one product over all windows."""
    width, _, filters = kernel.shape
    flat = kernel.reshape(-1, filters)
    return contract("...wk,kf->...wf", _read(table, ids, width), flat, kernel.dtype)


def _read(table: Array, ids: Array, width: int) -> Array:
    """The characters of each window side by side: [..., windows, width * dim]."""
    windows, characters = ids.shape[-1] - width + 1, table[ids]
    shifted = [characters[..., k : k + windows, :] for k in range(width)]
    return jnp.concatenate(shifted, axis=-1)


def _split(kernels: Kernels, where: Array, d_best: Array) -> zip[tuple[Array, ...]]:
    """Each kernel with its filters' share of two arrays."""
    ends = [sum(k.shape[2] for k in kernels[:n]) for n in range(1, len(kernels))]
    shares = (jnp.split(array, ends, axis=-1) for array in (where, d_best))
    return zip(kernels, *shares, strict=True)


def _by_character(
    table: Array, kernels: Kernels, ids: Array, where: Array, d_best: Array
) -> tuple[Array, Kernels]:
    """The gradient out of sums over words, one a character, offset and filter.

    A filter meets one window a word, and there are few characters: what a character at
    offset k of the best windows receives is added up first, and the products are then
    as small as the parameters. Adding is cheap on a CPU, and it leaves out all windows
    that are not the best.
    """
    d_table, d_kernels = jnp.zeros(table.shape, jnp.float32), []
    for kernel, first, d_filters in _split(kernels, where, d_best):
        width, _, filters = kernel.shape
        number = jnp.arange(filters, dtype=jnp.int32)[None]
        sums = []
        for k in range(width):
            met = jnp.take_along_axis(ids, first + k, axis=1)
            none = jnp.zeros((len(table), filters), jnp.float32)
            sums.append(none.at[met, number].add(d_filters))
        received = jnp.stack(sums)
        dtype = kernel.dtype
        d_kernels.append(contract("ce,wcf->wef", table, received, dtype).astype(dtype))
        d_table += contract("wcf,wef->ce", received, kernel, dtype)
    return d_table.astype(table.dtype), tuple(d_kernels)


def _by_window(
    table: Array, kernels: Kernels, ids: Array, where: Array, d_best: Array
) -> tuple[Array, Kernels]:
    """The gradient by products over all windows, 0 where a response is not the best."""
    d_characters, d_kernels = jnp.zeros((*ids.shape, table.shape[1]), jnp.float32), []
    for kernel, first, d_filters in _split(kernels, where, d_best):
        (width, _, filters), dtype = kernel.shape, kernel.dtype
        read, flat = _read(table, ids, width), kernel.reshape(-1, filters)
        windows = read.shape[1]
        number = lax.broadcasted_iota(jnp.int32, (len(ids), windows, filters), 1)
        here = number == first[:, None]
        d_responses = jnp.where(here, d_filters[:, None], 0.0)
        d_kernel = contract("nwk,nwf->kf", read, d_responses, dtype)
        d_kernels.append(d_kernel.reshape(kernel.shape).astype(dtype))
        d_read = contract("nwf,kf->nwk", d_responses, flat, dtype)
        for k, d_shifted in enumerate(jnp.split(d_read, width, axis=-1)):
            d_characters = d_characters.at[:, k : k + windows].add(d_shifted)
    d_table = jnp.zeros(table.shape, jnp.float32).at[ids].add(d_characters)
    return d_table.astype(table.dtype), tuple(d_kernels)

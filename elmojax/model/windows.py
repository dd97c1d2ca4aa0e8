"""Convolutions over the characters of a word with max-pooling, and their gradient.

A convolution of width w gives one response a filter and window of w characters; the
largest over the word is kept (Kim et al. 2016). Words are taken in blocks, so that the
responses of a block stay in the cache of a CPU and never fill the memory of a device.
For the gradient the place of each maximum is enough: one number a word and filter.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.platforms import Platform, by_platform
from elmojax.model.precision import Dtype, contract
from elmojax.model.varying import varying_as

CPU_BLOCK = 64
"""Words at a time on a CPU: 1,024 words of the mini preset took 12 ms instead of 40."""
BLOCK = 2048
"""Words at a time elsewhere: 0.4 GB of responses to the widest published filter."""

Kernels: TypeAlias = tuple[Array, ...]
"""One [width, dim, filters] for each width."""
Saved: TypeAlias = tuple[Array, Kernels, Array, Array]


class Options(NamedTuple):
    """What does not change while a program runs."""

    dtype: Dtype
    """Of matrix products."""
    platform: Platform


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
      dtype: of the products; None = that of the kernels.

    Returns:
      float32 [words, filters of all widths, in the order of `kernels`]. The gradient
      goes to the first of equal maxima.
    """
    for other in (ids, table, *kernels):
        table = varying_as(other, table)
    kernels = tuple(varying_as(table, kernel) for kernel in kernels)
    return _pooled(Options(dtype or kernels[0].dtype, platform), table, kernels, ids)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pooled(options: Options, table: Array, kernels: Kernels, ids: Array) -> Array:
    return _in_blocks(options, table, kernels, ids)[0]


def _forward(
    options: Options, table: Array, kernels: Kernels, ids: Array
) -> tuple[Array, Saved]:
    best, where = _in_blocks(options, table, kernels, ids)
    return best, (table, kernels, ids, where)


def _backward(
    options: Options, saved: Saved, d_best: Array
) -> tuple[Array, Kernels, None]:
    forms = (partial(form, options.dtype) for form in (_by_character, _by_window))
    cpu, accelerator = forms
    arguments = (*saved, d_best)
    d_table, d_kernels = by_platform(
        options.platform, *arguments, cpu=cpu, accelerator=accelerator
    )
    return d_table, d_kernels, None


_pooled.defvjp(_forward, _backward)


def _in_blocks(
    options: Options, table: Array, kernels: Kernels, ids: Array
) -> tuple[Array, Array]:
    """Maxima, and the window where each is first: [words, filters]."""
    table, *kernels_ = (leaf.astype(options.dtype) for leaf in (table, *kernels))
    kernels = tuple(kernels_)
    words: Any = ids.shape[0]
    if not isinstance(words, int):  # symbolic: a program for any number of words
        return _whole(table, kernels, ids)
    best, where = by_platform(
        options.platform,
        table,
        kernels,
        ids,
        cpu=partial(_mapped, CPU_BLOCK),
        accelerator=partial(_mapped, BLOCK),
    )
    return best, where


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
    dtype: Dtype,
    table: Array,
    kernels: Kernels,
    ids: Array,
    where: Array,
    d_best: Array,
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
        d_kernel = contract("ce,wcf->wef", table, received, dtype)
        d_kernels.append(d_kernel.astype(kernel.dtype))
        d_table += contract("wcf,wef->ce", received, kernel, dtype)
    return d_table.astype(table.dtype), tuple(d_kernels)


def _by_window(
    dtype: Dtype,
    table: Array,
    kernels: Kernels,
    ids: Array,
    where: Array,
    d_best: Array,
) -> tuple[Array, Kernels]:
    """The gradient by products over all windows, 0 where a response is not the best."""
    d_characters, d_kernels = jnp.zeros((*ids.shape, table.shape[1]), jnp.float32), []
    for kernel, first, d_filters in _split(kernels, where, d_best):
        width, _, filters = kernel.shape
        read = _read(table.astype(dtype), ids, width)
        flat = kernel.reshape(-1, filters)
        windows = read.shape[1]
        number = lax.broadcasted_iota(jnp.int32, (len(ids), windows, filters), 1)
        here = number == first[:, None]
        d_responses = jnp.where(here, d_filters[:, None], 0.0)
        d_kernel = contract("nwk,nwf->kf", read, d_responses, dtype)
        d_kernels.append(d_kernel.reshape(kernel.shape).astype(kernel.dtype))
        d_read = contract("nwf,kf->nwk", d_responses, flat, dtype)
        for k, d_shifted in enumerate(jnp.split(d_read, width, axis=-1)):
            d_characters = d_characters.at[:, k : k + windows].add(d_shifted)
    d_table = jnp.zeros(table.shape, jnp.float32).at[ids].add(d_characters)
    return d_table.astype(table.dtype), tuple(d_kernels)

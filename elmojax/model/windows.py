"""Convolutions over the characters of a word with max-pooling, and their gradient.

A convolution of width w gives one response a filter and window of w characters; the
largest over the word is kept (Kim et al. 2016). For the gradient the place of each
maximum is enough: one number a word and filter. Filters of all widths read the same
windows, as wide as the widest, and stand in one array with zeros below the narrow ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elmojax.model.platforms import Platform, by_platform
from elmojax.model.precision import Dtype, contract
from elmojax.model.varying import varying_as

CPU_BLOCK = 64
"""Words at a time on a CPU, so that their responses stay in its cache."""
BLOCK = 2**17
"""Characters at a time elsewhere: 0.5 GB of responses to the widest published filter,
where the compiler does not take the maxima inside of the product."""


class Options(NamedTuple):
    """What does not change while a program runs."""

    dtype: Dtype
    """Of matrix products."""
    platform: Platform
    filters: tuple[tuple[int, int], ...]
    """(width, number) of each convolution."""


def pooled_responses(
    table: Array,
    kernels: tuple[Array, ...],
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
    filters = tuple((len(kernel), kernel.shape[2]) for kernel in kernels)
    widest = max(width for width, _ in filters)
    below = [((0, widest - width), (0, 0), (0, 0)) for width, _ in filters]
    kernel = jnp.concatenate(list(map(jnp.pad, kernels, below)), axis=-1)
    table = varying_as(ids, varying_as(kernel, table))
    options = Options(dtype or kernel.dtype, platform, filters)
    return _pooled(options, table, varying_as(table, kernel), ids)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pooled(options: Options, table: Array, kernel: Array, ids: Array) -> Array:
    def largest(responses: Array) -> tuple[Array]:
        return (responses.max(axis=0),)

    return _over_words(options, largest, table, kernel, ids)[0]


def _forward(
    options: Options, table: Array, kernel: Array, ids: Array
) -> tuple[Array, tuple[Array, ...]]:
    best, where = _over_words(
        options, partial(_first_largest, options.platform), table, kernel, ids
    )
    return best, (table, kernel, ids, where)


def _backward(
    options: Options, saved: tuple[Array, ...], d_best: Array
) -> tuple[Array, Array, None]:
    table, kernel, *words = saved
    forms = (_by_character, _by_window)
    cpu, run = (partial(form, options.dtype, table, kernel) for form in forms)
    accelerator = partial(_in_blocks, BLOCK, run, lambda sums: sums.sum(axis=0))
    d_table, d_kernel = by_platform(
        options.platform, *words, d_best, cpu=cpu, accelerator=accelerator
    )
    return d_table.astype(table.dtype), d_kernel.astype(kernel.dtype), None


_pooled.defvjp(_forward, _backward)


def _over_words(
    options: Options,
    pool: Callable[[Array], tuple[Array, ...]],
    table: Array,
    kernel: Array,
    ids: Array,
) -> tuple[Array, ...]:
    """What `pool` makes of the responses of each width, [words, filters] together."""

    def run(ids: Array) -> tuple[Array, ...]:
        found = zip(*map(pool, _responses(options, table, kernel, ids)), strict=True)
        return tuple(jnp.concatenate(each, axis=-1) for each in found)

    def join(blocks: Array) -> Array:
        return blocks.reshape(-1, blocks.shape[-1])[: len(ids)]

    cpu, accelerator = (
        partial(_in_blocks, characters, run, join)
        for characters in (CPU_BLOCK * ids.shape[1], BLOCK)
    )
    result: tuple[Array, ...] = by_platform(
        options.platform, ids, cpu=cpu, accelerator=accelerator
    )
    return result


def _in_blocks(
    characters: int,
    run: Callable[..., Any],
    join: Callable[[Array], Array],
    *arrays: Array,
) -> Any:
    """`run` on blocks of words, the last one filled up; `join` takes [blocks, ...]."""
    words: Any = arrays[0].shape[0]
    # A symbolic number, of a program for any number of words, is one block.
    count = isinstance(words, int) and -(-arrays[0].size // characters)
    if count < 2:
        return run(*arrays)
    size = -(-words // count)
    fill = ((0, count * size - words), (0, 0))
    blocks = [jnp.pad(a, fill).reshape(count, size, a.shape[1]) for a in arrays]
    return jax.tree.map(join, lax.map(lambda block: run(*block), blocks))


def _read(table: Array, ids: Array, width: int) -> Array:
    """The characters of each window side by side: [columns, words, width * dim].

    Windows that begin too late for their width have zeros behind the last character.
    """
    columns = ids.shape[1]
    characters = jnp.pad(table[ids.T], ((0, width - 1), (0, 0), (0, 0)))
    return jnp.concatenate([characters[k : k + columns] for k in range(width)], -1)


def _responses(
    options: Options, table: Array, kernel: Array, ids: Array
) -> list[Array]:
    """[windows, words, filters] of each width, as one product over all windows."""
    widest, dim, _ = kernel.shape
    read = _read(table.astype(options.dtype), ids, widest)
    ends = accumulate(number for _, number in options.filters)
    found = []
    for (width, number), end in zip(options.filters, ends, strict=True):
        own = kernel[:width, :, end - number : end].reshape(-1, number)
        windows = read[: ids.shape[1] - width + 1, :, : width * dim]
        found.append(contract("wnk,kf->wnf", windows, own, options.dtype))
    return found


def _first_largest(platform: Platform, responses: Array) -> tuple[Array, Array]:
    """Maxima, and the window where each is first, [words, filters].

    In one pass, which a compiler may take inside of the product; a CPU has vectors for
    two plain passes only.
    """
    number = lax.broadcasted_iota(jnp.int32, responses.shape, 0)
    number = varying_as(responses, number)
    none = len(responses)

    def larger(one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
        (a, i), (b, j) = one, two
        first = jnp.where(a == b, jnp.minimum(i, j), jnp.where(a > b, i, j))
        return jnp.maximum(a, b), first

    def one_pass(responses: Array, number: Array) -> Any:
        start = (jnp.float32(-jnp.inf), jnp.int32(none))
        return tuple(lax.reduce((responses, number), start, larger, (0,)))

    def two_passes(responses: Array, number: Array) -> Any:
        best = responses.max(axis=0)
        return best, jnp.where(responses == best[None], number, none).min(axis=0)

    best, where = by_platform(
        platform, responses, number, cpu=two_passes, accelerator=one_pass
    )
    return best, where


def _by_character(
    dtype: Dtype, table: Array, kernel: Array, ids: Array, where: Array, d_best: Array
) -> tuple[Array, Array]:
    """The gradient out of sums over words, one a character, offset and filter.

    A filter meets one window a word, and there are few characters: what a character at
    offset k of the best windows receives is added up first, and the products are then
    as small as the parameters. Adding is cheap on a CPU, and it leaves out all windows
    that are not the best.
    """
    filters = jnp.arange(kernel.shape[2], dtype=jnp.int32)[None]
    none = jnp.zeros((len(table), kernel.shape[2]), jnp.float32)
    places = (where + k for k in range(len(kernel)))
    met = (jnp.take_along_axis(ids, at, axis=1, mode="clip") for at in places)
    received = jnp.stack([none.at[each, filters].add(d_best) for each in met])
    d_table = contract("wcf,wef->ce", received, kernel, dtype)
    return d_table, contract("ce,wcf->wef", table, received, dtype)


def _by_window(
    dtype: Dtype, table: Array, kernel: Array, ids: Array, where: Array, d_best: Array
) -> tuple[Array, Array]:
    """The gradient by products over all windows, 0 where a response is not the best."""
    (width, dim, filters), (words, columns) = kernel.shape, ids.shape
    number = lax.broadcasted_iota(jnp.int32, (columns, words, filters), 0)
    d_responses = jnp.where(number == where[None], d_best.astype(dtype)[None], 0)
    read = _read(table.astype(dtype), ids, width)
    d_kernel = contract("wnk,wnf->kf", read, d_responses, dtype)
    flat = kernel.reshape(-1, filters)
    d_read = contract("wnf,kf->wnk", d_responses, flat, dtype)
    d_characters = jnp.zeros((columns, words, dim), jnp.float32)
    for k, shifted in enumerate(jnp.split(d_read, width, axis=-1)):
        d_characters += jnp.pad(shifted, ((k, 0), (0, 0), (0, 0)))[:columns]
    named = jax.nn.one_hot(ids.T, len(table), dtype=dtype)
    d_table = contract("wnc,wnd->cd", named, d_characters, dtype)
    return d_table, d_kernel.reshape(kernel.shape)

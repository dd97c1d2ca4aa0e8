"""Sums over arrays: every changed bit shows, and the layout on devices does not."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.config import MeshConfig
from elmojax.training import damage as module
from elmojax.training.damage import digests
from elmojax.training.sharding import make_mesh

digest = jax.jit(module.digest)


def drawn(dtype, size=4003):
    return np.random.default_rng(0).integers(0, 100, size).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8"])
def test_any_flipped_bit_and_any_exchange_shows(dtype):
    array, random = drawn(dtype), np.random.default_rng(1)
    whole = digest(array)
    for _ in range(500):
        other = array.copy()
        bytes_ = other.view(np.uint8)
        bytes_[random.integers(len(bytes_))] ^= 1 << random.integers(8)
        assert np.any(digest(other) != whole)
        one, two = random.integers(len(array), size=2)
        other = array.copy()
        other[[one, two]] = other[[two, one]]
        assert np.any(digest(other) != whole) == (array[one] != array[two])


def test_sums_stay_as_they_are():
    """Checkpoints on disk hold them: changed sums would condemn them all."""
    wanted = {"float32": PINNED[0], "uint8": PINNED[1]}
    for dtype, sums in wanted.items():
        assert digest(drawn(dtype)).tolist() == sums
    assert digest(np.zeros((0, 3), np.float32)).tolist() == [0, 0]
    assert digest(np.float32(3)).tolist() == [1077936128, 1077952576]


PINNED = ([2216558592, 2616050530], [790009973, 2070842903])


def test_shards_have_the_sum_of_the_whole():
    array = drawn("float32", 64).reshape(8, 8)
    mesh = make_mesh(MeshConfig(4, 2))
    for spec in (P(), P("data"), P("model", "data")):
        placed = jax.device_put(array, NamedSharding(mesh, spec))
        np.testing.assert_array_equal(digest(placed), digest(array))


def test_arrays_are_taken_by_name():
    one, two = drawn("int32", 5), drawn("float32", 7)
    got = digests({"b": two, "a": one})
    np.testing.assert_array_equal(got, np.stack([digest(one), digest(two)]))
    assert digests({}).shape == (0, 2)

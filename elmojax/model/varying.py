"""Where values lie on a mesh: inside `jax.shard_map`, and on axes of type Explicit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

Result = TypeVar("Result")
Tree = TypeVar("Tree")


def varying_as(other: Array, leaf: Array) -> Array:
    """`leaf`, for `jax.shard_map` as different between devices as `other` is.

    A loop needs it: what it carries must vary over the same mesh axes before and after.
    So does a gradient of one's own, which JAX then adds up over these axes.
    """
    axes, own = (jax.typeof(a).manual_axis_type.varying for a in (other, leaf))
    missing = tuple(sorted(axes - own))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf


def alike(tree: Tree) -> Tree:
    """The tree, with all its arrays as different between devices as any is."""
    first, *leaves = jax.tree.leaves(tree)
    for leaf in leaves:
        first = varying_as(leaf, first)
    return jax.tree.map(functools.partial(varying_as, first), tree)


def automatic(run: Callable[..., Result], places: Any = None) -> Callable[..., Result]:
    """`run`, which then takes arrays on mesh axes of any type; for inside of `jit`.

    On axes of type Explicit (those of `jax.make_mesh` unless told otherwise) JAX wants
    to know of each operation where its result lies. Inside of `run` these axes are
    Auto, so that the compiler works that out, and the results lie at `places`, a tree
    of `PartitionSpec`s (None = whole on every device). Elsewhere `run` stays as it is.

    Positional arguments are arrays or trees of them; others go by name.
    """

    @functools.wraps(run)
    def free(*arrays: Any, **others: Any) -> Result:
        meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays)]
        mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
        if mesh is None:
            return run(*arrays, **others)
        whole = NamedSharding(mesh, P())

        def placed(leaf: Any) -> Any:
            nowhere = jax.typeof(leaf).sharding.mesh.empty
            return jax.sharding.reshard(leaf, whole) if nowhere else leaf

        there = whole
        if places is not None:
            there = jax.tree.map(functools.partial(NamedSharding, mesh), places)
        axes = mesh.explicit_axes
        inside = jax.sharding.auto_axes(run, axes=axes, out_sharding=there)
        return inside(*jax.tree.map(placed, arrays), **others)

    return free

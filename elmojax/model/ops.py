"""What all parts of the model are made of.

One rule of precision: products in the dtype of the run, everything else in float32.
`contract` is every matrix product of the model. Its factors are rounded to the dtype of
the run; sums are float32, and so is what leaves it: activations, and in the backward
pass the gradients of weights and of activations, whose products are rounded the same
way. Weights, biases, states, clips and sums over devices are float32 throughout.

Beside it: meshes of this process and where values lie on them, `cast`, forms of one
computation for CPUs and for accelerators (the numbers are the same), dropout, and sums
over chunks of positions.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.arguments import checked, shown
from elmojax.errors import InputError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Tree = TypeVar("Tree")


_process: int | None = None


def require_own_process() -> None:
    """`InputError` in a process that was forked from one in which elmojax used JAX.

    The threads of JAX are not there any more, and it would wait for them forever.
    """
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise InputError(
            "This process was forked from one that had used JAX, which does not work "
            "any more here; start it by `multiprocessing.get_context('spawn')`, or "
            "load the model after the fork only."
        )


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


def automatic(
    run: Callable[..., Result], out_specs: Any = None
) -> Callable[..., Result]:
    """`run`, which then takes arrays on mesh axes of any type; for inside of `jit`.

    On axes of type Explicit (those of `jax.make_mesh` unless told otherwise) JAX wants
    to know of each operation where its result lies. Inside of `run` these axes are
    Auto, so that the compiler works that out, and the results lie as `out_specs`, a
    tree of `PartitionSpec`s, say (None = whole on every device). Elsewhere `run` stays
    as it is.

    Positional arguments are arrays or trees of them; others go by name.
    """

    @functools.wraps(run)
    def free(*arrays: Any, **others: Any) -> Result:
        meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays)]
        mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
        if mesh is None:
            return run(*arrays, **others)
        replicated = out = NamedSharding(mesh, P())

        def on_mesh(leaf: Any) -> Any:
            nowhere = jax.typeof(leaf).sharding.mesh.empty
            return jax.sharding.reshard(leaf, replicated) if nowhere else leaf

        if out_specs is not None:
            out = jax.tree.map(functools.partial(NamedSharding, mesh), out_specs)
        axes = mesh.explicit_axes
        inside = jax.sharding.auto_axes(run, axes=axes, out_sharding=out)
        return inside(*jax.tree.map(on_mesh, arrays), **others)

    return free


NO_MESH = Mesh(np.empty((), object), ())


def outside_meshes(run: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`run`, which then does not see the mesh of a caller's `jax.set_mesh`.

    For what chooses its devices itself. Inside of another mesh JAX refuses its arrays
    and its `shard_map`, and makes programs for all devices of that mesh.
    """

    @functools.wraps(run)
    def alone(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            outside = jax.set_mesh(NO_MESH)
        except ValueError as error:
            raise InputError(
                "What reads files or compiles programs of its own works outside of "
                "jax.jit only; call it before, and give what it returns to the jitted "
                "function as an argument."
            ) from error
        with outside:
            return run(*args, **kwargs)

    return alone


def local_mesh(rows: int = 0) -> Mesh | None:
    """The devices of this process along `data`: all, or the most that share `rows`
    evenly. None where there is a single one, or JAX was told which one to take."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
    if count == 1 or jax.config.values["jax_default_device"]:
        return None
    return jax.make_mesh(
        (count, 1),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[:count],
    )


def along_data(mesh: Mesh) -> Mesh:
    """The devices along `data`, of other axes the first: a mesh of this axis alone.

    Raises:
      InputError: if there is no such axis, or it has devices of other processes.
    """
    if "data" not in mesh.axis_names:
        raise InputError(
            f"The mesh has the axes {', '.join(mesh.axis_names)} and none of the name "
            "data, over which sentences are split; make one with "
            "jax.make_mesh((jax.local_device_count(),), ('data',))."
        )
    first = tuple(slice(None) if name == "data" else 0 for name in mesh.axis_names)
    devices = mesh.devices[first]
    if {device.process_index for device in devices} != {jax.process_index()}:
        raise InputError(
            "The mesh has devices of other processes, and each process embeds "
            "sentences of its own; make one of jax.local_devices()."
        )
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """On every device; None without a mesh, for JAX's default one."""
    return None if mesh is None else NamedSharding(mesh, P())


def per_device(
    mesh: Mesh | None, function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`function` by every device for itself, with its share of the arrays as the
    `PartitionSpec`s say; as it is without a mesh."""
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


Dtype: TypeAlias = Any
"""Of matrix products: `jnp.float32`, `jnp.bfloat16` or `jnp.float16`."""


def contract(subscripts: str, left: Array, right: Array, dtype: Dtype) -> Array:
    """`einsum` of two arrays: factors rounded to `dtype`, sums and result float32.

    float32 means float32 on every machine: `HIGHEST` keeps GPUs from TF32 and TPUs
    from bfloat16. `...` stands for leading axes of `left` and of the result.
    """
    if dtype == jnp.float32:
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
        return jnp.einsum(subscripts, left, right, precision=lax.Precision.HIGHEST)
    leading = "ABCDEFGH"[: left.ndim - len(subscripts.partition(",")[0].strip("."))]
    factors, _, out = subscripts.replace("...", leading).partition("->")
    own, _, other = factors.partition(",")
    dtypes = (jnp.dtype(dtype), left.dtype, right.dtype)
    left = varying_as(right, left)
    return _rounded((own, other, out), dtypes, left, varying_as(left, right))


def sum_over(axis: str, x: Array) -> Array:
    """`psum` over a mesh axis, in float32 whatever becomes of the sum."""
    return keep_sum_float32(lax.psum(x, axis))


def keep_sum_float32(x: Array) -> Array:
    """`x` itself, a sum over devices that is to be computed in float32.

    Where a product rounds it next, a TPU's compiler would add it up in bfloat16; it
    does not look through numbers that are taken for integers on the way.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type(lax.optimization_barrier(bits), jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rounded(
    axes: tuple[str, str, str], dtypes: tuple[Any, ...], left: Array, right: Array
) -> Array:
    return _forward(axes, dtypes, left, right)[0]


def _product(axes: tuple[str, str, str], left: Array, right: Array) -> Array:
    own, other, out = axes
    return jnp.einsum(
        f"{own},{other}->{out}",
        left,
        right,
        precision=lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _forward(
    axes: tuple[str, str, str], dtypes: tuple[Any, ...], left: Array, right: Array
) -> tuple[Array, tuple[Array, Array]]:
    factors = left.astype(dtypes[0]), right.astype(dtypes[0])
    return _product(axes, *factors), factors


def _backward(
    axes: tuple[str, str, str],
    dtypes: tuple[Any, ...],
    factors: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, Array]:
    (own, other, out), (left, right) = axes, factors
    rounded = cotangent.astype(dtypes[0])
    d_left = _product((out, other, own), rounded, right)
    d_right = _product((own, out, other), left, rounded)
    return d_left.astype(dtypes[1]), d_right.astype(dtypes[2])


_rounded.defvjp(_forward, _backward)


Precision = Literal["float32", "bf16"]
DTYPES = {"float32": jnp.float32, "bf16": jnp.bfloat16}


@checked
def cast(params: Tree, precision: Precision) -> Tree:
    """Parameters whose matrix products run in another precision.

    Args:
      params: `ElmoParams`, or any tree of parameters with their names.
      precision: "bf16" makes every array bfloat16 but the biases: products then round
        their factors to bfloat16. "float32" makes all of them float32; digits that were
        rounded away do not come back. Sums, gates, cells, clips and the LSTM state are
        float32 in both, and so are the vectors.

    Returns:
      The same tree; arrays that have the dtype already are the same arrays. Pure: the
      gradient of `embed(cast(params, "bf16"), ...)` in float32 `params` is float32.

    Raises:
      InputError: for another precision, or what is no tree of arrays.
    """
    leaves = jax.tree.leaves(params) or [params]
    wrong = [leaf for leaf in leaves if not hasattr(leaf, "dtype")]
    if wrong:
        raise InputError(f"params hold {shown(wrong[0])}; give a tree of arrays.")

    def of(path: Any, leaf: Any) -> Any:
        dtype = jnp.float32 if is_bias(path) else DTYPES[precision]
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(of, params)


def is_bias(path: Any) -> bool:
    """Whether the parameter at a key path is a bias."""
    return "bias" in jax.tree_util.keystr(path[-1:])


def precision_of(weights: Any) -> str:
    """The precision of a tree of parameters: "bf16", or the name of the dtype of those
    that are no biases (the first of several)."""
    names = {jnp.dtype(dtype).name: name for name, dtype in DTYPES.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if not is_bias(path):
            return names.get(leaf.dtype.name, leaf.dtype.name)
    return "float32"


Platform: TypeAlias = Literal["cpu", "accelerator", "tpu"] | None
"""Whose form is taken; None = that of the devices a program is compiled for."""


def by_platform(
    platform: Platform,
    *arguments: Any,
    cpu: Callable[..., Any],
    accelerator: Callable[..., Any],
    tpu: Callable[..., Any] | None = None,
) -> Any:
    """One of these functions, applied to the arguments; a TPU may have its own."""
    own = {"cpu": cpu} if tpu is None else {"cpu": cpu, "tpu": tpu}
    if platform is None:
        return lax.platform_dependent(*arguments, **own, default=accelerator)
    return own.get(platform, accelerator)(*arguments)


def row_keys(key: Array, rows: Array) -> Array:
    """A key for each of these rows of the global batch (int32 [rows])."""
    return jax.vmap(partial(jax.random.fold_in, key))(rows)


def apply_dropout(x: Array, rate: float, keys: Array, layer: int) -> Array:
    """x [time, two, rows, width] with a share `rate` of 0, the rest scaled up."""

    def draw(key: Array) -> Array:
        one_row = (*x.shape[:2], x.shape[3])
        kept = jnp.float32(1 - rate)  # else jax_enable_x64 draws other numbers
        return jax.random.bernoulli(jax.random.fold_in(key, layer), kept, one_row)

    kept = jax.vmap(draw, out_axes=2)(keys)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


Static = tuple[Mesh | None, Dtype]
"""Mesh and dtype of products: what does not change while a program runs."""


def weighted_sum(run: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """The sum of weight * loss, and the losses: differentiable by the first alone.

    `run(static, gradient, params, hidden, targets, weights, more)` gives the losses and
    float32 gradients of their weighted sum by params and hidden, if they are asked for;
    arrays of positions may be trees of them. Training runs it once.
    """

    def weighted_total(losses: Any, weights: Any) -> Array:
        parts = jax.tree.map(
            lambda loss, weight: (loss * weight).sum(), losses, weights
        )
        return sum(jax.tree.leaves(parts), jnp.float32(0))

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def both(static: Static, *arguments: Any) -> tuple[Array, Any]:
        losses, *_ = run(static, False, *arguments)
        return weighted_total(losses, arguments[3]), losses

    def forward(static: Static, *arguments: Any) -> tuple[tuple[Array, Any], Any]:
        params, hidden, _, weights, _ = arguments
        losses, *found = run(static, True, *arguments)
        like = (params, hidden)
        found = jax.tree.map(lambda a, d: d.astype(a.dtype), like, tuple(found))
        return (weighted_total(losses, weights), losses), (*found, losses)

    def backward(static: Static, saved: Any, cotangents: Any) -> tuple[Any, ...]:
        d_params, d_hidden, d_weights = jax.tree.map(
            lambda d: d * cotangents[0].astype(d.dtype), saved
        )
        return d_params, d_hidden, None, d_weights, None

    both.defvjp(forward, backward)
    return both


def in_chunks(
    run: Callable[[Any, Any], tuple[Any, Any]],
    sums: Any,
    arrays: Any,
    size: int,
    count: Array | None = None,
) -> tuple[Any, Any]:
    """`run(sums, part) -> sums, found` for `size` positions after the other.

    Args:
      arrays: a tree of [shards, positions, ...]; the last part is filled with zeros.
      count: how many positions matter, the first ones; None = all.

    Returns:
      The last sums, and what was found for [shards, positions, ...].
    """
    positions = jax.tree.leaves(arrays)[0].shape[1]
    chunks = max(1, -(-positions // size))
    arrays = jax.tree.map(lambda array: pad_positions(array, chunks * size), arrays)

    def part(n: Any) -> Any:
        return jax.tree.map(
            lambda a: lax.dynamic_slice_in_dim(a, n * size, size, 1), arrays
        )

    def chunk(n: Array, state: Any) -> Any:
        sums, outputs = state
        sums, found = run(sums, part(n))
        put = partial(lax.dynamic_update_slice_in_dim, start_index=n * size, axis=1)
        return sums, jax.tree.map(put, outputs, found)

    outputs = jax.tree.map(
        lambda one: jnp.zeros((one.shape[0], chunks * size, *one.shape[2:]), one.dtype),
        jax.eval_shape(run, sums, part(0))[1],
    )
    last = jnp.int32(chunks) if count is None else -(-count // size)
    sums, outputs, _ = alike((sums, outputs, arrays))
    sums, outputs = lax.fori_loop(jnp.int32(0), last, chunk, (sums, outputs))
    return sums, jax.tree.map(lambda array: array[:, :positions], outputs)


def pad_positions(array: Array, length: int) -> Array:
    """[shards, positions, ...] with zeros after the last position."""
    more = (0, length - array.shape[1])
    return jnp.pad(array, [(0, 0), more, *[(0, 0)] * (array.ndim - 2)])

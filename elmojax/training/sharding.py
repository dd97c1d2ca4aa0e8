"""The device mesh, and one table that says how every array lies on it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.config import MeshConfig
from elmojax.errors import InputError

SHARDINGS: tuple[tuple[str, P], ...] = (
    # Adafactor's factored moments have other shapes than their parameters.
    (r"optimizer\..*\.(v_row|v_col|v)\.", P()),
    # Cells of the LSTM over `model`: gates and projection of a cell stay together.
    (r"lstm\.kernel_\d+$", P(None, None, None, "model")),
    (r"lstm\.bias_\d+$", P(None, None, "model")),
    (r"lstm\.projection_\d+$", P(None, "model")),
    (r"encoder\.", P()),
    # Words of the softmax over `model`; kernel by columns, whose number divides.
    (r"head\.kernel$", P(None, "model")),
    (r"head\.up_\d+$", P("model")),
    (r"head\.", P()),
    (r"carry\.cell$", P(None, None, "data", "model")),
    (r"carry\.hidden$", P(None, None, "data")),
    (r"optimizer\.[^a-z]*(count|hyperparams.*|mini_step|gradient_step)$", P()),
    (r"optimizer\..*(count)$", P()),
    (r"(step|key|watch\.\w+)$", P()),
    # A batch: the tables of a shard are encoded in shares, rows are split.
    (r"batch\.words\.\d+$", P(("data", "model"))),
    (r"batch\.(inputs|targets|negatives\.targets)$", P(None, "data")),
    (r"batch\.negatives\.(words|drawn|log_expected)$", P()),
    (r"batch\.(weights|members\.\d+\.\w+)$", P("data")),
)
"""(pattern of the path, how it is split): the first row that matches counts."""

SAMPLED: tuple[tuple[str, P], ...] = (
    (r"head\.kernel$", P(None, ("model", "data"))),
    *SHARDINGS,
)
"""With a sampled softmax each device holds some columns of the table of words and of
its moments: a step gathers the rows that it touches, and scatters their gradient."""

OR_WHOLE = re.compile(r"head\.")
"""Paths of arrays that lie in columns, or whole on every device, where an axis does not
divide them: the numbers of words are not ours to choose."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `data` and `model` over the first devices; None = of all.

    Raises `InputError` when there are not enough devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    data = config.data or len(devices) // config.model
    wanted = max(data, 1) * config.model
    if jax.process_count() > 1 and wanted < len(devices):
        raise InputError(
            f"The mesh of data={data} x model={config.model} takes {wanted} of "
            f"{len(devices)} devices, and with several processes all take part; leave "
            "--mesh.data out, or start fewer processes."
        )
    if wanted > len(devices):
        raise InputError(
            f"The mesh of data={max(data, 1)} x model={config.model} needs {wanted} "
            f"devices and there are {len(devices)} ({devices[0].platform}); lower "
            "--mesh.data or --mesh.model, or start with more devices (virtual ones on "
            f"a CPU: JAX_NUM_CPU_DEVICES={wanted})."
        )
    axes = (AxisType.Auto, AxisType.Auto)
    shape = (data, config.model)
    return jax.make_mesh(
        shape, ("data", "model"), axis_types=axes, devices=devices[:wanted]
    )


def local_shards(mesh: Mesh) -> list[int]:
    """The shards along `data` of which this process has a device."""
    here = jax.process_index()
    owners = [{device.process_index for device in row} for row in mesh.devices]
    return [shard for shard, processes in enumerate(owners) if here in processes]


def put_on_mesh(
    mesh: Mesh | None,
    tree: Any,
    prefix: str,
    local: Sequence[int] | None = None,
    microbatches: bool = False,
) -> Any:
    """Host arrays on the devices, split as the table says.

    Args:
      local: shards of `data` that the arrays hold; None = all.
      microbatches: arrays have one axis more than the table says, before all others.
    """
    if mesh is None:
        return jax.device_put(tree)
    wanted = batch_shardings(mesh, tree, microbatches, prefix)
    if jax.process_count() == 1:
        return jax.device_put(tree, wanted)
    shards = list(range(mesh.shape["data"]) if local is None else local)
    return jax.tree.map(partial(_put_share, shards), tree, wanted)


def batch_shardings(
    mesh: Mesh, batch: Any, microbatches: bool, prefix: str = "batch."
) -> Any:
    """The sharding of every array of a batch, which may be in microbatches."""

    def sharding(path: tuple[Any, ...], _: Any) -> NamedSharding:
        spec = _spec(prefix + path_name(path))
        return NamedSharding(mesh, P(None, *spec) if microbatches else spec)

    return jax.tree_util.tree_map_with_path(sharding, batch)


def _put_share(shards: list[int], array: np.ndarray, sharding: NamedSharding) -> Array:
    """The share of this process of an array of which it has these shards."""
    array = np.asarray(array)
    axes = [axis for axis, names in enumerate(sharding.spec) if "data" in (names or ())]
    if not axes:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    (axis,) = axes
    size = array.shape[axis] // len(shards)
    shape = list(array.shape)
    shape[axis] = size * sharding.mesh.shape["data"]

    def part(index: Any) -> np.ndarray:
        shard, inside = divmod(index[axis].start or 0, size)
        start = shards.index(shard) * size + inside
        count = len(range(*index[axis].indices(shape[axis])))
        here = list(index)
        here[axis] = slice(start, start + count)
        return array[tuple(here)]

    return jax.make_array_from_callback(tuple(shape), sharding, part)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as dotted names: `params.lstm.kernel_0`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def shardings(mesh: Mesh, tree: Any, prefix: str = "", *, sampled: bool = False) -> Any:
    """The sharding of every leaf by the table, for arrays or their shapes.

    `sampled` is for the state of a run that trains with a sampled softmax.

    Raises `InputError` for an axis that does not divide; `KeyError` (a bug of ours)
    for a leaf that no row of the table matches.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = prefix + path_name(path)
        spec = _spec(name, SAMPLED if sampled else SHARDINGS)
        if OR_WHOLE.search(name):
            choices = (spec, P(None, "model"))[: len(leaf.shape)]
            even = (s for s in choices if not _undivided(mesh, leaf.shape, s))
            spec = next(even, P())
        for size, axis in _undivided(mesh, leaf.shape, spec):
            remedy = "--rows" if axis == "data" else "the model's sizes"
            raise InputError(
                f"{name} has {size} entries along mesh axis {axis!r}, which has "
                f"{_devices(mesh, axis)} devices and does not divide them; change "
                f"--mesh.{axis} or {remedy}."
            )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


LSTM_KERNELS = re.compile(r"lstm\.kernel_\d+$")
"""Paths of arrays [two, inputs, 4, dim], parameters and their moments."""


def memory_layouts(tree: Any) -> Any:
    """Where the leaves of a placed state lie, and in which order of axes in memory.

    On a TPU kernels of the LSTM lie gate after gate, as its products read them;
    otherwise every step would copy them and their moments there and back. (For a GPU
    its compiler copies less when they lie in the order of their axes.)
    """

    def laid(path: tuple[Any, ...], leaf: Any) -> Format:
        tpu = next(iter(leaf.sharding.device_set)).platform == "tpu"
        kernel = LSTM_KERNELS.search(path_name(path)) and len(leaf.shape) == 4
        by_gate = Layout((2, 0, 1, 3)) if tpu and kernel else None
        return Format(by_gate, leaf.sharding)

    return jax.tree_util.tree_map_with_path(laid, tree)


def sharded_shapes(tree: Any, shardings: Any = None) -> Any:
    """Shapes with where their arrays are to lie; None = nowhere in particular."""

    def sharded(leaf: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(sharded, tree, *() if shardings is None else (shardings,))


def _spec(name: str, table: Sequence[tuple[str, P]] = SHARDINGS) -> P:
    """The row of the table for a path."""
    for pattern, spec in table:
        if re.search(pattern, name):
            return spec
    raise KeyError(f"no row of SHARDINGS matches {name}")


def _undivided(
    mesh: Mesh, shape: tuple[int, ...], spec: P
) -> list[tuple[int, str | tuple[str, ...]]]:
    """Sizes of split axes without a share for every device, and how they are split."""
    pairs = zip(shape, spec, strict=False)
    return [
        (size, axis) for size, axis in pairs if axis and size % _devices(mesh, axis)
    ]


def _devices(mesh: Mesh, axis: str | tuple[str, ...]) -> int:
    names = (axis,) if isinstance(axis, str) else axis
    return math.prod(mesh.shape[name] for name in names)

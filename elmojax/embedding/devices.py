"""Several devices: each reads a batch of its own, and has the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.errors import InputError


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


def whole(mesh: Mesh | None) -> NamedSharding | None:
    """On every device; None without a mesh, for JAX's default one."""
    return None if mesh is None else NamedSharding(mesh, P())


def on_each(
    mesh: Mesh | None, run: Callable[..., Any], takes: Any, gives: Any
) -> Callable[..., Any]:
    """`run` by every device for itself, with its share of the arrays as the
    `PartitionSpec`s say; as it is without a mesh."""
    if mesh is None:
        return run
    return jax.shard_map(
        run, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False
    )

"""The compilers of chips that need not be there: packages that compile without one.

Their devices hold no arrays and run nothing. A program that is compiled for them is the
one that the chip would run, with its memory to the byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax

from elmojax.training.utilization import Chip

SLICES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
CUBES |= {128: "4x4x8"}
"""Arrangements of so many chips, in two and in three dimensions; fewer are a part."""

QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",  # asks no server where it runs
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a lock is for those who use the chip
}
"""For libtpu in a process without a TPU."""

GPU = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores}
  fpus_per_core: {units}
  clock_rate_ghz: {clock}
  l2_cache_size: {cache}
  device_memory_size: {memory:.0f}
  memory_bandwidth: {bandwidth:.0f}
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {most_shared}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
device_description_str: "{kind}"
"""
"""What XLA wants to know of a GPU, as a GpuTargetConfigProto."""

AMPERE = {"major": 8, "units": 64, "shared": 167936, "most_shared": 166912}
HOPPER = {"major": 9, "units": 128, "shared": 233472, "most_shared": 232448}
GPUS: dict[str, dict[str, Any]] = {
    "h200": HOPPER | {"cores": 132, "clock": 1.98, "cache": 52428800},
    "h100": HOPPER | {"cores": 132, "clock": 1.98, "cache": 52428800},
    "a100": AMPERE | {"cores": 108, "clock": 1.41, "cache": 41943040},
    "b200": HOPPER | {"major": 10, "cores": 148, "clock": 1.965, "cache": 132644864},
}
"""From the tables of compute capabilities in NVIDIA's CUDA C++ Programming Guide and
from the chips' own properties, as openxla/xla lists them (xla/backends/gpu/
target_config/specs)."""


def absent_devices(chip: Chip, count: int) -> Sequence[jax.Device]:
    """So many devices of a kind of chip to compile for; none where that cannot be done.

    That is where the package with its compiler is not installed (`elmojax[tpu]`,
    `elmojax[cuda]`), or where the machine has TPUs, or GPUs, of its own: their runtime
    is not to be led astray. JAX must not have begun: from here on its own devices are
    those of a CPU. Nothing is asked of any server.
    """
    gpu = chip.name in GPUS
    if _attached(gpu) or not _installed(gpu):
        return ()
    if not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")
    return (_gpus if gpu else _tpus)(chip, count)[:count]


class Allocated(NamedTuple):
    """Bytes that a compiled program takes on a device."""

    arguments: int
    results: int
    """Those that take no argument's place."""
    temporary: int
    total: int


def memory_of(program: Any) -> Allocated:
    """What the device sets aside for a compiled program.

    A TPU's compiler names the total, and refuses a program by it; its
    `temp_size_in_bytes` counts memory twice that is used again. jax 0.10 knows only
    the latter.
    """
    found = program.memory_analysis()
    arguments = found.argument_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    total = arguments + results + found.temp_size_in_bytes
    total = getattr(found, "total_allocation_bytes", total)
    return Allocated(arguments, results, total - arguments - results, total)


def _installed(gpu: bool) -> bool:
    if gpu:
        names = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
        return bool(find_spec("jax_plugins")) and any(map(find_spec, names))
    return find_spec("libtpu") is not None


def _attached(gpu: bool) -> bool:
    places = ("nvidiactl",) if gpu else ("accel[0-9]*", "vfio/[0-9]*")
    return any(True for place in places for _ in Path("/dev").glob(place))


def _gpus(chip: Chip, count: int) -> Sequence[jax.Device]:
    from jax.experimental import topologies

    sizes = {"memory": chip.memory, "bandwidth": chip.bandwidth, "kind": chip.kinds[0]}
    made = topologies.get_topology_desc(
        chip.name,
        platform="cuda",
        target_config=GPU.format(**GPUS[chip.name], **sizes),
        topology=f"1x1x{count}",
    )
    return list(made.devices)


def _tpus(chip: Chip, count: int) -> Sequence[jax.Device]:
    from jax.experimental import topologies

    os.environ.update({name: os.environ.get(name, QUIET[name]) for name in QUIET})
    cores = 2 if chip.name == "tpu7x" else 1
    shapes = SLICES if chip.name.endswith("e") else CUBES
    size = min((n for n in shapes if n * cores >= count), default=None)
    if size is None or size * cores % count:
        return ()  # no slice has so many
    name = f"{chip.name}:{shapes[size]}"
    return list(topologies.get_topology_desc(name, platform="tpu").devices)

"""What a run needs before it begins: memory a device, operations, least time.

Nothing is allocated. State and batch are worked out as shapes, laid out by the sharding
table, and the very training step of a run is compiled for them; its compiler says how
much memory it takes, also that of a chip that is not there (`absent_devices`). A
device's share does not depend on how many others hold shares alike, so the step may be
compiled for fewer devices along `data` than the run has.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from elmojax.config import TrainConfig
from elmojax.text.batches import steps_of
from elmojax.training import step
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import (
    batch_shardings,
    memory_layouts,
    sharded_shapes,
    shardings,
)
from elmojax.training.sizes import StepSizes, TextStatistics, step_sizes
from elmojax.training.step import (
    Guard,
    LanguageModel,
    TrainState,
    compile_train_step,
    init_state,
)
from elmojax.training.utilization import Chip, Flops, token_flops


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    optimizer: int
    carry: int
    """LSTM state of its rows."""
    batch: int
    temporary: int
    """What the compiled step takes besides its arguments and results."""
    gradients: int
    """The gradient of every parameter that a step moves, in `temporary` too."""
    total: int
    """Arguments, results and temporary memory; results that lie where arguments lay
    count once."""


@dataclass(frozen=True)
class Estimate:
    """A run before it begins."""

    config: TrainConfig
    """With every automatic choice made."""
    parameters: dict[str, int]
    """How many numbers the encoder, the LSTM and the softmax have."""
    memory: Memory
    flops: Flops
    """For one position of running text."""
    words: float
    """Distinct words that a step encodes."""
    tables: tuple[tuple[int, ...], ...]
    """Shapes of a device's tables of words: rows, and columns of characters."""
    moved: int
    """Bytes that the update of one device reads and writes in a step."""
    data: int
    """Devices along `data`."""
    devices: int
    steps: int


def estimate(
    config: TrainConfig, statistics: TextStatistics, mesh: Mesh, data: int, dtype: Any
) -> Estimate:
    """What a run needs.

    Args:
      config: complete, with rows that divide.
      mesh: what the step is compiled for; as long as the run's along `data`, or
        shorter.
      data: devices of the run along `data`.
      dtype: of matrix products.

    Raises:
      InputError: for what does not divide over the mesh.
    """
    plan = plan_step(config, statistics, mesh, data, dtype)
    params = plan.state.params
    words = plan.sizes.words * config.rows / plan.config.rows
    moved, moments = _moved(plan)
    sizes = plan.sizes
    pairs = zip(sizes.sizes.words, sizes.tables, strict=True)
    tables = tuple((size, columns) if columns else (size,) for size, columns in pairs)
    epochs = steps_of(statistics.positions, config.rows, config.window, config.epochs)
    return Estimate(
        config,
        {name: _count(params.get(name, {})) for name in ("encoder", "lstm", "head")},
        _memory(plan, moved),
        token_flops(plan.config, statistics, sizes),
        words,
        tables,
        2 * (2 * moved + moments),
        data,
        data * mesh.shape["model"],
        config.steps or epochs,
    )


@dataclass(frozen=True)
class StepPlan:
    """A step of a run as shapes with places on a mesh; no array among them."""

    config: TrainConfig
    """Of the devices of the mesh: with their share of the rows."""
    sizes: StepSizes
    lm: LanguageModel
    optimizer: optax.GradientTransformation
    state: TrainState
    batch: Any

    def compile(self) -> Any:
        """The very program of the run, for the devices of the mesh."""
        guard = Guard(self.config.skip_nonfinite, self.config.spike_guard)
        step: Any = compile_train_step(self.lm, self.optimizer, self.state, guard)
        return step.lower(self.state, self.batch).compile()


def plan_step(
    config: TrainConfig, statistics: TextStatistics, mesh: Mesh, data: int, dtype: Any
) -> StepPlan:
    """The step of a run as shapes; arguments as of `estimate`."""
    share = replace(config, rows=config.rows // data * mesh.shape["data"])
    sizes = step_sizes(statistics, share, mesh.shape["data"], config.rows)
    head, model = config.head, config.model
    lm = LanguageModel(model, statistics.vocabulary, head, config.dropout, dtype, mesh)
    # How long the run is changes no shape.
    optimizer = make_optimizer(config.optimizer, 1, config.freeze_steps)
    state = jax.eval_shape(partial(init_state, lm, optimizer, share.rows, config.seed))
    of_batch = batch_shardings(mesh, sizes.batch, config.accumulate > 1)
    batch = sharded_shapes(sizes.batch, of_batch)
    of_state = shardings(mesh, state, sampled=head.kind == "sampled")
    state = sharded_shapes(state, of_state)
    state = sharded_shapes(state, memory_layouts(state))
    return StepPlan(share, sizes, lm, optimizer, state, batch)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    """Of one device's share of a tree of shapes with shardings."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in leaves
    )


def _moved(plan: StepPlan) -> tuple[int, int]:
    """Bytes of the parameters that a step moves, and of their moments."""
    learned = (plan.state.params, plan.state.optimizer)
    if plan.batch.negatives is not None:
        rows = jax.ShapeDtypeStruct(plan.batch.negatives.words.shape[-1:], jnp.int32)
        kept = jax.tree.map(lambda leaf: leaf.sharding, learned)
        learned = sharded_shapes(jax.eval_shape(step.take, learned, rows), kept)
    return _bytes(learned[0]), _bytes(learned[1])


def _memory(plan: StepPlan, gradients: int) -> Memory:
    """Of the compiled step."""
    state = plan.state
    trees = (state.params, state.optimizer, state.carry, plan.batch)
    parameters, optimizer, carry, batch = map(_bytes, trees)
    try:
        program = memory_of(plan.compile())
        temporary, total = program.temporary, program.total
    except jax.errors.JaxRuntimeError as error:
        wanted = _bytes_refused(str(error))
        if wanted is None:
            raise
        temporary, total = wanted, parameters + optimizer + carry + batch + wanted
    return Memory(parameters, optimizer, carry, batch, temporary, gradients, total)


def _bytes_refused(error: str) -> int | None:
    """Bytes that a program wants which a TPU's compiler refuses as too large."""
    found = re.search(r"RESOURCE_EXHAUSTED.*?([\d.]+)([MGT])", error, re.DOTALL)
    units = {"M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(found[1]) * units[found[2]]) if found else None


@dataclass(frozen=True)
class LeastTime:
    """The least time of a run on a chip, were nothing lost anywhere.

    A step computes its products at the chip's peak and then updates the parameters at
    the bandwidth of its memory; gradients travel between chips meanwhile.
    """

    products: float
    """Seconds a step."""
    update: float
    """Seconds a step: parameters and moments read and written, the gradient too."""
    exchange: float
    """Seconds a step: a ring all-reduce of the gradient along `data`."""
    step: float
    """Seconds a step."""
    tokens_per_second: float
    """Positions of running text, of all chips together."""
    hours: float
    """Of all steps."""


def least_time(
    estimate: Estimate, chip: Chip, precision: str, peak: bool = True
) -> LeastTime:
    """The least time on one kind of chip.

    Args:
      precision: of products, `bf16` or `float32`.
      peak: at the rates of the data sheet, else at those that were measured.
    """
    rate, bandwidth = chip.products(precision), chip.bandwidth
    if not peak:
        assert chip.measured is not None
        rate, bandwidth = chip.measured
    config, data = estimate.config, estimate.data
    tokens = config.rows * config.window
    products = estimate.flops.total * tokens / estimate.devices / rate
    update = estimate.moved / bandwidth
    exchange = 2 * (data - 1) / data * estimate.memory.gradients / chip.link
    step = max(products + update, exchange)
    hours = step * estimate.steps / 3600
    return LeastTime(products, update, exchange, step, tokens / step, hours)


USABLE = 0.9
"""Share of a chip's memory that a step may take: the rest goes to the runtime, to
batches sent ahead and to gaps between arrays."""


def fits(memory: Memory, chip: Chip) -> bool:
    """Whether a step has room on a chip."""
    return memory.total <= USABLE * chip.memory


def largest_rows(
    config: TrainConfig,
    data: int,
    first: Memory,
    available: float,
    again: Callable[[TrainConfig], Memory],
) -> int | None:
    """About as many rows as fit, where those of `config` do not; None = not even few.

    Memory grows in a line with the rows, nearly (a TPU's compiler saves where it has
    to); what the line says is compiled.

    Args:
      first: memory with the rows of `config`.
      available: bytes a device.
      again: the memory of another configuration.
    """
    parts = data * config.accumulate
    rows, used = config.rows, first.total
    none, fixed = 0, first.parameters + first.optimizer + first.gradients
    for _ in range(6):
        slope = (used - fixed) / (rows - none)
        fitting = none + 0.99 * (available - fixed) / slope
        fewer = int(min(fitting, 0.9 * rows) // parts) * parts
        if fewer < parts:
            return None
        if fewer >= 128 * parts:
            fewer -= fewer % (16 * parts)
        none, fixed = rows, used
        rows, used = fewer, again(replace(config, rows=fewer)).total
        if used <= available:
            return rows
    return None


def least_microbatches(
    config: TrainConfig,
    data: int,
    rows: int,
    available: float,
    again: Callable[[TrainConfig], Memory],
) -> int | None:
    """The fewest microbatches with which the rows of `config` fit; `rows` do."""
    each, fitting = config.rows // data, 0.9 * rows / data / config.accumulate
    more = range(config.accumulate + 1, each + 1)
    tried = [n for n in more if each % n == 0 and each // n <= fitting]
    for microbatches in tried[:2]:
        if again(replace(config, accumulate=microbatches)).total <= available:
            return microbatches
    return None


# --- compilers of chips that are not there -------------------------------------------

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

    They hold no arrays and run nothing, but a program that is compiled for them is the
    one that the chip would run, with its memory to the byte.

    None is where the package with its compiler is not installed (`elmojax[tpu]`,
    `elmojax[cuda]`), or where the machine has TPUs, or GPUs, of its own: their runtime
    is not to be led astray. JAX must not have begun: from here on its own devices are
    those of a CPU. Nothing is asked of any server.
    """
    from jax.experimental import topologies

    gpu = chip.name in GPUS
    if _attached(gpu) or not _installed(gpu):
        return ()
    if not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")
    if gpu:
        own = {"memory": chip.memory, "bandwidth": chip.bandwidth}
        target = GPU.format(kind=chip.kinds[0], **GPUS[chip.name], **own)
        more = {"platform": "cuda", "target_config": target}
        more["topology"] = f"1x1x{count}"
        return topologies.get_topology_desc(chip.name, **more).devices[:count]
    os.environ.update({name: os.environ.get(name, QUIET[name]) for name in QUIET})
    cores = 2 if chip.name == "tpu7x" else 1
    shapes = SLICES if chip.name.endswith("e") else CUBES
    size = min((n for n in shapes if n * cores >= count), default=None)
    if size is None or size * cores % count:
        return ()  # no slice has so many
    name = f"{chip.name}:{shapes[size]}"
    return topologies.get_topology_desc(name, platform="tpu").devices[:count]


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

"""The device side of embedding: sentences through the LSTM, in programs of few shapes.

Rows of a batch hold sentences one after the other. A sentence of n words takes n + 1
steps of its row: `<S>` and the words for the forward direction, `</S>` and the words
from the last for the backward one. There is no padding but at the end of rows, so few
shapes serve texts of any length. Of several devices each reads a batch of its own, and
has the whole model. Nothing here waits for the device.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.errors import InputError
from elmojax.model.bilm import BiLM, ElmoParams
from elmojax.model.lstm import STEP_COST, Reset
from elmojax.model.ops import automatic
from elmojax.model.state import LstmState
from elmojax.shapes import Numbers


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


STEP_CHOICES = (64, 8)
"""Steps of one run of the LSTM; longer rows go on from its state in the next."""
ROW_CHOICES = (1, 4, 16, 64, 128, 256, 512, 1024, 2048)
"""Rows of one run."""
LEAST_STEPS = 64
"""Steps of a full batch on the widest rows, at least."""
SMALL_BATCH = 256
"""Words of a small batch, for which there are small shapes: one sentence comes soon."""
SMALL_BATCH_ROWS = 16
"""The most rows of a small batch."""


class RowPlan(NamedTuple):
    """Where the words of a batch of sentences are read: arrays of NumPy, or of JAX
    inside its programs."""

    table_rows: Any
    """int32 [steps, two, rows]: row of the word table."""
    word_numbers: Any
    """int32 [steps, two, rows]: number of the word in the batch; past all words where
    nothing is kept."""
    begins: Any
    """bool [steps, two, rows]: a sentence begins."""


def step_budget(batch_tokens: int) -> int:
    """Steps that the sentences of a batch may take: a few less than it has, so that
    they nearly always fit into its rows."""
    return batch_tokens - batch_tokens // 100


def word_capacity(words: int, batch_tokens: int) -> int:
    """Words that there is room for in a batch of `words` words."""
    return SMALL_BATCH if words <= SMALL_BATCH < batch_tokens else batch_tokens


def possible_rows(capacity: int) -> list[int]:
    """Numbers of rows that a batch with room for so many words may take."""
    most = max(capacity // LEAST_STEPS, 1)
    if capacity <= SMALL_BATCH:
        most = SMALL_BATCH_ROWS
    return [rows for rows in ROW_CHOICES if rows <= most]


def program_shapes(batch_tokens: int) -> list[tuple[int, int, int]]:
    """Every (steps, rows, room) there is for batches of at most `batch_tokens`."""
    capacities = sorted({word_capacity(1, batch_tokens), batch_tokens})
    return [
        (s, r, n) for n in capacities for r in possible_rows(n) for s in STEP_CHOICES
    ]


def make_plan(
    words: Sequence[np.ndarray], sizes: Sequence[np.ndarray], capacity: int
) -> RowPlan:
    """The plan for a batch of sentences on each of some devices.

    All have as many rows, which follow on each other.

    Args:
      words: of each batch, rows of the word table, all sentences one after the other:
        `<S>` is row 0, `</S>` row 1.
      sizes: of each batch, words of each sentence; 0 for one without words, which
        takes no step.
      capacity: words of a batch; steps without a word get this number.
    """

    def best_rows(sizes: np.ndarray) -> int:
        def cost(rows: int) -> int:
            return _least_steps(sizes, rows) * (rows + STEP_COST)

        return min(possible_rows(capacity), key=cost)

    rows = max(map(best_rows, sizes))
    packed = [_pack(each, rows) for each in sizes]
    steps = max(needed for _, _, needed in packed)
    shape = (steps, 2, len(packed), rows)
    plan = RowPlan(
        table_rows=np.zeros(shape, np.int32),
        word_numbers=np.full(shape, capacity, np.int32),
        begins=np.zeros(shape, bool),
    )
    for device, (row, first, _) in enumerate(packed):
        counts = sizes[device]
        filled = counts > 0
        plan.begins[first[filled], :, device, row[filled]] = True
        plan.table_rows[first[filled], 1, device, row[filled]] = 1
        number = np.arange(len(words[device]))
        position = number - np.repeat(np.cumsum(counts) - counts, counts)
        row, first = np.repeat(row, counts), np.repeat(first, counts)
        forward = first + 1 + position
        backward = first + np.repeat(counts, counts) - position
        for direction, step in enumerate((forward, backward)):
            plan.table_rows[step, direction, device, row] = words[device]
            plan.word_numbers[step, direction, device, row] = number
    return RowPlan(*(array.reshape(steps, 2, -1) for array in plan))


def _least_steps(sizes: np.ndarray, rows: int) -> int:
    """Steps, in whole runs, below which the sentences cannot fit."""
    taken = sizes + (sizes > 0)
    steps = max(int(taken.max(initial=1)), -(-int(taken.sum()) // rows))
    return -(-steps // STEP_CHOICES[-1]) * STEP_CHOICES[-1]


def _pack(sizes: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Row and first step of each sentence, and the number of steps."""
    steps = _least_steps(sizes, rows)
    while (found := _best_fit(sizes, rows, steps)) is None:
        steps += STEP_CHOICES[-1]
    return *found, steps


def _best_fit(
    sizes: np.ndarray, rows: int, steps: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Best-fit decreasing: each sentence, the longest first, into the fullest row
    that has the room; None if one finds no room."""
    row, first = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    free = [(steps, number) for number in range(rows)]
    for sentence in np.argsort(-sizes, kind="stable").tolist():
        need = int(sizes[sentence]) + 1
        if need == 1:
            break
        fullest = bisect_left(free, (need, 0))
        if fullest == len(free):
            return None
        left, number = free.pop(fullest)
        row[sentence], first[sentence] = number, steps - left
        insort(free, (left - need, number))
    return row, first


def cut_runs(steps: int) -> list[slice]:
    """`steps`, a multiple of the shortest run, cut into runs of the given lengths."""
    cuts, begin = [], 0
    for size in STEP_CHOICES:
        while steps - begin >= size:
            cuts.append(slice(begin, begin + size))
            begin += size
    return cuts


Select = Literal["all", "top", "mix"]
Dtype = Literal["float32", "float16", "bfloat16"]

REPLICATED: P = P()
BY_WORDS: P = P("data")
BY_ROWS: P = P(None, None, "data")
"""On a mesh: how vectors lie, and states and plans."""


class Selection(NamedTuple):
    """What is kept of the layers of a word."""

    layers: Select
    gammas: Array | None
    """[layers + 1], of a mix."""
    dtype: Dtype


def make_selection(
    params: ElmoParams, layers: Select, gammas: Numbers | None, dtype: Dtype
) -> Selection:
    """Checks what a user asked for; `InputError` says what would be right."""
    if (layers == "mix") != (gammas is not None):
        raise InputError("gammas belong to layers 'mix': give both or neither.")
    if gammas is not None:
        wanted = params.config.lstm.layers + 1
        with np.errstate(over="ignore"):
            gammas = jnp.asarray(gammas, jnp.float32)
        if gammas.shape != (wanted,):
            raise InputError(
                f"This model mixes {wanted} layers, so there must be {wanted} gammas; "
                f"they have shape {gammas.shape}."
            )
        if not np.isfinite(gammas).all():
            raise InputError(f"gammas are {gammas.tolist()}; give finite float32.")
    return Selection(layers, gammas, dtype)


def run_batch(
    params: ElmoParams,
    table: Array,
    plan: RowPlan,
    words: int,
    selection: Selection,
    mesh: Mesh | None = None,
) -> Array:
    """Vectors of a batch by number in the plan: [words, layers + 1, vector], or
    [words, vector] of one mix or the top; 0 past the words of the batch.

    On a mesh each device has rows of the plan, and the words in them: the result is
    [devices * words, ...], and nothing of it travels.
    """
    steps, _, rows = plan.table_rows.shape
    layers = selection.layers
    if mesh is not None:
        rows //= mesh.size
    vectors, state = empty_vectors(params, words, rows, layers, selection.dtype, mesh)
    for run in cut_runs(steps):
        part = RowPlan(*(array[run] for array in plan))
        if mesh is not None:
            part = jax.device_put(part, NamedSharding(mesh, BY_ROWS))
        vectors, state = read_steps(
            params,
            table,
            vectors,
            state,
            part,
            selection.gammas,
            layers=layers,
            mesh=mesh,
        )
    return join_directions(vectors, mesh)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def empty_vectors(
    params: ElmoParams,
    words: int,
    rows: int,
    layers: Select,
    dtype: Dtype,
    mesh: Mesh | None = None,
) -> tuple[Array, LstmState]:
    """Zeros for the vectors of `words` words, and the first state of `rows` rows; on a
    mesh of so many on each device."""
    config = params.config.lstm
    axes = (config.layers + 1,) if layers == "all" else ()

    def make() -> tuple[Array, LstmState]:
        vectors = jnp.zeros((words, *axes, 2, config.projection), dtype)
        return vectors, params.initial_state.for_batch(rows)

    return per_device(mesh, make, (), (BY_WORDS, BY_ROWS))()


@partial(
    jax.jit, static_argnames=("layers", "mesh"), donate_argnames=("vectors", "state")
)
def read_steps(
    params: ElmoParams,
    table: Array,
    vectors: Array,
    state: LstmState,
    plan: RowPlan,
    gammas: Array | None,
    *,
    layers: Select,
    mesh: Mesh | None = None,
) -> tuple[Array, LstmState]:
    """Some steps of all rows, whose results are put into `vectors`."""

    def read(
        params: ElmoParams,
        table: Array,
        vectors: Array,
        state: LstmState,
        plan: RowPlan,
        gammas: Array | None,
    ) -> tuple[Array, LstmState]:
        words = table[plan.table_rows]
        reset = Reset(plan.begins, params.initial_state)
        apply: Any = partial(BiLM(params.config).apply, method="contextualize")
        outputs, state = apply({"params": params.tree}, words, state, reset=reset)
        if layers == "top":
            new = outputs[-1]
        else:
            new = jnp.concatenate([words[None], outputs])
            if gammas is None:  # time, two, rows, layers, projection
                new = jnp.moveaxis(new, 0, 3)
            else:
                mix = partial(jnp.einsum, "k,k...->...", precision="highest")
                new = mix(gammas, new)
        new = new.astype(vectors.dtype)
        for direction in (0, 1):
            slots = vectors.at[plan.word_numbers[:, direction], ..., direction, :]
            vectors = slots.set(new[:, direction], mode="drop")
        return vectors, state

    in_specs = (REPLICATED, REPLICATED, BY_WORDS, BY_ROWS, BY_ROWS, REPLICATED)
    run = per_device(mesh, automatic(read), in_specs, (BY_WORDS, BY_ROWS))
    return run(params, table, vectors, state, plan, gammas)


@partial(jax.jit, donate_argnums=0, static_argnums=1)
def join_directions(vectors: Array, mesh: Mesh | None = None) -> Array:
    """[words, ..., two, projection] -> [words, ..., vector]."""

    def join(vectors: Array) -> Array:
        return vectors.reshape(*vectors.shape[:-2], -1)

    return per_device(mesh, join, BY_WORDS, BY_WORDS)(vectors)

"""The device side of embedding: sentences through the LSTM, in programs of few shapes.

Rows of a batch hold sentences one after the other. A sentence of n words takes n + 1
steps of its row: `<S>` and the words for the forward direction, `</S>` and the words
from the last for the backward one. There is no padding but at the end of rows, so few
shapes serve texts of any length. Of several devices each reads a batch of its own, and
has the whole model. Nothing here waits for the device.

A sentence that is longer than a batch is a document, which is read in chunks, exactly,
in memory that does not grow with it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.embedding.pooling import Block
from elmojax.embedding.words import EncodedWords
from elmojax.errors import InputError
from elmojax.model.bilm import BiLM, ElmoParams
from elmojax.model.lstm import LstmState
from elmojax.model.ops import automatic, per_device
from elmojax.model.recurrence import STEP_COST, Reset
from elmojax.shapes import Numbers

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
VectorDtype = Literal["float32", "float16", "bfloat16"]

REPLICATED: P = P()
BY_WORDS: P = P("data")
BY_ROWS: P = P(None, None, "data")
"""On a mesh: how vectors lie, and states and plans."""


class Selection(NamedTuple):
    """What is kept of the layers of a word."""

    layers: Select
    gammas: Array | None
    """[layers + 1], of a mix."""
    dtype: VectorDtype


def make_selection(
    params: ElmoParams, layers: Select, gammas: Numbers | None, dtype: VectorDtype
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
    dtype: VectorDtype,
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


CHUNK = 512
"""Steps of one run of a document."""


def read_document(
    params: ElmoParams, table: EncodedWords, words: Sequence[str], selection: Selection
) -> Iterator[Block]:
    """The vectors of the words of a document of any length, exactly, chunk by chunk.

    The backward direction needs the end of the document first. So it is read twice:
    from right to left for the backward state at the end of every chunk, which is all
    that is kept, then from left to right with both directions. The result is that of
    one pass over the whole; the cost is half a pass more. Each block has unused rows at
    the end.
    """
    start = params.initial_state.for_batch(1)
    forward, after = _one_direction(start, 0), [_one_direction(start, 1)]
    for number in range(_chunk_count(words) - 1, 0, -1):
        plan, _ = _chunk_plan(table, words, number)
        after.append(_backward_state(params, table.encoded(), after[-1], plan))
    left = len(words)
    for number in range(_chunk_count(words)):
        plan, count = _chunk_plan(table, words, number)
        vectors, _ = empty_vectors(params, CHUNK, 1, selection.layers, selection.dtype)
        vectors, state = read_steps(
            params,
            table.encoded(),
            vectors,
            _both_directions(forward, after.pop()),
            plan,
            selection.gammas,
            layers=selection.layers,
        )
        forward = _one_direction(state, 0)
        left -= count
        if count:
            yield Block((count,), join_directions(vectors), left > 0)


def skip_document(table: EncodedWords, words: Sequence[str]) -> None:
    """Leaves the word table as `read_document` would, without reading the document."""
    for number in [*range(_chunk_count(words) - 1, 0, -1), *range(_chunk_count(words))]:
        _chunk_plan(table, words, number)


def _chunk_count(words: Sequence[str]) -> int:
    return -(-(len(words) + 2) // CHUNK)


def _chunk_plan(
    table: EncodedWords, words: Sequence[str], number: int
) -> tuple[RowPlan, int]:
    """A chunk as a single row, `CHUNK` positions of `<S>`, the words and `</S>`, and
    how many words are in it.

    Chunks end together with the document; the first begins with padding.
    """
    size = len(words)
    last = size + 1 - (_chunk_count(words) - 1 - number) * CHUNK
    positions = np.arange(last - CHUNK + 1, last + 1)
    begins, ends = positions == 0, positions == size + 1
    inside = (positions > 0) & (positions <= size)
    table_rows, numbers = ends.astype(np.int32), np.full(CHUNK, CHUNK, np.int32)
    table_rows[inside] = table.rows(words[max(last - CHUNK, 0) : last])
    count = int(inside.sum())
    numbers[inside] = np.arange(count)
    both = ((table_rows, table_rows), (numbers, numbers), (begins, ends))
    arrays = (np.stack([f, b[::-1]], axis=1)[..., None] for f, b in both)
    return RowPlan(*arrays), count


def _one_direction(state: LstmState, number: int) -> LstmState:
    return jax.tree.map(lambda leaf: leaf[:, number : number + 1], state)


@jax.jit
def _both_directions(forward: LstmState, backward: LstmState) -> LstmState:
    return jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), forward, backward)


@jax.jit
@automatic
def _backward_state(
    params: ElmoParams, table: Array, state: LstmState, plan: RowPlan
) -> LstmState:
    """The backward direction's state after a chunk; states have one direction here."""
    lstm = jax.tree.map(lambda leaf: leaf[1:], params.lstm)
    start = jax.tree.map(lambda leaf: leaf[:, 1:], params.initial_state)
    starts = Reset(plan.begins[:, 1:], start)
    apply: Any = BiLM(params.config, directions=1).apply
    read = {"params": {"lstm": lstm}}, table[plan.table_rows[:, 1:]], state
    return apply(*read, reset=starts, method="contextualize")[1]

"""The device side of embedding: sentences through the LSTM, in programs of few shapes.

Nothing here waits for the device.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.embedding.devices import on_each
from elmojax.embedding.plan import Plan, windows
from elmojax.errors import InputError
from elmojax.model import bilm
from elmojax.model.bilm import BiLM, ElmoParams
from elmojax.model.lstm import Reset
from elmojax.model.state import LstmState
from elmojax.model.varying import automatic
from elmojax.shapes import Numbers

Select = Literal["all", "top", "mix"]
Dtype = Literal["float32", "float16", "bfloat16"]

WHOLE: P = P()
WORDS: P = P("data")
ROWS: P = P(None, None, "data")
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
    for name, value, known in (("layers", layers, Select), ("dtype", dtype, Dtype)):
        if value not in get_args(known):
            choices = ", ".join(get_args(known))
            raise InputError(f"{name} is {value!r}; it must be one of {choices}.")
    if (layers == "mix") != (gammas is not None):
        raise InputError("gammas belong to layers 'mix': give both or neither.")
    if gammas is not None:
        gammas, wanted = jnp.asarray(gammas, jnp.float32), params.config.lstm.layers + 1
        if gammas.shape != (wanted,):
            raise InputError(
                f"This model mixes {wanted} layers, so there must be {wanted} gammas; "
                f"they have shape {gammas.shape}."
            )
    return Selection(layers, gammas, dtype)


def run_batch(
    params: ElmoParams,
    table: Array,
    plan: Plan,
    words: int,
    selection: Selection,
    mesh: Mesh | None = None,
) -> Array:
    """Vectors of a batch by number in the plan: [words, layers + 1, vector], or
    [words, vector] of one mix or the top; 0 past the words of the batch.

    On a mesh each device has rows of the plan, and the words in them: the result is
    [devices * words, ...], and nothing of it travels.
    """
    steps, _, rows = plan.words.shape
    layers = selection.layers
    if mesh is not None:
        rows //= mesh.size
    kept, state = begin(params, words, rows, layers, selection.dtype, mesh)
    for cut in windows(steps):
        part = Plan(*(array[cut] for array in plan))
        if mesh is not None:
            part = jax.device_put(part, NamedSharding(mesh, ROWS))
        kept, state = run(
            params,
            table,
            kept,
            state,
            part,
            selection.gammas,
            layers=layers,
            mesh=mesh,
        )
    return finish(kept, mesh)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def begin(
    params: ElmoParams,
    words: int,
    rows: int,
    layers: Select,
    dtype: Dtype,
    mesh: Mesh | None = None,
) -> tuple[Array, LstmState]:
    """Room for the vectors of `words` words, and the state of `rows` rows; on a mesh
    for so many on each device."""
    config = params.config.lstm
    axes = (config.layers + 1,) if layers == "all" else ()

    def make() -> tuple[Array, LstmState]:
        kept = jnp.zeros((words, *axes, 2, config.projection), dtype)
        return kept, params.initial_state.for_batch(rows)

    return on_each(mesh, make, (), (WORDS, ROWS))()


@partial(jax.jit, static_argnames=("layers", "mesh"), donate_argnames=("kept", "state"))
def run(
    params: ElmoParams,
    table: Array,
    kept: Array,
    state: LstmState,
    plan: Plan,
    gammas: Array | None,
    *,
    layers: Select,
    mesh: Mesh | None = None,
) -> tuple[Array, LstmState]:
    """Some steps of all rows: their vectors go to their places in `kept`."""
    takes = (WHOLE, WHOLE, WORDS, ROWS, ROWS, WHOLE)
    some = on_each(mesh, automatic(partial(_run, layers=layers)), takes, (WORDS, ROWS))
    return some(params, table, kept, state, plan, gammas)


def _run(
    params: ElmoParams,
    table: Array,
    kept: Array,
    state: LstmState,
    plan: Plan,
    gammas: Array | None,
    *,
    layers: Select,
) -> tuple[Array, LstmState]:
    words = table[plan.words]
    reset = Reset(plan.begins, params.initial_state)
    outputs, state = bilm.contextualize(
        BiLM(params.config), params.tree, words, state, reset=reset
    )
    if layers == "top":
        vectors = outputs[-1]
    else:
        vectors = jnp.concatenate([words[None], outputs])
        if gammas is None:
            vectors = jnp.moveaxis(vectors, 0, 3)  # time, two, rows, layers, projection
        else:
            vectors = jnp.einsum("k,k...->...", gammas, vectors, precision="highest")
    vectors = vectors.astype(kept.dtype)
    for direction in (0, 1):
        place = plan.target[:, direction]
        kept = kept.at[place, ..., direction, :].set(vectors[:, direction], mode="drop")
    return kept, state


@partial(jax.jit, donate_argnums=0, static_argnums=1)
def finish(kept: Array, mesh: Mesh | None = None) -> Array:
    """[words, ..., two, projection] -> [words, ..., vector]."""

    def join(kept: Array) -> Array:
        return kept.reshape(*kept.shape[:-2], -1)

    return on_each(mesh, join, WORDS, WORDS)(kept)

"""The device side of embedding: sentences through the LSTM, in programs of few shapes.

Nothing here waits for the device.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

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
    params: ElmoParams, table: Array, plan: Plan, words: int, selection: Selection
) -> Array:
    """Vectors of a batch by number in the plan: [words, layers + 1, vector], or
    [words, vector] of one mix or the top; 0 past the words of the batch."""
    steps, _, rows = plan.words.shape
    kept, state = begin(params, words, rows, selection.layers, selection.dtype)
    for cut in windows(steps):
        part = Plan(*(array[cut] for array in plan))
        kept, state = run(
            params, table, kept, state, part, selection.gammas, layers=selection.layers
        )
    return finish(kept)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def begin(
    params: ElmoParams, words: int, rows: int, layers: Select, dtype: Dtype
) -> tuple[Array, LstmState]:
    """Room for the vectors of `words` words, and the state of `rows` rows."""
    config = params.config.lstm
    axes = (config.layers + 1,) if layers == "all" else ()
    kept = jnp.zeros((words, *axes, 2, config.projection), dtype)
    return kept, params.initial_state.for_batch(rows)


@partial(jax.jit, static_argnames="layers", donate_argnames=("kept", "state"))
@automatic
def run(
    params: ElmoParams,
    table: Array,
    kept: Array,
    state: LstmState,
    plan: Plan,
    gammas: Array | None,
    *,
    layers: Select,
) -> tuple[Array, LstmState]:
    """Some steps of all rows: their vectors go to their places in `kept`."""
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


@partial(jax.jit, donate_argnums=0)
def finish(kept: Array) -> Array:
    """[words, ..., two, projection] -> [words, ..., vector]."""
    return kept.reshape(*kept.shape[:-2], -1)

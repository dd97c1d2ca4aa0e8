"""The converged LSTM state: the start that vectors settle to when text goes on.

The published models were trained with a state that is carried from sentence to sentence
and never reset, so their first sentences after zeros differ from the rest. Reading the
same text again and again, the state converges; starting every sentence from where it
converged to gives vectors of the carried kind that depend on the sentence alone.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from elmojax.config import CharCnnConfig
from elmojax.embedding.functions import check_tokens, encode
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams
from elmojax.model.casting import cast
from elmojax.model.state import LstmState
from elmojax.model.varying import automatic
from elmojax.shapes import Tokens


def warm(
    params: ElmoParams,
    tokens: Tokens | None = None,
    *,
    tolerance: float = 1e-4,
    limit: int = 10_000,
) -> ElmoParams:
    """Parameters whose initial state is the converged one.

    Args:
      params: from `init`, `restore` or `load`.
      tokens: sentences to read over and over, [batch, time, ...] as `encode` takes
        them, one after the other; None = an empty sentence, its two marks alone.
      tolerance: largest change of any number of the state, from one reading of the
        whole text to the next, that counts as converged.
      limit: readings after which to give up.

    Returns:
      `params` with `initial_state` set; the same text gives the same state. It is read
      in float32, whatever the precision of `params`.

    Raises:
      InputError: if `tokens` do not fit the model, or the state still changes by more
        than `tolerance` after `limit` readings.
    """
    if tokens is None:
        encoder = params.config.encoder
        columns = encoder.max_characters if isinstance(encoder, CharCnnConfig) else None
        shape = (1, 1) if columns is None else (1, 1, columns)
        tokens = jnp.zeros(shape, jnp.int32)
    check_tokens(params.config, tokens)
    # Products in bfloat16 would leave the state moving by more than the tolerance.
    exact, read = cast(params, "float32"), jax.jit(automatic(_read))
    state, change = LstmState.zeros(params.config.lstm, 1), float("inf")
    for _ in range(limit):
        state, difference = read(exact, jnp.asarray(tokens), state)
        change = float(difference)
        if change <= tolerance:
            start = LstmState(state.cell[:, :, 0], state.hidden[:, :, 0])
            return replace(params, initial_state=start)
    raise InputError(
        f"The LSTM state still changes by {change:.1e} after {limit} readings, more "
        f"than the tolerance of {tolerance:.1e}; raise the tolerance or the limit."
    )


def _read(
    params: ElmoParams, tokens: Array, state: LstmState
) -> tuple[LstmState, Array]:
    """The state after all sentences, and its largest difference from before."""

    def sentence(state: LstmState, tokens: Array) -> tuple[LstmState, None]:
        return encode(params, tokens[None], state).state, None

    after, _ = jax.lax.scan(sentence, state, tokens)
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), after, state)
    return after, jnp.maximum(differences.cell, differences.hidden)

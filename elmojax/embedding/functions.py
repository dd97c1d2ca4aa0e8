"""`encode` and `embed`: pure functions from parameters and token ids to vectors.

`warm` gives them another start. The published models were trained with a state that is
carried from sentence to sentence and never reset, so their first sentences after zeros
differ from the rest. Read again and again, the same text makes the state converge;
starting every sentence from where it converged to gives vectors of the carried kind
that depend on the sentence alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P

from elmojax.arguments import checked
from elmojax.config import (
    CharCnnConfig,
    EncoderConfig,
    LstmConfig,
    WordTableConfig,
)
from elmojax.embedding.tokens import checked_tokens, mark_ids
from elmojax.errors import InputError
from elmojax.model.bilm import BiLM, ElmoParams
from elmojax.model.lstm import LstmState
from elmojax.model.ops import (
    automatic,
    cast,
    outside_meshes,
    require_own_process,
    varying_as,
)
from elmojax.shapes import Layers, Mask, Mix, Numbers, Tokens


class Encoded(NamedTuple):
    """All layers of a batch, the words they belong to, and the state to carry on."""

    layers: Layers
    """[batch, layers + 1, time, vector]; exactly 0 past the end of a sentence."""
    mask: Mask
    """[batch, time], True where there is a word."""
    state: LstmState


@checked
def encode(
    params: ElmoParams,
    tokens: Tokens,
    state: LstmState | None = None,
    sentence_marks: bool = False,
) -> Encoded:
    """All layers of the biLM for a batch of sentences (Peters et al. 2018, eq. 1).

    Args:
      params: from `init`, `restore` or `load`.
      tokens: int32 [batch, time, characters] as `batch_to_ids(sentences,
        params.config.encoder.max_characters)` makes them (50 unless told otherwise);
        padding is 0 and comes after the words. For a model with a word table, word ids
        [batch, time], 0 = padding; for one of ELMoForManyLangs, what `unicode_ids`
        makes.
      state: LSTM state to start from, as an earlier call returned it; None =
        params.initial_state. A batch may have other sizes than the one before, as
        in bilm-tf and AllenNLP: rows beyond a smaller batch keep their state, rows
        that the state lacks start from params.initial_state.
      sentence_marks: keep `<S>` and `</S>`: two positions more in layers and mask.

    Returns:
      Encoded. Layer 0 is the token layer twice, [x; x]; layer j is [forward_j;
      backward_j]. `<S>` and `</S>` are added inside and removed from the result.
      Positions past a sentence's end are exactly zero. All of it is split over
      devices as the sentences of `tokens` are.

    An id that the model has no row for (below 0, above 261 for characters, past a word
    table) gives NaN in the vectors of its sentence, and so does padding between words.

    Raises:
      InputError: if `tokens` or `state` do not fit the model, or `tokens` hold `<S>`
        and `</S>` already.
    """
    require_own_process()
    tokens = checked_tokens(params.config, tokens)
    return Encoded(*_read_tokens(params, tokens, state, None, sentence_marks))


@partial(jax.jit, static_argnums=4)
def _read_tokens(
    params: ElmoParams,
    tokens: Array,
    state: LstmState | None,
    gammas: Array | None,
    marks: bool,
) -> Read:
    mask = tokens != 0 if tokens.ndim == 2 else (tokens != 0).any(axis=-1)
    words = encode_words(params, tokens)
    return _read_words(params, words, mask, state, gammas, marks)


@checked
@jax.jit
def encode_words(params: ElmoParams, words: Tokens) -> Array:
    """Vectors of words, each by itself: the token layer, before any context.

    Args:
      params: from `init`, `restore` or `load`.
      words: int32 [..., characters], or word ids [...] for a model with a word table,
        as `encode` takes them; what stands at id 0 means nothing.

    Returns:
      float32 [..., projection], split over devices as `words` are; NaN for a word with
      an id that the model has no row for.

    Raises:
      InputError: if `words` do not fit the model.
    """
    words, encoder = jnp.asarray(words), params.config.encoder
    characters = len(encoder.id_shape)
    if not words.ndim >= characters or not jnp.issubdtype(words.dtype, jnp.integer):
        raise InputError(
            f"words are {words.dtype} of shape {words.shape}; give int32 ids."
        )
    if jnp.iinfo(words.dtype).bits < 32:
        words = words.astype(jnp.int32)
    split = jax.typeof(words).sharding.spec
    as_words = P(*split[: words.ndim - characters])

    def run(params: ElmoParams, words: Array) -> Array:
        apply: Any = partial(BiLM(params.config).apply, method="encode_words")
        vectors = apply({"params": params.tree}, words)
        # Not in the encoder itself, which would look up another row: training has ids
        # of its own making, and need not look at them.
        return jnp.where(_known(encoder, words)[..., None], vectors, jnp.nan)

    return automatic(run, as_words)(params, words)


def _known(encoder: EncoderConfig, ids: Array) -> Array:
    """Whether the model has rows for all ids of a word."""
    if isinstance(encoder, WordTableConfig):
        return (ids >= 0) & (ids <= encoder.size)
    if isinstance(encoder, CharCnnConfig):
        return ((ids >= 0) & (ids <= encoder.characters)).all(axis=-1)
    word, letters = ids[..., 0] <= len(encoder.words), ids[..., 1:]
    known = (letters <= len(encoder.alphabet)).all(axis=-1)
    return word & known & (ids >= 0).all(axis=-1)


@checked
@partial(jax.jit, static_argnums=4)
def contextualize(
    params: ElmoParams,
    words: Array,
    mask: Mask,
    state: LstmState | None = None,
    sentence_marks: bool = False,
) -> Encoded:
    """The rest of `encode`, from the vectors of words on: for vectors of your own.

    `encode(params, tokens)` is `contextualize(params, encode_words(params, tokens),
    mask)`, and the gradient by `words` says what each word contributes.

    Args:
      params: from `init`, `restore` or `load`.
      words: float [batch, time, projection]; `<S>` and `</S>` are added.
      mask: bool [batch, time], True where there is a word; words come first.
      state: as for `encode`.
      sentence_marks: as for `encode`.

    Returns:
      Encoded, as from `encode`.

    Raises:
      InputError: if `words`, `mask` or `state` have another shape.
    """
    words, mask = jnp.asarray(words), jnp.asarray(mask).astype(bool)
    return Encoded(*_read_words(params, words, mask, state, None, sentence_marks))


Read: TypeAlias = tuple[Array, Mask, LstmState]
"""Vectors, mask and state: the layers, as in `Encoded`, or where gammas [mixes, layers
+ 1] are given their mixes, [batch, mixes, time, vector]."""


def _read_words(
    params: ElmoParams,
    words: Array,
    mask: Mask,
    state: LstmState | None,
    gammas: Array | None,
    marks: bool,
) -> Read:
    _check_shapes(params.config.lstm, words, mask, state)
    split = jax.typeof(words).sharding.spec[0]
    by_sentence, of_state = P(split), P(None, None, split)
    batch = words.shape[0]
    if state is not None and state.cell.ndim == 4 and state.cell.shape[2] > batch:
        of_state = P()  # of more rows, which need not be split evenly
    run = partial(_run_bilm, marks=marks)
    specs = (by_sentence, by_sentence, of_state)
    return automatic(run, specs)(params, words, mask, state, gammas)


def _run_bilm(
    params: ElmoParams,
    words: Array,
    mask: Mask,
    state: LstmState | None,
    gammas: Array | None,
    marks: bool,
) -> Read:
    batch, lengths = mask.shape[0], mask.sum(axis=1, dtype=jnp.int32) + 2
    time = jnp.arange(words.shape[1] + 2, dtype=jnp.int32)[None]
    valid, last = time < lengths[:, None], time == lengths[:, None] - 1
    begin, end = encode_words(params, mark_ids(params.config))
    # Not `.at[:, 0].set(begin)`: jax 0.10 on a CPU writes that to a wrong place where
    # the axis of time is split over devices.
    words = jnp.pad(words.astype(jnp.float32), ((0, 0), (1, 1), (0, 0)))
    words = jnp.where(
        last[..., None], end, jnp.where((time == 0)[..., None], begin, words)
    )
    words = jnp.where(valid[..., None], words, 0.0)
    torn = (mask != (time[:, 2:] < lengths[:, None])).any(axis=1)
    words = jnp.where(torn[:, None, None], jnp.nan, words)
    flip = jnp.where(valid, lengths[:, None] - 1 - time, time)[..., None]
    inputs = jnp.stack([words, jnp.take_along_axis(words, flip, axis=1)])
    first = params.initial_state
    if state is not None:  # float32 whatever the weights are
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state)
    before = (first if state is None else state).for_batch(batch, first)
    before = jax.tree.map(partial(varying_as, inputs), before)
    apply: Any = partial(BiLM(params.config).apply, method="contextualize")
    inputs = inputs.transpose(2, 0, 1, 3)
    outputs, after = apply({"params": params.tree}, inputs, before, lengths)
    if state is not None and state.cell.ndim == 4:  # rows beyond a smaller batch stay
        rest = jax.tree.map(lambda leaf: leaf[:, :, batch:], state)
        after = after.joined(rest)
    vectors = jnp.concatenate([inputs[None], outputs])
    if gammas is not None:  # mixed first, so that there is less to put in order
        # Not a matrix product, which rounds: a one-hot gamma picks a layer exactly.
        weights = gammas.T[..., None, None, None, None]
        vectors = reduce(jnp.add, map(jnp.multiply, weights, vectors[:, None]))
    # To layers (or mixes), two, batch, time, projection.
    vectors = vectors.transpose(0, 2, 3, 1, 4)
    backward = jnp.take_along_axis(vectors[:, 1], flip[None], axis=2)
    vectors = jnp.concatenate([vectors[:, 0], backward], axis=-1).swapaxes(0, 1)
    if marks:
        mask = valid
    else:
        vectors = vectors[:, :, 1:-1]
    return jnp.where(mask[:, None, :, None], vectors, 0.0), mask, after


@checked
def embed(
    params: ElmoParams, tokens: Tokens, gammas: Numbers, bias: Numbers = 0.0
) -> Mix:
    """ELMo_k = sum_j gammas_j * h_(k,j) + bias: one vector a word.

    Pure: under `jax.jit`, `vmap`, `grad` (in params and in gammas), `jax.export`,
    `shard_map` and any sharding on mesh axes of any type, with no globals. Forward mode
    (`jvp`, `jacfwd`, `hessian`) works in gammas and bias, not in params, whose parts
    have gradients of their own. The same sentence gives the same vectors in any batch,
    order and padding.

    Args:
      params: from `init`, `restore` or `load`.
      tokens: as for `encode`: int32 [batch, time, characters] of `batch_to_ids`.
      gammas: [layers + 1], or [mixes, layers + 1] for several mixes at once. The
        paper's gamma * softmax(s) is `mix_weights(s, gamma)`.
      bias: added to every vector (a number, or one a mix).

    Returns:
      [batch, time, 2 * projection], or [mixes, batch, time, 2 * projection], split
      over devices as the sentences are. Padding positions hold `bias`.

    Raises:
      InputError: if `tokens` or `gammas` do not fit the model, or the sentences hold
        `<S>` and `</S>` already.
    """
    gammas = jnp.asarray(gammas, jnp.float32)
    wanted = params.config.lstm.layers + 1
    if gammas.ndim not in (1, 2) or gammas.shape[-1] != wanted:
        raise InputError(
            f"gammas have shape {gammas.shape}; this model mixes {wanted} layers, so "
            f"give [{wanted}] or [mixes, {wanted}]."
        )
    bias = jnp.asarray(bias, jnp.float32)
    if bias.ndim and bias.shape != gammas.shape[:-1]:
        raise InputError(
            f"bias has shape {bias.shape} and gammas {gammas.shape}; give one number, "
            "or one a mix."
        )
    require_own_process()
    tokens = checked_tokens(params.config, tokens)
    mixes, _, _ = _read_tokens(params, tokens, None, jnp.atleast_2d(gammas), False)
    mixes = mixes[:, 0] if gammas.ndim == 1 else mixes.swapaxes(0, 1)
    return mixes + jnp.broadcast_to(bias, gammas.shape[:-1])[..., None, None, None]


def _check_shapes(
    lstm: LstmConfig, words: Array, mask: Array, state: LstmState | None
) -> None:
    wanted = f"[batch, time, {lstm.projection}]"
    if words.ndim != 3 or words.shape[2] != lstm.projection:
        raise InputError(f"words have shape {words.shape}; this model takes {wanted}.")
    if mask.shape != words.shape[:2]:
        raise InputError(
            f"mask has shape {mask.shape} and words {words.shape}; give [batch, time]."
        )
    if state is None:
        return
    cell, hidden = np.shape(state.cell), np.shape(state.hidden)
    rows = cell[2:-1]
    if len(rows) > 1 or (cell, hidden) != tuple(
        (lstm.layers, 2, *rows, size) for size in (lstm.dim, lstm.projection)
    ):
        raise InputError(
            f"state has cells {cell} and hidden {hidden}; this model takes "
            f"[{lstm.layers}, 2, batch, {lstm.dim}] and [{lstm.layers}, 2, batch, "
            f"{lstm.projection}], as it returns them."
        )


@checked
@outside_meshes
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
        tokens = jnp.zeros((1, 1, *params.config.encoder.id_shape), jnp.int32)
    tokens = checked_tokens(params.config, tokens)
    # Products in bfloat16 would leave the state moving by more than the tolerance.
    exact, read = cast(params, "float32"), jax.jit(automatic(_last_state))
    state, change = LstmState.zeros(params.config.lstm, 1), float("inf")
    for _ in range(limit):
        state, difference = read(exact, tokens, state)
        change = float(difference)
        if change <= tolerance:
            start = LstmState(state.cell[:, :, 0], state.hidden[:, :, 0])
            return replace(params, initial_state=start)
    raise InputError(
        f"The LSTM state still changes by {change:.1e} after {limit} readings, more "
        f"than the tolerance of {tolerance:.1e}; raise the tolerance or the limit."
    )


def _last_state(
    params: ElmoParams, tokens: Array, state: LstmState
) -> tuple[LstmState, Array]:
    """The state after all sentences, and its largest difference from before."""

    def sentence(state: LstmState, tokens: Array) -> tuple[LstmState, None]:
        return encode(params, tokens[None], state).state, None

    after, _ = jax.lax.scan(sentence, state, tokens)
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), after, state)
    return after, jnp.maximum(differences.cell, differences.hidden)

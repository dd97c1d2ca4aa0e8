"""`encode` and `embed`: pure functions from parameters and token ids to vectors."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from elmojax.config import CharCnnConfig, ElmoConfig
from elmojax.model import bilm
from elmojax.model.bilm import BiLM, ElmoParams
from elmojax.model.lstm import LstmState
from elmojax.model.mix import mix_layers
from elmojax.model.varying import varying_as
from elmojax.shapes import Layers, Mask, Mix, Numbers, Tokens

BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, PADDING = 257, 258, 259, 260, 261
"""Character ids of the published mapping, all + 1 because 0 means no token."""


class Encoded(NamedTuple):
    """All layers of a batch, the words they belong to, and the state to carry on."""

    layers: Layers
    """[batch, layers + 1, time, vector]; exactly 0 past the end of a sentence."""
    mask: Mask
    """[batch, time], True where there is a word."""
    state: LstmState


def encode(
    params: ElmoParams,
    tokens: Tokens,
    state: LstmState | None = None,
    sentence_marks: bool = False,
) -> Encoded:
    """All layers of the biLM for a batch of sentences (Peters et al. 2018, eq. 1).

    Args:
      params: from `init`, `restore` or `load`.
      tokens: int32 [batch, time, characters] as `batch_to_ids` makes them; padding is
        0 and comes after the words. For a model with a word table, word ids
        [batch, time], 0 = padding.
      state: LSTM state to start from, as an earlier call returned it; None =
        params.initial_state. A batch may have other sizes than the one before, as
        in bilm-tf and AllenNLP: rows beyond a smaller batch keep their state, rows
        that the state lacks start from params.initial_state.
      sentence_marks: keep `<S>` and `</S>`: two positions more in layers and mask.

    Returns:
      Encoded. Layer 0 is the token layer twice, [x; x]; layer j is [forward_j;
      backward_j]. `<S>` and `</S>` are added inside and removed from the result.
      Positions past a sentence's end are exactly zero.

    Raises:
      ValueError: if the shape of `tokens` does not fit the model.
    """
    tokens = jnp.asarray(tokens)
    _check(params.config, tokens)
    return _encode(params, tokens, state, sentence_marks)


@partial(jax.jit, static_argnums=3)
def _encode(
    params: ElmoParams, tokens: Array, state: LstmState | None, marks: bool
) -> Encoded:
    mask = tokens > 0 if tokens.ndim == 2 else (tokens > 0).any(axis=-1)
    marked = _with_marks(params.config, tokens, mask.sum(axis=1) + 2)
    return contextualize(params, encode_words(params, marked), mask, state, marks)


def encode_words(params: ElmoParams, words: Tokens) -> Array:
    """Ids of words, [..., characters] or [...], to vectors [..., projection]."""
    return bilm.encode_words(BiLM(params.config), params.tree, jnp.asarray(words))


def contextualize(
    params: ElmoParams,
    words: Array,
    mask: Mask,
    state: LstmState | None = None,
    sentence_marks: bool = False,
) -> Encoded:
    """The rest of `encode`, from the vectors of words and sentence marks on.

    Args:
      words: [batch, time + 2, projection]: `<S>`, the words, `</S>`, then anything.
      mask: [batch, time], True where there is a word.
    """
    batch, lengths = mask.shape[0], mask.sum(axis=1) + 2
    time = jnp.arange(words.shape[1])[None]
    valid = time < lengths[:, None]
    words = jnp.where(valid[..., None], words, 0.0)
    flip = jnp.where(valid, lengths[:, None] - 1 - time, time)[..., None]
    inputs = jnp.stack([words, jnp.take_along_axis(words, flip, axis=1)])
    first = params.initial_state
    before = (first if state is None else state).for_batch(batch, first)
    before = jax.tree.map(
        lambda leaf: varying_as(inputs, leaf.astype(jnp.float32)), before
    )
    outputs, after = bilm.contextualize(
        BiLM(params.config),
        params.tree,
        inputs.transpose(2, 0, 1, 3),
        before,
        valid.T,
    )
    if state is not None and state.cell.ndim == 4:  # rows beyond a smaller batch stay
        rest = jax.tree.map(lambda leaf: leaf[:, :, batch:], state)
        after = after.joined(rest)
    outputs = outputs.transpose(0, 2, 3, 1, 4)  # layers, two, batch, time, projection
    backward = jnp.take_along_axis(outputs[:, 1], flip[None], axis=2)
    contextual = jnp.concatenate([outputs[:, 0], backward], axis=-1)
    token_layer = jnp.concatenate([words, words], axis=-1)
    layers = jnp.concatenate([token_layer[None], contextual]).swapaxes(0, 1)
    if sentence_marks:
        mask = valid
    else:
        layers = layers[:, :, 1:-1]
    layers = jnp.where(mask[:, None, :, None], layers, 0.0)
    return Encoded(layers, mask, after)


def embed(
    params: ElmoParams, tokens: Tokens, gammas: Numbers, bias: Numbers = 0.0
) -> Mix:
    """ELMo_k = sum_j gammas_j * h_(k,j) + bias: one vector a word.

    Pure: under `jax.jit`, `vmap`, `grad` (in params and in gammas), `jax.export` and
    any sharding, with no globals. The same sentence gives the same vectors in any
    batch, order and padding.

    Args:
      params: from `init`, `restore` or `load`.
      tokens: int32 [batch, time, characters] as `batch_to_ids` makes them.
      gammas: [layers + 1], or [mixes, layers + 1] for several mixes at once. The
        paper's gamma * softmax(s) is `mix_weights(s, gamma)`.
      bias: added to every vector (a number, or one a mix).

    Returns:
      [batch, time, 2 * projection], or [mixes, batch, time, 2 * projection]. Padding
      positions hold `bias`.

    Raises:
      ValueError: if the shape of `tokens` or `gammas` does not fit the model.
    """
    gammas = jnp.asarray(gammas, jnp.float32)
    wanted = params.config.lstm.layers + 1
    if gammas.ndim not in (1, 2) or gammas.shape[-1] != wanted:
        raise ValueError(
            f"gammas have shape {gammas.shape}; this model mixes {wanted} layers, so "
            f"give [{wanted}] or [mixes, {wanted}]."
        )
    return mix_layers(encode(params, tokens).layers, gammas, jnp.asarray(bias))


def _check(config: ElmoConfig, tokens: Array) -> None:
    characters = isinstance(config.encoder, CharCnnConfig)
    wanted = "[batch, time, characters]" if characters else "[batch, time]"
    if tokens.ndim != (3 if characters else 2):
        raise ValueError(
            f"tokens have shape {tokens.shape}; this model takes ids {wanted}."
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens are {tokens.dtype}; give int32 ids {wanted}.")
    if not isinstance(config.encoder, CharCnnConfig):
        return
    widest = max(max(width for width, _ in config.encoder.filters), 4)
    if tokens.shape[-1] < widest:
        raise ValueError(
            f"tokens have {tokens.shape[-1]} character columns; the model needs at "
            f"least {widest} (batch_to_ids makes {config.encoder.max_characters})."
        )


def _with_marks(config: ElmoConfig, tokens: Array, lengths: Array) -> Array:
    """Tokens with `<S>` before and `</S>` after each sentence, two positions longer."""
    pad = ((0, 0), (1, 1)) + ((0, 0),) * (tokens.ndim - 2)
    padded = jnp.pad(tokens, pad)
    time = jnp.arange(padded.shape[1])[None]
    ends = time == lengths[:, None] - 1
    if isinstance(config.encoder, CharCnnConfig):
        begin, end = (
            jnp.full(tokens.shape[-1], PADDING, tokens.dtype)
            .at[:3]
            .set(jnp.array([BEGIN_WORD, mark, END_WORD], tokens.dtype))
            for mark in (BEGIN_SENTENCE, END_SENTENCE)
        )
        begin, end, ends = begin[None], end[None, None], ends[..., None]
    else:
        rows = (config.encoder.begin_row, config.encoder.end_row)
        begin, end = jnp.array(rows, tokens.dtype) + 1
    return jnp.where(ends, end, padded.at[:, 0].set(begin))

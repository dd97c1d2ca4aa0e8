"""A biLM with its softmax as a pure function: the loss of a batch of sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P

from elmojax.arguments import checked
from elmojax.embedding.functions import encode
from elmojax.embedding.tokens import as_ids
from elmojax.errors import InputError
from elmojax.model import softmax
from elmojax.model.bilm import ElmoParams
from elmojax.model.ops import automatic
from elmojax.shapes import Params, Tokens
from elmojax.text.characters import padded_ids
from elmojax.text.vocabulary import BEGIN_ID, END_ID, Vocabulary


@flax.struct.dataclass
class LanguageModelParams:
    """A biLM and its softmax, one pytree; `load_language_model` gives it."""

    elmo: ElmoParams
    head: Params
    """Of the softmax: dict of arrays."""


class SentenceLoss(NamedTuple):
    """What a language model gives a batch of sentences, in nats; float32."""

    loss: Array
    """[]: mean of all predictions, of both directions."""
    perplexity: Array
    """[]: exp(loss), the geometric mean of the two directions."""
    forward: Array
    """[batch, time + 1]: -log p of each word after those before it, and that the
    sentence ends after the last; 0 past that."""
    backward: Array
    """[batch, time + 1]: -log p that the sentence begins before its first word, and of
    each word before those after it; 0 past that."""
    mask: Array
    """bool [batch, time + 1]: where there is a prediction."""


@checked
def target_ids(
    vocabulary: Vocabulary, sentences: Iterable[Sequence[str]]
) -> np.ndarray:
    """Vocabulary ids of a batch of tokenised sentences: what `sentence_loss` predicts.

    Returns int32 [batch, time], 2 (`<UNK>`) for a word outside the vocabulary, 0 past
    the end of a sentence. Raises `InputError` for what is no list of words.
    """
    return padded_ids(sentences, vocabulary.ids)


@checked
def sentence_loss(
    params: LanguageModelParams, tokens: Tokens, targets: Tokens
) -> SentenceLoss:
    """The exact loss of a batch of sentences, both directions; pure and differentiable.

    Each sentence is read by itself, from `params.elmo.initial_state`, as
    `elmojax.score` does; any head is evaluated over its whole vocabulary.

    Args:
      params: from `load_language_model`.
      tokens: as for `encode`: int32 [batch, time, characters] of `batch_to_ids`.
      targets: int32 [batch, time]: `target_ids` of the same sentences. An id outside
        the vocabulary gives NaN.

    Raises:
      InputError: if `tokens` do not fit the model, or `targets` do not fit `tokens`.
    """
    targets = as_ids("targets", targets, 2, "[batch, time]")
    if np.shape(targets) != np.shape(tokens)[:2]:
        raise InputError(
            f"targets have shape {np.shape(targets)} and tokens {np.shape(tokens)}; "
            "give target_ids of the sentences that the tokens are of."
        )
    encoded = encode(params.elmo, tokens, sentence_marks=True)
    return _loss(params.head, encoded.layers[:, -1], encoded.mask, targets)


@jax.jit
def _loss(head: Params, top: Array, mask: Array, targets: Array) -> SentenceLoss:
    by_sentence: Any = P(jax.typeof(top).sharding.spec[0])
    replicated: Any = P()
    specs = SentenceLoss(*[replicated] * 2, *[by_sentence] * 3)
    return automatic(_losses, specs)(head, top, mask, targets)


def _losses(head: Params, top: Array, mask: Array, targets: Array) -> SentenceLoss:
    """top [batch, time + 2, vector] and mask [batch, time + 2], with both marks."""
    lengths, here = mask.sum(axis=1, dtype=jnp.int32) - 2, mask[:, 1:]
    forward, backward = jnp.split(top, 2, axis=-1)
    time = jnp.arange(here.shape[1], dtype=jnp.int32)[None]
    last = time == lengths[:, None]
    after = jnp.pad(targets, ((0, 0), (0, 1)))
    after = jnp.where(last, END_ID, after)
    before = jnp.pad(targets, ((0, 0), (1, 0)), constant_values=BEGIN_ID)
    both = [(forward[:, :-1], after), (backward[:, 1:], before)]
    losses = [_nll(head, x, jnp.where(here, target, 0)) for x, target in both]
    losses = [jnp.where(here, each, 0.0) for each in losses]
    total = jnp.maximum(2 * here.sum(dtype=jnp.float32), 1)
    loss = sum(each.sum() for each in losses) / total
    return SentenceLoss(loss, jnp.exp(loss), losses[0], losses[1], here)


def _nll(head: Params, top: Array, targets: Array) -> Array:
    flat = partial(jnp.reshape, shape=(-1, top.shape[-1]))
    log_probs = softmax.log_prob(head, flat(top), targets.reshape(-1))
    return -log_probs.reshape(targets.shape)

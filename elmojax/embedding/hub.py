"""The outputs of TF-Hub's ELMo module under its names, for code written for it.

https://tfhub.dev/google/elmo/3 has two signatures, "default" (strings) and "tokens"
(padded words and their counts), which give the same dictionary. `hub_default` and
`hub_tokens` stand in for a call of each; the model is whatever `params` hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from elmojax.arguments import checked, sentence_lists, shown
from elmojax.config import CharCnnConfig
from elmojax.embedding.functions import encode
from elmojax.embedding.pooling import pool
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams
from elmojax.model.mix import mix_layers
from elmojax.shapes import Numbers
from elmojax.text.characters import batch_to_ids


@checked
def hub_default(
    params: ElmoParams,
    sentences: Iterable[str],
    *,
    gammas: Numbers | None = None,
) -> dict[str, Array]:
    """Stands in for `elmo(sentences, signature="default", as_dict=True)` of TF-Hub.

    Args:
      params: a model that reads characters.
      sentences: strings [batch], split on spaces; runs of spaces count as one. No
        other tokenisation: "bank." is one word.
      gammas: weights of the layers [layers + 1], as `embed` takes them; None = their
        mean. Those of a module itself are `hub_mix(module)`.

    Returns:
      A dictionary of float32 arrays; max_len is the words of the longest sentence:

      - word_emb [batch, max_len, projection]: the token layer, not doubled as in
        `encode` (512 wide for the published model);
      - lstm_outputs1, lstm_outputs2, and so on for each LSTM layer
        [batch, max_len, 2 * projection]: [forward; backward];
      - elmo [batch, max_len, 2 * projection]: the layers weighted by `gammas`;
      - default [batch, 2 * projection]: the mean of `elmo` over the words of a
        sentence.

      All are 0 past the end of a sentence, and `default` is 0 for one without words.
      Every sentence starts from `params.initial_state`.

    Raises:
      InputError: if `sentences` are not a sequence of strings, `gammas` do not fit, or
        the model reads word ids.
    """
    batch = []
    for row, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise InputError(
                f"Sentence {row} is {shown(sentence)}; hub_default takes strings "
                "(hub_tokens takes lists of words)."
            )
        batch.append([word for word in sentence.split(" ") if word])
    return _outputs(params, batch, max(map(len, batch), default=0), gammas)


@checked
def hub_tokens(
    params: ElmoParams,
    tokens: Iterable[Sequence[str]],
    sequence_len: ArrayLike | Sequence[int],
    *,
    gammas: Numbers | None = None,
) -> dict[str, Array]:
    """Stands in for `elmo(inputs={"tokens": ..., "sequence_len": ...},
    signature="tokens", as_dict=True)` of TF-Hub.

    Args:
      params: a model that reads characters.
      tokens: words [batch, max_len], padded with anything (TF-Hub's example has "").
        Rows of different lengths are padded here; max_len is the longest.
      sequence_len: integers [batch], words of each sentence; what stands after them is
        not read. An empty string before is a word of no letters.
      gammas: as for `hub_default`.

    Returns:
      The dictionary of `hub_default`, max_len wide whatever `sequence_len`.

    Raises:
      InputError: if `tokens` are not lists of strings, `sequence_len` does not fit
        them, `gammas` do not fit, or the model reads word ids.
    """
    rows = list(sentence_lists(tokens))
    lengths = _lengths(sequence_len, [len(words) for words in rows])
    batch = [words[:n] for words, n in zip(rows, lengths, strict=True)]
    return _outputs(params, batch, max(map(len, rows), default=0), gammas)


def _lengths(sequence_len: ArrayLike | Sequence[int], widths: list[int]) -> list[int]:
    lengths = np.asarray(sequence_len)
    if lengths.shape != (len(widths),):
        raise InputError(
            f"sequence_len has shape {lengths.shape}; give one number a row of tokens, "
            f"[{len(widths)}]."
        )
    if lengths.size and lengths.dtype.kind not in "iu":
        raise InputError(f"sequence_len is {lengths.dtype}; give integers.")
    for row, (length, width) in enumerate(zip(lengths.tolist(), widths, strict=True)):
        if not 0 <= length <= width:
            raise InputError(
                f"sequence_len is {length} in row {row}, where tokens have {width}; "
                f"give 0 to {width}."
            )
    return [int(length) for length in lengths]


def _outputs(
    params: ElmoParams, batch: list[list[str]], max_len: int, gammas: Numbers | None
) -> dict[str, Array]:
    encoder, lstm = params.config.encoder, params.config.lstm
    if not isinstance(encoder, CharCnnConfig):
        raise InputError(
            "This model reads ids of words, TF-Hub's module bytes; take `encode` with "
            "`word_ids` or `unicode_ids`, or the model before `cache_words`."
        )
    count = lstm.layers + 1
    mix = jnp.asarray([1 / count] * count if gammas is None else gammas, jnp.float32)
    if mix.shape != (count,):
        raise InputError(f"gammas have shape {mix.shape}; give [{count}], one a layer.")
    ids = batch_to_ids(batch, encoder.max_characters)
    ids = np.pad(ids, ((0, 0), (0, max_len - ids.shape[1]), (0, 0)))
    layers, mask, _ = encode(params, ids)
    elmo = mix_layers(layers, mix)
    return {
        "word_emb": layers[:, 0, :, : lstm.projection],
        **{f"lstm_outputs{j}": layers[:, j] for j in range(1, count)},
        "elmo": elmo,
        "default": pool(elmo, mask, "mean"),
    }

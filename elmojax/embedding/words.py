"""Vectors of distinct words: encoded once, kept, and addressed by number.

The character CNN sees a word, never its sentence, so its vectors can be kept:
`EncodedWords` on the device for the words that come along, as long as they fit;
`cache_words` for a fixed list (AllenNLP's `vocab_to_cache`, bilm-tf's token
embeddings). Ids of such a list are those of bilm-tf's `TokenBatcher`: a word's place in
the list + 1, and 0 for no word.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.arguments import checked, require, sentence_words
from elmojax.config import EncoderConfig, WordTableConfig
from elmojax.embedding.functions import encode_words
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams
from elmojax.model.ops import automatic, outside_meshes, per_device, replicated
from elmojax.text.characters import BEGIN, END, encoder_ids, narrow_columns, padded_ids
from elmojax.text.vocabulary import SPECIALS, Vocabulary, listed_words

BLOCKS = (512, 64, 16)
"""Words that go through the encoder of a device at once; new words are cut into these
sizes."""
SHORT_WORD = 17
"""Characters, marks included, of words that are encoded in fewer columns."""
BYTES = (64 << 20, 1 << 30)
"""Device memory of the table, at least and at most."""
SHARE = 32
"""Between these, it takes one part in so many of what JAX may use of a device."""
MARKS = SPECIALS[:2]
"""`<S>` and `</S>`: always rows 0 and 1."""


class EncodedWords:
    """Rows of vectors for words as they come; full, it is emptied and begins again.

    Which row a word gets, and with which others it is encoded, depends only on the
    words asked for since the beginning. Encoding waits until the vectors are needed,
    so that a text can be passed over quickly and gone on with exactly.

    On a mesh every device has all rows, and encodes its share of the new words.
    """

    def __init__(
        self,
        params: ElmoParams,
        vocabulary: Vocabulary | WordIndex | None,
        batch_words: int,
        mesh: Mesh | None = None,
    ) -> None:
        """`vocabulary` is for models that read word ids; `batch_words` is the most
        distinct words of one call of `rows`; `mesh` is of `data` alone."""
        self._params, self._vocabulary, self._mesh = params, vocabulary, mesh
        devices = 1 if mesh is None else mesh.size
        self._blocks = tuple(devices * size for size in BLOCKS)
        self._columns = _short_columns(params.config.encoder)
        width = params.config.lstm.projection
        fitting = _table_bytes() // (4 * width)
        self._capacity = max(fitting, batch_words + len(MARKS))
        spare = self._blocks[-1]  # of the last, which may reach past the last word
        shape = (self._capacity + spare, width)
        self._vectors = jnp.zeros(shape, jnp.float32, device=replicated(mesh))
        self._clear()

    def _clear(self) -> None:
        self._rows: dict[str, int] = {}
        self._pending: list[tuple[int, list[str], int | None]] = []
        self._add(list(MARKS))

    def rows(self, words: Sequence[str]) -> np.ndarray:
        """The row of each word, int32 [words]; valid until the next call."""
        distinct = dict.fromkeys(words)
        new = sum(word not in self._rows for word in distinct)
        if len(self._rows) + new > self._capacity:
            self._clear()
        self._add([word for word in distinct if word not in self._rows])
        return np.fromiter(map(self._rows.__getitem__, words), np.int32, len(words))

    def _add(self, new: list[str]) -> None:
        fits = [len(word.encode("utf-8", "ignore")) + 2 <= SHORT_WORD for word in new]
        for fit, columns in ((True, self._columns), (False, None)):
            words = [
                word for word, short in zip(new, fits, strict=True) if short is fit
            ]
            start = len(self._rows)
            self._rows.update(zip(words, range(start, start + len(words)), strict=True))
            if words:
                self._pending.append((start, words, columns))

    def encoded(self) -> Array:
        """Vectors [rows, projection] of all rows given out so far; words that are new
        go through the encoder here."""
        encoder = self._params.config.encoder
        for start, words, columns in self._pending:
            ids, done = encoder_ids(encoder, words, self._vocabulary), 0
            ids = ids if columns is None else ids[:, :columns]
            while done < len(words):
                left = len(words) - done
                size = next((b for b in self._blocks if b <= left), self._blocks[-1])
                block = ids[done : done + size]
                if left < size:
                    block = np.concatenate([block, ids[:1].repeat(size - left, 0)])
                if self._mesh is not None:
                    block = jax.device_put(block, NamedSharding(self._mesh, P("data")))
                self._vectors = _encode_block(
                    self._params,
                    self._vectors,
                    block,
                    np.int32(start + done),
                    self._mesh,
                )
                done += size
        self._pending = []
        return self._vectors


def _table_bytes() -> int:
    """Of the table, on this machine's devices."""
    memory = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
    least, most = BYTES
    return min(max(memory.get("bytes_limit", 0) // SHARE, least), most)


def _short_columns(encoder: EncoderConfig) -> int | None:
    """Columns of the ids of short words; None for an encoder of whole words."""
    if isinstance(encoder, WordTableConfig):
        return None
    more = encoder.id_shape[0] - encoder.max_characters  # a word by its dictionary
    return more + narrow_columns(encoder, SHORT_WORD)


@partial(jax.jit, donate_argnums=1, static_argnums=4)
def _encode_block(
    params: ElmoParams, table: Array, ids: Array, start: Array, mesh: Mesh | None
) -> Array:
    def run(params: ElmoParams, table: Array, ids: Array, start: Array) -> Array:
        vectors = encode_words(params, ids)
        if mesh is not None:
            vectors = jax.lax.all_gather(vectors, "data", tiled=True)
        return jax.lax.dynamic_update_slice(table, vectors, (start, jnp.int32(0)))

    in_specs = (P(), P(), P("data"), P())
    encode = per_device(mesh, automatic(run), in_specs, P())
    return encode(params, table, ids, start)


WordList: TypeAlias = Iterable[str] | Mapping[str, Any] | set[str] | frozenset[str]
"""Words in their order; of a dict, such as a count of words, the keys."""


@dataclass(frozen=True)
class WordIndex:
    """The words of a table: where each has its row, and none for any other word.

    Rows are in the order of the words given. The sentence marks `<S>` and `</S>` have
    rows too: where they are among the words, and otherwise after the last of them.
    `InputError` for anything but strings.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        require("words", self.words, WordList)
        words = tuple(self.words)
        wrong = next((word for word in words if not isinstance(word, str)), None)
        if wrong is not None:
            raise InputError(f"Words are strings; one of those given is {wrong!r}.")
        marks = tuple(mark for mark in (BEGIN, END) if mark not in words)
        object.__setattr__(self, "words", words + marks)

    @classmethod
    @checked
    def read(cls, path: str | os.PathLike[str]) -> WordIndex:
        """The words of a vocabulary file of bilm-tf: UTF-8, one a line, any order.

        Raises:
          InputError: if the file cannot be read.
        """
        return cls(tuple(listed_words(path)))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _rows(self) -> dict[str, int]:
        last_first = range(len(self.words) - 1, -1, -1)
        return {self.words[row]: row for row in last_first}

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """The row of each word, from 0 (as `Vocabulary.ids`): int32 [words].

        Raises:
          InputError: for a word that has no row.
        """
        try:
            rows = [self._rows[word] for word in words]
        except KeyError as error:
            raise InputError(
                f"{error.args[0]!r} is not among the {len(self):,} words of the table. "
                "Add it to the list that cache_words gets, or use the model that reads "
                "characters."
            ) from error
        return np.array(rows, np.int32)

    def table(self, dim: int) -> WordTableConfig:
        """The shape of a table with these rows, `dim` wide."""
        rows = (self._rows[BEGIN], self._rows[END])
        return WordTableConfig(len(self), dim, *rows)


Words: TypeAlias = WordIndex | Vocabulary | WordList


def word_index(words: Words) -> WordIndex:
    """`words` themselves, or the index of a list or vocabulary.

    Raises:
      InputError: if they are not words.
    """
    if isinstance(words, WordIndex):
        return words
    return WordIndex(tuple(words.words if isinstance(words, Vocabulary) else words))


@checked
def word_ids(words: Words, batch: Iterable[Sequence[str]]) -> np.ndarray:
    """Ids of a batch of tokenised sentences, for the params of `cache_words`.

    Args:
      words: what `cache_words` got. For many batches make the `WordIndex` once.
      batch: sentences, each a list of words.

    Returns:
      int32 [batch, time]: place of the word + 1; 0 past the end of a sentence.

    Raises:
      InputError: for a word that is not among `words`, naming it and its sentence.
    """
    index, sentences = word_index(words), list(sentence_words(batch))
    ids = [np.empty(0, np.int32)]
    for number, sentence in enumerate(sentences):
        try:
            ids.append(index.ids(sentence))
        except InputError as error:
            raise InputError(f"Sentence {number}: {error}") from error
    return padded_ids(sentences, lambda _: np.concatenate(ids) + 1)


@checked
@outside_meshes
def cache_words(params: ElmoParams, words: Words) -> ElmoParams:
    """The same model over a fixed list of words, without its character CNN.

    Args:
      params: a model that reads characters.
      words: all words that will be embedded, once; `<S>` and `</S>` are added.

    Returns:
      ElmoParams that take int32 word ids [batch, time] in `embed` and `encode`, as
      `word_ids(words, ...)` makes them, and give the vectors of `params`. An id
      outside the table gives NaN.

    Raises:
      InputError: if `params` read word ids already, or words are not strings.
    """
    if isinstance(params.config.encoder, WordTableConfig):
        raise InputError("cache_words needs a model that reads characters.")
    index = word_index(words)
    table = EncodedWords(params, None, len(index))
    rows = table.rows(index.words)
    vectors = table.encoded()[rows]
    config = replace(params.config, encoder=index.table(vectors.shape[1]))
    return replace(params, encoder={"embedding": vectors}, config=config)

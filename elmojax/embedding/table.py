"""Vectors of distinct words, each encoded once and kept on the device while it fits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.config import CharCnnConfig, WordTableConfig
from elmojax.embedding.devices import on_each, whole
from elmojax.embedding.functions import encode_words
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams
from elmojax.model.varying import automatic
from elmojax.text.characters import encode_words as character_ids
from elmojax.text.vocabulary import SPECIALS, Vocabulary

if TYPE_CHECKING:
    from elmojax.embedding.words import WordIndex

BLOCKS = (512, 64, 16)
"""Words that go through the encoder of a device at once; new words are cut into these
sizes."""
SHORT = 17
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
        fitting = _bytes() // (4 * width)
        self._capacity = max(fitting, batch_words + len(MARKS))
        spare = self._blocks[-1]  # of the last, which may reach past the last word
        shape = (self._capacity + spare, width)
        self._vectors = jnp.zeros(shape, jnp.float32, device=whole(mesh))
        self._clear()

    def _clear(self) -> None:
        self._rows: dict[str, int] = {}
        self._pending: list[tuple[int, list[str], int | None]] = []
        self._add(list(MARKS))

    def rows(self, words: Sequence[str]) -> np.ndarray:
        """The row of each word, int32 [words]; valid until the next call."""
        new = [word for word in dict.fromkeys(words) if word not in self._rows]
        if len(self._rows) + len(new) > self._capacity:
            self._clear()
            known = self._rows
            new = [word for word in dict.fromkeys(words) if word not in known]
        self._add(new)
        return np.fromiter(map(self._rows.__getitem__, words), np.int32, len(words))

    def _add(self, new: list[str]) -> None:
        fits = [len(word.encode("utf-8", "ignore")) + 2 <= SHORT for word in new]
        short = [word for word, fit in zip(new, fits, strict=True) if fit]
        long = [word for word, fit in zip(new, fits, strict=True) if not fit]
        for words, columns in ((short, self._columns), (long, None)):
            start = len(self._rows)
            self._rows.update(zip(words, range(start, start + len(words)), strict=True))
            if words:
                self._pending.append((start, words, columns))

    @property
    def vectors(self) -> Array:
        """[rows, projection], of all rows given out so far."""
        for start, words, columns in self._pending:
            ids, done = self._ids(words)[..., :columns], 0
            while done < len(words):
                left = len(words) - done
                size = next((b for b in self._blocks if b <= left), self._blocks[-1])
                block = ids[done : done + size]
                if left < size:
                    block = np.concatenate([block, ids[:1].repeat(size - left, 0)])
                if self._mesh is not None:
                    block = jax.device_put(block, NamedSharding(self._mesh, P("data")))
                self._vectors = _encode(
                    self._params,
                    self._vectors,
                    block,
                    np.int32(start + done),
                    self._mesh,
                )
                done += size
        self._pending = []
        return self._vectors

    def _ids(self, words: list[str]) -> np.ndarray:
        config = self._params.config.encoder
        if isinstance(config, CharCnnConfig):
            return character_ids(words, config.max_characters)
        if self._vocabulary is None:
            raise InputError(
                "This model reads word ids, so its vocabulary is needed: give the run "
                "directory it was trained in."
            )
        return self._vocabulary.ids(words)[:, None] + 1


def _bytes() -> int:
    """Of the table, on this machine's devices."""
    memory = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
    least, most = BYTES
    return min(max(memory.get("bytes_limit", 0) // SHARE, least), most)


def _short_columns(encoder: CharCnnConfig | WordTableConfig) -> int | None:
    """Columns for short words: enough for one window of nothing but padding.

    Max-pooling sees more such windows in the full width, and they are all the same.
    """
    if not isinstance(encoder, CharCnnConfig):
        return None
    columns = SHORT + max(width for width, _ in encoder.filters)
    return columns if columns < encoder.max_characters else None


@partial(jax.jit, donate_argnums=1, static_argnums=4)
def _encode(
    params: ElmoParams, table: Array, ids: Array, start: Array, mesh: Mesh | None
) -> Array:
    def run(params: ElmoParams, table: Array, ids: Array, start: Array) -> Array:
        if not isinstance(params.config.encoder, CharCnnConfig):
            ids = ids[:, 0]
        vectors = encode_words(params, ids)
        if mesh is not None:
            vectors = jax.lax.all_gather(vectors, "data", tiled=True)
        return jax.lax.dynamic_update_slice(table, vectors, (start, jnp.int32(0)))

    takes = (P(), P(), P("data"), P())
    return on_each(mesh, automatic(run), takes, P())(params, table, ids, start)

"""A fixed list of words: encoded once, then addressed by number.

The character CNN sees a word, never its sentence, so its vectors can be kept in a
table (AllenNLP's `vocab_to_cache`, bilm-tf's token embeddings). Ids are those of
bilm-tf's `TokenBatcher`: a word's place in the list + 1, and 0 for no word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jax import Array

from elmojax.config import CharCnnConfig, WordTableConfig
from elmojax.embedding.table import EncodedWords
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams
from elmojax.text.characters import BEGIN, END
from elmojax.text.vocabulary import Vocabulary, read_words


@dataclass(frozen=True)
class WordIndex:
    """The words of a table: where each has its row, and none for any other word.

    Rows are in the order of the words given. The sentence marks `<S>` and `</S>` have
    rows too: where they are among the words, and otherwise after the last of them.
    `InputError` for anything but strings.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        words = tuple(self.words)
        wrong = next((word for word in words if not isinstance(word, str)), None)
        if wrong is not None:
            raise InputError(f"Words are strings; one of those given is {wrong!r}.")
        marks = tuple(mark for mark in (BEGIN, END) if mark not in words)
        object.__setattr__(self, "words", words + marks)

    @classmethod
    def read(cls, path: Path | str) -> WordIndex:
        """The words of a vocabulary file of bilm-tf: UTF-8, one a line, any order.

        Raises:
          InputError: if the file cannot be read.
        """
        try:
            return cls(tuple(read_words(Path(path).read_bytes(), path)))
        except OSError as error:
            raise InputError(
                f"The word list {path} cannot be read: {error.strerror}."
            ) from error

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


Words: TypeAlias = WordIndex | Vocabulary | Iterable[str]


def word_index(words: Words) -> WordIndex:
    """`words` themselves, or the index of a list or vocabulary.

    Raises:
      InputError: if they are not words.
    """
    if isinstance(words, WordIndex):
        return words
    if isinstance(words, str):
        raise InputError(f"Words are a list of strings; {words!r} is one string.")
    return WordIndex(words.words if isinstance(words, Vocabulary) else tuple(words))


def word_ids(words: Words, batch: Sequence[Sequence[str]]) -> np.ndarray:
    """Ids of a batch of tokenised sentences, for the params of `cache_words`.

    Args:
      words: what `cache_words` got. For many batches make the `WordIndex` once.
      batch: sentences, each a list of words.

    Returns:
      int32 [batch, time]: place of the word + 1; 0 past the end of a sentence.

    Raises:
      InputError: for a word that is not among `words`, naming it and its sentence.
    """
    index = word_index(words)
    return padded_ids(batch, lambda sentence: index.ids(sentence) + 1)


def padded_ids(
    batch: Sequence[Sequence[str]], ids_of: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """int32 [batch, time]: ids of the words of each sentence, 0 past its end.

    Raises `InputError` for a sentence that is one string; what `ids_of` raises names
    the sentence too.
    """
    ids = np.zeros((len(batch), max(map(len, batch), default=0)), np.int32)
    for row, sentence in enumerate(batch):
        if isinstance(sentence, str):
            raise InputError(
                f"Sentence {row} is the string {sentence!r}; give a list of words."
            )
        try:
            ids[row, : len(sentence)] = ids_of(sentence)
        except InputError as error:
            raise InputError(f"Sentence {row}: {error}") from error
    return ids


def cache_words(params: ElmoParams, words: Words) -> ElmoParams:
    """The same model over a fixed list of words, without its character CNN.

    Args:
      params: a model that reads characters.
      words: all words that will be embedded, once; `<S>` and `</S>` are added.

    Returns:
      ElmoParams that take int32 word ids [batch, time] in `embed` and `encode`, as
      `word_ids(words, ...)` makes them, and give the vectors of `params`. An id past
      the table gives NaN.

    Raises:
      InputError: if `params` read word ids already, or words are not strings.
    """
    config = params.config.encoder
    if not isinstance(config, CharCnnConfig):
        raise InputError("cache_words needs a model that reads characters.")
    index = word_index(words)
    table = EncodedWords(params, None, len(index))
    rows = table.rows(index.words)
    return with_table(params, index, table.vectors[rows])


def with_table(params: ElmoParams, index: WordIndex, table: Array) -> ElmoParams:
    """`params` with the vectors of words, [words, projection], as their encoder."""
    config = replace(params.config, encoder=index.table(table.shape[1]))
    return replace(params, encoder={"embedding": table}, config=config)

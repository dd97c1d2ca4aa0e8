"""Words as rows of character ids: the published byte-level mapping of ELMo.

A word is its UTF-8 bytes between a begin and an end mark, padded to a fixed width, and
every id is raised by 1 so that 0 can mean "no word here". The numbers are those of
bilm-tf's `UnicodeCharsVocabulary` and AllenNLP's `ELMoCharacterMapper`.

`unicode_rows` is for the models of ELMoForManyLangs, which have dictionaries of words
and of Unicode characters (`create_one_batch` and `read_list` of elmoformanylangs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from elmojax.arguments import checked, require, sentence_words
from elmojax.config import CharCnnConfig, Columns, EncoderConfig, UnicodeCnnConfig
from elmojax.errors import InputError

SENTENCE_BEGIN = 256
SENTENCE_END = 257
WORD_BEGIN = 258
WORD_END = 259
PADDING = 260
"""Ids of the five marks, before the 1 that is added to every id."""

CHARACTERS = 261
"""Different ids: 256 bytes and the five marks."""

BEGIN = "<S>"
END = "</S>"

# Rows encoded at a time: bounds the temporary arrays, about 30 MB at 8 bytes a word.
_CHUNK = 1 << 17


def byte_limit(max_characters: int) -> int:
    """The most bytes of a word that fit between its two marks.

    `InputError` for less than one, or for more than a word may have.
    """
    return require("max_characters", max_characters, Columns) - 2


def character_ids(words: Sequence[str], max_characters: int = 50) -> np.ndarray:
    """Character ids of each word: int32 [words, max_characters], never 0.

    Only the first `max_characters - 2` bytes of a word are kept, as published, even
    where that cuts a character in two. Lone surrogates, which UTF-8 cannot hold, are
    dropped. The words `<S>` and `</S>` become the sentence marks.
    Raises `InputError` for max_characters below 3 or above 65536.
    """
    byte_limit(max_characters)
    ids = np.full((len(words), max_characters), PADDING + 1, np.int32)
    for start in range(0, len(words), _CHUNK):
        stop = start + _CHUNK
        _fill(ids[start:stop], words[start:stop])
    return ids


def _fill(ids: np.ndarray, words: Sequence[str]) -> None:
    """Writes the ids of `words` over rows that hold nothing but padding."""
    limit = ids.shape[1] - 2
    cut = [word.encode("utf-8", "ignore")[:limit] for word in words]
    lengths = np.fromiter(map(len, cut), np.int64, len(cut))
    letters = np.frombuffer(b"".join(cut), np.uint8)
    row_starts = np.arange(len(cut)) * ids.shape[1]
    letter_starts = np.cumsum(lengths) - lengths
    # Where byte i of the joined words goes: its word's row, after the begin mark.
    shift = np.repeat(row_starts - letter_starts + 1, lengths)
    flat = ids.reshape(-1)
    flat[row_starts] = WORD_BEGIN + 1
    flat[shift + np.arange(len(letters))] = letters.astype(np.int32) + 1
    flat[row_starts + lengths + 1] = WORD_END + 1
    marks = sentence_mark_ids(ids.shape[1])
    for i, word in enumerate(words):
        if word == BEGIN or word == END:
            ids[i] = marks[int(word == END)]


def sentence_mark_ids(max_characters: int = 50) -> np.ndarray:
    """Character ids of `<S>` and `</S>`: int32 [2, max_characters]."""
    byte_limit(max_characters)
    ids = np.full((2, max_characters), PADDING, np.int32)
    ids[:, 0] = WORD_BEGIN
    ids[:, 1] = SENTENCE_BEGIN, SENTENCE_END
    ids[:, 2] = WORD_END
    return ids + 1


def byte_lengths(words: Sequence[str]) -> np.ndarray:
    """UTF-8 bytes of each word: int64 [words]."""
    sizes = (len(word.encode("utf-8", "ignore")) for word in words)
    return np.fromiter(sizes, np.int64, len(words))


def narrow_columns(encoder: CharCnnConfig | UnicodeCnnConfig, characters: int) -> int:
    """Columns that words of so many characters need, their two marks counted.

    One window of nothing but padding is as good for a maximum as many, so columns past
    it say nothing.
    """
    widest = max(width for width, _ in encoder.filters)
    return min(characters + widest, encoder.max_characters)


@checked
def batch_to_ids(
    batch: Iterable[Sequence[str]], max_characters: int = 50
) -> np.ndarray:
    """Character ids of a batch of tokenised sentences.

    Returns int32 [batch, time, max_characters], time being the words of the longest
    sentence; 0 marks positions past the end of a shorter one. An empty batch, or one of
    empty sentences, has time 0.
    Raises `InputError` for anything but sentences that are lists of strings.
    """
    return padded_ids(batch, lambda words: character_ids(words, max_characters))


def padded_ids(
    batch: Iterable[Sequence[str]], ids_of: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """int32 [batch, time, ...]: what `ids_of` makes of words, [words, ...], for each
    sentence; 0 past its end. Raises `InputError` for what is no list of words."""
    sentences = list(sentence_words(batch))
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    here = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = ids_of([word for sentence in sentences for word in sentence])
    padded = np.zeros((*here.shape, *ids.shape[1:]), np.int32)
    padded[here] = ids
    return padded


UNICODE_MARKS = {BEGIN: "<bos>", END: "<eos>"}
"""Sentence marks, and what they are in the dictionaries of ELMoForManyLangs."""


def unicode_rows(encoder: UnicodeCnnConfig, words: Sequence[str]) -> np.ndarray:
    """Each word as rows of dictionaries, + 1: itself, and its characters.

    Of a word its first `max_characters - 2` Unicode characters count, also where it is
    looked up as a whole. What a dictionary does not have is its `<oov>`. In the
    released code the begin and end mark of a word are swapped, `<eow>` stands first,
    and the models were trained so. The words `<S>` and `</S>`, and `<bos>` and `<eos>`,
    become the sentence marks.

    Returns int32 [words, 1 + max_characters], never 0.
    """
    rows, letters = _places(encoder.words), _places(encoder.alphabet)
    ids = np.full((len(words), *encoder.id_shape), letters["<pad>"], np.int32)
    for row, word in zip(ids, words, strict=True):
        word = UNICODE_MARKS.get(word) or word[: encoder.max_characters - 2]
        inside = [word] if word in UNICODE_MARKS.values() else word
        found = [letters.get(letter, letters["<oov>"]) for letter in inside]
        row[0] = rows.get(word, rows["<oov>"])
        row[1 : len(found) + 3] = letters["<eow>"], *found, letters["<bow>"]
    return ids + 1


@lru_cache(maxsize=8)
def _places(entries: tuple[str, ...]) -> dict[str, int]:
    return {entry: row for row, entry in enumerate(entries)}


@checked
def unicode_ids(
    encoder: UnicodeCnnConfig, batch: Iterable[Sequence[str]]
) -> np.ndarray:
    """Ids of a batch of tokenised sentences, for a model of ELMoForManyLangs.

    Args:
      encoder: `params.config.encoder` of the model; it has the dictionaries.
      batch: sentences, each a list of words.

    Returns:
      int32 [batch, time, 1 + max_characters]: of each word its own id, then those of
      its characters; 0 past the end of a sentence.

    Raises:
      InputError: for anything but sentences that are lists of strings.
    """
    return padded_ids(batch, lambda words: unicode_rows(encoder, words))


class Ids(Protocol):
    """A list of words, each with an id: a `Vocabulary` or a `WordIndex`."""

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """int32 [words], from 0."""


def encoder_ids(
    encoder: EncoderConfig, words: Sequence[str], vocabulary: Ids | None = None
) -> np.ndarray:
    """Ids of words as an encoder takes them: int32 [words, *encoder.id_shape].

    `InputError` for an encoder that reads word ids without the vocabulary they are of.
    """
    if isinstance(encoder, CharCnnConfig):
        return character_ids(words, encoder.max_characters)
    if isinstance(encoder, UnicodeCnnConfig):
        return unicode_rows(encoder, words)
    if vocabulary is None:
        raise InputError(
            "This model reads word ids, so its vocabulary is needed: give the run "
            "directory it was trained in."
        )
    return vocabulary.ids(words) + 1

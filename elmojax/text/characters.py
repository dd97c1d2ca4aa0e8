"""Words as rows of character ids: the published byte-level mapping of ELMo.

A word is its UTF-8 bytes between a begin and an end mark, padded to a fixed width, and
every id is raised by 1 so that 0 can mean "no word here". The numbers are those of
bilm-tf's `UnicodeCharsVocabulary` and AllenNLP's `ELMoCharacterMapper`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from elmojax.arguments import checked, require, sentence_words
from elmojax.config import Columns

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


@checked
def batch_to_ids(
    batch: Iterable[Sequence[str]], max_characters: int = 50
) -> np.ndarray:
    """Character ids of a batch of tokenised sentences.

    Returns int32 [batch, time, max_characters], time being the words of the longest
    sentence; 0 marks positions past the end of a shorter one. Each distinct word is
    encoded once. An empty batch, or one of empty sentences, has time 0.
    Raises `InputError` for anything but sentences that are lists of strings.
    """
    rows: dict[str, int] = {}
    sentences = list(sentence_words(batch))
    time = max(map(len, sentences), default=0)
    index = np.zeros((len(sentences), time), np.int64)
    for i, sentence in enumerate(sentences):
        for j, word in enumerate(sentence):
            index[i, j] = rows.setdefault(word, len(rows) + 1)
    table = character_ids(["", *rows], max_characters)
    table[0] = 0
    return table[index]

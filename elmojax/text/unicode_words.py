"""Words as rows of the dictionaries of ELMoForManyLangs: itself, and its characters.

Source: `create_one_batch` and `read_list` of elmoformanylangs. Of a word its first
`max_characters - 2` Unicode characters count, also where it is looked up as a whole.
What a dictionary does not have is its `<oov>`. In the released code the begin and end
mark of a word are swapped, `<eow>` stands first, and the models were trained so.
Ids are rows + 1; 0 means "no word here".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from elmojax.arguments import checked, sentence_words
from elmojax.config import UnicodeCnnConfig
from elmojax.text.characters import BEGIN, END

MARKS = {BEGIN: "<bos>", END: "<eos>"}
"""Sentence marks, and what they are in these dictionaries."""


def unicode_rows(encoder: UnicodeCnnConfig, words: Sequence[str]) -> np.ndarray:
    """Ids of each word: int32 [words, 1 + max_characters], never 0.

    The words `<S>` and `</S>`, and `<bos>` and `<eos>`, become the sentence marks.
    """
    rows, letters = _rows(encoder.words), _rows(encoder.alphabet)
    ids = np.full((len(words), *encoder.id_shape), letters["<pad>"], np.int32)
    for row, word in zip(ids, words, strict=True):
        word = MARKS.get(word) or word[: encoder.max_characters - 2]
        inside = [word] if word in MARKS.values() else word
        found = [letters.get(letter, letters["<oov>"]) for letter in inside]
        row[0] = rows.get(word, rows["<oov>"])
        row[1 : len(found) + 3] = letters["<eow>"], *found, letters["<bow>"]
    return ids + 1


@lru_cache(maxsize=8)
def _rows(entries: tuple[str, ...]) -> dict[str, int]:
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
    sentences = list(sentence_words(batch))
    time = max(map(len, sentences), default=0)
    ids = np.zeros((len(sentences), time, *encoder.id_shape), np.int32)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = unicode_rows(encoder, sentence)
    return ids

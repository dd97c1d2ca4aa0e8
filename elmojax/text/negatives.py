"""Words drawn at random for the sampled softmax, as TensorFlow draws them for bilm-tf.

Word w of a vocabulary by falling count is drawn with probability log((w + 2) / (w + 1))
/ log(V + 1), about Zipf's law, until there are enough distinct ones; both directions
draw for themselves. A step touches few rows of the table of words, so a batch names
them: targets and drawn words, each once.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

import numpy as np

from elmojax.errors import InputError


class Negatives(NamedTuple):
    """What a step of the sampled softmax takes besides the text."""

    words: np.ndarray
    """int32 [rows]: distinct vocabulary ids, rising; ids of no word at the end."""
    targets: np.ndarray
    """int32 [two, rows, window]: place in `words` of each target."""
    drawn: np.ndarray
    """int32 [two, samples]: places in `words` of the drawn words."""
    log_expected: np.ndarray
    """float32 [two, words]: log of how often each word is expected among the drawn."""


def check_samples(samples: int, vocabulary: int) -> None:
    """Raises `InputError` unless there are more words than are to be drawn."""
    if samples >= vocabulary:
        raise InputError(
            f"The sampled softmax draws {samples} words and the vocabulary has "
            f"{vocabulary}; lower --head.samples, or use --head.kind adaptive or full."
        )


def log_uniform(
    bits: np.random.Philox, vocabulary: int, samples: int
) -> tuple[np.ndarray, int]:
    """Distinct words in the order they were drawn, and how many draws that took.

    The same on every machine and with every NumPy, which promises the bits of its
    generators for ever, but not what it makes of them, nor the last digit of `exp`.
    """
    check_samples(samples, vocabulary)
    drawn, log_words = np.zeros(0, np.int64), float(Decimal(vocabulary + 1).ln())
    while True:
        uniform = (bits.random_raw(2 * samples) >> np.uint64(11)) * 2.0**-53
        more = _exp(uniform * log_words) - 1
        more = np.minimum(more.astype(np.int64), vocabulary - 1)
        drawn = np.concatenate([drawn, more])
        first = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first) >= samples:
            return drawn[first[:samples]], int(first[samples - 1]) + 1


def _exp(x: np.ndarray) -> np.ndarray:
    """e ** x for x up to about 16, of sums and products alone: exp(x / 16) ** 16."""
    result = np.ones_like(x)
    for n in range(18, 0, -1):  # Taylor's series
        result = 1 + result * (x / 16) / n
    for _ in range(4):
        result = result * result
    return result


def log_expected(words: np.ndarray, vocabulary: int, draws: int) -> np.ndarray:
    """log(1 - (1 - p) ** draws): how often each word is expected among the drawn."""
    share = np.log1p(1 / (words + 1.0)) / np.log(vocabulary + 1)
    return np.log(-np.expm1(draws * np.log1p(-share))).astype(np.float32)


def negatives(
    targets: np.ndarray, vocabulary: int, samples: int, seed: int, step: int
) -> Negatives:
    """The words of a step: a pure function of its arguments.

    Args:
      targets: vocabulary ids [two, rows, window].
    """
    # Another counter than the shuffles of epochs, which have the same kind of key.
    bits = np.random.Philox(key=[seed, step], counter=[0, 0, 0, 1])
    drawn, draws = zip(
        *(log_uniform(bits, vocabulary, samples) for _ in targets), strict=True
    )
    words = np.unique(np.concatenate([*drawn, targets.ravel()]))
    expected = [log_expected(words, vocabulary, n) for n in draws]
    return Negatives(
        words.astype(np.int32),
        np.searchsorted(words, targets).astype(np.int32),
        np.searchsorted(words, np.stack(drawn)).astype(np.int32),
        np.stack(expected),
    )


def pad_words(drawn: Negatives, vocabulary: int, size: int) -> Negatives:
    """The same with so many words, the last of which are none."""
    more = size - len(drawn.words)
    none = vocabulary + np.arange(more, dtype=np.int32)
    return drawn._replace(
        words=np.concatenate([drawn.words, none]),
        log_expected=np.pad(drawn.log_expected, ((0, 0), (0, more))),
    )


def expected_names(
    targets: np.ndarray, samples: int, draws: float, seed: int
) -> tuple[float, float]:
    """How many words a step names: mean and variance.

    Args:
      targets: share of each word of the vocabulary among the targets.
      draws: targets of a step that are drawn by these shares.
    """
    size = len(targets)
    tries = log_uniform(np.random.Philox(seed), size, samples)[1]
    expected = log_expected(np.arange(size), size, tries).astype(np.float64)
    absent = -np.expm1(expected)  # of the words of one direction
    absent = absent**2 * np.exp(draws * np.log1p(-np.minimum(targets, 0.999)))
    return float((1 - absent).sum()), float((absent * (1 - absent)).sum())

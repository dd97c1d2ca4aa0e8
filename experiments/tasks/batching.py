"""Batches of few shapes: sentences of about one length together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHORTEST = 16
"""Positions of the shortest batches; the others have 32, 64 ..."""


def padded_length(words: int) -> int:
    """Positions of the batches that a sentence of so many words is in."""
    return max(SHORTEST, 1 << (max(words, 1) - 1).bit_length())


def plan(
    lengths: Sequence[int], rows: int, random: np.random.Generator | None = None
) -> list[np.ndarray]:
    """Groups of at most `rows` sentences of about one length: few shapes to compile.

    Args:
      lengths: words of each sentence.
      rows: of a batch.
      random: has sentences and groups come in random order; None = as they stand.

    Returns:
      Numbers of the sentences of each group.
    """
    order = np.arange(len(lengths))
    if random is not None:
        random.shuffle(order)
    buckets: dict[int, list[int]] = {}
    for number in order:
        buckets.setdefault(padded_length(lengths[number]), []).append(number)
    groups = [
        np.array(bucket[at : at + rows])
        for _, bucket in sorted(buckets.items())
        for at in range(0, len(bucket), rows)
    ]
    if random is not None:
        random.shuffle(groups)
    return groups

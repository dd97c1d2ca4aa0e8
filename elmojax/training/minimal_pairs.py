"""Which sentence of a minimal pair a model finds more probable (Marvin and Linzen 2018,
"Targeted syntactic evaluation of language models"; BLiMP, Warstadt et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from elmojax.text.pairs import GROUPS, Pair
from elmojax.training.score import Scorer

WAYS = ("forward", "backward", "both")


class Judged(NamedTuple):
    """Log-probabilities of pairs, sums of whole sentences with their ends."""

    log_probs: np.ndarray
    """float64 [pairs, two, three]: good and bad; forward, backward and the sum of both,
    in nats."""
    unknown: np.ndarray
    """bool [pairs]: whether a word of either is outside the vocabulary."""


def judge(
    scorer: Scorer,
    pairs: Sequence[Pair],
    progress: Callable[[int], Any] = lambda tokens: None,
) -> Judged:
    """Scores each sentence for itself."""
    sentences = (sentence for pair in pairs for sentence in (pair.good, pair.bad))
    scores = [
        (one.forward_sum, one.backward_sum, not one.known.all())
        for one in scorer(sentences, progress)
    ]
    found = np.array(scores).reshape(len(pairs), 2, 3)
    ways, unknown = found[..., :2], np.any(found[..., 2], axis=1)
    both = ways.sum(axis=-1, keepdims=True)
    return Judged(np.concatenate([ways, both], axis=-1), unknown)


def accuracies(pairs: Sequence[Pair], judged: Judged) -> dict[str, Any]:
    """How often the good sentence is the more probable one, and by phenomenon.

    Returns `pairs`, `unknown` (pairs with a word outside the vocabulary), `forward`,
    `backward` and `both` (shares from 0 to 1), `forward_ties` and so on (pairs that are
    equally probable, which count as wrong); and of each of `GROUPS` that pairs name, a
    dict of the same for each name, in the order in which they come.
    """
    margin = judged.log_probs[:, 0] - judged.log_probs[:, 1]
    report = _shares(margin, judged.unknown)
    for group in GROUPS:
        named: dict[str, list[int]] = {}
        for number, pair in enumerate(pairs):
            if group in pair.groups:
                named.setdefault(pair.groups[group], []).append(number)
        if named:
            report[group] = {
                name: _shares(margin[numbers], judged.unknown[numbers])
                for name, numbers in named.items()
            }
    return report


def _shares(margin: np.ndarray, unknown: np.ndarray) -> dict[str, Any]:
    """Of some pairs; margin [pairs, three]."""
    right, ties = (margin > 0).mean(axis=0), (margin == 0).sum(axis=0)
    named: Iterable[tuple[str, Any]] = [
        *zip(WAYS, right.tolist(), strict=True),
        *zip((f"{way}_ties" for way in WAYS), ties.tolist(), strict=True),
    ]
    return {"pairs": len(margin), "unknown": int(unknown.sum()), **dict(named)}

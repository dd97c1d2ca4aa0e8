"""Where the clusters of an adaptive softmax begin, from how often words occur."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np

SMALL = 2000
"""Vocabularies up to here get no clusters: one product is as fast."""
LOGIT_COST = 64
"""Cost of one logit besides its products, in multiply-adds: on a CPU core forward and
backward pass took 4, 6, 14 and 31 ns a logit at widths 8, 32, 128 and 512."""
FLOOR = 8 / 2560
"""Least share of the positions that a cluster costs: a block of a step of 64 rows."""


def automatic_cutoffs(
    counts: np.ndarray, dim: int, div_value: float
) -> tuple[int, ...]:
    """The cutoffs, at most three, with the least expected work a position.

    The cost model of Grave et al. 2017 (equation 4): the head is computed for every
    position, a tail for its share of them and at least for a floor, and the time of a
    product is linear in its size. Rising; () for a small vocabulary.

    Args:
      counts: how often each word of the vocabulary is a target, by rank.
      dim: width of the hidden vectors; div_value: narrowing from cluster to cluster.
    """
    size = len(counts)
    if size <= SMALL:
        return ()
    share = np.concatenate([[0.0], np.cumsum(counts) / np.sum(counts)])
    grid = sorted({int(c) for c in np.geomspace(500, size * 0.8, 20)})

    def cost(cutoffs: tuple[int, ...]) -> float:
        edges = (*cutoffs, size)
        total = (edges[0] + len(cutoffs)) * (dim + LOGIT_COST)
        for k, (low, high) in enumerate(pairwise(edges)):
            narrow = max(1, int(dim // div_value ** (k + 1)))
            work = dim * narrow + (high - low) * (narrow + LOGIT_COST)
            total += max(share[high] - share[low], FLOOR) * work
        return float(total)

    choices = (c for n in range(4) for c in combinations(grid, n))
    return min(choices, key=cost)

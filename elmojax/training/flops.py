"""Floating-point operations of training, counted from the sizes of the products.

A product of [a, b] and [b, c] is 2abc operations. The backward pass makes two products
of each one of the forward pass, so training costs three times the forward pass. What
works on single numbers (gates, softmax, updates) is not counted: it costs memory
traffic rather than operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from elmojax.config import CharCnnConfig, ElmoConfig, HeadConfig, LstmConfig

FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Flops:
    """Operations for one position of running text, trained in both directions."""

    encoder: float
    lstm: float
    softmax: float

    @property
    def total(self) -> float:
        return self.encoder + self.lstm + self.softmax


def lstm_flops(lstm: LstmConfig) -> float:
    """All layers and both directions, a position."""
    cell = (2 * lstm.projection * 4 + lstm.projection) * lstm.dim
    return FORWARD_AND_BACKWARD * 2 * cell * 2 * lstm.layers


def word_flops(model: ElmoConfig, columns: float) -> float:
    """The encoder, a distinct word with this many columns of characters on average."""
    encoder, out = model.encoder, model.lstm.projection
    if not isinstance(encoder, CharCnnConfig):
        narrow = encoder.dim * out if encoder.dim != out else 0
        return FORWARD_AND_BACKWARD * 2 * narrow
    width = encoder.filter_count
    windows = sum(w * n * (columns - w + 1) for w, n in encoder.filters)
    products = windows * encoder.embedding_dim
    products += encoder.highway_layers * 2 * width**2
    products += width * out if encoder.project else 0
    return FORWARD_AND_BACKWARD * 2 * products


def softmax_flops(
    head: HeadConfig, vocabulary: int, dim: int, shares: Sequence[float]
) -> float:
    """The softmax of both directions, a position.

    Args:
      head: with the cutoffs that are used.
      dim: width of the hidden vectors.
      shares: of the targets that are in each tail cluster, from the first on.
    """
    if head.kind == "sampled":
        products = float(head.samples * dim)
    else:
        edges = (*head.cutoffs, vocabulary)
        products = float((edges[0] + len(head.cutoffs)) * dim)
        tails = zip(pairwise(edges), shares, strict=True)
        for k, ((low, high), share) in enumerate(tails):
            narrow = max(1, int(dim // head.div_value ** (k + 1)))
            products += share * (dim + high - low) * narrow
    return FORWARD_AND_BACKWARD * 2 * 2 * products

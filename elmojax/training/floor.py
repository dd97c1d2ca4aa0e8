"""The least time of a run on a chip."""

from __future__ import annotations

from dataclasses import dataclass

from elmojax.training.chips import Chip
from elmojax.training.estimate import Estimate


@dataclass(frozen=True)
class Floor:
    """The least time of a run on a chip, were nothing lost anywhere.

    A step computes its products at the chip's peak and then updates the parameters at
    the bandwidth of its memory; gradients travel between chips meanwhile.
    """

    products: float
    """Seconds a step."""
    update: float
    """Seconds a step: parameters and moments read and written, the gradient too."""
    exchange: float
    """Seconds a step: a ring all-reduce of the gradient along `data`."""
    step: float
    """Seconds a step."""
    tokens_per_second: float
    """Positions of running text, of all chips together."""
    hours: float
    """Of all steps."""


def floor(estimate: Estimate, chip: Chip, precision: str, peak: bool = True) -> Floor:
    """The least time on one kind of chip.

    Args:
      precision: of products, `bf16` or `float32`.
      peak: at the rates of the data sheet, else at those that were measured.
    """
    rate, bandwidth = chip.products(precision), chip.bandwidth
    if not peak:
        assert chip.measured is not None
        rate, bandwidth = chip.measured
    config, data = estimate.config, estimate.data
    tokens = config.rows * config.window
    products = estimate.flops.total * tokens / estimate.devices / rate
    update = estimate.moved / bandwidth
    exchange = 2 * (data - 1) / data * estimate.memory.gradients / chip.link
    step = max(products + update, exchange)
    hours = step * estimate.steps / 3600
    return Floor(products, update, exchange, step, tokens / step, hours)

"""How much of what its chips can do a run does."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from elmojax.config import TrainConfig
from elmojax.text.prepared import Corpus
from elmojax.training.chips import chip_of
from elmojax.training.reading import reading_of, step_sizes, token_flops
from elmojax.training.step import LanguageModel


def utilization(
    config: TrainConfig, lm: LanguageModel, corpus: Corpus
) -> Callable[[float], dict[str, float]]:
    """Tokens a second -> numbers for metrics.jsonl; none where the chip is unknown.

    `mfu`, model FLOPs utilisation, is the share of the chips' peak in the products of
    the run's precision that its operations take, those of the products alone.
    """
    assert lm.mesh is not None
    devices = lm.mesh.devices.flat
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        return lambda rate: {}
    reading, data = reading_of(corpus, ""), lm.mesh.shape["data"]
    sizes = step_sizes(reading, config, data, config.rows)
    flops = token_flops(config, reading, sizes).total
    peak = chip.products("float32" if lm.dtype == jnp.float32 else "bf16")

    def numbers(rate: float) -> dict[str, float]:
        each = rate / len(devices)
        return {"tokens_per_second_per_chip": each, "mfu": each * flops / peak}

    return numbers

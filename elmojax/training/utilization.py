"""How much of what its chips can do a run does.

Operations are counted from the sizes of the products: one of [a, b] and [b, c] is 2abc
operations. The backward pass makes two products of each one of the forward pass, so
training costs three times the forward pass. What works on single numbers (gates,
softmax, updates) is not counted: it costs memory traffic rather than operations.

Chips are described by what their makers say they hold and can do. Rates are dense (no
sparsity) and of one chip; sizes are decimal, as the makers count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp

from elmojax.arguments import shown
from elmojax.config import (
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    TrainConfig,
    UnicodeCnnConfig,
    WordTableConfig,
)
from elmojax.errors import InputError
from elmojax.text.corpus import Corpus
from elmojax.training.sizes import (
    StepSizes,
    TextStatistics,
    statistics_of,
    step_sizes,
)
from elmojax.training.step import LanguageModel

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
    assert not isinstance(encoder, UnicodeCnnConfig)  # is not trained
    if isinstance(encoder, WordTableConfig):
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


NVIDIA = "https://www.nvidia.com/en-us/data-center"
A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
GOOGLE = "https://docs.cloud.google.com/tpu/docs"


@dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX counts devices."""

    name: str
    title: str
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second from and to its memory."""
    bf16: float
    """Floating-point operations a second in products of bfloat16."""
    float32: float
    """The same in full float32: without TF32 on GPUs, six bfloat16 products on TPUs,
    as `Precision.HIGHEST` asks."""
    link: float
    """Bytes a second that it sends to its neighbours (NVLink, ICI)."""
    kinds: tuple[str, ...]
    """What JAX calls it: `device_kind`."""
    source: str
    measured: tuple[float, float] | None = None
    """Rate of bfloat16 products and bandwidth of a copy that were seen on one."""

    def products(self, precision: str) -> float:
        """Floating-point operations a second in `float32` or `bf16`."""
        return self.float32 if precision == "float32" else self.bf16


def _gpu(
    kind: str,
    page: str,
    memory: float,
    bandwidth: float,
    bf16: float,
    float32: float,
    link: float,
    measured: tuple[float, float] | None = None,
) -> Chip:
    """A GPU by JAX's name; its page gives NVLink in both directions together."""
    name = re.split("[ -]", kind)[1]
    rates = (memory, bandwidth, bf16, float32, link / 2)
    source = page if "://" in page else f"{NVIDIA}/{page}/"
    return Chip(name.lower(), f"NVIDIA {name} SXM", *rates, (kind,), source, measured)


def _tpu(name: str, memory: float, bandwidth: float, bf16: float, link: float) -> Chip:
    """A TPU; its page gives the bandwidth of links in both directions together."""
    title = f"TPU {name}" if name.startswith("v") else name.upper().replace("X", "x")
    lite = f"TPU {name[:-1]}{' lite' if name.endswith('e') else ''}"
    rates = (memory, bandwidth, bf16, bf16 / 6, link / 2)
    return Chip(name, title, *rates, (title, lite), f"{GOOGLE}/{name}")


ON_H200 = (790e12, 4.3e12)
CHIPS = (
    _gpu("NVIDIA B200", "hgx", 180e9, 8e12, 2250e12, 75e12, 1800e9),
    _gpu("NVIDIA H200", "h200", 141e9, 4.8e12, 989e12, 67e12, 900e9, ON_H200),
    _gpu("NVIDIA H100 80GB HBM3", "h100", 80e9, 3.35e12, 989e12, 67e12, 900e9),
    _gpu("NVIDIA A100-SXM4-80GB", A100, 80e9, 2.039e12, 312e12, 19.5e12, 600e9),
    _tpu("v5e", 16e9, 819e9, 197e12, 400e9),
    _tpu("v5p", 95e9, 2765e9, 459e12, 1200e9),
    _tpu("v6e", 32e9, 1600e9, 918e12, 800e9),
    _tpu("tpu7x", 103e9, 3690e9, 1153.5e12, 600e9),
)
"""As the pages named by `source` said in November 2026. NVIDIA's has eight B200
together (and that of DGX B200 the bandwidth of their memory). Google's has TPU7x by
chips of two cores; each is a device of JAX and has half of it."""


def chip_named(name: str) -> Chip:
    """The chip of a name such as `h200`, `H100-SXM` or `TPU v5e`.

    Raises `InputError`, with the list, for one that is not in the table.
    """
    plain = re.sub(r"nvidia|google|cloud|tpu|sxm\d?|[\s_-]", "", name.lower())
    for chip in CHIPS:
        if chip.name.removeprefix("tpu") == plain:
            return chip
    known = ", ".join(chip.name for chip in CHIPS)
    raise InputError(f"There is no chip {shown(name)} here; choose one of {known}.")


def chip_of(kind: str) -> Chip | None:
    """The chip with this `device_kind` of JAX, if it is in the table."""
    for chip in CHIPS:
        if any(kind == known for known in chip.kinds):
            return chip
    return None


def token_flops(
    config: TrainConfig, statistics: TextStatistics, sizes: StepSizes
) -> Flops:
    """Operations for one position of the text; `sizes` of the rows of `config`."""
    head, model = config.head, config.model
    dim, shares = model.lstm.projection, statistics.shares(head)
    words = sizes.words / (config.rows * config.window)
    return Flops(
        word_flops(model, sizes.columns) * words,
        lstm_flops(model.lstm),
        softmax_flops(head, statistics.vocabulary, dim, shares),
    )


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
    statistics, data = statistics_of(corpus, ""), lm.mesh.shape["data"]
    sizes = step_sizes(statistics, config, data, config.rows)
    flops = token_flops(config, statistics, sizes).total
    peak = chip.products("float32" if lm.dtype == jnp.float32 else "bf16")

    def numbers(rate: float) -> dict[str, float]:
        each = rate / len(devices)
        return {"tokens_per_second_per_chip": each, "mfu": each * flops / peak}

    return numbers

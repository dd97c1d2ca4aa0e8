"""Chips that runs are estimated for: what their makers say they hold and can do.

Rates are dense (no sparsity) and of one chip; sizes are decimal, as the makers count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from elmojax.errors import InputError

NVIDIA = "https://www.nvidia.com/en-us/data-center"
A100_SHEET = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
GOOGLE = "https://docs.cloud.google.com/tpu/docs"


@dataclass(frozen=True)
class Chip:
    """One accelerator."""

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


def _tpu(name: str, memory: float, bandwidth: float, bf16: float, link: float) -> Chip:
    """A TPU; its page gives the bandwidth of links in both directions together."""
    title, generation = f"TPU {name}", name[1]
    kinds = (title, f"TPU v{generation}{' lite' if name.endswith('e') else ''}")
    source = f"{GOOGLE}/{name}"
    return Chip(name, title, memory, bandwidth, bf16, bf16 / 6, link / 2, kinds, source)


CHIPS = (
    Chip(
        name="b200",
        title="NVIDIA B200 SXM",
        memory=180e9,
        bandwidth=8e12,
        bf16=2250e12,
        float32=75e12,
        link=900e9,
        kinds=("NVIDIA B200",),
        source=f"{NVIDIA}/hgx/",
    ),
    Chip(
        name="h200",
        title="NVIDIA H200 SXM",
        memory=141e9,
        bandwidth=4.8e12,
        bf16=989e12,
        float32=67e12,
        link=450e9,
        kinds=("NVIDIA H200",),
        source=f"{NVIDIA}/h200/",
        measured=(790e12, 4.3e12),
    ),
    Chip(
        name="h100",
        title="NVIDIA H100 SXM",
        memory=80e9,
        bandwidth=3.35e12,
        bf16=989e12,
        float32=67e12,
        link=450e9,
        kinds=("NVIDIA H100 80GB HBM3",),
        source=f"{NVIDIA}/h100/",
    ),
    Chip(
        name="a100",
        title="NVIDIA A100 SXM 80 GB",
        memory=80e9,
        bandwidth=2.039e12,
        bf16=312e12,
        float32=19.5e12,
        link=300e9,
        kinds=("NVIDIA A100-SXM4-80GB",),
        source=A100_SHEET,
    ),
    _tpu("v5e", 16e9, 819e9, 197e12, 400e9),
    _tpu("v5p", 95e9, 2765e9, 459e12, 1200e9),
    _tpu("v6e", 32e9, 1600e9, 918e12, 800e9),
    Chip(
        name="tpu7x",
        title="TPU7x core",
        memory=96 * 2**30,
        bandwidth=3690e9,
        bf16=1153.5e12,
        float32=1153.5e12 / 6,
        link=300e9,
        kinds=("TPU7x",),
        source=f"{GOOGLE}/tpu7x",
    ),
)
"""As the pages named by `source` said in November 2026; GPUs send half of what NVLink
is sold with, which counts both directions. NVIDIA's page has eight B200 together. JAX
has two devices for a chip of TPU7x, each with half of it."""


def chip_named(name: str) -> Chip:
    """The chip of a name such as `h200`, `H100-SXM` or `TPU v5e`.

    Raises `InputError`, with the list, for one that is not in the table.
    """
    plain = re.sub(r"nvidia|google|cloud|tpu|sxm\d?|[\s_-]", "", name.lower())
    for chip in CHIPS:
        if chip.name.removeprefix("tpu") == plain:
            return chip
    known = ", ".join(chip.name for chip in CHIPS)
    raise InputError(f"There is no chip {name!r} in the table; choose one of {known}.")


def chip_of(kind: str) -> Chip | None:
    """The chip with this `device_kind` of JAX, if it is in the table."""
    for chip in CHIPS:
        if any(kind == known for known in chip.kinds):
            return chip
    return None

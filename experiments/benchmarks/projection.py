"""What the bytes of a training step cost on real chips: arithmetic, nothing measured.

Bandwidths are the published ones, one way, all links of a chip together; real
collectives reach less. Where a slice has no ring in some direction, the links it lacks
are taken off. The rate of a chip is assumed: 450,000 tokens/s on an H200 (a target, see
docs/performance.md for what was measured), and elsewhere the same share of the peak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import harness


class Chip(NamedTuple):
    name: str
    tokens_per_second: float
    """Assumed, of one chip that trains alone."""
    near: tuple[tuple[int, float], ...]
    """(chips up to, bytes a second one way): links inside a node or slice."""
    node: int
    """Chips that are linked like this."""
    far: float
    """Bytes a second a chip between nodes."""
    source: str


H200_RATE, H200_PEAK = 450e3, 989e12

CHIPS = (
    Chip(
        "H100/H200",
        H200_RATE,
        ((8, 450e9),),
        8,
        50e9,
        "NVLink 900 GB/s both ways, 400 Gbit/s InfiniBand a GPU: github.com/mlcommons/"
        "inference_results_v4.1 (closed/NVIDIA/systems/H200-SXM-141GBx8_TRT_MaxQ.json)",
    ),
    Chip(
        "TPU v5e",
        H200_RATE * 197e12 / H200_PEAK,
        ((8, 100e9), (256, 200e9)),  # 2 x 4 chips have half of their links
        256,
        0.0,
        "ICI 400 GB/s both ways: https://docs.cloud.google.com/tpu/docs/v5e",
    ),
    Chip(
        "TPU v5p",
        H200_RATE * 459e12 / H200_PEAK,
        ((8, 300e9), (256, 600e9)),  # 2 x 2 x 2 chips have half of their links
        8960,
        0.0,
        "ICI 1,200 GB/s both ways: https://docs.cloud.google.com/tpu/docs/v5p",
    ),
)


def reduce_seconds(chip: Chip, count: int, payload: float) -> float:
    """An all-reduce over `count` chips: as a ring, or in nodes and between them."""
    inside = min(count, chip.node)
    speed = next((s for most, s in chip.near if inside <= most), chip.near[-1][1])
    seconds = 2 * (inside - 1) / inside * payload / speed
    nodes = count // inside
    if nodes > 1:  # each chip of a node carries its share between the nodes
        seconds += 2 * (nodes - 1) / nodes * payload / inside / chip.far
    return seconds


def project(chip: Chip, count: int, payload: float, tokens: int) -> dict[str, Any]:
    """Efficiency: the rate beside that of chips that need not talk."""
    compute = tokens / chip.tokens_per_second
    sending = reduce_seconds(chip, count, payload)
    return {
        "chip": chip.name,
        "chips": count,
        "assumed_tokens_per_second_a_chip": chip.tokens_per_second,
        "compute_seconds": compute,
        "reduce_seconds": sending,
        "efficiency": compute / (compute + sending),
        "efficiency_with_overlap": compute / max(compute, compute / 3 + sending),
        "tokens_per_second": count * tokens / (compute + sending),
        "source": chip.source,
    }


def describe_projection(entry: dict[str, Any]) -> str:
    return (
        f"  {entry['chips']:4} x {entry['chip']:9}: step "
        f"{entry['compute_seconds'] * 1e3:6.1f} ms, reduction "
        f"{entry['reduce_seconds'] * 1e3:6.1f} ms, efficiency "
        f"{entry['efficiency']:.0%}, at most {entry['efficiency_with_overlap']:.0%} "
        f"with overlap; {entry['tokens_per_second'] / 1e6:6.1f} M tokens/s"
    )


def draw(report: dict[str, Any], path: Path) -> None:
    """Bytes reduced beside those of the parameters, and efficiencies on paper."""
    megabytes = {
        f"{label}, {row['mesh'][0]} x {row['mesh'][1]}": [row[key] / 1e6]
        for row in report.get("equality", [])
        for key, label in (
            ("parameter_bytes", "parameters"),
            ("payload_bytes", "reduced"),
            ("sent_bytes", "sent"),
        )
    }
    efficiency = {
        f"{row['head']}, {entry['chips']} {entry['chip']}": [entry["efficiency"]]
        for row in report.get("projection", [])
        for entry in row["projection"]
    }
    panels = {
        "MB a device and step, by data x model": megabytes,
        "efficiency without overlap (on paper)": efficiency,
    }
    harness.bars(path, {label: values for label, values in panels.items() if values})

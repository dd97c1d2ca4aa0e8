"""Many devices: equality and bytes between them, measured; 8 and 256 chips, on paper.

    python experiments/benchmarks/scaling.py --out scaling.json
    python experiments/benchmarks/scaling.py --only equality
    python experiments/benchmarks/scaling.py --only projection --chip-rows 512

Equality: the same text for a few steps on meshes of 1, 2, 4 and 8 virtual CPU devices
along `data`, and with `model` of 2; losses and parameters against those of one device,
and what the compiled step sends between devices (see programs.py), beside the bytes
of the parameters. Virtual devices share the cores of this machine, so their speed says
nothing about scaling.

Projection: the step of the original model for 8 devices is compiled from abstract
shapes (nothing of its size is run), and the bytes that it reduces are divided by
published bandwidths, one way, all links of a chip together; real collectives reach
less. Where a slice has no ring in some direction, the links it lacks are taken off. The
rate of a chip is assumed: 450,000 tokens/s on an H200 (a target, see
docs/performance.md for what was measured), and elsewhere the same share of the peak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import harness
import jax
import numpy as np
from harness import Row, Steps
from programs import Program

from elmojax.config import ElmoConfig, HeadConfig, TrainConfig
from elmojax.training.sharding import put_on_mesh
from elmojax.training.sizes import statistics_of
from elmojax.training.utilization import chip_named

MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (4, 2))
EQUAL = 1e-4
"""Differences below are the roundings of sums in another order."""


def traffic(program: Any, params: Any, devices: int) -> Row:
    """Megabytes that a device sends in a step, by kind, beside those of parameters."""
    sizes = (
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
    )
    found = Program(program.as_text()).collectives(devices)
    sent: dict[str, float] = defaultdict(float)
    for each in found:
        sent[f"{each.kind} MB"] += each.sent / 1e6
    return {
        "parameters MB": float(sum(sizes)) / 1e6,
        "reduced MB": sum(each.times * each.bytes for each in found) / 1e6,
        **sent,
        "loops of unknown length": sum(not each.exact for each in found),
    }


def equality(args: Any) -> Iterator[Row]:
    """All meshes against one device, from the same numbers on the same text."""
    corpus = harness.zipf_corpus(args.vocabulary - 3, 60 * args.vocabulary)
    config = TrainConfig(
        model=ElmoConfig.preset(args.preset),
        head=HeadConfig(args.head),
        rows=args.rows,
        window=args.window,
    )
    start = wanted = None
    for mesh in MESHES:
        plan, text = harness.planned(config, corpus, mesh=mesh)
        steps, losses = Steps.begun(plan), []
        start = start or jax.device_get(steps.state)
        places = jax.tree.map(lambda leaf: leaf.format, plan.state)
        steps.state = jax.device_put(start, places)
        for number in range(args.steps):
            batch = put_on_mesh(plan.lm.mesh, text.batch(number), "batch.")
            steps.run([batch])
            losses.append(steps.loss)
        found = jax.device_get(steps.state.params)
        wanted = wanted or (losses, found)
        difference = max(map(relative, losses, wanted[0]))
        apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found, wanted[1])
        most = max(jax.tree.leaves(apart))
        yield {
            "data x model": "{} x {}".format(*mesh),
            "loss": losses[-1],
            "loss differs": difference,
            "parameters differ": most,
            "equal": "yes" if max(difference, most) < EQUAL else "NO",
            **traffic(steps.program(batch), plan.state.params, mesh[0] * mesh[1]),
        }


def relative(found: float, wanted: float) -> float:
    return abs(found - wanted) / abs(wanted)


# --- on paper ------------------------------------------------------------------------


class Links(NamedTuple):
    """How chips are linked, and how fast one is alone."""

    chip: str
    near: tuple[tuple[int, float], ...]
    """(chips up to, bytes a second one way): links inside a node or slice."""
    node: int
    """Chips that are linked like this."""
    far: float = 0.0
    """Bytes a second a chip between nodes."""

    @property
    def tokens_per_second(self) -> float:
        """Assumed, of one chip that trains alone."""
        return 450e3 * chip_named(self.chip).bf16 / chip_named("h200").bf16


LINKS = (
    # NVLink 900 GB/s both ways, 400 Gbit/s InfiniBand a GPU: github.com/mlcommons/
    # inference_results_v4.1 (closed/NVIDIA/systems/H200-SXM-141GBx8_TRT_MaxQ.json).
    Links("h200", ((8, 450e9),), 8, 50e9),
    # ICI 400 and 1,200 GB/s both ways: https://docs.cloud.google.com/tpu/docs/v5e and
    # v5p. 2 x 4 and 2 x 2 x 2 chips have half of their links.
    Links("v5e", ((8, 100e9), (256, 200e9)), 256),
    Links("v5p", ((8, 300e9), (256, 600e9)), 8960),
)


def reduce_seconds(links: Links, count: int, payload: float) -> float:
    """An all-reduce over `count` chips: as a ring, or in nodes and between them."""
    inside = min(count, links.node)
    speed = next((s for most, s in links.near if inside <= most), links.near[-1][1])
    seconds = 2 * (inside - 1) / inside * payload / speed
    nodes = count // inside
    if nodes > 1:  # each chip of a node carries its share between the nodes
        seconds += 2 * (nodes - 1) / nodes * payload / inside / links.far
    return seconds


def project(links: Links, count: int, payload: float, tokens: int) -> Row:
    """Efficiency: the rate beside that of chips that need not talk. With overlap, the
    reduction runs beside all of the backward pass, two thirds of the step."""
    compute = tokens / links.tokens_per_second
    sending = reduce_seconds(links, count, payload)
    return {
        "chips": f"{count} {links.chip}",
        "step ms": 1e3 * compute,
        "reduction ms": 1e3 * sending,
        "efficiency": compute / (compute + sending),
        "with overlap": compute / max(compute, compute / 3 + sending),
        "tokens/s": count * tokens / (compute + sending),
    }


def projection(args: Any) -> Iterator[Row]:
    """The original step of 8 devices, compiled; then times on paper."""
    corpus = harness.zipf_corpus(args.original_vocabulary - 3, 4_000_000)
    statistics = statistics_of(corpus, "made up")
    config = TrainConfig(
        model=ElmoConfig.preset("original"),
        rows=8 * args.chip_rows,
        window=args.window,
    )
    for kind in ("adaptive", "sampled"):
        config = replace(config, head=HeadConfig(kind))
        plan, _ = harness.planned(config, statistics, mesh=(8, 1))
        sent = traffic(plan.compile(), plan.state.params, 8)
        payload, tokens = 1e6 * sent["reduced MB"], args.chip_rows * args.window
        for links in LINKS:
            for count in (8, 256):
                yield {
                    "softmax": kind,
                    **project(links, count, payload, tokens),
                    **sent,
                }


def main() -> None:
    parser = harness.options(
        __doc__,
        preset="mini",
        rows=64,
        window=20,
        vocabulary=5000,
        head=("adaptive", "The softmax of the meshes."),
        steps=(5, "Steps on each mesh."),
        chip_rows=(512, "Rows of a chip on paper."),
        original_vocabulary=(793_471, "Words of the step on paper."),
        only=("", "One of both.", ("equality", "projection")),
        out=Path,
    )
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    rows = []
    for name, measure in (("equality", equality), ("projection", projection)):
        if args.only in ("", name):
            rows += harness.report(args, measure(args))
    harness.write(args.out, args, rows=rows)


if __name__ == "__main__":
    main()

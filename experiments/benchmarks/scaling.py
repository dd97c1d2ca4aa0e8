"""Many devices: equality and bytes between them, measured; 8 and 256 chips, on paper.

    python experiments/benchmarks/scaling.py --out scaling.json [--plot scaling.png]
    python experiments/benchmarks/scaling.py --only equality
    python experiments/benchmarks/scaling.py --only projection --chip-rows 512

Equality: the same text for a few steps on meshes of 1, 2, 4 and 8 virtual CPU devices
along `data`, and with `model` of 2; losses and parameters against those of one device,
and what the compiled step sends between devices (see programs.py), beside the bytes
of the parameters. Virtual devices share the cores of this machine, so their speed says
nothing about scaling. Projection: the step of the original model for 8 devices is
compiled from abstract shapes (nothing of its size is run), its bytes are divided by
published bandwidths, and compared with the time of the step at an assumed rate. Prints
tables, and writes JSON.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import harness
import jax
import numpy as np
from harness import Row, Steps
from programs import Collective, Program
from projection import CHIPS, describe_projection, draw, project

from elmojax.config import ElmoConfig, HeadConfig, MeshConfig
from elmojax.text.batches import TrainingText
from elmojax.training.sharding import make_mesh, put_on_mesh
from elmojax.training.step import LanguageModel

MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (4, 2))
Mesh = tuple[int, int]
EQUAL = 1e-4
"""Differences below are the roundings of sums in another order."""


def program(
    preset: str, corpus: Any, kind: str, mesh: Mesh, rows: int, window: int
) -> tuple[Steps, TrainingText]:
    """The step on a mesh, with shapes for state as they lie on it, and batches."""
    config = ElmoConfig.preset(preset)
    exact = kind == "adaptive"
    head = harness.adaptive(corpus, config) if exact else HeadConfig(kind)
    devices, size = make_mesh(MeshConfig(*mesh)), len(corpus.vocabulary)
    lm = LanguageModel(config, size, head, dropout=0.1, mesh=devices)
    text = harness.reader(corpus, config, head, rows, window, mesh)
    return Steps.begun(lm, rows, shapes=True), text


def traffic(found: list[Collective], parameters: float) -> Row:
    """Bytes of a step and device, by kind, and what they are beside parameters."""
    by_kind: dict[str, float] = {}
    for each in found:
        by_kind[each.kind] = by_kind.get(each.kind, 0) + each.sent
    largest = sorted(found, key=lambda each: -each.sent)[:5]
    return {
        "sent_bytes": sum(by_kind.values()),
        "payload_bytes": sum(each.times * each.bytes for each in found),
        "parameter_bytes": parameters,
        "by_kind": by_kind,
        "unknown_loops": sum(not each.exact for each in found),
        "largest": [{**each._asdict(), "sent": each.sent} for each in largest],
    }


def weight(tree: Any) -> float:
    """Bytes of the arrays of a tree, as one device holds them."""
    leaves = jax.tree.leaves(tree)
    sizes = (leaf.sharding.shard_shape(leaf.shape) for leaf in leaves)
    return float(
        sum(
            np.prod(size) * leaf.dtype.itemsize
            for size, leaf in zip(sizes, leaves, strict=True)
        )
    )


def train(mesh: Mesh, start: Any, corpus: Any, args: Any) -> tuple[Row, Any]:
    """Some steps on a mesh: losses and what its program sends; the state after them."""
    sizes = (args.head, mesh, args.rows, args.window)
    steps, text = program(args.preset, corpus, *sizes)
    shapes = steps.state
    if start is None:
        start = jax.device_get(Steps.begun(steps.lm, args.rows).state)
    losses = []
    steps.state = jax.device_put(start, jax.tree.map(lambda x: x.format, shapes))
    for number in range(args.steps):
        batch = put_on_mesh(steps.lm.mesh, text.batch(number), "batch.")
        steps.run([batch])
        losses.append(steps.loss)
    compiled = steps.program(batch).as_text()
    found = Program(compiled).collectives(mesh[0] * mesh[1])
    row = {"mesh": mesh, "losses": losses, **traffic(found, weight(shapes.params))}
    return row, (start, jax.device_get(steps.state.params))


def equality(args: Any) -> list[Row]:
    """All meshes against one device, from the same numbers on the same text."""
    corpus = harness.zipf_corpus(args.vocabulary - 3, 60 * args.vocabulary)
    rows: list[Row] = []
    start = wanted = None
    for mesh in MESHES:
        row, (start, params) = train(mesh, start, corpus, args)
        rows.append(row)
        wanted = wanted or params
        pairs = zip(row["losses"], rows[0]["losses"], strict=True)
        row["loss_difference"] = max(abs(a - b) / abs(b) for a, b in pairs)
        differences = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()), params, wanted
        )
        row["parameter_difference"] = max(jax.tree.leaves(differences))
        worst = max(row["loss_difference"], row["parameter_difference"])
        row["equal"] = worst < EQUAL
        harness.say(describe_mesh(row))
    return rows


def describe_mesh(row: Row) -> str:
    data, model = row["mesh"]
    kinds = ", ".join(f"{k} {v / 1e6:.3f}" for k, v in row["by_kind"].items())
    line = (
        f"data={data} model={model}: loss {row['losses'][-1]:.6f}, differs by "
        f"{row['loss_difference']:.1e} (parameters {row['parameter_difference']:.1e}), "
        f"{'equal' if row['equal'] else 'NOT EQUAL'}; parameters "
        f"{row['parameter_bytes'] / 1e6:.3f} MB, reduced "
        f"{row['payload_bytes'] / 1e6:.3f} MB, sent MB: {kinds or 'nothing'}"
    )
    if row["unknown_loops"]:
        line += f" ({row['unknown_loops']} in loops of unknown length, counted once)"
    return line


def projection(args: Any) -> list[Row]:
    """The original step of 8 devices, compiled; then times on paper."""
    corpus = harness.zipf_corpus(args.original_vocabulary - 3, 4_000_000)
    rows = []
    for kind in ("adaptive", "sampled"):
        sizes = (kind, (8, 1), 8 * args.chip_rows, args.window)
        steps, text = program("original", corpus, *sizes)
        batch = put_on_mesh(steps.lm.mesh, text.batch(0), "batch.")
        begin = time.perf_counter()
        found = Program(steps.program(batch).as_text()).collectives(8)
        sent = traffic(found, weight(steps.state.params))
        sent["compile_seconds"] = time.perf_counter() - begin
        if batch.negatives is not None:
            sent["rows_taken"] = int(batch.negatives.words.shape[-1])
        payload = sent["payload_bytes"]
        harness.say(
            f"original, {kind} head of {args.original_vocabulary:,} words: parameters "
            f"{sent['parameter_bytes'] / 1e6:,.1f} MB, reduced {payload / 1e6:,.1f} MB"
        )
        tokens = args.chip_rows * args.window
        times = [project(chip, n, payload, tokens) for chip in CHIPS for n in (8, 256)]
        for entry in times:
            harness.say(describe_projection(entry))
        rows.append({"head": kind, **sent, "projection": times})
    return rows


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
        out=Path,
        plot=Path,
    )
    parser.add_argument("--only", choices=["equality", "projection"])
    args = parser.parse_args()
    report: Row = {}
    if args.only != "projection":
        report["equality"] = equality(args)
    if args.only != "equality":
        report["projection"] = projection(args)
    harness.write(args.out, args, **report)
    if args.plot:
        draw(report, args.plot)


if __name__ == "__main__":
    main()

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

import argparse
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np
from programs import Collective, Program
from projection import CHIPS, describe_projection, draw, project
from report import write
from training import zipf_corpus

from elmojax.config import ElmoConfig, HeadConfig, MeshConfig, OptimizerConfig
from elmojax.text.batches import TrainingText
from elmojax.text.tables import WordTables
from elmojax.training.choices import automatic_cutoffs
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import make_mesh, place, shardings
from elmojax.training.step import LanguageModel, compile_train_step, init_state

MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (4, 2))
STEPS_OF_A_RUN = 1000
"""What the optimiser is told."""


def language_model(preset: str, corpus: Any, kind: str, mesh: Any) -> LanguageModel:
    config, head = ElmoConfig.preset(preset), HeadConfig(kind)
    if kind == "adaptive":
        counts = np.sort(np.asarray(corpus.counts, np.float64))[::-1]
        cutoffs = automatic_cutoffs(counts, config.lstm.projection, head.div_value)
        head = HeadConfig(kind, cutoffs)
    size = len(corpus.vocabulary)
    return LanguageModel(config, size, head, dropout=0.1, mesh=mesh)


def program(lm: LanguageModel, corpus: Any, rows: int, window: int) -> tuple[Any, ...]:
    """The step, the shapes of its state as they lie on the mesh, and its text."""
    optimizer = make_optimizer(OptimizerConfig(), STEPS_OF_A_RUN)
    create = partial(init_state, lm, optimizer, rows, 0)
    shapes = jax.eval_shape(create)
    places = shardings(lm.mesh, shapes)
    state = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        places,
    )
    samples = lm.head.samples if lm.head.kind == "sampled" else 0
    data, model = lm.mesh.shape["data"], lm.mesh.shape["model"]
    words = WordTables(
        corpus, corpus.vocabulary, lm.config, data, False, lm.head, model
    )
    text = TrainingText(corpus, words, rows, window, 0, samples)
    return compile_train_step(lm, optimizer, state), state, text


def traffic(found: list[Collective], parameters: float) -> dict[str, Any]:
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


def train(mesh: tuple[int, int], start: Any, corpus: Any, args: Any) -> dict[str, Any]:
    """Some steps on a mesh: losses, parameters, and what its program sends."""
    lm = language_model(args.preset, corpus, args.head, make_mesh(MeshConfig(*mesh)))
    step, shapes, text = program(lm, corpus, args.rows, args.window)
    state = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, shapes))
    batches = (place(lm.mesh, text.batch(n), "batch.") for n in range(args.steps))
    compiled: Any = None
    losses = []
    for batch in batches:
        compiled = compiled or step.lower(shapes, batch).compile()
        state, metrics = compiled(state, batch)
        losses.append(float(metrics[lm.loss_name]))
    found = Program(compiled.as_text()).collectives(mesh[0] * mesh[1])
    return {
        "mesh": mesh,
        "losses": losses,
        "params": jax.tree.map(np.asarray, state.params),
        **traffic(found, weight(shapes.params)),
    }


def equality(args: Any) -> list[dict[str, Any]]:
    """All meshes against one device, from the same numbers on the same text."""
    corpus = zipf_corpus(args.vocabulary - 3, 60 * args.vocabulary)
    lm = language_model(args.preset, corpus, args.head, None)
    optimizer = make_optimizer(OptimizerConfig(), STEPS_OF_A_RUN)
    start = jax.jit(partial(init_state, lm, optimizer, args.rows, 0))()
    start = jax.tree.map(np.asarray, start)
    rows: list[dict[str, Any]] = []
    for mesh in MESHES:
        rows.append(train(mesh, start, corpus, args))
        row, one = rows[-1], rows[0]
        pairs = zip(row["losses"], one["losses"], strict=True)
        row["loss_difference"] = max(abs(a - b) / abs(b) for a, b in pairs)
        differences = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()), row["params"], one["params"]
        )
        row["parameter_difference"] = max(jax.tree.leaves(differences))
        worst = max(row["loss_difference"], row["parameter_difference"])
        row["equal"] = worst < args.tolerance
        print(describe_mesh(row), flush=True)
    for row in rows:
        del row["params"]
    return rows


def describe_mesh(row: dict[str, Any]) -> str:
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


def projection(args: Any) -> list[dict[str, Any]]:
    """The original step of 8 devices, compiled; then times on paper."""
    corpus = zipf_corpus(args.original_vocabulary - 3, 4_000_000)
    rows = []
    for kind in args.heads:
        lm = language_model("original", corpus, kind, make_mesh(MeshConfig(8, 1)))
        step, shapes, text = program(lm, corpus, 8 * args.chip_rows, args.window)
        batch = place(lm.mesh, text.batch(0), "batch.")
        begin = time.perf_counter()
        compiled = step.lower(shapes, batch).compile()
        found = Program(compiled.as_text()).collectives(8)
        sent = traffic(found, weight(shapes.params))
        sent["compile_seconds"] = time.perf_counter() - begin
        if batch.negatives is not None:
            sent["rows_taken"] = int(batch.negatives.words.shape[-1])
        payload = sent["payload_bytes"]
        print(
            f"original, {kind} head of {args.original_vocabulary:,} words: parameters "
            f"{sent['parameter_bytes'] / 1e6:,.1f} MB, reduced {payload / 1e6:,.1f} MB"
        )
        tokens = args.chip_rows * args.window
        times = [project(chip, n, payload, tokens) for chip in CHIPS for n in (8, 256)]
        for entry in times:
            print(describe_projection(entry), flush=True)
        rows.append({"head": kind, **sent, "projection": times})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["equality", "projection"])
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=5000)
    parser.add_argument("--head", default="adaptive")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--chip-rows", type=int, default=512, help="a chip, on paper")
    parser.add_argument("--original-vocabulary", type=int, default=793_471)
    parser.add_argument("--heads", nargs="+", default=["adaptive", "sampled"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {}
    if args.only != "projection":
        report["equality"] = equality(args)
    if args.only != "equality":
        report["projection"] = projection(args)
    write(args.out, args, **report)
    if args.plot:
        draw(report, args.plot)


if __name__ == "__main__":
    main()

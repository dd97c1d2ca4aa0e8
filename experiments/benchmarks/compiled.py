"""The program of a chip that is not there: memory, time by part, what moves, loops.

    python experiments/benchmarks/compiled.py --chip v5e --preset original --rows 512

compiles what production runs with the chip's own compiler (`pip install '.[tpu]'` or
`'.[cuda]'`; no TPU or GPU is needed) and reads the compiled program. Times are a
roofline and the sum of the cycles that a TPU's compiler estimates (see programs.py):
they compare programs, and are no forecast.

--rows counts the rows of the global batch, as everywhere in elmojax: 512 rows a chip
on 8 chips are `--rows 4096 --devices 8`. `--what embed` takes --rows sentences of
--window words (256 and 30 unless told otherwise), `--what evaluate` a step of
`elmojax evaluate`.

--check compiles small and large models for a slice of eight v5e, and fails where one of
them breaks a rule of `complaints`: continuous integration runs it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
from harness import DTYPES, Row
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from programs import Kernel, Program, Rates

import elmojax
from elmojax.config import MeshConfig, TrainConfig
from elmojax.estimate import StepPlan, absent_devices, memory_of, plan_step
from elmojax.training.choices import resolved
from elmojax.training.evaluate import compile_evaluation_step
from elmojax.training.sharding import make_mesh
from elmojax.training.sizes import BENCHMARK_POSITIONS, BENCHMARK_WORDS, assumed_text
from elmojax.training.utilization import chip_named

CLOCKS = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9, "tpu7x": 2.2e9}
"""Of the TPUs' cycles: the published peaks by the sizes of their matrix units."""

ATTAINED = (0.8, 0.9)
"""Shares of the sheet's products and bandwidth that a GPU reaches: 790 of 989 TFLOP/s
and 4.3 of 4.8 TB/s were measured on an H200."""

PARTS = (
    ("softmax", r"\bsoftmax\b|\bhead\b"),
    ("encoder", r"encode_words|\bencoder\b"),
    ("LSTM", r"contextualize|\blstm\b"),
)
"""(part, pattern of JAX's names): the first one that matches counts."""


@dataclass(frozen=True)
class Case:
    """What is compiled for what."""

    chip: str
    preset: str = "original"
    rows: int = 512
    devices: int = 1
    model: int = 1
    """Devices along `model`; the others lie along `data`."""
    vocabulary: int = BENCHMARK_WORDS
    what: str = "train"
    precision: str = "bf16"
    head: str = "adaptive"
    window: int = 0
    """0 = 20 positions, or sentences of 30 words."""

    @property
    def name(self) -> str:
        mesh = f"{self.devices // self.model} x {self.model}"
        return f"{self.what} {self.preset}, {self.rows} rows, {mesh} {self.chip}"


def compile_case(case: Case) -> tuple[Any, StepPlan]:
    """The compiled program, and the plan of the training step that it belongs to."""
    devices = absent_devices(chip_named(case.chip), case.devices)
    if not devices:
        sys.exit(
            f"There is no compiler for {case.devices} {case.chip} here: install .[tpu] "
            "or .[cuda] on a machine without such chips, and ask for a whole slice."
        )
    data = case.devices // case.model
    mesh = make_mesh(MeshConfig(data, case.model), devices)
    statistics = assumed_text(case.vocabulary, BENCHMARK_POSITIONS)
    config = TrainConfig.preset(case.preset)
    head = replace(config.head, kind=case.head)
    config = replace(config, rows=case.rows, head=head)
    if case.window and case.what != "embed":
        config = replace(config, window=case.window)
    config = resolved(config, statistics.counts)
    plan = plan_step(config, statistics, mesh, data, DTYPES[case.precision])
    if case.what == "train":
        return plan.compile(), plan
    if case.what == "embed":
        return _embedding(case, plan).compile(), plan
    step = compile_evaluation_step(plan.lm, case.rows)
    batch = plan.batch._replace(negatives=None)
    return step.lower(plan.state.params, plan.state.carry, batch).compile(), plan


def _embedding(case: Case, plan: StepPlan) -> Any:
    config = plan.config.model

    def placed(spec: P, dtype: Any, *shape: int) -> Any:
        place = NamedSharding(plan.lm.mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def load(key: jax.Array) -> Any:
        return elmojax.cast(elmojax.init(config, key), case.precision)

    params = jax.tree.map(
        lambda leaf: placed(P(), leaf.dtype, *leaf.shape),
        jax.eval_shape(load, jax.random.key(0)),
    )
    words = (case.rows, case.window or 30, config.encoder.max_characters)
    tokens = placed(P("data"), jnp.int32, *words)
    gammas = placed(P(), jnp.float32, config.lstm.layers + 1)
    return jax.jit(elmojax.embed).lower(params, tokens, gammas)


# --- what a program is ---------------------------------------------------------------


def rates(name: str) -> Rates:
    chip = chip_named(name)
    if chip.name in CLOCKS:
        return Rates(chip.bf16, chip.float32, chip.bandwidth, CLOCKS[chip.name])
    products, memory = ATTAINED
    sizes = (products * chip.bf16, products * chip.float32, memory * chip.bandwidth)
    return Rates(*sizes)


def part_of(kernel: Kernel, what: str) -> tuple[str, str]:
    """The part of the model that a kernel belongs to, and its pass."""
    label = kernel.label
    direction = "backward" if "transpose(" in label else "forward"
    for part, pattern in PARTS:
        if re.search(pattern, label):
            if part == "LSTM":
                part += " loops" if kernel.loop.rounds else " outside loops"
            return part, direction
    inside = not label or "jvp(" in label
    return ("optimizer", "") if what == "train" and not inside else ("rest", direction)


def read(case: Case, compiled: Any) -> Row:
    """Everything that is printed."""
    text = compiled.as_text()
    program = Program(text)
    kernels, loops = program.kernels(rates(case.chip))
    parts: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        parts[part_of(kernel, case.what)].append(kernel)
    moves = sorted(
        (kernel for kernel in kernels if kernel.move and kernel.bytes),
        key=lambda kernel: -kernel.times * kernel.bytes,
    )
    return {
        **vars(case),
        "jax": jax.__version__,
        "float64": "f64[" in text,
        "memory": memory_of(compiled)._asdict(),
        **_cost(kernels),
        "parts": [
            {"part": part, "pass": direction, **_cost(found)}
            for (part, direction), found in sorted(parts.items())
        ],
        "loops": [
            {
                "rounds": loop.rounds if loop.exact else None,
                "kernels_a_round": loop.kernels,
                **_cost([kernel for kernel in kernels if kernel.loop is loop]),
                "where": loop.label[-70:],
            }
            for loop in loops
        ],
        "moves": [
            {
                "kind": kernel.move,
                "part": part_of(kernel, case.what)[0],
                "array": ", ".join(map(str, kernel.instruction.arrays)),
                "times": kernel.times,
                "bytes": kernel.bytes,
                **_cost([kernel]),
                "where": kernel.label[-60:],
            }
            for kernel in moves
        ],
        "collectives": [
            {
                "kind": each.kind,
                "arrays": ", ".join(map(str, each.arrays)),
                "bytes": each.bytes,
                "group": each.group,
                "times": each.times if each.exact else None,
                "sent": each.sent,
                "where": each.where,
            }
            for each in program.collectives(case.devices)
        ],
    }


def _cost(kernels: list[Kernel]) -> Row:
    return {
        "roofline_ms": 1e3 * sum(kernel.seconds for kernel in kernels),
        "cycles_ms": 1e3 * sum(kernel.cycles for kernel in kernels),
        "kernels": sum(kernel.times for kernel in kernels if kernel.launched),
    }


def page(found: Row, top: int) -> str:
    whole = {name: found[name] for name in ("roofline_ms", "cycles_ms", "kernels")}
    sizes = {name: size / 1e9 for name, size in found["memory"].items()}
    sent = sorted(found["collectives"], key=lambda each: -each["sent"])
    tables = {
        "memory a chip, GB": [sizes],
        "by part": [*found["parts"], {"part": "all", **whole}],
        "loops, whose rounds are counted once where they are not known": found["loops"],
        "largest fills, copies and transposes": found["moves"][:top],
        "collectives": [{**each, "arrays": each["arrays"][:60]} for each in sent],
    }
    return "\n\n".join(
        f"{title}\n\n{harness.table_of(rows)}" for title, rows in tables.items() if rows
    )


# --- what continuous integration refuses ---------------------------------------------

CHECKED = {
    Case("v5e", "mini", 512, 8, vocabulary=20_000): 0.03e9,
    Case("v5e", "original", 2048, 8, 2): 3.1e9,
}
"""Bytes a chip at most."""


def complaints(case: Case, bound: float, found: Row, plan: Any) -> list[str]:
    """The rules of a training step that a compiled program breaks."""
    said = []
    if found["memory"]["total"] > bound:
        said.append(f"memory is above {bound / 1e9} GB")
    if found["float64"]:
        said.append("something is float64")
    data = case.devices // case.model
    lstm, rows = plan.config.model.lstm, case.rows // data
    gate = 2 * 2 * plan.config.window * rows * lstm.dim // case.model  # in bfloat16
    for move in found["moves"]:
        passes = 1 if move["kind"] == "fill" else 2  # a copy is read, too
        if move["bytes"] >= passes * gate and move["part"].startswith("LSTM"):
            said.append(f"a {move['kind']} of {move['array']}: {move['where']}")
    for loop in found["loops"]:
        if loop["rounds"] is None:
            said.append(f"a loop of unknown length: {loop['where']}")
    edges = (0, *plan.config.head.cutoffs, case.vocabulary)
    tails = [high - low for low, high in pairwise(edges)][1:]
    for each in found["collectives"]:
        what = f"{each['kind']} of {each['arrays']}: {each['where']}"
        if each["kind"] in ("all-reduce", "reduce-scatter") and re.search(
            r"\b(bf16|f16)\[", each["arrays"]
        ):
            said.append(f"a sum in another type than float32: {what}")
        widest = max(map(int, re.findall(r"\d+(?=[,\]])", each["arrays"])), default=0)
        if each["kind"] == "all-gather" and any(
            size <= widest <= 1.01 * size + 128 for size in (*tails, case.vocabulary)
        ):
            said.append(f"words of the softmax are gathered: {what}")
    return said


def check() -> None:
    failed = False
    for case, bound in CHECKED.items():
        compiled, plan = compile_case(case)
        found = read(case, compiled)
        said = complaints(case, bound, found, plan)
        print(f"{case.name}: {found['memory']['total'] / 1e9:.3f} GB a chip")
        print(*(said or ["as it should be"]), sep="\n", flush=True)
        failed |= bool(said)
    sys.exit(failed)


def main() -> None:
    parser = harness.options(
        __doc__,
        chip=("", "v5e v5p v6e tpu7x h100 h200 b200 a100"),
        preset="original",
        rows=(0, "Rows of the global batch (512; 256 sentences of `embed`)."),
        window=0,
        devices=(1, "Chips in all."),
        model=(1, "Of them along `model`."),
        vocabulary=BENCHMARK_WORDS,
        what=("train", "Which program.", ("train", "embed", "evaluate")),
        precision=("bf16", "Of matrix products.", tuple(DTYPES)),
        head=("adaptive", "The softmax.", ("adaptive", "full", "sampled")),
        hlo=(Path, "Where to write the program's text."),
        top=(20, "Moves that are shown."),
        json=(False, "Print one JSON object."),
        check=(False, "See above."),
    )
    asked = vars(parser.parse_args())
    hlo, top, as_json = asked.pop("hlo"), asked.pop("top"), asked.pop("json")
    if asked.pop("check"):
        check()
    if not asked["chip"]:
        parser.error("--chip is missing")
    asked["rows"] = asked["rows"] or (256 if asked["what"] == "embed" else 512)
    case = Case(**asked)
    compiled, _ = compile_case(case)
    if hlo is not None:
        hlo.write_text(compiled.as_text(), encoding="utf-8")
    found = read(case, compiled)
    print(json.dumps(found) if as_json else f"{case.name}\n{page(found, top)}")


if __name__ == "__main__":
    main()

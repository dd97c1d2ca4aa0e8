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

import argparse
import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from programs import Kernel, Program, Rates

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
    vocabulary: int = 793_471
    what: str = "train"
    precision: str = "bf16"
    head: str = "adaptive"
    window: int = 0
    """0 = 20 positions, or sentences of 30 words."""

    @property
    def name(self) -> str:
        mesh = f"{self.devices // self.model} x {self.model}"
        return f"{self.what} {self.preset}, {self.rows} rows, {mesh} {self.chip}"


def compile_case(case: Case) -> tuple[Any, Any]:
    """The compiled program, and the plan of the training step that it belongs to."""
    import jax.numpy as jnp

    from elmojax.config import MeshConfig, TrainConfig
    from elmojax.estimate import absent_devices, plan_step
    from elmojax.training.choices import resolved
    from elmojax.training.sharding import make_mesh
    from elmojax.training.sizes import BENCHMARK_POSITIONS, assumed
    from elmojax.training.utilization import chip_named

    devices = absent_devices(chip_named(case.chip), case.devices)
    if not devices:
        sys.exit(
            f"There is no compiler for {case.devices} {case.chip} here: install .[tpu] "
            "or .[cuda] on a machine without such chips, and ask for a whole slice."
        )
    data = case.devices // case.model
    mesh = make_mesh(MeshConfig(data, case.model), devices)
    statistics = assumed(case.vocabulary, BENCHMARK_POSITIONS)
    config = TrainConfig.preset(case.preset)
    head = replace(config.head, kind=case.head)
    config = replace(config, rows=case.rows, head=head)
    if case.window and case.what != "embed":
        config = replace(config, window=case.window)
    dtype = jnp.float32 if case.precision == "float32" else jnp.bfloat16
    plan = plan_step(resolved(config, statistics.counts), statistics, mesh, data, dtype)
    if case.what == "train":
        return plan.compile(), plan
    compile_ = _evaluation if case.what == "evaluate" else _embedding
    return compile_(case, plan).compile(), plan


def _evaluation(case: Case, plan: Any) -> Any:
    from elmojax.training.evaluate import compile_evaluation_step

    batch = plan.batch._replace(negatives=None)
    step = compile_evaluation_step(plan.lm, case.rows)
    return step.lower(plan.state.params, plan.state.carry, batch)


def _embedding(case: Case, plan: Any) -> Any:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import elmojax

    config = plan.config.model

    def shapes(tree: Any, spec: P) -> Any:
        place = NamedSharding(plan.lm.mesh, spec)
        shape = partial(jax.ShapeDtypeStruct, sharding=place)
        return jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), tree)

    def load(key: jax.Array) -> Any:
        return elmojax.cast(elmojax.init(config, key), case.precision)

    params = shapes(jax.eval_shape(load, jax.random.key(0)), P())
    words = (case.rows, case.window or 30, config.encoder.max_characters)
    tokens = shapes(jax.ShapeDtypeStruct(words, jnp.int32), P("data"))
    gammas = shapes(jax.ShapeDtypeStruct((config.lstm.layers + 1,), jnp.float32), P())
    return jax.jit(elmojax.embed).lower(params, tokens, gammas)


# --- what a program is ---------------------------------------------------------------


def rates(name: str) -> Rates:
    from elmojax.training.utilization import chip_named

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


def read(case: Case, compiled: Any) -> dict[str, Any]:
    """Everything that is printed."""
    import jax

    from elmojax.estimate import memory_of

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
                "where": loop.label,
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
                "where": kernel.label,
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


def _cost(kernels: list[Kernel]) -> dict[str, Any]:
    return {
        "roofline_ms": 1e3 * sum(kernel.seconds for kernel in kernels),
        "cycles_ms": 1e3 * sum(kernel.cycles for kernel in kernels),
        "kernels": sum(kernel.times for kernel in kernels if kernel.launched),
    }


def page(found: dict[str, Any], top: int) -> str:
    memory = {name: f"{size / 1e9:.3f}" for name, size in found["memory"].items()}
    lines = [
        f"memory a chip, GB: arguments {memory['arguments']}, temporary "
        f"{memory['temporary']}, total {memory['total']}",
        "",
        f"{'roofline':>9} {'cycles':>9} {'kernels':>8}   milliseconds by part",
    ]
    whole = {**found, "part": "all", "pass": ""}
    lines += [
        f"{_times(each)}   {each['part']} {each['pass']}"
        for each in (*found["parts"], whole)
    ]
    lines += ["", f"{'roofline':>9} {'cycles':>9} {'a round':>8}   loops"]
    for each in found["loops"]:
        rounds = each["rounds"] or "UNKNOWN (counted once)"
        each = {**each, "kernels": each["kernels_a_round"]}
        lines.append(f"{_times(each)}   {rounds} rounds, {each['where'][-70:]}")
    lines += ["", "largest fills, copies and transposes"]
    for each in found["moves"][:top]:
        size = f"{each['times']} x {each['bytes'] / 1e6:,.1f} MB"
        lines.append(
            f"{_times(each)[:19]} {each['kind']:9} {size:>16}   {each['array'][:48]}"
            f"   {each['where'][-60:]}"
        )
    if found["collectives"]:
        lines += ["", "collectives"]
    for each in sorted(found["collectives"], key=lambda each: -each["sent"]):
        size = f"{each['times'] or '?'} x {each['bytes'] / 1e6:,.3f} MB"
        lines.append(
            f"{size:>18} over {each['group']}  {each['kind']:18} "
            f"{each['arrays'][:40]:40}   {each['where'][-50:]}"
        )
    return "\n".join(lines)


def _times(each: dict[str, Any]) -> str:
    return f"{each['roofline_ms']:9.3f} {each['cycles_ms']:9.3f} {each['kernels']:8}"


# --- what continuous integration refuses ---------------------------------------------

CHECKED = {
    Case("v5e", "mini", 512, 8, vocabulary=20_000): 0.03e9,
    Case("v5e", "original", 2048, 8, 2): 3.1e9,
}
"""Bytes a chip at most."""


def complaints(case: Case, bound: float, found: dict[str, Any], plan: Any) -> list[str]:
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", help="v5e v5p v6e tpu7x h100 h200 b200 a100")
    parser.add_argument("--preset", default="original")
    parser.add_argument("--rows", type=int, help="of the global batch (512)")
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--model", type=int, default=1, help="of them along `model`")
    parser.add_argument("--vocabulary", type=int, default=793_471)
    whats = ("train", "embed", "evaluate")
    parser.add_argument("--what", default="train", choices=whats)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"))
    heads = ("adaptive", "full", "sampled")
    parser.add_argument("--head", default="adaptive", choices=heads)
    parser.add_argument("--hlo", type=Path, help="where to write the program's text")
    parser.add_argument("--top", type=int, default=20, help="moves that are shown")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="see above")
    asked = vars(parser.parse_args())
    hlo, top, as_json = asked.pop("hlo"), asked.pop("top"), asked.pop("json")
    if asked.pop("check"):
        check()
    if asked["chip"] is None:
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

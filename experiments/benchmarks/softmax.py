"""Softmax heads at the paper's size: forward and backward pass, and memory.

    python experiments/benchmarks/softmax.py
    python experiments/benchmarks/softmax.py --positions 1280 --vocabulary 200000

Forms: `adaptive` (what trains, with the positions of each cluster found beforehand),
`dense` (each cluster for every position, masked), `torch`
(nn.AdaptiveLogSoftmaxWithLoss, left out where torch is not installed), `full` (in
chunks), `sampled` (8,192 words, with the rows taken from the table). Targets follow
Zipf's law; all forms have the same targets, widths and cutoffs. Each runs alone in a
process of its own, one after the other: CPU-seconds and seconds are the median of
--rounds passes after a warm-up, "peak" is how far the process grew while it ran
(gradients of the weights included), "temporary" what XLA reserves besides arguments and
results. Forms whose cost is linear in positions and that would take minutes or tens of
GB are timed on fewer positions and multiplied, marked ~ ; their temporary memory is
that of the whole program. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from elmojax.model import softmax
from elmojax.model.cluster_loss import edges_of
from elmojax.model.sampled_softmax import Candidates, sampled_losses
from elmojax.text.batches import Members
from elmojax.text.negatives import negatives
from elmojax.training.choices import automatic_cutoffs

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # waiting threads are no work

FORMS = ("adaptive", "torch", "dense", "sampled", "full")
AFFORDABLE = {"dense": 1 << 28, "full": 1 << 30}
"""Positions x words that a form is run on at most."""


def inputs(positions: int, args: Any) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    share = args.counts / args.counts.sum()
    targets = random.choice(args.vocabulary, positions, p=share)
    hidden = random.standard_normal((positions, args.dim), np.float32)
    return hidden, targets.astype(np.int32)


def jax_program(form: str, args: Any) -> Callable[[int], tuple[Any, Any]]:
    """positions -> function to be compiled, and its arguments."""

    def make(positions: int) -> tuple[Any, Any]:
        cutoffs = args.cutoffs if form in ("adaptive", "dense") else ()
        head = softmax.Softmax(args.vocabulary, cutoffs, args.div_value)
        some = jnp.zeros((1, args.dim))
        params = jax.jit(head.init)(jax.random.key(0), some)["params"]
        x, targets = inputs(positions, args)
        dtype = jnp.bfloat16 if args.precision == "bf16" else jnp.float32

        def exact(params: Any, x: Any, targets: Any, members: Any) -> Any:
            nll = softmax.negative_log_likelihood
            weights = jnp.full(targets.shape, 1 / targets.size, jnp.float32)
            return nll(params, x, targets, weights, members, dtype=dtype)[0]

        def dense(params: Any, x: Any, targets: Any) -> Any:
            every = softmax.log_prob_all(params, x, dtype)
            return -jnp.take_along_axis(every, targets[:, None], axis=1).mean()

        def drawn(params: Any, x: Any, negatives: Any) -> Any:
            words = Candidates(negatives.drawn[0], negatives.log_expected[0])
            at = negatives.targets.reshape(-1)
            weights = jnp.full(len(x), 1 / len(x), jnp.float32)
            direction = (x[None], at[None], weights[None], words)
            return sampled_losses(params, [direction], dtype=dtype)[0]

        def on_rows(params: Any, x: Any, negatives: Any) -> Any:
            rows = jax.tree.map(lambda leaf: leaf[negatives.words], params)
            return jax.value_and_grad(drawn, (0, 1))(rows, x, negatives)

        if form == "sampled":
            words = negatives(
                targets.reshape(1, 1, -1), args.vocabulary, args.samples, 0, 0
            )
            return on_rows, (params, x, words)
        if form == "dense":
            return jax.value_and_grad(dense, (0, 1)), (params, x, targets)
        plan = members(targets, args, edges_of(params))
        arguments = (params, x[None], targets[None], plan)
        return jax.value_and_grad(exact, (0, 1)), arguments

    return make


def members(targets: np.ndarray, args: Any, edges: Sequence[int]) -> tuple[Any, ...]:
    """Positions of each tail, with the room that a run would give it."""
    share, plans = args.counts / args.counts.sum(), []
    for low, high in itertools.pairwise(edges):
        mean = share[low:high].sum() * len(targets)
        found = np.flatnonzero((targets >= low) & (targets < high)).astype(np.int32)
        filling = (0, max(0, math.ceil(mean + 6 * math.sqrt(mean)) - len(found)))
        positions = np.pad(found, filling, constant_values=len(targets))
        inside = np.pad(targets[found] - low, filling)
        plans.append(Members(positions[None], inside[None]))
    return tuple(plans)


def run_jax(form: str, positions: int, part: int, args: Any) -> dict[str, float]:
    make = jax_program(form, args)
    function, arguments = make(part)
    arguments = jax.device_put(arguments)
    program, seconds = harness.compiled(function, *arguments)
    found = measure(lambda: jax.block_until_ready(program(*arguments)), args)
    found["compile_seconds"] = seconds
    if part != positions:
        found["peak"] = float("nan")
        program, _ = harness.compiled(function, *make(positions)[1])
    found["temporary"] = harness.temporary_bytes(program)
    return found


def run_torch(positions: int, args: Any) -> dict[str, float]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    head = torch.nn.AdaptiveLogSoftmaxWithLoss(
        args.dim, args.vocabulary, list(args.cutoffs), args.div_value, head_bias=True
    )
    hidden, targets = inputs(positions, args)
    x, y = torch.tensor(hidden, requires_grad=True), torch.tensor(targets).long()

    def run() -> None:
        head.zero_grad(set_to_none=True)
        x.grad = None
        head(x, y).loss.backward()

    return measure(run, args)


def measure(run: Callable[[], Any], args: Any) -> dict[str, float]:
    before = harness.memory("VmHWM")
    found = harness.measure(run, args.rounds)
    peak = harness.memory("VmHWM") - before
    return {"cpu_seconds": found["cpu"], "seconds": found["seconds"], "peak": peak}


def worker(form: str, positions: int, args: Any, pipe: Any) -> None:
    most = AFFORDABLE.get(form, positions * args.vocabulary) // args.vocabulary
    part = min(positions, max(64, most))
    if form == "torch":
        found = run_torch(positions, args)
    else:
        found = run_jax(form, positions, part, args)
    for name in ("cpu_seconds", "seconds"):
        found[name] *= positions / part
    pipe.send({**found, "timed_positions": part})


def measured_alone(form: str, positions: int, args: Any) -> dict[str, float] | None:
    """In a process of its own; None if that died, which is mostly of memory."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=worker, args=(form, positions, args, there))
    process.start()
    there.close()
    try:
        return dict(here.recv())
    except EOFError:
        return None
    finally:
        process.join()


def describe(form: str, found: dict[str, float] | None, ours: dict[str, float]) -> str:
    if found is None:
        return f"  {form:9} out of memory"
    scaled = "~" if found["timed_positions"] != found["positions"] else " "
    ratio = found["cpu_seconds"] / ours["cpu_seconds"]
    line = (
        f"  {form:9}{scaled}{found['cpu_seconds']:9.2f} cpu-s {found['seconds']:9.2f} s"
    )
    line += f"{ratio:8.1f}x"
    for name in ("temporary", "peak"):
        if name in found and found[name] == found[name]:
            line += f"   {found[name] / 1e9:8.3f} GB {name}"
    return line


def main() -> None:
    parser = harness.options(
        __doc__,
        positions=([1280, 10240, 20480], "Positions of a batch."),
        vocabulary=[200_000, 793_471],
        div_value=(4.0, "How much narrower each tail is."),
        dim=(512, "Width of the hidden vectors."),
        samples=8192,
        rounds=3,
        out=Path,
    )
    parser.add_argument("--cutoffs", type=int, nargs="*", help="none: automatic")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    args = parser.parse_args()
    results = []
    for vocabulary in args.vocabulary:
        for positions in args.positions:
            case = argparse.Namespace(**vars(args))
            case.vocabulary = vocabulary
            case.cutoffs = tuple(c for c in args.cutoffs or () if c < vocabulary)
            case.counts = 1e9 / np.arange(1, vocabulary + 1)
            if args.cutoffs is None:
                settings = (case.counts, args.dim, args.div_value)
                case.cutoffs = automatic_cutoffs(*settings)
            print(f"{positions:,} positions, {vocabulary:,} words, {case.cutoffs}")
            ours: dict[str, float] = {}
            for form in args.forms:
                found = measured_alone(form, positions, case)
                if found is not None:
                    found["positions"] = positions
                    ours = ours or found
                row = {"vocabulary": vocabulary, "positions": positions, "form": form}
                results.append({**row, **(found or {"out_of_memory": True})})
                harness.say(describe(form, found, ours))
    harness.write(args.out, args, results=results)


if __name__ == "__main__":
    main()

"""Softmax heads at the paper's size: forward and backward pass, and memory.

    python experiments/benchmarks/softmax.py
    python experiments/benchmarks/softmax.py --positions 1280 --vocabulary 200000

Forms: `adaptive` (what trains), `torch` (nn.AdaptiveLogSoftmaxWithLoss, left out where
torch is not installed), `dense` (each cluster for every position, masked), `sampled`
(8,192 words, with the rows taken from the table), `full` (in chunks). All have the
targets of one batch of text by Zipf's law. Each runs alone in a process of its own, one
after the other: CPU-seconds and seconds are the median of --rounds passes after a
warm-up, "peak" is how far the process grew while it ran (gradients of the weights
included), "temporary" what XLA reserves besides arguments and results. `dense` and
`full` cost the same for each position and would take minutes or tens of GB: they are
timed on fewer positions, and their time is multiplied. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # waiting threads are no work

import harness
import jax.numpy as jnp
import numpy as np
import training
from harness import DTYPES, Row

from elmojax.config import (
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    TrainConfig,
    WordTableConfig,
)
from elmojax.model.softmax import log_prob_all

FORMS = ("adaptive", "torch", "dense", "sampled", "full")
AFFORDABLE = {"dense": 1 << 28, "full": 1 << 30}
"""Positions x words that a form is run on at most."""
WINDOW = 20


def measured(form: str, positions: int, args: Any) -> Row:
    """One form in this process: seconds, and memory."""
    (words,) = args.vocabulary
    rows = positions // (2 * WINDOW)
    most = AFFORDABLE.get(form, positions * words) // words
    part = min(rows, max(1, most // (2 * WINDOW)))
    model = ElmoConfig(WordTableConfig(words, 8), LstmConfig(8, args.dim, 1))
    kind: Any = form if form in ("sampled", "full") else "adaptive"
    head = HeadConfig(kind, tuple(args.cutoffs), args.div_value, samples=args.samples)
    config = TrainConfig(model=model, head=head, window=WINDOW, rows=part)
    corpus = harness.zipf_corpus(words - 3)
    dtype = DTYPES[args.precision]
    plan, text = harness.planned(config, corpus, dtype)
    steps, (batch,) = training.stepping(plan, text, 1)
    parts = dict(training.parts_of(plan.lm, plan.optimizer, steps.state, batch))
    function, arguments = parts["softmax"]
    if form == "dense":
        function, arguments = dense(*arguments, dtype)
    before = harness.memory("VmHWM")
    if form == "torch":
        (_, x), (batch,), _ = arguments
        found = torch(x.reshape(-1, args.dim), batch, plan.lm.head, words, args.rounds)
    else:
        found = harness.timed(function, *arguments, rounds=args.rounds)
    for name in ("cpu", "seconds"):
        found[name] *= rows / part
    grown = harness.memory("VmHWM") - before
    return {**found, "peak": grown, "timed_positions": 2 * WINDOW * part}


def dense(moved: Any, fixed: Any, cotangent: Any, dtype: Any) -> training.Part:
    """Every cluster for every position, of the same arguments."""

    def run(moved: Any, batch: Any) -> Any:
        params, x = moved
        targets = batch.targets.transpose(2, 0, 1).reshape(-1, 1)
        every = log_prob_all(params, x.reshape(len(targets), -1), dtype)
        return -jnp.take_along_axis(every, targets, axis=1).sum()

    return training.both_ways(run, moved, *fixed)


def torch(x: Any, batch: Any, head: HeadConfig, words: int, rounds: int) -> Row:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    softmax = torch.nn.AdaptiveLogSoftmaxWithLoss(
        x.shape[-1], words, list(head.cutoffs), head.div_value, head_bias=True
    )
    hidden = torch.tensor(x, requires_grad=True)
    targets = np.asarray(batch.targets).transpose(2, 0, 1).reshape(-1)
    y = torch.tensor(targets).long()

    def run() -> None:
        softmax.zero_grad(set_to_none=True)
        hidden.grad = None
        softmax(hidden, y).loss.backward()

    return harness.measure(run, rounds)


def compare(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each size and form, every one in a process of its own."""
    with_torch = importlib.util.find_spec("torch") is not None
    forms = [form for form in args.forms if form != "torch" or with_torch]
    sizes = itertools.product(args.vocabulary, args.positions, forms)
    for words, positions, form in sizes:
        own = ["--vocabulary", words, "--positions", positions, "--forms", form]
        row = {"words": words, "positions": positions, "form": form}
        yield row | harness.alone(sys.executable, *sys.argv, "--one", *own)


def main() -> None:
    parser = harness.options(
        __doc__,
        positions=([1280, 10240, 20480], "Positions of a batch."),
        vocabulary=[200_000, 793_471],
        div_value=4.0,
        dim=(512, "Width of the hidden vectors."),
        samples=8192,
        rounds=3,
        precision=("float32", "Of products.", tuple(DTYPES)),
        forms=(list(FORMS), "What is measured.", FORMS),
        one=(False, "Measure one form in this process."),
        out=Path,
    )
    parser.add_argument("--cutoffs", type=int, nargs="*", default=[])
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(*args.forms, *args.positions, args)))
    else:
        harness.report(args, compare(args))


if __name__ == "__main__":
    main()

"""How benchmarks end: what was found as a JSON file, and as bars."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Bar = tuple[float, float, float]
"""Value, and the lowest and highest of the rounds."""


def write(out: Path | None, args: argparse.Namespace, **found: Any) -> None:
    """JSON: the machine, jax, the date, the arguments, and then what was found."""
    if out is None:
        return
    import jax  # not before the processes of a benchmark that has its own

    report = {
        "machine": f"{jax.devices()[0].device_kind}, {platform.platform()}",
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "arguments": {name: str(value) for name, value in vars(args).items()},
    }
    out.write_text(json.dumps(report | found, indent=1) + "\n", encoding="utf-8")


def bars(path: Path | None, panels: Mapping[str, Mapping[str, Bar]]) -> None:
    """One panel of bars by its label, side by side; needs matplotlib."""
    if path is None:
        return
    from matplotlib.figure import Figure

    longest = max(len(values) for values in panels.values())
    size = (5 * len(panels), 1 + 0.35 * longest)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        middle = [value for value, _, _ in values.values()]
        low = [value - least for value, least, _ in values.values()]
        high = [most - value for value, _, most in values.values()]
        axis.barh(list(values), middle, xerr=[low, high], capsize=3)
        axis.invert_yaxis()
        axis.set_xlabel(label)
    figure.savefig(path, dpi=120)

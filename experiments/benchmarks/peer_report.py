"""Results of `peers.py`: medians and ratios, a table, a plot, what machine it was."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Any

OURS = "elmojax"
"""Programs with this prefix are compared with all others."""


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What a program's turns come to."""
    turns = found["turns"]
    rates = [turn["tokens_per_second"] for turn in turns]
    cpu = [turn["cpu_seconds_per_token"] for turn in turns]
    return {
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_range": [min(rates), max(rates)],
        "cpu_seconds_per_token": statistics.median(cpu),
        "cpu_seconds_per_token_range": [min(cpu), max(cpu)],
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
        "last_loss": turns[-1]["loss"],
        "idle_cpu_seconds": max(turn["idle_cpu_seconds"] for turn in turns),
        "cores_of_others": max(turn["cores_of_others"] for turn in turns),
    }


def ratios(programs: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """How many times as fast each of ours is as each other program.

    Median, least and most of the ratios of each round.
    """

    def rates(name: str) -> list[float]:
        return [turn["tokens_per_second"] for turn in programs[name]["turns"]]

    def ratio(name: str, peer: str) -> list[float]:
        pairs = zip(rates(name), rates(peer), strict=True)
        found = [ours / theirs for ours, theirs in pairs]
        return [statistics.median(found), min(found), max(found)]

    return {
        name: {peer: ratio(name, peer) for peer in programs if peer != name}
        for name in programs
        if name.startswith(OURS)
    }


def table(case: dict[str, Any]) -> str:
    """The results of a case in Markdown."""
    ours = list(case["ratios"])
    head = ["", "tokens/s", "CPU ms/token", "peak GB", "start s", "loss"]
    head += [f"{name} is" for name in ours]
    lines = [head, ["---"] * len(head)]
    for name, found in case["programs"].items():
        low, high = found["tokens_per_second_range"]
        digits = 0 if high > 1000 else 1
        rate = f"{found['tokens_per_second']:,.{digits}f}"
        line = [name, f"{rate} ({low:,.{digits}f}-{high:,.{digits}f})"]
        line.append(f"{1000 * found['cpu_seconds_per_token']:.2f}")
        line.append(f"{found['peak_bytes'] / 1e9:.2f}")
        line.append(f"{found['start_seconds']:.0f}")
        line.append(f"{found['first_loss']:.2f} to {found['last_loss']:.2f}")
        for base in ours:
            ratio = case["ratios"][base].get(name)
            text = "" if ratio is None else "{:.2f}x ({:.2f}-{:.2f})".format(*ratio)
            line.append(text)
        lines.append(line)
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    programs = case["programs"].values()
    others = max(found["cores_of_others"] for found in programs)
    idle = max(found["idle_cpu_seconds"] for found in programs)
    return (
        f"\n{case['title']}\n\n{rows}\n\nDuring a turn, other processes took at most "
        f"{others:.2f} cores; between its turns, a program took at most {idle:.2f} "
        "CPU-seconds.\n"
    )


def plot(cases: list[dict[str, Any]], path: Path) -> None:
    """Bars with the range of the rounds: a row of panels for each case."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    height = sum(1.2 + 0.35 * len(case["programs"]) for case in cases)
    figure, axes = pyplot.subplots(
        len(cases), 3, figsize=(13, height), squeeze=False, layout="constrained"
    )
    for row, case in zip(axes, cases, strict=True):
        names = list(case["programs"])
        colors = ["C0" if name.startswith(OURS) else "C7" for name in names]
        found = list(case["programs"].values())
        panels = (
            ("tokens_per_second", 1.0, "tokens/s"),
            ("cpu_seconds_per_token", 1e3, "CPU ms a token"),
            ("peak_bytes", 1e-9, "peak memory, GB"),
        )
        for axis, (key, scale, label) in zip(row, panels, strict=True):
            values = [program[key] * scale for program in found]
            ranges = [
                program.get(f"{key}_range", [program[key]] * 2) for program in found
            ]
            low = [v - r[0] * scale for v, r in zip(values, ranges, strict=True)]
            high = [r[1] * scale - v for v, r in zip(values, ranges, strict=True)]
            axis.barh(names, values, xerr=[low, high], color=colors, capsize=3)
            axis.invert_yaxis()
            axis.set_xlabel(label)
            if axis is not row[0]:
                axis.set_yticklabels([])
        row[0].set_title(case["title"], loc="left", fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def machine() -> dict[str, Any]:
    """The processor, how much of it there is, and how busy it was."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2] for line in lines if "model name" in line]
        name = models[0].strip() if models else name
    except OSError:
        pass
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return {
        "processor": name,
        "cores": cores,
        "platform": platform.platform(),
        "load_at_start": os.getloadavg()[0],
    }

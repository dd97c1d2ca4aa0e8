"""The report of `elmojax estimate` for people."""

from __future__ import annotations

from typing import Any


def page(report: dict[str, Any]) -> str:
    """What `elmojax estimate` found, a line a thing."""
    text, mesh, memory = report["text"], report["mesh"], report["memory_per_device"]
    positions = report["rows"] * report["window"]
    shapes = (" x ".join(f"{n:,}" for n in table) for table in report["tables"])
    tables = " and ".join(shapes)
    count = {name: f"{n / 1e6:.1f} M" for name, n in report["parameters"].items()}
    mega = {name: f"{n / 1e6:,.1f}" for name, n in report["flops_a_token"].items()}
    kind, cutoffs = report["softmax"]["kind"], report["softmax"]["cutoffs"]
    softmax = f"{kind}, cutoffs {', '.join(map(str, cutoffs))}" if cutoffs else kind
    pieces = report["accumulate"]
    split = f" in {pieces} pieces" if pieces > 1 else ""
    lines = [
        f"text           {text['source']}: {text['vocabulary']:,} words, "
        f"{text['positions']:,} positions a pass",
        f"a step         {report['rows']:,} rows x {report['window']} = {positions:,} "
        f"positions{split}, about {report['words_a_step']:,.0f} distinct words",
        f"mesh           data={mesh['data']} x model={mesh['model']}; tables of words "
        f"of {tables}",
        f"softmax        {softmax}",
        f"parameters     {count['total']}: encoder {count['encoder']}, LSTM "
        f"{count['lstm']}, softmax {count['head']}",
        f"FLOPs a token  {mega['total']} M: encoder {mega['encoder']}, LSTM "
        f"{mega['lstm']}, softmax {mega['softmax']}",
        f"steps          {report['steps']:,}",
        "",
        f"Memory a device, by the {report['precision']} program compiled for "
        f"{report['compiled_for']}:",
        *_memory_lines(memory),
        "",
        *_chip_lines(report),
    ]
    return "\n".join(lines)


def _memory_lines(memory: dict[str, int]) -> list[str]:
    names = ("parameters", "optimizer", "carry", "batch", "temporary", "total")
    lines = [f"  {name:12} {size_of(memory[name]):>10}" for name in names]
    lines[4] += f"   (gradients {size_of(memory['gradients'])})"
    return lines


def _chip_lines(report: dict[str, Any]) -> list[str]:
    """Floors as a table, and where they come from."""
    head = ("chip", "memory", "used", "fits", "step", "tokens/s", "hours")
    rows = [head]
    for chip in report["chips"]:
        for name, key in (("", "floor"), (", measured", "floor_at_measured_rates")):
            if key not in chip:
                continue
            floor = chip[key]
            rows.append(
                (
                    chip["title"] + name,
                    size_of(chip["memory"]),
                    f"{chip['share']:.0%}",
                    "yes" if chip["fits"] else "NO",
                    f"{1000 * floor['step']:,.2f} ms",
                    f"{floor['tokens_per_second']:,.0f}",
                    f"{floor['hours']:,.2f}",
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    precision = report["chips"][0]["precision"]
    lines = [f"Least time (a floor, no forecast), {precision}, {_chips(report)}:"]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    if report["compiled_for"] == "cpu":
        lines.append(
            "A chip's own program takes other temporary memory, often less; --chip C "
            "compiles it where C's compiler is installed: .[tpu] or .[cuda]."
        )
    if report["chip"] is not None:
        lines.append(f"Rates: {report['chips'][0]['source']}")
    if any(
        c["title"].startswith("NVIDIA") and c["share"] > 0.7 for c in report["chips"]
    ):
        lines.append(
            "JAX takes 75 % of a GPU's memory; XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 "
            "gives it more."
        )
    return lines


def _chips(report: dict[str, Any]) -> str:
    count = report["mesh"]["data"] * report["mesh"]["model"]
    return "1 chip" if count == 1 else f"{count:,} chips"


def size_of(count: float) -> str:
    """Bytes for people, in decimal units as chips are sold."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count / 1e3:.4g} kB"

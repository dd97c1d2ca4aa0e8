"""`elmojax estimate`."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import elmojax
from elmojax.arguments import Range
from elmojax.cli import common
from elmojax.cli.pretrain import RecipeArguments, parse_recipe
from elmojax.config import MeshConfig, TrainConfig, VocabularySize
from elmojax.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from elmojax.estimate import Estimate, Memory
    from elmojax.training.sizes import TextStatistics
    from elmojax.training.utilization import Chip


def page(report: dict[str, Any]) -> str:
    """What `elmojax estimate` found, a line a thing."""
    text, mesh, memory = report["text"], report["mesh"], report["memory_per_device"]
    positions, microbatches = report["rows"] * report["window"], report["accumulate"]
    tables = (" x ".join(f"{n:,}" for n in each) for each in report["tables"])
    count = {name: f"{n / 1e6:.1f} M" for name, n in report["parameters"].items()}
    mega = {name: f"{n / 1e6:,.1f}" for name, n in report["flops_a_token"].items()}
    kind, cutoffs = report["softmax"]["kind"], report["softmax"]["cutoffs"]
    split = f" in {microbatches} microbatches" if microbatches > 1 else ""
    rows = {
        "text": f"{text['source']}: {text['vocabulary']:,} words, "
        f"{text['positions']:,} positions a pass",
        "a step": f"{report['rows']:,} rows x {report['window']} = {positions:,} "
        f"positions{split}, about {report['words_a_step']:,.0f} distinct words",
        "mesh": f"data={mesh['data']} x model={mesh['model']}; tables of words of "
        f"{' and '.join(tables)}",
        "softmax": f"{kind}, cutoffs {', '.join(map(str, cutoffs))}"
        if cutoffs
        else kind,
        "parameters": f"{count['total']}: encoder {count['encoder']}, LSTM "
        f"{count['lstm']}, softmax {count['head']}",
        "FLOPs a token": f"{mega['total']} M: encoder {mega['encoder']}, LSTM "
        f"{mega['lstm']}, softmax {mega['softmax']}",
        "steps": f"{report['steps']:,}",
    }
    sizes = {name: size_of(memory[name]) for name in MEMORY}
    sizes["temporary"] += f"   (gradients {size_of(memory['gradients'])})"
    lines = [
        *(f"{name:14} {told}" for name, told in rows.items()),
        "",
        f"Memory a device, by the {report['precision']} program compiled for "
        f"{report['compiled_for']}:",
        *(f"  {name:12} {size:>10}" for name, size in sizes.items()),
        "",
        *_chip_lines(report),
    ]
    return "\n".join(lines)


MEMORY = ("parameters", "optimizer", "carry", "batch", "temporary", "total")


def _chip_lines(report: dict[str, Any]) -> list[str]:
    """Floors as a table, and where they come from."""
    chips, count = report["chips"], report["mesh"]["data"] * report["mesh"]["model"]
    rows = [("chip", "memory", "used", "fits", "step", "tokens/s", "hours")]
    for chip in chips:
        for name, key in (("", "floor"), (", measured", "floor_at_measured_rates")):
            if least := chip.get(key):
                row = (
                    chip["title"] + name,
                    size_of(chip["memory"]),
                    f"{chip['share']:.0%}",
                    "yes" if chip["fits"] else "NO",
                    f"{1000 * least['step']:,.2f} ms",
                    f"{least['tokens_per_second']:,.0f}",
                    f"{least['hours']:,.2f}",
                )
                rows.append(row)
    lines = [
        f"Least time (a floor, no forecast), {chips[0]['precision']}, "
        f"{count:,} chip{'s' * (count > 1)}:",
        *(f"  {line}" for line in common.table(rows)),
    ]
    if report["compiled_for"] == "cpu":
        lines.append(
            "A chip's own program takes other temporary memory, often less; --chip C "
            "compiles it where C's compiler is installed: .[tpu] or .[cuda]."
        )
    if report["chip"] is not None:
        lines.append(f"Rates: {chips[0]['source']}")
    gpus = [chip for chip in chips if chip["title"].startswith("NVIDIA")]
    if any(chip["share"] > 0.7 for chip in gpus):
        lines.append(
            "JAX takes 75 % of a GPU's memory; XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 "
            "gives it more."
        )
    return lines


def size_of(count: float) -> str:
    """Bytes for people, in decimal units as chips are sold."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count / 1e3:.4g} kB"


MOST_ALONG_DATA = 64
"""Devices along `data` that a step is compiled for at most; more of them would have
the same share each."""
MOST_DEVICES = 256
"""Devices that a step is compiled for at most; that takes 1 GB and two minutes."""


@dataclass(frozen=True)
class EstimateArguments(RecipeArguments):
    """Says what a run of `pretrain` with these flags would need; allocates nothing."""

    chip: str | None = None
    """Accelerator to estimate for: b200, h200, h100, a100, v5e, v5p, v6e or tpu7x. The
    step is compiled by its own compiler where that is installed. By default it is the
    device of this machine; where that is none of these, all of them are shown."""
    vocabulary: VocabularySize | None = None
    """Vocabulary size to assume where the text is not at hand."""
    tokens: Annotated[int, Range(1, 10**15)] | None = None
    """Number of words and sentences of a pass to assume where the text is not at
    hand."""
    json: common.Json = False


def estimate(argv: list[str]) -> None:
    """memory, operations and least time of a run before it begins"""
    from elmojax.training.utilization import chip_named

    asked, given = parse_recipe(EstimateArguments, "estimate", argv)
    chip = None if asked.chip is None else chip_named(asked.chip)
    report = _report(asked, chip, given.data is not None)
    if asked.json:
        common.print_json(report)
        return
    print(page(report))
    if report["warning"]:
        common.say(report["warning"])


def _report(asked: EstimateArguments, chip: Chip | None, named: bool) -> dict[str, Any]:
    """Everything that is printed, as JSON has it; whether --data names the text."""
    import jax.numpy as jnp

    from elmojax.estimate import estimate as estimated
    from elmojax.initialization import with_start
    from elmojax.training.choices import check_rows, complete, product_dtype, resolved
    from elmojax.training.record import checkpoint_steps
    from elmojax.training.utilization import CHIPS, chip_of

    config = asked.train_config()
    mesh, data = _mesh(config.mesh, chip)
    check_rows(config, data)
    fresh = not checkpoint_steps(config.workdir)
    with tempfile.TemporaryDirectory(prefix="elmojax-") as temporary:
        config = replace(config, workdir=Path(temporary))
        if fresh:
            config, _ = with_start(config, common.say)
        sizes = _statistics(asked, config, named)
        if sizes.corpus is None:
            config = resolved(config, sizes.counts)
        else:
            record = complete(config, sizes.corpus, elmojax.__version__, None)
            config = record.train
        device = mesh.devices.flat[0]
        platform, own = device.platform, chip_of(device.device_kind)
        chip = chip or own
        dtype = product_dtype(config, platform if chip is None else "chip")

        def again(other: TrainConfig) -> Estimate:
            return estimated(other, sizes, mesh, data, dtype)

        found = again(config)
        shown = CHIPS if chip is None else (chip,)
        warning = _warning(found, shown, again)
    precision = "float32" if dtype == jnp.float32 else "bf16"
    chips = [_on_chip(found, one, precision, config) for one in shown]
    return {
        "chip": None if chip is None else chip.name,
        "fits": any(chip["fits"] for chip in chips),
        "warning": warning,
        "rows": config.rows,
        "window": config.window,
        "accumulate": config.accumulate,
        "mesh": {"data": data, "model": config.mesh.model},
        "precision": precision,
        "compiled_for": platform if own is None else f"{platform} {own.name}",
        "text": {
            "source": sizes.source,
            "assumed": sizes.corpus is None,
            "vocabulary": sizes.vocabulary,
            "positions": sizes.positions,
        },
        "softmax": {"kind": config.head.kind, "cutoffs": list(config.head.cutoffs)},
        "words_a_step": found.words,
        "tables": [list(table) for table in found.tables],
        "parameters": {**found.parameters, "total": sum(found.parameters.values())},
        "memory_per_device": asdict(found.memory),
        "flops_a_token": {**asdict(found.flops), "total": found.flops.total},
        "steps": found.steps,
        "chips": chips,
    }


def _mesh(config: MeshConfig, chip: Chip | None) -> tuple[Mesh, int]:
    """What the step is compiled for, and the devices of the run along `data`.

    Devices of the chip, if there is a compiler for it; else those of this machine, and
    where these are too few, those of a CPU stand in, as many as are wanted.
    """
    import jax

    from elmojax.estimate import absent_devices
    from elmojax.training.sharding import make_mesh

    most = min(MOST_ALONG_DATA, max(1, MOST_DEVICES // config.model))
    along = min(max(config.data, 1), most)
    wanted = along * config.model
    absent = absent_devices(chip, wanted) if chip is not None else ()
    if absent:
        return make_mesh(MeshConfig(along, config.model), absent), max(config.data, 1)
    common.keep_compiled_programs()
    fixed = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if wanted > max(1, jax.config.values["jax_num_cpu_devices"]) and not fixed:
        try:
            jax.config.update("jax_num_cpu_devices", wanted)
        except RuntimeError:  # JAX has begun: there are as many as there are
            pass
    devices = jax.devices()
    data = config.data or max(1, len(devices) // config.model)
    along = min(data, most)
    if len(devices) < along * config.model:
        devices = jax.devices("cpu")
        along = min(along, max(1, len(devices) // config.model))
    return make_mesh(MeshConfig(along, config.model), devices), data


def _statistics(
    asked: EstimateArguments, config: TrainConfig, named: bool
) -> TextStatistics:
    """The text of the run: the one that is there, or what is assumed."""
    from elmojax.text.corpus import Corpus
    from elmojax.text.prepare import sample_corpora
    from elmojax.training import sizes

    instead = asked.vocabulary is not None or asked.tokens is not None
    if named and instead:
        raise InputError(
            "--vocabulary and --tokens stand for a text that is not at hand; leave "
            "them out, or --data."
        )
    if config.data is not None and not instead:
        if named or config.data.exists():
            return sizes.statistics_of(Corpus.open(config.data), str(config.data))
        common.say(f"{config.data} is not here; its size is assumed.")
    size, positions = sizes.BENCHMARK_WORDS, sizes.BENCHMARK_POSITIONS
    sample = asked.start_from == "mini" and config.data is None
    if sample and asked.vocabulary is None:
        text = sample_corpora(config.workdir)[0]
        found = sizes.statistics_of(text, "the sample text inside the package")
        return replace(found, positions=asked.tokens or found.positions)
    return sizes.assumed_text(asked.vocabulary or size, asked.tokens or positions)


def _on_chip(
    found: Estimate, chip: Chip, precision: str, config: TrainConfig
) -> dict[str, Any]:
    from elmojax.estimate import fits, least_time

    if config.precision == "auto":
        precision = "bf16"  # which is what it means there
    report = {
        "chip": chip.name,
        "title": chip.title,
        "memory": chip.memory,
        "share": found.memory.total / chip.memory,
        "fits": fits(found.memory, chip),
        "precision": precision,
        "flops_per_second": chip.products(precision),
        "bandwidth": chip.bandwidth,
        "source": chip.source,
        "floor": asdict(least_time(found, chip, precision)),
    }
    if chip.measured is not None and precision == "bf16":
        measured = least_time(found, chip, precision, False)
        report["floor_at_measured_rates"] = asdict(measured)
    return report


def _warning(found: Estimate, shown: tuple[Chip, ...], again: Any) -> str | None:
    """What to say where a step does not fit, and what would; None where it does."""
    from elmojax.estimate import USABLE, fits, largest_rows, least_microbatches

    small = [chip for chip in shown if not fits(found.memory, chip)]
    if not small:
        return None
    total = size_of(found.memory.total)
    if len(shown) > 1:
        names = ", ".join(chip.name for chip in small)
        which = "any chip of the table" if len(small) == len(shown) else names
        return (
            f"A step takes {total} a device and will not fit on {which}; name one with "
            "--chip to see how many --rows would."
        )
    (chip,) = shown
    available = USABLE * chip.memory
    said = (
        f"A step takes {total} a device, and a {chip.title} has "
        f"{size_of(chip.memory)}, of which {USABLE:.0%} can be used: it will not fit."
    )
    common.say("A step does not fit; looking for what would.")

    def memory(config: TrainConfig) -> Memory:
        return again(config).memory

    config, data = found.config, found.data
    rows = largest_rows(config, data, found.memory, available, memory)
    if rows is None:
        return (
            f"{said} Fewer --rows alone do not help; split the model over more chips "
            "with --mesh.model, or take a smaller one."
        )
    microbatches = least_microbatches(config, data, rows, available, memory)
    keep = (
        f", or all {config.rows} with --accumulate {microbatches}"
        if microbatches
        else ""
    )
    return f"{said} About --rows {rows} would{keep}."

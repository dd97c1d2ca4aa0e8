"""`elmojax export`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

import elmojax
from elmojax.cli import common
from elmojax.disk import check_out


@dataclass(frozen=True, kw_only=True)
class ExportArguments(common.ModelArguments):
    """Writes one file with all that JAX needs to embed without elmojax: the
    programs `embed` and `layers` as StableHLO (any batch and length; CPU, CUDA and
    TPU), the weights, their hash, and the configuration."""

    model: Positional[common.Model] = field()
    out: Path
    """File to write."""
    overwrite: common.Overwrite = False
    json: common.Json = False


def export(argv: list[str]) -> None:
    """a model as one file that runs with JAX alone (StableHLO)"""
    from elmojax.embedding.export import write_export

    asked = common.parse(ExportArguments, "export", argv)
    check_out(asked.out, asked.overwrite)
    model = asked.open(head=False)
    record = write_export(
        model.params,
        asked.out,
        model.vocabulary,
        elmojax.__version__,
        asked.overwrite,
    )
    size = asked.out.stat().st_size
    count = sum(math.prod(about["shape"]) for about in record["weights"].values())
    common.show(
        asked.json,
        {"out": asked.out, "bytes": size, **record},
        f"{asked.out}: {' and '.join(record['programs'])} for "
        f"{', '.join(record['platforms'])}; {count:,} weights, {size / 1e6:,.1f} MB; "
        "experiments/load_exported.py loads it with JAX alone.",
    )

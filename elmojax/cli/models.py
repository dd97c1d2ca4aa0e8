"""`elmojax convert` and `elmojax verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

import elmojax
from elmojax.cli import common
from elmojax.cloud import address, written
from elmojax.config import CountOrZero
from elmojax.errors import InputError
from elmojax.text.files import read_text


@dataclass(frozen=True)
class ConvertArguments:
    """Writes a run directory as options.json + weights.hdf5 (+ softmax.hdf5), which
    AllenNLP and bilm-tf load, and any other model as a run directory (Orbax)."""

    model: Positional[common.Model]
    out: Path
    """Directory to write; it may be on gs:// or s3://."""
    step: CountOrZero | None = None
    """Checkpoint of a run to convert; the newest one by default."""
    dtype: Literal["float32", "float16"] = "float32"
    """Data type of the numbers in HDF5 files. float16 takes half the space and keeps
    three digits."""
    json: common.Json = False


def convert(argv: list[str]) -> None:
    """run directory -> HDF5 files; any other model -> Orbax"""
    from elmojax.loading import open_model
    from elmojax.saving import convert as write

    asked = common.parse(ConvertArguments, "convert", argv, addresses=("out",))
    model = open_model(asked.model, asked.step)
    with written(asked.out, lambda name: True, new=True) as out:
        kind = write(model, out, elmojax.__version__, asked.dtype)
        files = sorted(path.name for path in out.iterdir())
    named = address(asked.out) or asked.out
    report = {"out": named, "format": kind, "files": files}
    common.show(asked.json, report, f"{named} ({kind}): {', '.join(files)}.")


@dataclass(frozen=True)
class VerifyArguments:
    """Lists every array of a model and what is wrong with it; exit status 2 if
    anything is. With --against, compares vectors that another program computed."""

    model: Positional[common.Model]
    against: Path | None = None
    """HDF5 file of vectors to compare with, in bilm-tf's layout: data set i belongs to
    line i."""
    text: Path | None = None
    """Text of the vectors to compare with, one tokenised sentence a line, its words set
    apart by spaces or tabs."""
    format: common.TextFormat = "text"
    carry: bool = True
    """Carry the LSTM state from line to line, as bilm-tf does when it writes
    vectors."""
    errors: common.BadBytes = "strict"
    json: common.Json = False


def verify(argv: list[str]) -> None:
    """every array of a model, and what is missing or wrong"""
    from elmojax.formats.verify import compare_embeddings
    from elmojax.loading import open_model
    from elmojax.loading import verify as check

    asked = common.parse(VerifyArguments, "verify", argv)
    if (asked.against is None) != (asked.text is None):
        raise InputError("--against FILE and --text FILE go together; give both.")
    arrays, notes = check(asked.model)
    bad = sum(array.state != "ok" for array in arrays)
    report: dict[str, Any] = {"arrays": [array._asdict() for array in arrays]}
    report |= {"notes": notes, "wrong": bad}
    lines = [f"{'array':60} {'expected':>20} {'found':>20} state"]
    lines += [
        f"{array.name:60} {array.wanted or '-'!s:>20} {array.found or '-'!s:>20} "
        f"{array.state}"
        for array in arrays
    ]
    if asked.against is not None and asked.text is not None and not bad:
        model = open_model(asked.model, head=False)
        columns = model.params.config.max_characters
        text = read_text(asked.text, asked.errors, columns, asked.format)
        report["remarks"] = common.remark(text.odd, columns, asked.format)
        found = compare_embeddings(
            model.params, text.sentences(), asked.against, asked.carry, model.vocabulary
        )
        report["differences"] = [layer._asdict() for layer in found]
        lines += [
            f"layer {layer.layer}: largest difference {layer.largest:.2e}, line "
            f"{layer.sentence}, word {layer.word}"
            for layer in found
        ]
    common.show(asked.json, report, "\n".join([*lines, *notes]))
    if bad:
        raise InputError(
            f"{asked.model}: {bad} of {len(arrays)} arrays are not as they should be; "
            "take the files again from where they came."
        )

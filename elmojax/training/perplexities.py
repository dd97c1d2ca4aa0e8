"""The held-out perplexity of a checkpoint, as Orbax keeps it beside the arrays."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

from elmojax.training.damage import DamagedCheckpoint

NAME = "heldout_perplexity"
PLACE = Path("metrics", "metrics")


def stored(perplexity: float) -> dict[str, float]:
    """What is kept of a perplexity: itself, and a sum of its bits."""
    return {NAME: perplexity, "sum": zlib.crc32(struct.pack("<d", perplexity))}


def read(directory: Path, steps: list[int]) -> dict[int, float]:
    """The perplexities of the checkpoints that have one, by step.

    Raises:
      DamagedCheckpoint: for the first whose perplexity is not as it was saved.
    """
    known = {}
    for step in steps:
        path = directory / str(step) / PLACE
        if not path.exists():
            continue
        try:
            found = json.loads(path.read_bytes())
            if found != stored(found[NAME]):
                raise ValueError("its perplexity is not the one that was saved")
            known[step] = found[NAME]
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise DamagedCheckpoint(directory / str(step), error) from error
    return known


def add(checkpoint: Path, perplexity: float) -> None:
    """Gives a perplexity to a checkpoint that has none, whole or not at all."""
    partial = checkpoint / ".metrics.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / PLACE.name).write_text(json.dumps(stored(perplexity)))
    (partial / "commit_success.txt").touch()
    os.replace(partial, checkpoint / PLACE.parent)

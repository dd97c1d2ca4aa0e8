"""Damages each file of a newest checkpoint in turn: never do wrong numbers come of it.

    python -m tests.damage [--flips 20] [--seed 0]

Each file is deleted, emptied, cut in half, cut by its last byte, and has one bit
flipped at so many random places. Whoever reads the run then gets the right numbers or
a refusal that names the checkpoint; going on takes the newest checkpoint or, with the
damaged one set aside, the one before. Exit status 1 where that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elmojax.errors import InputError
from elmojax.text.prepare import sample_corpora
from elmojax.training.checkpoint import read_run
from elmojax.training.record import read_record
from elmojax.training.start import start

Damage = Callable[[Path], Any]


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def shorten(path: Path) -> None:
    os.truncate(path, max(0, path.stat().st_size - 1))


def flip(chance: random.Random, path: Path) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)


def kinds(flips: int, chance: random.Random) -> Iterator[tuple[str, Damage]]:
    """Names of damages, and what does them."""
    yield "deleted", Path.unlink
    yield "emptied", lambda path: path.write_bytes(b"")
    yield "cut in half", halve
    yield "cut by a byte", shorten
    for _ in range(flips):
        yield "a bit flipped", partial(flip, chance)


def state_of(run: Path) -> tuple[int, Any]:
    """Step and every array of the newest whole checkpoint, as going on reads them."""
    resumed = start(read_record(run).train, "")
    resumed.checkpoints.close()
    assert resumed.lock is not None
    resumed.lock.release()
    return resumed.step, resumed.state


def copy_of(run: Path, target: Path) -> Path:
    """A run of its own in another directory."""
    shutil.copytree(run, target)
    config = json.loads((target / "config.json").read_text())
    config["train"]["workdir"] = str(target)
    (target / "config.json").write_text(json.dumps(config))
    return target


def sweep(
    run: Path, folder: Path, flips: int = 1, seed: int = 0, only: str | None = None
) -> dict[str, Any]:
    """Tries all damages (or those of one name) on copies of a run in `folder`.

    Returns how many files and cases there were and what became of them. Raises
    `AssertionError` with the file and the damage where wrong numbers were read.
    """
    newest = max(int(p.name) for p in (run / "checkpoints").iterdir())
    whole = copy_of(run, folder / "whole")
    right, params = state_of(whole), read_run(whole)[2]
    earlier = copy_of(run, folder / "earlier")
    shutil.rmtree(earlier / "checkpoints" / str(newest))
    before = state_of(earlier)
    place = f"checkpoints/{newest}"
    files = [p.relative_to(run) for p in sorted((run / place).rglob("*"))]
    files = [name for name in files if (run / name).is_file()]
    found: Counter[str] = Counter()
    for name in files:
        for kind, damage in kinds(flips, random.Random(f"{seed} {name}")):
            if only not in (None, kind):
                continue
            damaged = copy_of(run, folder / "damaged")
            damage(damaged / name)
            what = f"{name}, {kind}"
            found[_read(damaged, params, place, what)] += 1
            found[_go_on(damaged, right, before, place, what)] += 1
            shutil.rmtree(damaged)
    return {"files": len(files), "cases": sum(found.values()) // 2, **found}


def _read(run: Path, params: Any, place: str, what: str) -> str:
    try:
        got = read_run(run)[2]
    except InputError as error:
        assert place in str(error), f"{what}: {error}"
        return "refused to who reads"
    assert _same(got, params), f"{what}: other numbers are read"
    return "right to who reads"


def _go_on(run: Path, right: Any, before: Any, place: str, what: str) -> str:
    try:
        step, state = state_of(run)
    except InputError as error:
        assert place in str(error), f"{what}: {error}"
        return "refused to the run"
    aside = (run / "damaged" / Path(place).name).exists()
    assert aside == (step != right[0]), what
    wanted = before if aside else right
    assert _same((step, state), wanted), f"{what}: the run goes on with other numbers"
    return "set aside" if aside else "harmless to the run"


def _same(one: Any, other: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def main() -> None:
    from tests.commands import TINY, done

    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__)
    parser.add_argument("--flips", type=int, default=20, help="of single bits, a file")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train, heldout = sample_corpora(Path(folder) / "text")
        done(
            *("pretrain", "--data", train.directory, "--heldout", heldout.directory),
            *("--workdir", run, "--steps", 4, "--checkpoint-every", 2, *TINY),
        )
        try:
            print(json.dumps(sweep(run, Path(folder), asked.flips, asked.seed)))
        except AssertionError as error:
            print(error, file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()

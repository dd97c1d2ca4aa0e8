"""Commands of elmojax as tests give them, and flags for small models."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any, NamedTuple

from elmojax.cli import main

LSTM = "--model.lstm.dim 16 --model.lstm.projection 8".split()
CHARACTERS = (
    "--model.encoder.filters 1 4 2 4 --model.encoder.embedding-dim 4 "
    "--model.encoder.max-characters 16"
).split()
SMALL = ["--rows", "8", "--window", "10", "--mesh.data", "1", "--log-every", "1"]
TINY = [*LSTM, *CHARACTERS, *SMALL]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def run(*arguments: object) -> Outcome:
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Outcome:
    outcome = run(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome


def answer(*arguments: object) -> dict[str, Any]:
    """What --json prints: one object, on one line, and nothing else."""
    out = done(*arguments, "--json").out
    assert out.count("\n") == 1
    return json.loads(out)


def refused(*arguments: object, says: str = "") -> str:
    """Exit status 2 and one sentence that holds the words of `says`, no traceback."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, ""), f"{status}: {out}{err}"
    assert err.startswith("elmojax: ") and err.count("\n") == 1, err
    assert err.rstrip()[-1] in ".?", err
    assert "Traceback" not in err and len(err) < 500, err
    for part in says.split(" ... "):
        assert part in err, err
    return err

"""What a run directory says of its run, in files that people and programs edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elmojax.config import TrainConfig
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.checkpoint import Checkpoints
from elmojax.training.metrics import JsonLines, read_metrics
from elmojax.training.record import (
    RunRecord,
    Status,
    checkpoint_steps,
    create_run,
    describe,
)
from tests.commands import answer, done


@pytest.fixture
def run(tmp_path) -> Path:
    """A run without a checkpoint."""
    run = tmp_path / "runs" / "a"
    vocabulary = Vocabulary((*SPECIALS, "bank"))
    create_run(run, RunRecord(TrainConfig(steps=9), "", 4), vocabulary)
    Status("stopped", 4, 9, "Ctrl-C").write(run)
    metrics = {"loss": 2.0, "tokens": 64, "tokens_per_second": 8.0}
    lines = (json.dumps({"step": step, **metrics}) for step in (2, 4))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run


NO_OBJECTS = ["", "{", "[]", "3", "null", "\xff", "NaN"]
OTHERS = [*NO_OBJECTS, "[" * 100_000, '{"step": {}}']


@pytest.mark.parametrize(
    "content",
    [
        *OTHERS,
        '{"state": 3, "step": 4, "steps": 9}',
        '{"state": "stopped", "step": "4", "steps": 9}',
        '{"state": "stopped", "step": 4, "steps": 9.5}',
        '{"state": "stopped", "step": 4, "steps": -1}',
        '{"state": "stopped", "step": 4, "steps": 9, "why": []}',
        '{"state": "stopped", "step": true, "steps": 9}',
        '{"state": "stopped", "step": 4, "steps": NaN}',
        f'{{"state": "training", "step": 1{"0" * 400}, "steps": 9}}',
    ],
)
def test_a_status_of_other_types_is_none(run, content):
    (run / "status.json").write_text(content, encoding="latin-1")
    found = describe(run)
    assert (found["state"], found["step"], found["steps"]) == ("unknown", 4, 9)
    assert found["loss"] == 2.0 and found["why"] is None
    assert "unknown" in done("runs", run.parent).out


@pytest.mark.parametrize(
    "line",
    [
        *OTHERS,
        '{"step": "6", "loss": 1.0, "tokens": 8}',
        '{"step": -6, "loss": 1.0, "tokens": 8}',
        '{"step": true, "loss": 1.0, "tokens": 8}',
        '{"step": 6, "loss": 1.0, "tokens": "8"}',
        '{"step": 6, "loss": 1.0, "tokens": NaN}',
        '{"step": 6, "heldout_geometric_perplexity": "low"}',
        '{"step": 6, "heldout_geometric_perplexity": Infinity}',
        '{"step": 6, "heldout_geometric_perplexity": [1]}',
        f'{{"step": 6, "heldout_geometric_perplexity": 1{"0" * 400}}}',
    ],
)
def test_lines_of_other_types_are_left_out(run, line):
    path = run / "metrics.jsonl"
    with path.open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    found = describe(run)
    assert (found["step"], found["loss"], found["perplexity"]) == (4, 2.0, None)
    JsonLines(path, 9).close()
    assert [line["step"] for line in read_metrics(path)][:2] == [2, 4]
    assert "NaN" not in path.read_text()


def test_a_line_whose_loss_is_no_number_has_none(run):
    path = run / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": "x", "tokens": 8, "tokens_per_second": 3}\n')
    Status("training", 0, 9).write(run)
    assert describe(run)["loss"] is None
    assert "killed" in done("runs", run.parent).out


def test_other_names_are_no_checkpoints(run):
    for name in ("²", "007", "٣", "1e3", "-1", "9" * 200, "5.deleted"):
        (run / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint_steps(run) == Checkpoints(run).steps == []
    assert describe(run)["saved"] is None


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "status.json"])
@pytest.mark.parametrize("content", [None, *NO_OBJECTS])
def test_a_bad_run_hides_no_other(run, name, content):
    bad = run.with_name("b")
    bad.mkdir()
    for path in run.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    if content is None:
        (bad / name).unlink()
        (bad / name).mkdir()
    else:
        (bad / name).write_text(content, encoding="latin-1")
    found = {
        Path(r["run"]).name: r["state"] for r in answer("runs", run.parent)["runs"]
    }
    assert found["a"] == "stopped"
    assert len(done("runs", run.parent).out.splitlines()) >= 2

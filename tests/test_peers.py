"""experiments/benchmarks/peers.py: programs take turns, and what comes out of it.

A peer of a few lines stands in for bilm-tf and PyTorch, which are not installed here.
"""

from __future__ import annotations

import importlib
import json
import sys

import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "experiments" / "benchmarks"
PEER = """
import sys
sys.path.insert(0, {folder!r})
from turns import Turns, read_task

turns, task = Turns(), read_task()
print("what libraries print is no answer")
if task["rows"] == 3:
    sys.exit("this peer takes no 3 rows")
turns.ready(task["rows"] * task["window"], versions={{"peer": "1"}}, loss=9.0)
turns.serve(lambda steps: 8.0 - sum(i % 2 for i in range(40_000 * steps)) * 1e-9)
"""


@pytest.fixture(scope="module")
def peers():
    """The module, imported as when the script runs."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("peers")
    sys.path.remove(str(FOLDER))


@pytest.fixture
def command(peers, sample_lines, tmp_path, monkeypatch):
    """`command(*arguments)` compares elmojax with the peer above; the report."""
    (tmp_path / "peer.py").write_text(PEER.format(folder=str(FOLDER / "workers")))
    begin = peers.begin

    def with_peer(name, task, folder, asked):
        if name != "bilm-tf":
            return begin(name, task, folder, asked)
        (folder / "peer.json").write_text(json.dumps(task))
        script = [sys.executable, tmp_path / "peer.py", folder / "peer.json"]
        return peers.Worker(name, script, {}, folder / "peer.log")

    monkeypatch.setattr(peers, "begin", with_peer)
    monkeypatch.setattr(peers, "available", lambda asked: asked.programs)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sample_lines(1000)) + "\n", encoding="utf-8")
    out = tmp_path / "peers.json"

    def run(*arguments: str):
        fixed = f"--presets toy --vocabulary 500 --text {text} --out {out}"
        peers.main([*fixed.split(), *arguments])
        return json.loads(out.read_text())

    return run


@pytest.mark.slow
def test_programs_take_turns(command, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    plot = tmp_path / "peers.png"
    programs = "--programs elmojax bilm-tf".split()
    flags = f"--rows 4 --window 5 --rounds 2 --seconds 0.2 --plot {plot}".split()
    report = command(*programs, *flags)
    case = report["cases"][0]
    assert case["title"] == "toy, 4 rows, window 5, 500 words, 64 negatives"
    ours, peer = case["programs"]["elmojax"], case["programs"]["bilm-tf"]
    assert ours["last_loss"] < ours["first_loss"]
    for program in (ours, peer):
        assert len(program["turns"]) == 2
        low, high = program["tokens_per_second_range"]
        assert 0 < low <= program["tokens_per_second"] <= high
        assert program["idle_cpu_seconds"] < 1
        for turn in program["turns"]:
            assert turn["tokens"] == program["steps"] * 20
            assert 0 < turn["cpu_seconds_per_token"] and turn["peak_bytes"] > 1e6
    middle, least, most = case["ratios"]["elmojax"]["bilm-tf"]
    rates = [
        a["tokens_per_second"] / b["tokens_per_second"]
        for a, b in zip(ours["turns"], peer["turns"], strict=True)
    ]
    assert [least, most] == sorted(rates)
    assert middle == pytest.approx(sum(rates) / 2)
    assert plot.stat().st_size > 10_000
    said = capfd.readouterr().out
    order = [line.split()[2] for line in said.splitlines() if line[:5] == "round"]
    assert order == ["elmojax", "bilm-tf", "bilm-tf", "elmojax"]
    assert "| bilm-tf | " in said


def test_a_worker_that_fails_is_named_with_its_last_words(command):
    with pytest.raises(
        SystemExit, match=r"bilm-tf ended with status 1:\n.*\n.*no 3 row"
    ):
        command("--programs", "bilm-tf", "--rows", "3")


def test_lists_must_fit(command, capsys):
    with pytest.raises(SystemExit):
        command("--rows", "4", "8", "16")
    assert "--rows needs one value, or one for each preset." in capsys.readouterr().err


def test_a_python_without_the_peer_is_refused(peers, monkeypatch):
    monkeypatch.setitem(peers.NEEDS, "torch", "no_such_module")
    flags = ["--text", "x", "--torch-python", sys.executable, "--programs", "torch"]
    with pytest.raises(SystemExit, match=r"must import no_such_module: .*named"):
        peers.available(peers.options().parse_args(flags))

"""docs/quickstart.ipynb runs, and what is committed was really seen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient

NOTEBOOK = REPOSITORY / "docs" / "quickstart.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_every_cell_was_run_in_order_and_none_failed(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "execute_result" in kinds and "error" not in kinds
    assert NOTEBOOK.stat().st_size < 200_000


@pytest.mark.slow
def test_no_cell_raises(notebook, tmp_path, monkeypatch):
    """With the commands of this Python, whether or not its environment is active."""
    commands = [str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(commands))
    there = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=there).execute()

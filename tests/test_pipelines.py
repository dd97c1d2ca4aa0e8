"""The Python in docs/pipelines.md runs as it stands, one block after the other."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPOSITORY
from toys import TINY, tiny_params

import elmojax

PAGE = REPOSITORY / "docs" / "pipelines.md"


@pytest.mark.usefixtures("quick_compilation")
def test_the_blocks_run(monkeypatch):
    pytest.importorskip("grain")
    encoder = replace(TINY.encoder, max_characters=50)  # as every preset has it
    params = tiny_params(replace(TINY, encoder=encoder))
    monkeypatch.setattr(elmojax, "restore", lambda run: params, raising=False)
    page = PAGE.read_text(encoding="utf-8")
    blocks = [
        (page[: found.start(1)].count("\n"), found[1])
        for found in re.finditer(r"^```python\n(.*?)^```$", page, re.DOTALL | re.M)
    ]
    assert len(blocks) >= 9
    names: dict = {}
    for line, block in blocks:  # blank lines first, so that errors name the page's line
        exec(compile("\n" * line + block, PAGE, "exec"), names)
    assert np.isfinite(names["value"])
    assert np.abs(names["task"]["mix"]["s"]).min() > 0

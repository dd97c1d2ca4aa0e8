"""A sample of each kind of the rude cases; `python -m tests.rude` runs all of them."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests import rude

pytestmark = pytest.mark.usefixtures("quick_compilation")
EACH = 4
"""Cases of a kind, from all over its table."""


def test_rude_cases_end_in_one_sentence(tmp_path):
    kinds = defaultdict(list)
    for case in rude.cases():
        kinds[case.kind].append(case)
    with rude.world(tmp_path) as judged:
        found = {
            f"{case.kind}: {case.name}": judged(case)
            for kind, cases in kinds.items()
            for case in cases[:: max(1, len(cases) // EACH)]
        }
    assert not {name: fault for name, fault in found.items() if fault}

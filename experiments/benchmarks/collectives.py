"""What a compiled program sends between devices, read from its text.

Bytes are those that one device sends in one run of the program, with each collective
done as a ring over its group of n devices: an all-reduce of B bytes sends 2 (n - 1) / n
B, the others (n - 1) / n of the whole, a permutation B. What stands in a loop counts as
often as the loop runs where XLA knows that; elsewhere once, and says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
OPERATION = re.compile(
    rf"= (?P<result>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*->.*\{\s*$")
CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")


class Collective(NamedTuple):
    kind: str
    bytes: int
    """Of its result (of its operands, for a reduce-scatter)."""
    group: int
    """Devices that take part together."""
    times: int
    """How often it is done in one run of the program."""
    exact: bool
    """False in a loop whose length XLA does not know: counted for one round."""
    where: str
    """Its place in the Python program, as JAX names it."""

    @property
    def sent(self) -> float:
        """Bytes that one device sends."""
        n = self.group
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.times * self.bytes * share.get(self.kind, (n - 1) / n)


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of more than one device, out of `compiled.as_text()`."""
    bodies, entry = _computations(text)
    found: list[Collective] = []
    for name, times, exact in _runs(bodies, entry, 1, True):
        for line in bodies[name]:
            match = OPERATION.search(line)
            if match is not None:
                found.append(_collective(line, match, devices, times, exact))
    return [each for each in found if each.group > 1]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the one that is run."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = HEAD.match(line)
        if head is not None:
            name = head["name"]
            bodies[name] = []
            entry = name if head["entry"] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _runs(
    bodies: dict[str, list[str]], name: str, times: int, exact: bool
) -> Iterator[tuple[str, int, bool]]:
    """Computations that are run, how often, and whether that is known."""
    yield name, times, exact
    for line in bodies[name]:
        called = CALLED.findall(line)
        for branches in BRANCHES.findall(line):
            called += [part.strip().lstrip("%") for part in branches.split(",")]
        rounds, known = 1, exact
        if " while(" in line:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
            rounds, known = int(trips[1]) if trips else 1, exact and bool(trips)
        for inner in called:
            if inner in bodies and not OPERATION.search(line):
                yield from _runs(bodies, inner, times * rounds, known)


def _collective(
    line: str, match: re.Match[str], devices: int, times: int, exact: bool
) -> Collective:
    sizes = [_bytes(*array) for array in ARRAY.findall(match["result"])]
    kind, group = match["kind"], _group(line, devices)
    if match["start"] and kind in ("all-gather", "collective-permute"):
        sizes = sizes[1:2]  # operand and result
    total = sum(sizes) * (group if kind == "reduce-scatter" else 1)
    name = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, total, group, times, exact, name[1][-100:] if name else "")


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    return max(1, bits // 8) * math.prod(int(n) for n in shape.split(",") if n)


def _group(line: str, devices: int) -> int:
    """Devices in a group: lists, [groups,devices]<=[...], or axes of a named mesh."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named is not None:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'", named[2])
        return math.prod(int(sizes[axis]) for axis in axes)
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed is not None:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    return int(counted[2]) if counted is not None else devices

"""A compiled program read from its text: what runs, how often, and at what least cost.

The text is `compiled.as_text()`, of the compiler of any device. Every instruction that
runs a kernel is counted as often as its loops run; of several branches the dearest one
counts. The least time of a kernel (its roofline) is the larger of

- bytes that it reads and writes in the device's memory / bandwidth. Arrays that a TPU's
  compiler keeps on the chip (`S(1)` in a layout) are free, and of an array that is
  sliced, gathered from or updated in place only that part counts.
- its products: the cycles that the compiler estimates, where it has a model of the
  kernel (TPU), else multiplications and additions / peak.

Launches, waits and imperfect kernels come on top: it is no forecast, and compares
programs. A loop whose length is not in the text counts for one round, and says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota"),
    *("after-all", "add-dependency", "opt-barrier", "domain", "partition-id"),
    *("replica-id", "async-update"),
}
"""Operations for which nothing runs; the end of an asynchronous one (`-done`) too."""

RELABELLED = {"bitcast", "reshape", "convert", "copy"}
"""An array after one of these has the same elements in the same order."""

UPDATES = {"dynamic-update-slice": 1, "scatter": -1}
"""Operations that change their first operand in place, and which one has the change."""

WRAPPERS = {"fusion", "async"}
"""Operations that run a computation as one kernel."""

NO_ESTIMATE = 2**62
"""Cycles from which on a TPU's compiler means that it does not know."""

MOVES = {"copy", "transpose", "reshape", "slice", "concatenate", "pad", "reverse"}
"""Operations that compute nothing."""

TRIVIAL = {*FREE, "convert", "broadcast", "dynamic-update-slice", "dynamic-slice"}

HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*->.*\{\s*$")
LINE = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\](\{[^}]*\})?")
NAMES = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(
    r"\b(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")

Numbers: TypeAlias = Any
"""What is known of a value: a whole number, `_Carried`, a function that gives what is
known of a part of a tuple, or None."""


class Array(NamedTuple):
    """An array of a program, as one device has it."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * _width(self.dtype)

    @property
    def moved(self) -> int:
        """Bytes in the device's memory."""
        return 0 if self.on_chip else self.bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def _width(dtype: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype.split("e")[0]))
    return max(1, bits // 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    operation: str
    """`copy` of a `copy-start` too, of which `copy-done` is the end."""
    arrays: tuple[Array, ...]
    """Of its result: several for a tuple."""
    operands: tuple[str, ...]
    inside: str
    """What stands between the parentheses."""
    attributes: str
    """What stands after them."""
    root: bool
    begun: bool = False
    """Whether others run meanwhile."""

    @cached_property
    def label(self) -> str:
        """Its place in the Python program, as JAX names it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def free(self) -> bool:
        """Whether nothing runs or moves: room for an array is no array."""
        done = self.operation in FREE or self.operation.endswith("-done")
        return done or '"AllocateBuffer"' in self.attributes

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it runs; those of a while without the condition."""
        names = CALLED.findall(self.attributes)
        for branches in BRANCHES.findall(self.attributes):
            names += [part.strip().lstrip("%") for part in branches.split(",")]
        return tuple(names)

    def number(self, pattern: str) -> int | None:
        found = re.search(pattern, self.attributes)
        return int(found[1]) if found else None


Computation: TypeAlias = dict[str, Instruction]


def _instruction(line: str) -> Instruction | None:
    match = LINE.match(line)
    if match is None:
        return None
    rest = match["rest"]
    result = rest[: _end(rest, " ")]
    operation, _, tail = rest[len(result) + 1 :].partition("(")
    inside = tail[: _end(tail, ")")]
    begun = operation.endswith("-start")
    operation = operation.removesuffix("-start")
    if begun and result.startswith("(("):  # operands, results, and a context
        result = result[_end(result[2:], ")") + 2 : result.rindex(",")]
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), "S(" in layout)
        for dtype, shape, layout in ARRAY.findall(result)
    )
    if begun and operation == "copy":  # the copy, what is copied, and a context
        arrays = arrays[:1]
    elif begun and operation in ("all-gather", "collective-permute"):
        arrays = arrays[1:2]  # what is sent, and what comes of it
    names = tuple(NAMES.findall(inside))
    after, root = tail[len(inside) + 1 :], bool(match["root"])
    return Instruction(
        match["name"], operation, arrays, names, inside, after, root, begun
    )


def _end(text: str, wanted: str) -> int:
    """Where a letter first stands outside of all brackets."""
    depth = 0
    for at, letter in enumerate(text):
        if letter == wanted and not depth:
            return at
        depth += (letter in "({[") - (letter in ")}]")
    return len(text)


class Collective(NamedTuple):
    """What devices send each other."""

    kind: str
    arrays: tuple[Array, ...]
    """Of its result."""
    group: int
    """Devices that take part together."""
    times: int
    """How often it is done in one run of the program."""
    exact: bool
    """False in a loop of unknown length: counted for one round."""
    where: str

    @property
    def bytes(self) -> int:
        """Of its result (of its operands, for a reduce-scatter)."""
        whole = self.group if self.kind == "reduce-scatter" else 1
        return sum(array.bytes for array in self.arrays) * whole

    @property
    def sent(self) -> float:
        """Bytes that one device sends in one run, each done as a ring over its group:
        an all-reduce of B bytes 2 (n - 1) / n B, a permutation B, others (n - 1) / n
        of the whole."""
        n = self.group
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.times * self.bytes * share.get(self.kind, (n - 1) / n)


@dataclass(frozen=True)
class Rates:
    """Of the device that a program is compiled for."""

    bf16: float
    """Floating-point operations a second in products."""
    float32: float
    bandwidth: float
    """Bytes a second."""
    clock: float = 0.0
    """Of the cycles in the text; 0 = there are none."""


@dataclass(eq=False)
class Loop:
    """A loop, or the program outside of them: that has no rounds."""

    rounds: int
    exact: bool
    """Whether its length is known, and that of the loops around it."""
    label: str
    times: int
    """Its rounds in one run of the program."""
    kernels: int = 0
    """Of one round, those of inner loops as often as they run in it."""


@dataclass(frozen=True)
class Kernel:
    """An instruction that runs, with all of its rounds."""

    instruction: Instruction
    label: str
    """Its own, else that of the loop or of the instruction which takes its result."""
    times: int
    loop: Loop
    """The innermost loop around it."""
    bytes: int
    """In the device's memory, a round."""
    seconds: float
    """The roofline of all rounds."""
    cycles: float
    """Seconds of all rounds by the compiler's own estimate, the memory's part too."""
    move: str | None
    """`fill`, `copy` or `transpose` where nothing is computed."""

    @property
    def launched(self) -> bool:
        """Whether the device's main unit runs it: no copy meanwhile, no counter."""
        one = self.instruction
        counter = one.operation not in ("fusion", "custom-call")
        counter &= sum(array.size for array in one.arrays) == 1
        return not counter and not (one.begun and one.operation in MOVES)


@dataclass
class Program:
    """A compiled program; `Program(text)`."""

    text: str
    computations: dict[str, Computation] = field(default_factory=dict)
    entry: str = ""

    def __post_init__(self) -> None:
        current: Computation = {}
        for line in self.text.splitlines():
            head = HEAD.match(line)
            if head is not None and not line.startswith(" "):
                current = self.computations.setdefault(head["name"], {})
                self.entry = head["name"] if head["entry"] else self.entry
            elif (found := _instruction(line)) is not None:
                current[found.name] = found

    def root(self, name: str) -> Instruction:
        return next(each for each in self.computations[name].values() if each.root)

    def inside(self, one: Instruction) -> Iterator[Instruction]:
        """An instruction, and those of the fusion that it may be."""
        yield one
        for called in one.called if one.operation in WRAPPERS else ():
            for each in self.computations[called].values():
                yield from self.inside(each)

    def collectives(self, devices: int) -> list[Collective]:
        """Those of more than one device."""
        kernels, _ = self.kernels(Rates(1.0, 1.0, 1.0))
        found = [
            Collective(
                one.operation,
                one.arrays,
                _group(one.attributes, devices),
                kernel.times,
                kernel.loop.exact,
                kernel.label[-100:],
            )
            for kernel in kernels
            for one in self.inside(kernel.instruction)
            if one.operation in COLLECTIVES
        ]
        return [each for each in found if each.group > 1]

    # --- how often loops run ---------------------------------------------------------

    def rounds(
        self, name: str, loop: Instruction, given: Numbers
    ) -> tuple[int | None, Numbers]:
        """How often a loop runs, if that is known, and what its body is given."""
        body = re.search(r"body=%?([\w.\-]+)", loop.attributes)
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        assert body is not None and condition is not None
        before = self._known(name, loop.operands[0], given)
        after = self._known(body[1], self.root(body[1]).name, [_Carried])

        def part(index: int) -> Numbers:
            """Of what a round is given: what stays as it was before the loop."""
            stays = callable(after) and after(index) == _Carried(index)
            return before(index) if stays and callable(before) else None

        known = loop.number(r'"known_trip_count":\{"n":"(\d+)"')
        if known is None and callable(before) and callable(after):
            test = self._known(condition[1], self.root(condition[1]).name, [_Carried])
            known = _count(test, before, after, part)
        return known, [part]

    def _given(
        self, name: str, one: Instruction, number: int, given: Numbers
    ) -> Numbers:
        """What is known of that which one of several computations is given."""
        operands = one.operands
        if one.operation == "conditional":  # first stands what decides
            operands = operands[number + 1 : number + 2]
        return [self._known(name, each, given) for each in operands]

    def _known(self, name: str, which: str, given: Numbers) -> Numbers:
        """What is known of an instruction whose computation is given these numbers."""
        one = self.computations[name].get(which)
        if one is None:
            return None
        of = partial(self._known, name, given=given)
        operation, operands = one.operation, one.operands
        if operation == "constant":
            return int(one.inside) if re.fullmatch(r"-?\d+", one.inside) else None
        if operation == "parameter":
            index = int(one.inside)
            return given[index] if given and index < len(given) else None
        if operation == "tuple":
            return lambda index: of(operands[index])
        if operation == "get-tuple-element":
            whole, index = of(operands[0]), one.number(r"index=(\d+)")
            return whole(index) if callable(whole) else None
        if operation in RELABELLED or operation in ("copy-done", "opt-barrier"):
            return of(operands[0])
        if operation in ("fusion", "call") and len(one.called) == 1:
            inner = [of(each) for each in operands]
            return self._known(one.called[0], self.root(one.called[0]).name, inner)
        if operation in ("add", "subtract", "compare") and len(operands) == 2:
            left, right = of(operands[0]), of(operands[1])
            if operation == "compare":
                direction = re.search(r"direction=(\w+)", one.attributes)
                return (direction[1] if direction else "", left, right)
            return _sum(left, right, -1 if operation == "subtract" else 1)
        return None

    # --- what kernels cost -----------------------------------------------------------

    def kernels(self, rates: Rates) -> tuple[list[Kernel], list[Loop]]:
        """All that runs, and the loops it runs in."""
        loops: list[Loop] = []

        def run(name: str, loop: Loop, label: str, given: Numbers) -> list[Kernel]:
            found: list[Kernel] = []
            labels = self._labels(name)
            for one in self.computations[name].values():
                own = labels.get(one.name) or label
                if one.operation == "while":
                    rounds, inner = self.rounds(name, one, given)
                    exact, times = loop.exact and rounds is not None, rounds or 1
                    loops.append(Loop(times, exact, own, loop.times * times))
                    body = run(one.called[0], (here := loops[-1]), own, inner)
                    launched = sum(kernel.times for kernel in body if kernel.launched)
                    here.kernels = launched // here.times
                    found += body
                elif one.operation in ("conditional", "call"):
                    branches = [
                        run(called, loop, own, self._given(name, one, number, given))
                        for number, called in enumerate(one.called)
                    ]
                    found += max(branches, key=_seconds, default=[])
                elif not one.free:
                    found.append(self._kernel(name, one, rates, loop, own))
            return found

        return run(self.entry, Loop(0, True, "", 1), "", None), loops

    def _kernel(
        self, name: str, one: Instruction, rates: Rates, loop: Loop, label: str
    ) -> Kernel:
        moved = self._bytes(name, one)
        cycles = one.number(r'"estimated_cycles":"(\d+)"') or 0
        cycles = cycles if cycles < NO_ESTIMATE else 0
        estimated = cycles / rates.clock if rates.clock else 0.0
        modelled = rates.clock and "COST_MODEL_TYPE_INVALID" not in one.attributes
        products = estimated if modelled else self._products(name, one, rates)
        seconds = max(moved / rates.bandwidth, products)
        whole = (loop.times * seconds, loop.times * estimated)
        return Kernel(one, label, loop.times, loop, moved, *whole, self._move(one))

    def _labels(self, name: str) -> dict[str, str]:
        """Of each instruction: its own, else of what takes its result, else of what it
        takes."""
        body = self.computations[name]
        labels = {one.name: one.label for one in body.values()}
        for one in reversed(body.values()):  # users stand below
            if labels[one.name]:
                for operand in one.operands:
                    if operand in labels and not labels[operand]:
                        labels[operand] = labels[one.name]
        for one in body.values():
            if not labels[one.name]:
                above = (labels.get(operand, "") for operand in one.operands)
                labels[one.name] = next((label for label in above if label), "")
        return labels

    def _bytes(self, name: str, one: Instruction) -> int:
        """What a kernel reads and writes in the device's memory."""
        body = self.computations[name]
        wraps = one.operation in WRAPPERS
        if wraps:
            inside = self.computations[one.called[0]]
        else:
            inside = {n: body[n] for n in one.operands if n in body}
            inside = {**inside, one.name: replace(one, root=True)}
        total = 0
        for index, operand in enumerate(one.operands):
            source = body.get(operand)
            if source is None or len(source.arrays) != 1:
                continue
            (array,) = source.arrays
            if array.on_chip or array.size == 1:
                continue
            given = operand
            if wraps:
                given = next(
                    each.name
                    for each in inside.values()
                    if each.operation == "parameter" and each.inside == str(index)
                )
            read = self._read(inside, given) * _width(array.dtype)
            total += min(array.bytes, read)
        return total + self._written(one, inside)

    def _read(self, inside: Computation, name: str) -> int:
        """Elements of an array that its users read, at most."""
        total, whole = 0, inside[name].arrays[0].size if inside[name].arrays else 0
        for user in inside.values():
            if name not in user.operands:
                continue
            size = sum(array.size for array in user.arrays)
            first = user.operands[0] == name and user.operands.count(name) == 1
            if user.operation in RELABELLED:
                total += self._read(inside, user.name) if not user.root else whole
            elif first and user.operation in ("dynamic-slice", "slice", "gather"):
                total += size
            elif first and user.operation == "dynamic-update-slice":
                continue
            elif first and user.operation == "scatter":
                total += inside[user.operands[-1]].arrays[0].size
            elif user.operation == "fusion" and user.called:
                inner = self.computations[user.called[0]]
                total += sum(
                    self._read(inner, each.name)
                    for each in inner.values()
                    if each.operation == "parameter"
                    and user.operands[int(each.inside)] == name
                )
            else:
                return whole
        return min(total, whole)

    def _written(self, one: Instruction, inside: Computation) -> int:
        """Bytes of a kernel's results; of one that is changed in place, the change."""
        root = next(each for each in inside.values() if each.root)
        parts = [root.name]
        if root.operation == "tuple":
            parts = list(root.operands)
        if len(parts) != len(one.arrays):
            return sum(array.moved for array in one.arrays)
        total = 0
        for array, part in zip(one.arrays, parts, strict=True):
            if array.on_chip:
                continue
            made = inside.get(part)
            while made is not None and made.operation in RELABELLED:
                made = inside.get(made.operands[0])
            changed, update = array.size, None
            if made is not None and made.operation in UPDATES:
                update = inside.get(made.operands[UPDATES[made.operation]])
            if update is not None:
                changed = update.arrays[0].size
            total += min(array.size, changed) * _width(array.dtype)
        return total

    def _products(self, name: str, one: Instruction, rates: Rates) -> float:
        """Least seconds of the products in a kernel."""
        body = self.computations[name]
        if one.operation in WRAPPERS:
            return sum(
                self._products(called, each, rates)
                for called in one.called
                for each in self.computations[called].values()
            )
        axes = r'lhs_contracting_dim\w*"?[=:][\[{]"?([\d,"]*)'
        found = re.search(axes, one.attributes)
        if found is None or len(one.operands) < 2:
            return 0.0
        left = body[one.operands[0]].arrays[0]
        summed = [int(n) for n in re.findall(r"\d+", found[1])]
        flops = 2 * one.arrays[0].size * math.prod(left.shape[n] for n in summed)
        return flops / (rates.bf16 if _width(left.dtype) < 4 else rates.float32)

    def _move(self, one: Instruction) -> str | None:
        """What a kernel does to its operands, if that is not to compute."""
        if one.operation in WRAPPERS:
            inside = self.computations[one.called[0]].values()
            operations = {each.operation for each in inside} - TRIVIAL
            broadcast = any(each.operation == "broadcast" for each in inside)
        else:
            operations = {one.operation} - TRIVIAL
            broadcast = one.operation == "broadcast"
        if not operations:
            return "fill" if broadcast else None
        if operations <= MOVES and not broadcast:
            return "transpose" if "transpose" in operations else "copy"
        return None


def _seconds(kernels: list[Kernel]) -> float:
    return sum(kernel.seconds for kernel in kernels)


class _Carried(NamedTuple):
    """A number that a loop carries from round to round, and what was added to it."""

    index: int
    added: int = 0


def _sum(left: Numbers, right: Numbers, sign: int) -> Numbers:
    if isinstance(left, int) and isinstance(right, int):
        return left + sign * right
    if isinstance(left, _Carried) and isinstance(right, int):
        return _Carried(left.index, left.added + sign * right)
    if isinstance(right, _Carried) and isinstance(left, int) and sign == 1:
        return _Carried(right.index, right.added + left)
    return None


def _count(
    test: Numbers,
    before: Callable[[int], Numbers],
    after: Callable[[int], Numbers],
    stays: Callable[[int], Numbers],
) -> int | None:
    """Rounds of a loop that counts up to a limit."""
    if not isinstance(test, tuple) or len(test) != 3:
        return None
    direction, counter, limit = test
    if isinstance(counter, int) or (
        isinstance(counter, _Carried) and stays(counter.index) is not None
    ):
        turned = {"GT": "LT", "GE": "LE"}
        direction, counter, limit = turned.get(direction, ""), limit, counter
    if isinstance(limit, _Carried):
        kept = stays(limit.index)
        limit = kept + limit.added if isinstance(kept, int) else None
    if direction not in ("LT", "LE") or not isinstance(counter, _Carried):
        return None
    first, next_ = before(counter.index), after(counter.index)
    if not isinstance(first, int) or not isinstance(limit, int):
        return None
    if not isinstance(next_, _Carried) or next_.index != counter.index:
        return None
    if next_.added < 1:
        return None
    last = limit + (direction == "LE") - counter.added
    return max(0, -(-(last - first) // next_.added))


def _group(attributes: str, devices: int) -> int:
    """Devices in a group: lists, [groups,devices]<=[...], or axes of a named mesh."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if named is not None:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'", named[2])
        return math.prod(int(sizes[axis]) for axis in axes)
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed is not None:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    return int(counted[2]) if counted is not None else devices

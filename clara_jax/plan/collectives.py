"""The collectives of a compiled program, by its text, loops counted.

XLA's own cost analysis counts the body of a loop once, and this package's layers are a
loop. All figures are of one device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

KINDS = (
    "all-gather all-reduce reduce-scatter all-to-all ragged-all-to-all "
    "collective-permute collective-broadcast"
).split()

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_NAMES = re.compile(r"%([\w.\-]+)")

_Sent = tuple[str, float, bool, int]
"""Kind, bytes, whether they go between slices, and how often."""


def traffic(text: str, devices: int, slices: int = 1) -> dict[str, Any]:
    """Add up the collectives of a compiled program.

    Args:
      text: of ``compiled.as_text()``.
      devices: how many run it.
      slices: into how many equal parts they fall, in the order of the mesh.

    Returns:
      By kind of collective, ``sent``: bytes that cross a device's links; ``far``: those
      of them that go between slices; ``count``. And ``endless``: loops whose number of
      turns is not in the program, counted once.
    """
    program = _Program(text, devices, slices)
    sums: dict[str, dict[str, float]] = {"sent": {}, "far": {}, "count": {}}
    for kind, size, far, times in program.run(program.entry):
        values = {"sent": size, "count": 1, **({"far": size} if far else {})}
        for name, value in values.items():
            sums[name][kind] = sums[name].get(kind, 0) + times * value
    return {**sums, "endless": program.endless}


class _Line(NamedTuple):
    """One instruction: ``%name = type op(operands), rest``."""

    root: str | None
    name: str
    type: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return _NAMES.findall(self.rest.partition("), ")[0])

    @property
    def number(self) -> int | None:
        """The value of an integer constant."""
        value = self.rest.partition(")")[0]
        whole = self.op == "constant" and re.match(r"[su]\d+\[\]", self.type)
        return int(value) if whole and value.isdigit() else None

    def called(self, *attributes: str) -> list[str]:
        """Computations that attributes such as ``body`` name."""
        found = re.findall(rf"\b(?:{'|'.join(attributes)})=(\{{.*?\}}|\S+)", self.rest)
        return _NAMES.findall(" ".join(found))


class _Program:
    """The computations of a program, each by the names of its instructions."""

    def __init__(self, text: str, devices: int, slices: int):
        self.devices, self.slices = devices, slices
        self.entry, self.endless = "", 0
        self.parts: dict[str, dict[str, _Line]] = {}
        current: dict[str, _Line] = {}
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if head := _COMPUTATION.match(line):
                current = self.parts.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                current[found[2]] = _Line(*found.groups())

    def run(self, part: str, times: int = 1, fused: bool = False) -> Iterator[_Sent]:
        """Find what a computation that runs `times` over sends."""
        lines = list(self.parts[part].values())
        marked = [x for x in lines if fused and "AsyncCollective" in x.rest]
        if marked or part.startswith("async_collective_fusion"):
            # A collective that runs beside other work is written again in every fusion
            # of that work, and where it ends; it counts where it starts.
            starts = [x for x in marked if "AsyncCollectiveStart" in x.rest]
            started = {name for start in starts for name in start.operands}
            lines = [x for x in lines if x.name in started]
        for line in lines:
            if line.op == "while":
                turns = self._turns(line)
                self.endless += turns is None
                for called in line.called("body", "condition"):
                    yield from self.run(called, times * (turns or 1))
            elif line.op == "conditional":
                branches = [
                    list(self.run(branch, times))
                    for branch in line.called(r"\w+_computations?")
                ]
                yield from max(
                    branches, key=lambda sent: sum(size for _, size, *_ in sent)
                )
            elif line.op in ("call", "async-start", "fusion"):
                for called in line.called("to_apply", "calls"):
                    yield from self.run(called, times, line.op == "fusion")
            elif line.op == "send":
                yield from self._between_slices(line, part, times)
            elif line.op.removesuffix("-start") in KINDS:
                yield from self._collective(line, part, times)

    def _collective(self, line: _Line, part: str, times: int) -> Iterator[_Sent]:
        kind = line.op.removesuffix("-start")
        if kind == "all-reduce" and part.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # as TPUs write one
        groups = groups_of(line.rest, self.devices)
        slice_of = groups // (self.devices // self.slices)
        far = bool((slice_of != slice_of[:, :1]).any())
        size = self._size(part, line.operands) * _share(kind, groups.shape[1])
        if size:
            yield kind, size, far, times

    def _between_slices(self, line: _Line, part: str, times: int) -> Iterator[_Sent]:
        """Read what a TPU hands to its host, which knows the collective."""
        found = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)
        if found:
            kind = found[1].lower().replace("_", "-")
            size = self._size(part, line.operands[:1]) * _share(kind, self.slices)
            yield kind, size, True, times

    def _size(self, part: str, names: list[str]) -> float:
        return sum(array_bytes(self.parts[part][name].type) for name in names)

    def _turns(self, loop: _Line) -> int | None:
        """How often a loop runs: as XLA notes it, or by what its condition compares."""
        noted = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if noted:
            return int(noted[1])
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        lines = list(self.parts[condition].values())
        places = [line.rest for line in lines if line.op == "get-tuple-element"]
        for called in [name for line in lines for name in line.called("calls")]:
            lines += self.parts[called].values()
        limits = [line.number for line in lines if line.number is not None]
        below = any("direction=LT" in line.rest for line in lines)
        if not below or len(limits) != 1 or len(places) != 1:
            return None
        place = int(places[0].partition("index=")[2].partition(",")[0])
        result = next(line for line in self.parts[body].values() if line.root)
        # Unrolled, a turn may raise its counter by more than 1.
        step = self._raised(body, result.operands[place]) if result.op == "tuple" else 1
        return -(-limits[0] // max(1, step))

    def _raised(self, part: str, name: str) -> int:
        """Add up the constants that make a value larger."""
        line = self.parts[part][name]
        if line.op in ("add", "copy", "bitcast"):
            return sum(self._raised(part, operand) for operand in line.operands)
        return line.number or 0


def array_bytes(type_: str) -> float:
    """Return the bytes of a type such as ``bf16[8,128]{1,0}``, or a tuple of such."""
    total = 0.0
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", type_):
        digits = re.search(r"\d+", kind)
        bits = 8 if kind == "pred" else int(digits[0]) if digits else 0
        total += bits / 8 * math.prod(int(size) for size in dims.split(",") if size)
    return total


def groups_of(rest: str, devices: int) -> np.ndarray:
    """Return the devices that take part together, ``[groups, members]``."""
    attribute = r"(?:replica_groups|source_target_pairs)"
    if listed := re.search(attribute + r"=\{(\{[\d,{}\s]*\})\}", rest):
        rows = re.findall(r"\{([\d,\s]+)\}", listed[1])
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    iota = re.search(attribute + r"=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape, dims = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
        order = [int(n) for n in iota[3].split(",")] if iota[3] else range(len(dims))
        return np.arange(devices).reshape(dims).transpose(order).reshape(shape)
    if mesh := re.search(attribute + r"=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = {n: int(k) for n, k in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        chosen = re.findall(r"'([^']+)'", mesh[2])
        axes = [*(name for name in sizes if name not in chosen), *chosen]
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        members = math.prod(sizes[name] for name in chosen)
        return ids.transpose([*map(list(sizes).index, axes)]).reshape(-1, members)
    return np.arange(devices)[None]


def _share(kind: str, n: int) -> float:
    """Return what each of `n` members sends, as a multiple of what it brings."""
    if kind == "all-gather":
        return float(n - 1)
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (n - 1) / n

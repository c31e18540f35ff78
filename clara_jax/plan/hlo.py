"""What a compiled program sends and reads, loops counted.

XLA's own cost analysis counts the body of a loop once, and this package's layers are a
loop. Here the text of the compiled program is read, and every loop's body counts as
often as it runs. All figures are of one device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

from clara_jax.plan.instructions import Instruction, groups_of, parse_line

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_SIZES = {"pred": 1.0, "token": 0.0, "opaque": 0.0}
# Names, not data: they cost nothing, or their parts are counted where they happen.
_FREE = set(
    "parameter constant tuple get-tuple-element bitcast after-all send recv "
    "partition-id replica-id opt-barrier optimization-barrier add-dependency "
    "domain iota".split()
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclasses.dataclass
class Traffic:
    """What one device does while a program runs once.

    Attributes:
      sent: bytes of each kind of collective that cross its links.
      far: those of them that go between slices.
      count: collectives of each kind.
      memory: bytes read from and written to its memory.
      endless: loops whose number of turns is not in the program; counted once.
    """

    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    far: dict[str, float] = dataclasses.field(default_factory=dict)
    count: dict[str, float] = dataclasses.field(default_factory=dict)
    memory: float = 0.0
    endless: int = 0

    def add(self, other: Traffic, times: int = 1) -> None:
        """Add what another part does, `times` over."""
        for mine, theirs in (
            (self.sent, other.sent),
            (self.far, other.far),
            (self.count, other.count),
        ):
            for kind, value in theirs.items():
                mine[kind] = mine.get(kind, 0) + times * value
        self.memory += times * other.memory
        self.endless += other.endless


def traffic(text: str, devices: int, slices: int = 1) -> Traffic:
    """Read a compiled program.

    Args:
      text: of ``compiled.as_text()``.
      devices: how many run it.
      slices: into how many equal parts they fall, in the order of the mesh.

    Returns:
      What one of the devices does.
    """
    program = _Program(text, devices, slices)
    return program.total(program.entry)


def array_bytes(type_: str, *, everywhere: bool = True) -> float:
    """Bytes of an XLA type, such as ``bf16[8,128]{1,0}`` or a tuple of such.

    Args:
      type_: as in a program's text.
      everywhere: count arrays in the chip's own scratch memory as well.
    """
    total = 0.0
    for kind, dims, layout in _ARRAY.findall(type_):
        space = re.search(r"S\((\d+)\)", layout)
        if not everywhere and space and space[1] != "0":
            continue
        total += _itemsize(kind) * math.prod(int(d) for d in dims.split(",") if d)
    return total


class _Program:
    """The computations of a program, and what each does."""

    def __init__(self, text: str, devices: int, slices: int):
        self.devices, self.slices = devices, slices
        self.entry = ""
        self.parts: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\([^{]*\) -> .* )?\{$", line)
            if head and not line.startswith(" "):
                current = self.parts.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith(" "):
                instruction = parse_line(line)
                if instruction is not None:
                    current.append(instruction)
        self.done: dict[str, Traffic] = {}

    @functools.cached_property
    def types(self) -> dict[str, dict[str, str]]:
        """Type of every instruction, by computation and name."""
        return {
            part: {line.name: line.type for line in lines}
            for part, lines in self.parts.items()
        }

    def total(self, part: str) -> Traffic:
        """What one run of a computation does."""
        if part not in self.done:
            self.done[part] = Traffic()  # a program does not call itself
            self.done[part] = self._sum(part)
        return self.done[part]

    def _sum(self, part: str) -> Traffic:
        total = Traffic()
        for line in self.parts.get(part, ()):
            if line.op == "while":
                turns = self._turns(line)
                total.endless += turns is None
                for called in line.called("body") + line.called("condition"):
                    total.add(self.total(called), turns or 1)
            elif line.op == "conditional":
                branches = line.called("branch_computations")
                branches += line.called("true_computation")
                branches += line.called("false_computation")
                most = max(map(self.total, branches), key=lambda t: t.memory)
                total.add(most)
            elif line.op in ("call", "async-start"):
                for called in line.called("to_apply") + line.called("calls"):
                    total.add(self.total(called))
            else:
                if line.op == "send":
                    self._send_far(total, line, part)
                for found, where in self._collectives(line, part):
                    self._send(total, found, where)
                total.memory += self._memory(line, part)
        return total

    def _collectives(
        self, line: Instruction, part: str
    ) -> Iterator[tuple[Instruction, str]]:
        """A collective itself, or those inside a fusion."""
        if line.op.removesuffix("-start") in KINDS:
            yield line, part
        elif line.op == "fusion":
            for called in line.called("calls"):
                inner = self.parts.get(called, ())
                if _later_stretch(called, inner):
                    continue
                started = {
                    name
                    for line in inner
                    if "AsyncCollectiveStart" in line.rest
                    for name in line.operands
                }
                for line in inner:
                    if not started or line.name in started:
                        yield from self._collectives(line, called)

    def _send(self, total: Traffic, line: Instruction, part: str) -> None:
        kind = line.op.removesuffix("-start")
        types = self.types[part]
        size = sum(array_bytes(types.get(name, "")) for name in line.operands)
        groups = groups_of(line.rest, self.devices)
        n = groups.shape[1]
        if kind == "all-reduce" and part.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # as TPUs write one
        moved = size * _share(kind, n)
        if not moved:
            return
        total.count[kind] = total.count.get(kind, 0) + 1
        total.sent[kind] = total.sent.get(kind, 0) + moved
        slice_of = groups // (self.devices // self.slices)
        if (slice_of != slice_of[:, :1]).any():
            total.far[kind] = total.far.get(kind, 0) + moved

    def _send_far(self, total: Traffic, line: Instruction, part: str) -> None:
        """Between slices TPUs hand arrays to their hosts, which know the collective."""
        found = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)
        if not found:
            return
        kind = found[1].lower().replace("_", "-")
        size = array_bytes(self.types[part].get(line.operands[0], ""))
        moved = size * _share(kind, self.slices)
        for sums, value in ((total.sent, moved), (total.far, moved), (total.count, 1)):
            sums[kind] = sums.get(kind, 0) + value

    def _turns(self, line: Instruction) -> int | None:
        """How often a loop runs: as XLA notes it, or by what its condition compares."""
        noted = re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest)
        if noted:
            return int(noted[1])
        (condition,), (body,) = line.called("condition"), line.called("body")
        inner = [condition]
        for instruction in self.parts.get(condition, ()):
            inner += instruction.called("calls")
        lines = [line for part in inner for line in self.parts.get(part, ())]
        limits = [
            int(line.inside)
            for line in lines
            if line.op == "constant"
            and re.match(r"[su]\d+\[\]", line.type)
            and line.inside.isdigit()
        ]
        places = [
            int(found[1])
            for line in self.parts.get(condition, ())
            if line.op == "get-tuple-element"
            and (found := re.search(r"index=(\d+)", line.rest))
        ]
        below = any("direction=LT" in line.rest for line in lines)
        if not below or len(limits) != 1 or len(places) != 1:
            return None
        return -(-limits[0] // self._step(body, places[0]))

    def _step(self, body: str, place: int) -> int:
        """By how much a turn raises its counter: more than 1 where loops are unrolled.

        Args:
          body: of the loop.
          place: of the counter in what the loop carries.
        """

        def raised(part: str, name: str) -> int:
            by_name = {line.name: line for line in self.parts.get(part, ())}
            line = by_name.get(name)
            if line is None:
                return 0
            if line.op == "constant":
                return int(line.inside) if line.inside.isdigit() else 0
            if line.op in ("add", "copy", "bitcast"):
                return sum(raised(part, operand) for operand in line.operands)
            if line.op == "fusion":
                (called,) = line.called("calls")
                root = next(x for x in self.parts[called] if x.root)
                given = sum(raised(part, operand) for operand in line.operands)
                return given + raised(called, root.name)
            return 0

        roots = [line for line in self.parts.get(body, ()) if line.root]
        if not roots or roots[0].op != "tuple":
            return 1
        return max(1, raised(body, roots[0].operands[place]))

    def _memory(self, line: Instruction, part: str) -> float:
        """Bytes that one instruction reads and writes."""
        if line.op in _FREE or line.op.endswith("-done"):
            return 0.0
        types = self.types[part]

        def size(name: str) -> float:
            return array_bytes(types.get(name, ""), everywhere=False)

        if line.op == "fusion":
            return self._fusion_memory(line, types)
        result = array_bytes(line.type, everywhere=False)
        if line.op in ("dynamic-slice", "slice", "gather", "broadcast"):
            return result + (0 if line.op == "broadcast" else result)
        if line.op in ("dynamic-update-slice", "scatter"):
            return 2 * size(line.operands[-1 if line.op == "scatter" else 1])
        if line.op in ("copy-start", "slice-start"):
            # Its type is (what comes out, or what goes in, the other one, a flag).
            arrays = list(_ARRAY.finditer(line.type))[:2]
            least = min(array_bytes(found[0]) for found in arrays)
            ends = [array_bytes(found[0], everywhere=False) for found in arrays]
            return sum(min(end, least) for end in ends)
        if line.op.endswith("-start"):
            result = sum(map(size, line.operands))
        return result + sum(map(size, line.operands))

    def _fusion_memory(self, line: Instruction, types: dict[str, str]) -> float:
        """What a fusion touches: only slices of what it slices."""
        (called,) = line.called("calls") or [""]
        inner = self.parts.get(called, [])
        inner_types = self.types.get(called, {})
        users: dict[str, list[Instruction]] = {}
        for instruction in inner:
            for name in instruction.operands:
                users.setdefault(name, []).append(instruction)

        def ends(name: str) -> list[tuple[Instruction, int]]:
            """Who uses a value, looking through mere changes of shape."""
            found = []
            for user in users.get(name, ()):
                if user.op == "bitcast":
                    found += ends(user.name)
                else:
                    found.append((user, user.operands.index(name)))
            return found

        later = _later_stretch(called, inner)
        total = 0.0
        for instruction in inner:
            if instruction.op != "parameter" or not instruction.inside.isdigit():
                continue
            outer = line.operands[int(instruction.inside)]
            whole = array_bytes(types.get(outer, ""), everywhere=False)
            touched = 0.0
            for user, place in ends(instruction.name):
                if user.op in ("dynamic-slice", "slice", "gather") and place == 0:
                    touched += array_bytes(user.type)
                elif user.root or (later and user.op in KINDS):
                    continue  # handed on: counted where it starts, and where it is read
                elif user.op != "dynamic-update-slice" or place != 0:
                    touched = whole
                    break
            total += min(whole, touched)
        return total + self._written(inner, inner_types, line.type, later)

    def _written(
        self, inner: list[Instruction], types: dict[str, str], outer: str, later: bool
    ) -> float:
        """Bytes that a fusion results in; of an update in place, its update alone.

        Args:
          inner: the fusion's lines. types: theirs.
          outer: type of the fusion, which says what stays on the chip.
          later: see `_later_stretch`.
        """
        by_name = {instruction.name: instruction for instruction in inner}

        def size(instruction: Instruction) -> float:
            if instruction.op == "bitcast" and instruction.operands[0] in by_name:
                return size(by_name[instruction.operands[0]])
            if instruction.op == "dynamic-update-slice":
                return array_bytes(types.get(instruction.operands[1], ""))
            if "AsyncCollectiveStart" in instruction.rest:
                found = (by_name[name] for name in instruction.operands)
                return sum(array_bytes(x.type, everywhere=False) for x in found)
            handed_on = ("parameter", *KINDS) if later else ("parameter",)
            if instruction.op in handed_on or "AsyncCollective" in instruction.rest:
                return 0.0
            return array_bytes(instruction.type)

        roots = [instruction for instruction in inner if instruction.root]
        if roots and roots[0].op == "tuple":
            roots = [by_name[n] for n in roots[0].operands if n in by_name]
        results = [found[0] for found in _ARRAY.finditer(outer)]
        if len(results) != len(roots):
            return float(sum(map(size, roots)))
        stays = [array_bytes(result, everywhere=False) == 0 for result in results]
        sizes = [size(x) for x, here in zip(roots, stays, strict=True) if not here]
        return float(sum(sizes))


def _share(kind: str, n: int) -> float:
    """What each of `n` members sends, as a multiple of what it brings."""
    if kind == "all-gather":
        return float(n - 1)
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (n - 1) / n


def _later_stretch(name: str, inner: Sequence[Instruction]) -> bool:
    """Whether a fusion goes on with, or ends, a collective that another one began.

    A collective that runs beside other work is written again in every stretch of that
    work, and where it ends; it counts where it starts.
    """
    marks = " ".join(line.rest for line in inner if line.op == "custom-call")
    if "AsyncCollectiveStart" in marks:
        return False
    return name.startswith("async_collective_fusion") or "AsyncCollectiveDone" in marks


def _itemsize(kind: str) -> float:
    if kind in _SIZES:
        return _SIZES[kind]
    bits = re.search(r"\d+", kind)
    return int(bits[0]) / 8 if bits else 0.0

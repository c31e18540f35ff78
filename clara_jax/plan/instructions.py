"""The text of compiled programs, line by line."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

_NAMED = re.compile(r"%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``%name = type op(operands), rest``."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    inside: str
    rest: str
    root: bool

    def called(self, attribute: str) -> list[str]:
        """Computations that an attribute such as ``body`` names."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
        return _NAMED.findall(found[1]) if found else []


def parse_line(line: str) -> Instruction | None:
    """Read one line of a computation; None where it is no instruction."""
    line = re.sub(r"/\*.*?\*/", "", line)
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    type_, rest = _until_closed(line[head.end() :])
    found = re.match(r"\s*([\w\-]+)\(", rest)
    if not found:
        return None
    inside, rest = _until_closed(rest[found.end() - 1 :])
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(
        name=head[2],
        type=type_,
        op=found[1],
        operands=operands,
        inside=inside[1:-1],
        rest=rest,
        root=bool(head[1]),
    )


def _until_closed(text: str) -> tuple[str, str]:
    """Split behind a bracketed group, or, without one, at the first blank."""
    if not text.startswith("("):
        first, _, rest = text.partition(" ")
        return first, rest
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def groups_of(rest: str, devices: int) -> np.ndarray:
    """The devices that take part together, ``[groups, members]``."""
    listed = re.search(r"replica_groups=\{(\{[\d,{}\s]*\})\}", rest)
    if listed:
        rows = re.findall(r"\{([\d,\s]+)\}", listed[1])
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    iota = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
    )
    if iota:
        shape, dims = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            ids = ids.transpose([int(n) for n in iota[3].split(",")])
        return ids.reshape(shape)
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)
    if mesh:
        sizes = {n: int(k) for n, k in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        chosen = re.findall(r"'([^']+)'", mesh[2])
        names = list(sizes)
        order = [n for n in names if n not in chosen] + chosen
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        members = math.prod(sizes[n] for n in chosen)
        return ids.transpose([names.index(n) for n in order]).reshape(-1, members)
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}\s]*\})\}", rest)
    if pairs:
        rows = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
        return np.array([[int(a), int(b)] for a, b in rows])
    return np.arange(devices)[None]

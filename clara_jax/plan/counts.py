"""Operations of all devices, and bytes that one device sends, by our own count.

`useful` is what the method needs, by formula: a matrix of n numbers costs 2n operations
per token forwards and 2n for the gradient of its input, so LoRA on frozen weights costs
4N per token where full training costs 6N; MFU is measured by it. `performed` adds up
the matrix products of the traced program, `traffic` the collectives of the compiled
one. Loops are multiplied everywhere; XLA's cost analysis counts a loop's body once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from clara_jax.config import ModelConfig, RunConfig
from clara_jax.model import Transformer, abstract_variables, count
from clara_jax.stages import STAGES

KINDS = (
    "all-gather all-reduce reduce-scatter all-to-all ragged-all-to-all "
    "collective-permute collective-broadcast"
).split()

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_NAMES = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Rows that one role reads in a step."""

    role: str  # compressor, reasoner, generator or backbone
    rows: int
    length: int  # padded tokens of a row
    trained: bool  # whether gradients go through
    logits: int = 0  # tokens whose output distribution is computed
    cached: float = 0  # tokens that were read before, and are attended to as well

    @property
    def tokens(self) -> int:
        """Tokens with their padding."""
        return self.rows * self.length


def readings(config: RunConfig, candidates: int = 20) -> list[Reading]:
    """Return what a train step reads, at the longest lengths that the config allows."""
    found = []
    for read in STAGES[config.stage].reads(config):
        if not read.role:
            continue
        rows, length = config.data.batch_size, read.length(config)
        if read.per_row is not None:
            rows *= read.per_row or candidates
        logits = rows * (length - 1) if read.field == "prompt" else 0
        found.append(Reading(read.role, rows, length, read.trained, logits))
    return found


def useful(reading: Reading, config: RunConfig, shape: ModelConfig) -> dict[str, float]:
    """Return the operations that the method needs for one reading, by formula.

    They are ``matrices`` (4N per token where trained with LoRA, 2N where not trained,
    6N where the backbone itself learns), ``adapters`` (6 per number, or 2),
    ``attention`` (causal: half of all pairs) and ``head``.
    """
    lora = None if reading.role == "backbone" else config.lora
    variables = abstract_variables(Transformer(shape, shape.vocab_size, lora))
    layers = jax.tree.leaves_with_path(variables["params"]["layers"])
    matrices = sum(leaf.size for path, leaf in layers if path[-1].key == "kernel")
    adapters, _ = count(variables.get("lora", {}))
    passes = 1
    if reading.trained:
        passes = 2 if lora else 3
    pairs = reading.tokens * ((reading.length + 1) / 2 + reading.cached)
    heads = shape.num_heads * shape.head_dim * shape.num_layers
    return {
        "matrices": 2.0 * passes * matrices * reading.tokens,
        "adapters": (6.0 if reading.trained else 2.0) * adapters * reading.tokens,
        "attention": (3 if reading.trained else 1) * 4.0 * heads * pairs,
        "head": 2.0 * passes * shape.width * shape.vocab_size * reading.logits,
    }


def performed(function: Any, *arguments: Any) -> float:
    """Return the operations in matrix products of a function of arrays or shapes.

    What the result does not depend on is left out first, as compilers do. Of the
    branches of a condition the costliest counts.
    """
    from jax.interpreters import partial_eval

    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    return _count(jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            ((contracted, _), _) = params["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            depth = math.prod(left.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(out.shape) * depth
            continue
        # Jaxprs among the parameters: of loops, branches and calls.
        items = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(params.values()))]
        inner = [_count(item) for item in items if hasattr(item, "eqns")]
        if name == "cond":
            total += max(inner, default=0.0)
        else:
            total += (params["length"] if name == "scan" else 1) * sum(inner)
    return total


def traffic(text: str, devices: int, slices: int = 1) -> dict[str, Any]:
    """Add up the collectives of a compiled program, ``compiled.as_text()``.

    `slices` are equal parts of the devices, in the order of the mesh.

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
        """Return the computations that attributes such as ``body`` name."""
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

    def run(
        self, part: str, times: int = 1, fused: bool = False
    ) -> Iterator[tuple[str, float, bool, int]]:
        """Find what a computation that runs `times` over sends, and how often each."""
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
            elif sent := self._sent(line, part):
                yield (*sent, times)

    def _sent(self, line: _Line, part: str) -> tuple[str, float, bool] | None:
        """Return a collective's kind, bytes, and whether they go between slices."""
        kind, operands = line.op.removesuffix("-start"), line.operands
        if kind == "send":
            # A TPU hands this to its host, for a collective that is noted there.
            noted = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)
            if noted is None:
                return None
            kind, operands = noted[1].lower().replace("_", "-"), operands[:1]
            members, far = self.slices, True
        elif kind in KINDS:
            if kind == "all-reduce" and part.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # as TPUs write one
            groups = groups_of(line.rest, self.devices)
            slices = groups // (self.devices // self.slices)
            members, far = groups.shape[1], bool((slices != slices[:, :1]).any())
        else:
            return None
        size = sum(array_bytes(self.parts[part][name].type) for name in operands)
        size *= _share(kind, members)
        return (kind, size, far) if size else None

    def _turns(self, loop: _Line) -> int | None:
        """Return how often a loop runs, by XLA's note or its condition, or None."""
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(noted[1])
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        # Known is only a condition of the form: counter < constant.
        lines = list(self.parts[condition].values())
        counters = [line.rest for line in lines if line.op == "get-tuple-element"]
        for called in [name for line in lines for name in line.called("calls")]:
            lines += self.parts[called].values()
        limits = [line.number for line in lines if line.number is not None]
        below = any("direction=LT" in line.rest for line in lines)
        if not below or len(limits) != 1 or len(counters) != 1:
            return None
        place = re.search(r"index=(\d+)", counters[0])
        if place is None:
            return None
        step = 1
        result = next(line for line in self.parts[body].values() if line.root)
        if result.op == "tuple":
            # Unrolled, a turn may raise its counter by more than 1.
            step = max(1, self._raised(body, result.operands[int(place[1])]))
        return -(-limits[0] // step)

    def _raised(self, part: str, name: str) -> int:
        """Return by how much a value has grown: the sum of what was added to it."""
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
    """Return what each of `n` members sends, as a multiple of its operands."""
    if kind == "all-gather":
        return float(n - 1)
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (n - 1) / n

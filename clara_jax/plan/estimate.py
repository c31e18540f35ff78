"""From a result's figures to memory against the chip's, and to an estimate of time.

The estimate is a roofline: operations, memory traffic and collectives, each over what
the maker promises of the chip. It knows no latency, no kernel's efficiency and no input
pipeline. The truth lies rarely below `best`, where all three overlap fully, and may lie
above `worst`, where none does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from clara_jax.plan.chips import CHIPS, GIB, Chip


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a program runs.

    Attributes:
      arguments: all that lies there before, used by the program or not.
      temporaries, outputs, code: what the program adds; outputs that take over the
        place of arguments are not counted twice.
      limit: of the chip; 0 is unknown.
      refused: what the compiler said instead of compiling, or None.
    """

    arguments: float
    temporaries: float = 0.0
    outputs: float = 0.0
    code: float = 0.0
    limit: float = 0.0
    refused: dict[str, Any] | None = None

    @property
    def peak(self) -> float:
        """Bytes needed at once, as far as known."""
        if self.refused is None:
            return float(self.arguments + self.temporaries + self.outputs + self.code)
        needed = self.refused.get("needed", self.limit)
        return float(needed + (self.arguments if self.refused.get("alone") else 0))

    @property
    def fits(self) -> bool | None:
        """Whether the chip holds it; None where there is no figure to compare with."""
        if self.refused is not None:
            return False
        return self.peak <= self.limit if self.limit else None


@dataclasses.dataclass(frozen=True)
class Time:
    """An ESTIMATE of the seconds of a program, by what they go to."""

    compute: float
    memory: float
    links: float
    network: float

    @property
    def best(self) -> float:
        """All at once."""
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def worst(self) -> float:
        """One after the other."""
        return self.compute + self.memory + self.links + self.network

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=parts.__getitem__)


def chip_of(result: dict[str, Any]) -> Chip:
    """The chip that a result is for."""
    return CHIPS[result["topology"].split(":")[0]]


def memory_of(result: dict[str, Any]) -> Memory:
    """Memory of the hungriest program of a result."""
    limit = chip_of(result).memory
    exact = sum(v for k, v in result["arguments"].items() if not k.startswith("cache"))
    found = []
    for program in result["programs"]:
        if program["refused"]:
            limit = program["refused"].get("limit", limit)
            return Memory(exact, limit=limit, refused=program["refused"])
        memory = program["memory"]
        arguments = memory["arguments"]
        if result["work"] == "train":
            # Arrays that the step does not read lie there all the same.
            arguments = max(arguments, exact)
        found.append(
            Memory(
                arguments=arguments,
                temporaries=memory["temporaries"],
                outputs=max(memory["outputs"] - memory["aliased"], 0),
                code=memory["code"],
                limit=limit,
            )
        )
    return max(found, key=lambda memory: memory.peak)


def time_of(result: dict[str, Any], program: dict[str, Any]) -> Time | None:
    """Estimate one run of a program; None where chip or program are not known."""
    chip = chip_of(result)
    if not chip.flops or program["refused"]:
        return None
    moved = program["traffic"]
    sent, far = sum(moved["sent"].values()), sum(moved["far"].values())
    return Time(
        compute=program["performed_flops"] / result["devices"] / chip.flops,
        memory=moved["memory"] / chip.hbm,
        links=(sent - far) / chip.links,
        network=far / chip.network,
    )


def mfu(result: dict[str, Any], program: dict[str, Any], seconds: float) -> float:
    """Share of the chips' peak that useful operations would reach."""
    total = sum(program["useful_flops"].values())
    return total / result["devices"] / chip_of(result).flops / max(seconds, 1e-12)


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """One line of a table, as plain values.

    Times, tokens per second and MFU are ranges from no overlap to full overlap.
    """
    memory = memory_of(result)
    line: dict[str, Any] = {
        "mesh": ",".join(f"{k}={v}" for k, v in result["mesh"].items() if v > 1)
        or "data=1",
        "accumulate": result["accumulate"],
        "remat": result["remat"],
        "fits": memory.fits,
        "arguments_gib": memory.arguments / GIB,
        "temporaries_gib": None if memory.refused else memory.temporaries / GIB,
        "peak_gib": memory.peak / GIB,
        "limit_gib": memory.limit / GIB,
        "seconds_best": None,
        "seconds_worst": None,
    }
    program = result["programs"][0]
    time = time_of(result, program)
    if time is not None:
        line |= {
            "seconds_best": time.best,
            "seconds_worst": time.worst,
            **{f"seconds_{k}": v for k, v in dataclasses.asdict(time).items()},
            "bound": time.bound,
            "tokens_per_s_worst": program["tokens"] / time.worst,
            "tokens_per_s_best": program["tokens"] / time.best,
            "mfu_worst": mfu(result, program, time.worst),
            "mfu_best": mfu(result, program, time.best),
        }
    line["compile_seconds"] = sum(p["compile_seconds"] for p in result["programs"])
    return line

"""Compiles a case's programs for its machine and keeps what was found on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import clara_jax.plan.topology as machines
from clara_jax.config import to_dict
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, read_json, write_json
from clara_jax.plan.arrays import groups
from clara_jax.plan.case import Case
from clara_jax.plan.flops import performed
from clara_jax.plan.hlo import traffic
from clara_jax.plan.programs import Program, bytes_per_device, on_mesh, programs, run_of
from clara_jax.sharding import make_mesh

_ROOMS = "config shapes sharding model clara train generate plan".split()
"""What compiled programs and their figures are made by."""

_REFUSED = re.compile(r"out of memory|RESOURCE_EXHAUSTED", re.IGNORECASE)
_USED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])")
_NEEDED = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def measure(
    case: Case, folder: Path | None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Compile a case, or find what was found before.

    Args:
      case: what to compile; `topology.prepare` has set the environment for it.
      folder: of kept results; None keeps nothing.
      say: takes remarks for the user, who will wait.

    Returns:
      Plain values, as JSON holds them: ``programs``, each with its memory, traffic and
      operations, or what the compiler said when it refused; ``arguments`` exact bytes
      of a device by group of arrays; ``versions``; ``cached``.

    Raises:
      ClaraError: machine, mesh and rows do not fit each other, or the compiler fails
        for a reason other than memory.
    """
    name = f"{key(case)}.json"  # now: sources may be edited while this compiles
    earlier = kept(case, folder)
    if earlier is not None:
        return earlier
    mesh = make_mesh(**case.sizes, devices=machines.devices(case.topology))
    arguments = _arguments(case)
    found = _hopeless(case, arguments)
    before = None
    for program in [] if found else programs(case):
        say(f"compiling: {program.name}, {case.topology.name}, {case.mesh_text}")
        values, before = _compile(program, case, mesh, before)
        found.append(values)
        if values["refused"]:
            break
    result = {
        "work": case.work,
        "stage": case.config.stage,
        "topology": case.topology.name,
        "slices": case.topology.slices,
        "devices": case.devices,
        "mesh": case.sizes,
        "accumulate": case.config.optim.accumulate,
        "remat": case.config.remat,
        "rows": case.rows or case.config.data.batch_size,
        "arguments": arguments,
        "vector_bytes": case.config.memory.num_memory
        * case.shape.width
        * jax.numpy.dtype(case.config.dtype).itemsize,
        "programs": found,
        "versions": versions(case),
        "cached": False,
    }
    if folder is not None:
        write_json(folder / name, result)
    return result


def kept(case: Case, folder: Path | None) -> dict[str, Any] | None:
    """What was found before, or None."""
    place = folder / f"{key(case)}.json" if folder is not None else None
    if place is None or not place.is_file():
        return None
    return {**read_json(place), "cached": True}


def key(case: Case) -> str:
    """Digest of all that a result depends on, this package's own sources included."""
    config = to_dict(case.config)
    for name in ("workdir", "backbone", "tokenizer", "init_from", "seed"):
        config.pop(name)
    config["hooks"] = config["hooks"]["max_new_tokens"]
    for name in ("train", "eval", "format", "window", "shuffle", "limit", "workers"):
        config["data"].pop(name)
    values = {
        "work": case.work,
        "config": config,
        "shape": to_dict(case.shape),
        "text_vocab": case.text_vocab,
        "topology": [case.topology.name, case.topology.slices],
        "rows": case.rows,
        "versions": versions(case),
        "sources": _sources(),
    }
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def versions(case: Case) -> dict[str, str]:
    """What compiles: jax, jaxlib and, for a TPU, libtpu."""
    found = {name: version(name) for name in ("jax", "jaxlib")}
    if case.topology.is_tpu:
        found["libtpu"] = machines.libtpu_version()
    return found


def _compile(
    program: Program, case: Case, mesh: jax.sharding.Mesh, before: Any
) -> tuple[dict[str, Any], Any]:
    """Figures of one program, and itself."""
    values: dict[str, Any] = {
        "name": program.name,
        "tokens": program.tokens,
        "rows": program.rows,
        "repeats": program.repeats,
        "useful_flops": program.useful,
        "performed_flops": performed(program.function, *program.arguments),
        "refused": None,
    }
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = program.lower(mesh, before)
        values["lower_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if not _REFUSED.search(str(error)):
                raise ClaraError(
                    f"the compiler fails on {program.name}: {first_line(error)}"
                ) from error
            values["refused"] = _refusal(str(error))
            compiled = None
    values["compile_seconds"] = time.perf_counter() - started
    if compiled is None:
        return values, None
    memory = compiled.memory_analysis()
    placed = bytes_per_device(on_mesh(mesh, program.arguments))
    if case.work == "train":
        placed = bytes_per_device(run_of(case).on(mesh).arguments)
    values["memory"] = {
        "placed": placed,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    cost = compiled.cost_analysis() or {}
    values["compiler_flops"] = float(cost.get("flops", 0.0))
    moved = traffic(compiled.as_text(), case.devices, case.sizes["slice"])
    values["traffic"] = dataclasses.asdict(moved)
    return values, compiled


def _refusal(text: str) -> dict[str, Any]:
    """What a compiler says that it would have needed."""
    found = _USED.search(text) or _NEEDED.search(text)
    said: dict[str, Any] = {"message": text.strip().splitlines()[0][:300]}
    if found:
        said["needed"] = float(found[1]) * _UNITS[found[2]]
        said["limit"] = float(found[3]) * _UNITS[found[4]]
        # The short form speaks of temporaries alone.
        said["alone"] = "temporaries" in text.splitlines()[0]
    return said


def _hopeless(case: Case, arguments: dict[str, int]) -> list[dict[str, Any]]:
    """A refusal without compiling, where the arguments alone are too large."""
    limit = case.topology.chip.memory
    needed = sum(v for k, v in arguments.items() if not k.startswith("cache"))
    if case.work != "train" or not limit or needed <= limit:
        return []
    message = f"the arguments alone need {needed / 2**30:.2f} GiB: nothing was compiled"
    refused = {"message": message, "needed": float(needed), "limit": float(limit)}
    return [{"name": "train step", "refused": refused, "compile_seconds": 0.0}]


def _arguments(case: Case) -> dict[str, int]:
    """Exact bytes of a device, by group of arrays."""
    return {
        name: sum(entry.per_device for entry in entries)
        for name, entries in groups(case).items()
    }


def _sources() -> str:
    digest = hashlib.blake2b(digest_size=12)
    root = Path(__file__).resolve().parent.parent
    for name in _ROOMS:
        place = root / name
        files = sorted(place.glob("*.py")) if place.is_dir() else [root / f"{name}.py"]
        for file in files:
            if place.name == "plan" and file.stem not in _FIGURES:
                continue
            digest.update(file.read_bytes())
    return digest.hexdigest()


_FIGURES = ("arrays", "case", "compile", "flops", "hlo", "programs")

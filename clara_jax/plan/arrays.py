"""The table of every array of a run: what it is, and how it is cut over the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from clara_jax.plan.case import Case
from clara_jax.plan.programs import (
    abstract_mesh,
    bytes_per_device,
    decoding_cache,
    local_shape,
    run_of,
)
from clara_jax.sharding import tree_shardings
from clara_jax.train.abstract import placed


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array.

    Attributes:
      name: the way to it.
      shape, dtype: of the whole.
      axes: mesh axes of each axis, ``-`` for one that stays whole.
      local: shape of the part that a device holds.
      total, per_device: bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    local: tuple[int, ...]
    total: int
    per_device: int


def groups(case: Case) -> dict[str, list[Entry]]:
    """Every array of a case, by what it is for.

    Args:
      case: of which work does not matter: a train step's arguments are listed, and the
        cache of a decoding batch.

    Returns:
      Group name to arrays, in the order of the trees.
    """
    mesh = abstract_mesh(case)
    run = run_of(case).on(mesh)
    state = run.state
    cache, axes = decoding_cache(case)
    cache = placed(cache, tree_shardings(mesh, cache, axes))
    trees: dict[str, Any] = {
        "backbone (frozen)": run.backbone,
        "adapters that learn": state.trainable,
        "adapters that are frozen": run.frozen,
        "optimizer state": state.opt_state,
        "rest of the state": {
            "step": state.step,
            "key": state.key,
            "healthy": state.healthy,
        },
        "batch": run.batch,
        f"cache of decoding, {cache.positions.shape[0]} rows": cache,
    }
    found = {name: list(_entries(tree)) for name, tree in trees.items()}
    return {name: entries for name, entries in found.items() if entries}


def show(case: Case) -> str:
    """The table as text, as ``--show-sharding`` prints it and golden files keep it."""
    found = groups(case)
    lines = [
        f"mesh {', '.join(f'{n} {size}' for n, size in case.sizes.items())}: "
        f"{case.devices} devices"
    ]
    header = ("array", "shape", "dtype", "mesh axes", "bytes", "per device", "holds")
    rows = {name: [_row(e) for e in entries] for name, entries in found.items()}
    every = [header, *(row for group in rows.values() for row in group)]
    widths = [max(len(row[i]) for row in every) for i in range(len(header))]
    for name, entries in found.items():
        total = sum(e.total for e in entries)
        here = sum(e.per_device for e in entries)
        lines += ["", f"{name}: {total:,} bytes, {here:,} per device"]
        lines += [_line(row, widths) for row in (header, *rows[name])]
    return "\n".join(lines) + "\n"


def argument_bytes(case: Case) -> int:
    """Exact bytes per device of all that a train step is called with."""
    return bytes_per_device(run_of(case).on(abstract_mesh(case)).arguments)


def _entries(tree: Any) -> list[Entry]:
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        spec = tuple(leaf.sharding.spec)
        spec += (None,) * (len(leaf.shape) - len(spec))
        sizes = leaf.sharding.mesh.shape
        axes = []
        for entry in spec:
            names = (entry,) if isinstance(entry, str) else entry or ()
            # An axis of one device cuts nothing.
            cut = [name for name in names if sizes[name] > 1]
            axes.append("+".join(cut) or "-")
        found.append(
            Entry(
                name="/".join(_names(path)),
                shape=tuple(leaf.shape),
                dtype=str(leaf.dtype),
                axes=tuple(axes),
                local=local_shape(leaf),
                total=leaf.size * leaf.dtype.itemsize,
                per_device=bytes_per_device(leaf),
            )
        )
    return found


def _names(path: Sequence[Any]) -> list[str]:
    return [
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
    ]


def _row(entry: Entry) -> tuple[str, ...]:
    return (
        entry.name,
        "x".join(map(str, entry.shape)) or "()",
        entry.dtype,
        ",".join(entry.axes) or "-",
        f"{entry.total:,}",
        f"{entry.per_device:,}",
        "x".join(map(str, entry.local)) or "()",
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    right = (4, 5)
    cells = [
        cell.rjust(width) if i in right else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  " + "  ".join(cells).rstrip()

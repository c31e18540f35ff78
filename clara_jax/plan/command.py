"""From the command's arguments to cases and sweeps."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clara_jax.config import REMAT_POLICIES, MeshConfig, RunConfig
from clara_jax.errors import ClaraError
from clara_jax.files import writable_folder
from clara_jax.plan.case import Case, backbone_shape, parse_mesh, settle
from clara_jax.plan.compile import kept
from clara_jax.plan.sweep import Point, interpreter, meshes, points, sweep
from clara_jax.plan.topology import Topology, devices
from clara_jax.train.experiments import read_experiment

_ACCUMULATE = "config.optim.accumulate"


def make_case(
    arguments: argparse.Namespace, overrides: Sequence[str], topology: Topology
) -> tuple[Case, list[str]]:
    """The case that a command line describes, and notes on what it left open.

    Args:
      arguments: parsed.
      overrides: ``--config.field=value``, as training takes them.
      topology: the machine; for ``--show-sharding`` without one, anything.

    Raises:
      ClaraError: one line on whatever is wrong.
    """
    config = _config(arguments, overrides)
    given = [text for text in overrides if text.lstrip("-").startswith("config.mesh")]
    if arguments.mesh:
        if given:
            raise ClaraError(f"--mesh and {given[0]} say the same thing; give one")
        config = dataclasses.replace(config, mesh=parse_mesh(arguments.mesh))
    hints = (arguments.config,)
    shape, vocab, notes = backbone_shape(config, arguments.backbone, hints)
    if arguments.topology:
        count = len(devices(topology)) if not arguments.show_sharding else 0
    if not arguments.topology or arguments.show_sharding:
        sizes = dataclasses.astuple(config.mesh)
        count = math.prod(size for size in sizes if size > 0)
    if arguments.mesh and config.mesh == MeshConfig():
        # Named and yet the default: all devices hold copies.
        config = dataclasses.replace(config, mesh=MeshConfig(data=count))
    fixed = any(text.lstrip("-").startswith(_ACCUMULATE) for text in overrides)
    if arguments.show_sharding and config.mesh == MeshConfig():
        config = dataclasses.replace(config, mesh=MeshConfig(data=1))
    config, more = settle(config, count, slices=topology.slices, fixed=fixed)
    case = Case(arguments.work, config, shape, vocab, topology)
    if arguments.rows < 0 or arguments.documents < 0:
        raise ClaraError("--rows and --documents must not be negative")
    if arguments.work != "train":
        parts = math.prod(case.sizes[name] for name in ("slice", "data", "fsdp"))
        case = dataclasses.replace(case, rows=arguments.rows or 8 * parts)
    elif arguments.rows:
        raise ClaraError(
            "--rows is of compress and decode; set --config.data.batch_size"
        )
    if more:
        flags = [
            f"--config.mesh.{name}={size}"
            for name, size in case.sizes.items()
            if size > 1 or name == "data"
        ]
        flags.append(f"--config.optim.accumulate={config.optim.accumulate}")
        more.append(f"to train so: {' '.join(flags)}")
    return case, notes + more


def make_sweep(
    arguments: argparse.Namespace,
    overrides: Sequence[str],
    case: Case,
    folder: Path,
    say: Callable[[str], None],
) -> str:
    """Run the sweep that a command line describes.

    Args:
      arguments, overrides: see `make_case`.
      case: of the same command line; the starting point.
      folder: of kept results.
      say: gets a line per finished case.

    Returns:
      The table.

    Raises:
      ClaraError: a folder that cannot be written; and see `sweep.sweep`.
    """
    if case.work != "train":
        raise ClaraError("--sweep is of training; leave --work out")
    config = case.config
    found = [text for text in arguments.sweep_meshes.split(";") if text]
    if arguments.mesh and not found:
        found = [case.mesh_text]
    if not found:
        heads = case.shape.num_kv_heads
        found = meshes(config, case.devices, case.topology.slices, heads)
    found = [_checked(text, config, case) for text in found]
    remats = [name for name in arguments.sweep_remat.split(",") if name]
    for name in remats:
        if name not in REMAT_POLICIES:
            raise ClaraError(
                f"--sweep-remat: '{name}' is none of {', '.join(REMAT_POLICIES)}"
            )
    try:
        counts = [int(n) for n in arguments.sweep_accumulate.split(",") if n]
    except ValueError:
        raise ClaraError("--sweep-accumulate must be numbers, such as 1,2,4") from None
    rest = [
        text
        for text in overrides
        if not text.lstrip("-").startswith((_ACCUMULATE, "config.remat", "config.mesh"))
    ]
    command = [
        *interpreter(),
        f"--config={arguments.config}",
        f"--topology={arguments.topology}",
        f"--slices={arguments.slices}",
        f"--cache={folder}",
        "--json",
        *rest,
    ]
    for name in ("backbone", "stage", "libtpu"):
        if getattr(arguments, name):
            command.append(f"--{name}={getattr(arguments, name)}")
    stem = Path(arguments.config.partition(":")[0]).stem
    machine = case.topology.name.replace(":", "_")
    out = Path(arguments.out or f"plans/{stem}_{machine}")

    def find(point: Point) -> dict[str, Any] | None:
        sizes = parse_mesh(point.mesh)
        settled, _ = settle(
            dataclasses.replace(
                config,
                mesh=sizes if sizes != MeshConfig() else MeshConfig(data=case.devices),
                remat=point.remat,
                optim=dataclasses.replace(config.optim, accumulate=point.accumulate),
            ),
            case.devices,
            slices=case.topology.slices,
            fixed=True,
        )
        return kept(dataclasses.replace(case, config=settled), folder)

    for place in (out, folder):
        writable_folder(place)
    say(f"table and picture go to {out}; stopped, the same command goes on")
    return sweep(
        lambda best: points(config, found, best, counts, remats),
        find,
        command,
        out,
        say,
    )


def _config(arguments: argparse.Namespace, overrides: Sequence[str]) -> RunConfig:
    experiment = read_experiment([f"--config={arguments.config}", *overrides])
    runs = list(experiment.runs)
    names = [Path(run.workdir).name for run in runs]
    if arguments.stage:
        chosen = [
            run
            for run, name in zip(runs, names, strict=True)
            if arguments.stage in (name, run.stage)
        ]
        if not chosen:
            raise ClaraError(
                f"--stage: no '{arguments.stage}' in {arguments.config}; it has "
                f"{', '.join(run.stage for run in runs)}"
            )
        return chosen[0]
    if len(runs) > 1:
        raise ClaraError(
            f"{arguments.config} has several stages; give --stage, one of "
            f"{', '.join(names)}"
        )
    return runs[0]


def _checked(text: str, config: RunConfig, case: Case) -> str:
    """A mesh of ``--sweep-meshes`` with all its sizes, or a refusal."""
    mesh = parse_mesh(text)
    free = dataclasses.replace(config.optim, accumulate=1)
    wanted = dataclasses.replace(
        config,
        mesh=mesh if mesh != MeshConfig() else MeshConfig(data=case.devices),
        optim=free,
    )
    settled, _ = settle(wanted, case.devices, slices=case.topology.slices)
    return dataclasses.replace(case, config=settled).mesh_text

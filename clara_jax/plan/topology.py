"""Names of machines to devices that programs can be compiled for.

``v5e:4x4`` is a TPU slice, compiled by libtpu itself on a machine without one.
``cpu:8`` are simulated devices. ``h100:8`` are simulated devices too, since no compiler
for GPUs is at hand: arguments and collectives are those of the partitioned program,
temporaries those of XLA's compiler for CPUs.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.files import first_line
from clara_jax.plan.chips import CHIPS, TPUS, Chip


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine by name.

    Attributes:
      name: as given, such as ``v5e:4x4``.
      kind: what stands before the colon, out of `CHIPS`.
      slices: TPU slices joined by the data-center network.
    """

    name: str
    kind: str
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """Figures of one device."""
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu compiles for it; otherwise devices are simulated."""
        return self.kind in TPUS

    @property
    def simulated(self) -> int:
        """How many devices are to be simulated: 0 for a TPU."""
        return 0 if self.is_tpu else self.slices * int(self.name.split(":")[1])


def parse_topology(name: str, slices: int = 1) -> Topology:
    """Check a machine's name.

    Args:
      name: ``v5e:4x4``, ``v5p:4x4x4``, ``h100:8``, ``cpu:8``.
      slices: how many such TPU slices.

    Raises:
      ClaraError: no such kind of machine, or a count that is none.
    """
    kind, colon, layout = name.partition(":")
    if kind not in CHIPS or not colon:
        raise ClaraError(
            f"--topology '{name}': must be KIND:LAYOUT, such as v5e:4x4, v5p:4x4x4, "
            f"h100:8 or cpu:8; kinds are {', '.join(CHIPS)}"
        )
    wanted = r"\d+(x\d+){1,2}" if kind in TPUS else r"\d+"
    if not re.fullmatch(wanted, layout) or not all(map(int, layout.split("x"))):
        example = "4x4" if kind in TPUS else "8"
        raise ClaraError(
            f"--topology '{name}': '{layout}' is no layout of {kind}; write "
            f"{kind}:{example}"
        )
    if slices < 1:
        raise ClaraError(f"--slices must be above 0, not {slices}")
    return Topology(name, kind, slices)


def prepare(topology: Topology, libtpu: str = "") -> None:
    """Set the environment that compiling for `topology` needs.

    Call it before jax is imported: jax never looks for an accelerator then.

    Args:
      topology: the machine.
      libtpu: folder that ``pip install --target`` filled, or the library itself; by
        default ``TPU_LIBRARY_PATH``, the Python environment, then `default_libtpu`.

    Raises:
      ClaraError: libtpu is missing or of the wrong version; says what to install.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if topology.is_tpu:
        os.environ["TPU_LIBRARY_PATH"] = str(find_libtpu(libtpu))
        quiet = {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # or it complains; has no effect
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_STDERR_LOG_LEVEL": "3",
            "TPU_MIN_LOG_LEVEL": "3",
            # Compiling occupies no TPU: another plan may run beside it.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        for name, value in quiet.items():
            os.environ.setdefault(name, value)
    elif "jax" not in sys.modules:
        flags = os.environ.get("XLA_FLAGS", "")
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
        count = f"--xla_force_host_platform_device_count={topology.simulated}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()


def default_libtpu() -> Path:
    """Where the planner looks for a libtpu of its own."""
    return cache_home() / "libtpu"


def cache_home() -> Path:
    """The user's cache folder of this package."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "clara_jax"


def find_libtpu(given: str = "") -> Path:
    """Find the library and check that it goes with the installed jax.

    Args:
      given: folder or file named by the user; may be empty.

    Raises:
      ClaraError: it is missing, or of a version that jax was not made for.
    """
    wanted = wanted_libtpu()
    install = _install()
    named = given or os.environ.get("TPU_LIBRARY_PATH", "")
    if named:
        place = Path(named).expanduser()
        found = place if place.is_file() else place / "libtpu" / "libtpu.so"
        if not found.is_file():
            raise ClaraError(f"no libtpu in {named}; {install}")
    else:
        spec = importlib.util.find_spec("libtpu")
        folders = [Path(spec.origin).parent] if spec and spec.origin else []
        folders.append(default_libtpu() / "libtpu")
        places = [folder / "libtpu.so" for folder in folders]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise ClaraError(
                "compiling for a TPU needs libtpu (no TPU), which is not installed; "
                f"{install}"
            )
    version = _version(found)
    if version and wanted and not _matches(version, wanted):
        raise ClaraError(
            f"libtpu {version} in {found.parent.parent} does not go with jax "
            f"{importlib.metadata.version('jax')}; {install}"
        )
    return found


def libtpu_version() -> str:
    """Version of the library that `prepare` has chosen."""
    return _version(Path(os.environ["TPU_LIBRARY_PATH"]))


def wanted_libtpu() -> str:
    """Which versions of libtpu the installed jax goes with, as pip writes it."""
    for line in importlib.metadata.requires("jax") or ():
        found = re.match(r"libtpu\s*\(?([=<>!~][^;)]*)\)?\s*;", line)
        if found:
            return found[1].strip()
    return ""


def _install() -> str:
    """The command that puts a fitting libtpu where the planner finds it."""
    return (
        f"pip install --no-deps --target {default_libtpu()} 'libtpu{wanted_libtpu()}'"
    )


def devices(topology: Topology) -> list[Any]:
    """The devices of a machine, in libtpu's order.

    Args:
      topology: for which `prepare` has set the environment.

    Raises:
      ClaraError: libtpu knows no such layout, or this process simulates fewer devices.
    """
    import jax

    if not topology.is_tpu:
        found = jax.devices("cpu")
        if len(found) < topology.simulated:
            raise ClaraError(
                f"--topology {topology.name}: this process simulates {len(found)} "
                "devices only"
            )
        return found[: topology.simulated]
    from jax.experimental import topologies

    sizes = [int(size) for size in topology.name.split(":")[1].split("x")]
    options: dict[str, Any] = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(topology.name, platform="tpu", **options)
    except Exception as error:  # else, whatever libtpu raises is about the name
        if "Failed to open" in str(error):
            raise ClaraError(
                f"libtpu cannot be loaded ({first_line(error)}); {_install()}"
            ) from error
        raise ClaraError(
            f"--topology {topology.name}: libtpu {libtpu_version()} does not know it "
            f"({first_line(error)})"
        ) from error
    return list(found.devices)


def _version(library: Path) -> str:
    """Version by the notes that pip leaves beside a package, or nothing."""
    notes = sorted(library.parent.parent.glob("libtpu-*.dist-info"))
    return notes[-1].name.split("-")[1].removesuffix(".dist") if notes else ""


def _matches(version: str, wanted: str) -> bool:
    """Whether a version is as wanted; jax writes ``==0.0.42.*``, all else passes."""
    exact = re.fullmatch(r"==([\d.]*\d)(\.\*)?", wanted)
    if not exact:
        return True
    return version == exact[1] or (
        bool(exact[2]) and version.startswith(exact[1] + ".")
    )

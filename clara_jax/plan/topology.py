"""Names of machines to what is known of their chips and to devices to compile for.

``v5e:4x4`` is a TPU slice, compiled by libtpu itself on a machine without one.
``cpu:8`` are simulated devices. ``h100:8`` are simulated devices too, since no compiler
for GPUs is at hand: arguments and collectives are those of the partitioned program,
temporaries those of XLA's compiler for CPUs.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.files import cache_folder, first_line

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as a program sees it; speeds are per second.

    The `memory` of a TPU is what the compiler itself names when it refuses a program
    (libtpu 0.0.42), a little below the maker's.
    """

    memory: float  # bytes a program may use; 0: no limit to compare with
    flops: float  # bfloat16 operations, dense
    hbm: float  # bytes between memory and chip
    links: float  # bytes that a device sends to its neighbours in all directions
    network: float  # bytes of a device between slices or hosts
    source: str  # of the figures


_TPU = "docs.cloud.google.com/tpu/docs/"
_NVIDIA = "NVIDIA data sheet, SXM; without sparsity"

# Gbit/s of the tables divided by 8. Network: the host's cards over its chips.
CHIPS = {
    "v2": Chip(7.48 * GIB, 22.5e12, 350e9, 62e9, 3e9, _TPU + "v2, per core"),
    "v3": Chip(15.48 * GIB, 61.5e12, 450e9, 82e9, 3e9, _TPU + "v3, per core"),
    "v4": Chip(15.25 * GIB, 137.5e12, 600e9, 150e9, 3e9, _TPU + "v4, per core"),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, 3.1e9, _TPU + "v5e"),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 600e9, 6.2e9, _TPU + "v5p"),
    "v6e": Chip(31.25 * GIB, 918e12, 1600e9, 400e9, 12.5e9, _TPU + "v6e"),
    "tpu7x": Chip(
        94.75 * GIB, 1153e12, 3690e9, 600e9, 12.5e9, _TPU + "tpu7x, per core"
    ),
    "a100": Chip(80e9, 312e12, 2039e9, 300e9, 25e9, _NVIDIA),
    "h100": Chip(80e9, 989e12, 3350e9, 450e9, 50e9, _NVIDIA),
    "h200": Chip(141e9, 989e12, 4800e9, 450e9, 50e9, _NVIDIA),
    "b200": Chip(180e9, 2250e12, 8000e9, 900e9, 50e9, _NVIDIA),
    "cpu": Chip(0, 0, 0, 0, 0, "no figures: a CPU stands for programs, not for speed"),
}
"""Name, as before the colon of a topology, to figures."""

GPUS = ("a100", "h100", "h200", "b200")
TPUS = tuple(name for name in CHIPS if name not in (*GPUS, "cpu"))


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine by name."""

    name: str  # such as v5e:4x4
    kind: str  # what stands before the colon, out of `CHIPS`
    slices: int = 1  # joined by the data-center network

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
    """Read a machine's name; refuse an unknown kind, or a layout it cannot have."""
    kind, colon, layout = name.partition(":")
    if kind not in CHIPS or not colon:
        raise ClaraError(
            f"--topology '{name}': must be KIND:LAYOUT, such as v5e:4x4, v5p:4x4x4, "
            f"h100:8 or cpu:8; kinds are {', '.join(CHIPS)}"
        )
    wanted, example = (r"\d+(x\d+){1,2}", "4x4") if kind in TPUS else (r"\d+", "8")
    if not re.fullmatch(wanted, layout) or not all(map(int, layout.split("x"))):
        raise ClaraError(
            f"--topology '{name}': '{layout}' is not a layout of {kind}; write "
            f"{kind}:{example}"
        )
    if slices < 1:
        raise ClaraError(f"--slices must be above 0, not {slices}")
    return Topology(name, kind, slices)


def prepare(topology: Topology, libtpu: str = "") -> None:
    """Set the environment for compiling; call it before jax is imported.

    jax never looks for an accelerator then. For errors see `find_libtpu`.
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
        os.environ.update(quiet | os.environ)
    elif "jax" not in sys.modules:
        flags = os.environ.get("XLA_FLAGS", "")
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
        count = f"--xla_force_host_platform_device_count={topology.simulated}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()


def devices(topology: Topology) -> list[Any]:
    """Return the devices of a machine for which `prepare` has set the environment.

    Raises:
      ClaraError: libtpu knows no such layout, or this process simulates fewer devices.
    """
    import jax

    name = f"--topology {topology.name}"
    if not topology.is_tpu:
        found, count = jax.devices("cpu"), topology.simulated
        if len(found) < count:
            have = len(found)
            raise ClaraError(f"{name}: this process simulates {have} devices only")
        return found[:count]
    from jax.experimental import topologies

    sizes = [int(size) for size in topology.name.split(":")[1].split("x")]
    options: dict[str, Any] = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    before = signal.getsignal(signal.SIGTERM)
    try:
        found = topologies.get_topology_desc(topology.name, platform="tpu", **options)
    except Exception as error:  # else, whatever libtpu raises is about the name
        text = f"libtpu cannot be loaded ({first_line(error)}); {_install()}"
        if "Failed to open" not in str(error):
            known = f"libtpu {libtpu_version()} does not know it"
            text = f"{name}: {known} ({first_line(error)})"
        raise ClaraError(text) from error
    finally:
        # libtpu takes it over, and answers it with the report of a crash.
        signal.signal(signal.SIGTERM, before)
    return list(found.devices)


def find_libtpu(given: str = "") -> Path:
    """Find the library and check that it goes with the installed jax.

    `given` is a folder that ``pip install --target`` filled, or the library itself; by
    default ``TPU_LIBRARY_PATH``, the Python environment, then ``libtpu`` in the cache.

    Raises:
      ClaraError: it is missing, or of a version that jax was not made for.
    """
    named = given or os.environ.get("TPU_LIBRARY_PATH", "")
    place = Path(named).expanduser() if named else cache_folder() / "libtpu"
    places = [place, place / "libtpu" / "libtpu.so"]
    missing = f"no libtpu in {named}"
    if not named:
        missing = "compiling for a TPU needs libtpu (no TPU), which is not installed"
        spec = importlib.util.find_spec("libtpu")
        if spec and spec.origin:
            places.insert(0, Path(spec.origin).parent / "libtpu.so")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ClaraError(f"{missing}; {_install()}")
    version, wanted = _version(found), wanted_libtpu()
    # jax writes ==0.0.42.*
    exact = wanted.removeprefix("==").removesuffix(".*") + "."
    if version and wanted.startswith("==") and not f"{version}.".startswith(exact):
        raise ClaraError(
            f"libtpu {version} in {found.parent.parent} does not go with jax "
            f"{importlib.metadata.version('jax')}; {_install()}"
        )
    return found


def libtpu_version() -> str:
    """Return the version of the library that `prepare` has chosen."""
    return _version(Path(os.environ["TPU_LIBRARY_PATH"]))


def wanted_libtpu() -> str:
    """Return which versions of libtpu the installed jax goes with, as pip writes it."""
    for line in importlib.metadata.requires("jax") or ():
        found = re.match(r"libtpu\s*\(?([=<>!~][^;)]*)\)?\s*;", line)
        if found:
            return found[1].strip()
    return ""


def _install() -> str:
    folder, package = cache_folder() / "libtpu", f"libtpu{wanted_libtpu()}"
    return f"pip install --no-deps --target {folder} '{package}'"


def _version(library: Path) -> str:
    """Version by the notes that pip leaves beside a package, or nothing."""
    notes = sorted(library.parent.parent.glob("libtpu-*.dist-info"))
    return notes[-1].name.split("-")[1].removesuffix(".dist") if notes else ""

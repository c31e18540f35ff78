"""What the makers say about their accelerators, and what XLA leaves of the memory."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as a program sees it.

    Attributes:
      memory: bytes a program may use; 0 where there is no limit to compare with. For
        TPUs the figure that the compiler itself names when it refuses a program
        (libtpu 0.0.42), a little below the maker's.
      flops: bfloat16 operations per second, dense.
      hbm: bytes per second between memory and chip.
      links: bytes per second that a device sends to its neighbours in all directions.
      network: bytes per second and device between slices or hosts.
      source: where the figures are from.
    """

    memory: float
    flops: float
    hbm: float
    links: float
    network: float
    source: str


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

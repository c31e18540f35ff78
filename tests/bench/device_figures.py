"""What a device is, what it can do at best, and how long a program takes on it."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PEAKS = {
    # TFLOP/s in bfloat16, dense, from the makers' data sheets.
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "GH200": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5p": 459,
    "TPU v5": 459,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
}
"""Part of a device's kind to its peak; the first that is found counts."""


MARKS = """\
Published for 7-8B models, bfloat16 unless said (LoRA: 4 FLOPs per weight and token,
full training: 6); the share is of the data sheet's peak:
  LoRA, Llama3-8B, one H100      12,473 tokens/s  402 TFLOP/s  40.6%  NeMo AutoModel
  LoRA, Qwen2.5-7B, one H100     14,110 tokens/s  423 TFLOP/s  42.8%  NeMo AutoModel
  LoRA, Llama2-7B, 8 H100, fp8   25,206 tokens/s                      NeMo 24.07
  full, Mistral-7B, TPU v6e-8     7,777 tokens/s  432 TFLOP/s  47%    tpu-recipes
  full, Llama2-7B, 8 H100                         492 TFLOP/s  50%    MaxText
  CLaRa's compressor, one H100    5,890 tokens/s                8.5%  paper's table 15
Figures are of one chip. NeMo: NVIDIA's performance summaries; tpu-recipes:
AI-Hypercomputer's, with MaxText; MaxText: its page on A3 machines."""
"""Printed beside our own; where they were published is said in them."""


@dataclasses.dataclass
class Work:
    """A compiled program to be timed.

    Attributes:
      program: for its memory and its text.
      run: runs once on what `setup` gives, and returns arrays to wait for.
      counts: units in one run, such as ``tokens`` and ``documents``.
      flops: floating-point operations that the model needs in one run.
      moved: bytes that one run must read or write at least.
      setup: makes the argument of `run`; its time does not count.
      note: what the row has to say besides.
    """

    program: Any
    run: Callable[[Any], Any]
    counts: dict[str, float]
    flops: float = 0.0
    moved: float = 0.0
    setup: Callable[[], Any] = lambda: None
    note: str = ""


def peak_flops(kind: str) -> float | None:
    """The data sheet's FLOP/s of a kind of device; None for one not listed."""
    found = (peak for name, peak in PEAKS.items() if name.lower() in kind.lower())
    peak = next(found, None)
    return None if peak is None else peak * 1e12


def device_memory(device: jax.Device) -> float | None:
    """Bytes that programs can have on a device; None where it does not say."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def peak_memory(device: jax.Device) -> float | None:
    """Most bytes in use on a device since the process began."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def program_memory(program: Any) -> float | None:
    """Bytes that a compiled program needs at once, its arguments included."""
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    own = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + own


def times(work: Work, rounds: int, seconds: float) -> list[float]:
    """Seconds of each of `rounds` runs after one that does not count.

    After `seconds` no further run is begun, but two are made.
    """
    begin, taken = time.perf_counter(), []
    for i in range(rounds + 1):
        given = jax.block_until_ready(work.setup())
        start = time.perf_counter()
        jax.block_until_ready(work.run(given))
        if i:
            taken.append(time.perf_counter() - start)
        if len(taken) >= 2 and time.perf_counter() - begin > seconds:
            break
    return taken


def figures(work: Work, taken: list[float]) -> dict[str, Any]:
    """Rates at the median of `taken`, and its spread."""
    median = statistics.median(taken)
    found: dict[str, Any] = {
        "median_s": median,
        "fastest_s": min(taken),
        "slowest_s": max(taken),
        "rounds": len(taken),
        "note": work.note,
        "program_bytes": program_memory(work.program),
    }
    found |= {f"{unit}_per_s": count / median for unit, count in work.counts.items()}
    if work.flops:
        found["flops_per_s"] = work.flops / median
    if work.moved:
        found["bytes_per_s"] = work.moved / median
    return found


def product(size: int, dtype: str, wide: bool) -> Work:
    """Square matrix products: what the device multiplies at best.

    Args:
      size: of the matrices.
      dtype: of the factors.
      wide: sum to float32 and round afterwards, as the layers do it.
    """

    def multiply(a, b):
        if wide:
            return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)
        return a @ b

    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in keys)
    program = jax.jit(multiply).lower(a, b).compile()

    def run(_):
        return [program(a, b) for _ in range(_REPEATS)]

    note = "summed to float32, then rounded" if wide else ""
    return Work(program, run, {}, flops=_REPEATS * 2.0 * size**3, note=note)


def copy(size: int) -> Work:
    """Read and write `size` bytes: what the device's memory moves at best."""
    # In place: a CPU would spend the time on getting new pages.
    held = [jnp.arange(size // 4, dtype=jnp.int32)]
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(held[0]).compile()

    def run(_):
        for _ in range(_REPEATS):
            held[0] = program(held[0])
        return held[0]

    return Work(program, run, {}, moved=_REPEATS * 2.0 * size)


_REPEATS = 5
"""Short programs run so often in one timing, which hides the time to start them."""

"""Safetensors files read tensor by tensor, without loading them.

The format: eight bytes with the header's length, a JSON header (name -> dtype, shape,
byte range), then the bytes. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from clara_jax.errors import ClaraError

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
_MAX_HEADER = 100_000_000


class SafetensorsFile:
    """One file: its tensor names and shapes, and arrays mapped from the disk.

    Args:
      path: the file.

    Raises:
      ClaraError: it is missing, no safetensors file, or shorter than its header says.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                    raise ClaraError(
                        f"{path}: is truncated or no safetensors file; fetch it again"
                    )
                header = json.loads(file.read(length))
        except OSError as error:
            raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ClaraError(
                f"{path}: has no readable header; fetch it again"
            ) from error
        if not isinstance(header, dict):
            raise ClaraError(f"{path}: has no readable header; fetch it again")
        header.pop("__metadata__", None)
        self._start = 8 + length
        self._entries = {
            name: self._entry(name, value, size) for name, value in header.items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._entries[name][1]

    def read(self, name: str) -> np.ndarray:
        """One tensor as a read-only map of the file; nothing is copied."""
        dtype, shape, start = self._entries[name]
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(self.path, dtype, "r", self._start + start, shape)

    def _entry(self, name: str, value: dict, size: int) -> tuple:
        try:
            kind, shape = value["dtype"], tuple(int(n) for n in value["shape"])
            start, stop = (int(n) for n in value["data_offsets"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ClaraError(
                f"{self.path}: the header's entry for '{name}' is damaged; fetch the "
                "file again"
            ) from error
        if not isinstance(kind, str) or kind not in DTYPES:
            raise ClaraError(
                f"{self.path}: tensor '{name}' has type {kind}; "
                f"supported are {', '.join(DTYPES)}"
            )
        dtype = DTYPES[kind]
        if (
            any(n < 0 for n in shape)
            or start < 0
            or stop - start != math.prod(shape) * dtype.itemsize
        ):
            raise ClaraError(
                f"{self.path}: tensor '{name}' does not fit its byte range; fetch the "
                "file again"
            )
        if self._start + stop > size:
            raise ClaraError(
                f"{self.path}: is truncated: tensor '{name}' ends at byte "
                f"{self._start + stop}, the file at {size}; fetch it again"
            )
        return dtype, shape, start

"""Tensors on their way into files: described first, made one at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from clara_jax.convert.hf import numpy_dtype
from clara_jax.convert.names import TensorName, extract
from clara_jax.shapes import Params

_BLOCK = 1 << 20
"""Numbers in a block; 256 rows of width 4096, which transpose fastest."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outgoing:
    """One tensor that a file will hold; files that name one object twice store it once.

    Attributes:
      shape: of the whole.
      dtype: type in the file.
      make: called when the bytes are due: arrays that follow one another on axis 0, of
        any type and layout.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self) -> Iterator[memoryview]:
        """The bytes in order, cast and laid out by rows a few megabytes at a time."""
        rows = 0
        for part in self.make():
            assert part.shape[1:] == self.shape[1:], (part.shape, self.shape)
            rows += len(part)
            step = max(1, _BLOCK // max(1, math.prod(part.shape[1:])))
            for start in range(0, len(part), step):
                block = np.ascontiguousarray(part[start : start + step], self.dtype)
                yield block.reshape(-1).view(np.uint8).data
        assert rows == self.shape[0], (rows, self.shape)


def outgoing(tree: Params, tensor: TensorName, dtype: str) -> Outgoing:
    """A tensor of our tree as the other format stores it."""
    return Outgoing(tensor.shape, numpy_dtype(dtype), lambda: [extract(tree, tensor)])


def stacked(dtype: str, *parts: Any) -> Outgoing:
    """Arrays ``[rows, columns]`` under one another, which are not copied before."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    return Outgoing(shape, numpy_dtype(dtype), lambda: map(np.asarray, parts))


def zeros(shape: tuple[int, ...], dtype: str) -> Outgoing:
    """A tensor of zeros."""
    return Outgoing(shape, numpy_dtype(dtype), lambda: [np.zeros(shape, np.float32)])

"""Our arrays, read from tensors on disk a slice at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from clara_jax.convert.names import TensorName, tree_shapes
from clara_jax.shapes import Params

Placement = Callable[[Any], Any]
"""A tree of shapes to the same tree of shardings."""

Read = Callable[[TensorName], np.ndarray]
"""Maps a tensor from the disk without copying it."""


def place_tensors(
    tensors: Iterable[TensorName], read: Read, dtype: Any, placement: Placement
) -> Params:
    """Build our tree on its devices; every process reads only what its devices hold.

    Args:
      tensors: everything that the tree is made of.
      read: gives one of them as the file stores it.
      dtype: type of our arrays.
      placement: where they lie.

    Returns:
      The nested tree of `jax.Array`.
    """
    tensors = tuple(tensors)
    parts: dict[tuple[str, ...], list[TensorName]] = {}
    for tensor in tensors:
        parts.setdefault(tensor.path, []).append(tensor)
    shapes = {
        path: jax.ShapeDtypeStruct(shape, dtype)
        for path, shape in tree_shapes(tensors).items()
    }
    places = _nested(shapes, placement)
    return _tree(
        {
            path: jax.make_array_from_callback(
                shape.shape, places[path], _slicer(parts[path], read, dtype)
            )
            for path, shape in shapes.items()
        }
    )


def _slicer(
    parts: list[TensorName], read: Read, dtype: Any
) -> Callable[[Any], np.ndarray]:
    layers = {part.layer: part for part in parts}

    def one(part: TensorName, index: tuple[slice, ...]) -> np.ndarray:
        array = read(part)
        return (array.T if part.transpose else array)[index]

    def local(index: Any) -> np.ndarray:
        if None in layers:
            return np.ascontiguousarray(one(layers[None], index).astype(dtype))
        chosen = range(len(layers))[index[0]]
        slices = [one(layers[layer], index[1:]).astype(dtype) for layer in chosen]
        return np.stack(slices)

    return local


def _nested(
    shapes: dict[tuple[str, ...], Any], placement: Placement
) -> dict[tuple[str, ...], Any]:
    tree = placement(_tree(shapes))

    def find(path: tuple[str, ...]) -> Any:
        node = tree
        for key in path:
            node = node[key]
        return node

    return {path: find(path) for path in shapes}


def _tree(leaves: dict[tuple[str, ...], Any]) -> Params:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree

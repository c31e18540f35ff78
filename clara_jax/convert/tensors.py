"""Our tree made from the tensors of a file, tensors of a file from our tree.

Both go tensor by tensor, so that beside the tree no more than a part of one is held.
Files are safetensors here (https://huggingface.co/docs/safetensors). Types go by their
names; numpy knows bfloat16 as soon as jax is imported.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from clara_jax.convert.names import TensorName
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, refuse_pointer, write_json
from clara_jax.shapes import Params

Placement = Callable[[Any], Any]
"""A tree of shapes to the same tree of shardings."""

SHARD_BYTES = 5 * 10**9
"""Size above which a model is cut into several files."""

_ROWS = 256
"""Copied at a time, which transposes twice as fast as in one go."""

_PART = 4096
"""Rows of a table that are compared at a time."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def check_tensors(
    tensors: Iterable[TensorName],
    shapes: Mapping[str, tuple[int, ...]],
    where: Any,
    files: Mapping[str, Any] | None = None,
) -> None:
    """Refuse `shapes` of what is in a file if they are not those of the `tensors`.

    The error says `where` it is, or in which of several `files`, given by name.
    """
    wanted = {tensor.name: tensor for tensor in tensors}
    places = files or dict.fromkeys(shapes, where)
    for name in shapes:
        if name not in wanted:
            raise ClaraError(
                f"{places[name]}: tensor '{name}' is not expected for this architecture"
            )
    for name, tensor in wanted.items():
        if name in shapes and shapes[name] != tensor.shape:
            raise ClaraError(
                f"{places[name]}: tensor '{name}' has shape {list(shapes[name])}, but "
                f"the configuration asks for {list(tensor.shape)}"
            )
    missing = [name for name in wanted if name not in shapes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ClaraError(f"{where}: tensor '{missing[0]}'{more} is missing")


def alike(a: Any, b: Any) -> bool:
    """Return whether two tables ``[rows, columns]`` are equal in the narrower type.

    They are arrays, or what gives arrays for slices of it; a part of each is read.
    """
    shapes = [tuple(getattr(x, "shape", None) or x.get_shape()) for x in (a, b)]
    if shapes[0] != shapes[1]:
        return False
    for start in range(0, shapes[0][0], _PART):
        rows = slice(start, min(start + _PART, shapes[0][0]))
        x, y = np.asarray(a[rows]), np.asarray(b[rows])
        if not (
            np.array_equal(x, y.astype(x.dtype)) or np.array_equal(x.astype(y.dtype), y)
        ):
            return False
    return True


def build_tree(
    tensors: Sequence[TensorName],
    read: Callable[[TensorName], Any],
    dtype: Any,
    placement: Placement | None = None,
) -> Params:
    """Build our tree; each array is allocated once and filled part by part.

    Of each tensor, `read` gives an array as the file stores it, or what gives arrays
    for slices of it. With a `placement` arrays are `jax.Array`, of which each process
    reads only what its devices hold; else numpy's.
    """
    tree: dict[str, Any] = {}
    for tensor in tensors:
        node = tree
        for key in tensor.path[:-1]:
            node = node.setdefault(key, {})
        array = node.setdefault(tensor.path[-1], _Array({}, dtype, read))
        array.parts[tensor.layer] = tensor
    if placement is not None:
        places = placement(jax.tree.map(_Array.abstract, tree))
        return jax.tree.map(_Array.place, tree, places)
    with _progress_bar("reading", tensors) as bar:
        return jax.tree.map(lambda array: array.whole(bar.update), tree)


def _progress_bar(what: str, tensors: Collection[Any]) -> tqdm:
    """Return a bar for terminals, which shows after a second."""
    options: dict[str, Any] = {"leave": False, "disable": None, "delay": 1}
    return tqdm(desc=what, total=len(tensors), unit=" tensors", **options)


@dataclasses.dataclass
class _Array:
    """One of our arrays to be, and by layer the tensors that it is made of."""

    parts: dict[int | None, TensorName]
    dtype: Any
    read: Callable[[TensorName], Any]

    def abstract(self) -> jax.ShapeDtypeStruct:
        tensor = next(iter(self.parts.values()))
        shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
        layers = () if tensor.layer is None else (len(self.parts),)
        return jax.ShapeDtypeStruct((*layers, *shape), self.dtype)

    def whole(self, advance: Callable[[], Any]) -> np.ndarray:
        array = np.empty(self.abstract().shape, self.dtype)
        for layer, tensor in self.parts.items():
            target = array if layer is None else array[layer]
            target = target.T if tensor.transpose else target
            source = self.read(tensor)
            for start in range(0, len(target), _ROWS):
                rows = slice(start, min(start + _ROWS, len(target)))
                target[rows] = source[rows]
            advance()
        return array

    def place(self, sharding: Any) -> jax.Array:
        def local(index: Any) -> np.ndarray:
            if None in self.parts:
                return self._slice(self.parts[None], index)
            layers = range(len(self.parts))[index[0]]
            return np.stack([self._slice(self.parts[i], index[1:]) for i in layers])

        return jax.make_array_from_callback(self.abstract().shape, sharding, local)

    def _slice(self, tensor: TensorName, index: tuple[slice, ...]) -> np.ndarray:
        index = index[::-1] if tensor.transpose else index
        part = self.read(tensor)[index].astype(self.dtype, copy=False)
        return np.ascontiguousarray(part.T if tensor.transpose else part)


def extract(tree: Params, tensor: TensorName) -> np.ndarray:
    """Return one tensor as the file stores it: the inverse of `build_tree`."""
    for key in tensor.path:
        tree = tree[key]
    array = tree if tensor.layer is None else tree[tensor.layer]
    return np.asarray(array.T if tensor.transpose else array)


@dataclasses.dataclass(frozen=True, eq=False)
class Outgoing:
    """One tensor that a file will hold; files that name one object twice store it once.

    When its bytes are due, `make` gives arrays that follow one another on axis 0, of
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
        """Yield the bytes in order, cast and laid out by rows, some megabytes each."""
        rows = 0
        for part in self.make():
            assert part.shape[1:] == self.shape[1:], (part.shape, self.shape)
            rows += len(part)
            step = max(1, _ROWS * 4096 // max(1, math.prod(part.shape[1:])))
            for start in range(0, len(part), step):
                block = np.ascontiguousarray(part[start : start + step], self.dtype)
                yield block.reshape(-1).view(np.uint8).data
        assert rows == self.shape[0], (rows, self.shape)


def outgoing(tree: Params, tensor: TensorName, dtype: str) -> Outgoing:
    """Return a tensor of our tree as the other format stores it."""
    return Outgoing(tensor.shape, np.dtype(dtype), lambda: [extract(tree, tensor)])


def stacked(dtype: str, *parts: Any) -> Outgoing:
    """Return arrays ``[rows, columns]`` under one another; they are not copied yet."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    return Outgoing(shape, np.dtype(dtype), lambda: map(np.asarray, parts))


class SafetensorsFile:
    """An open file; of its tensors only what is asked for is read.

    Raises:
      ClaraError: it is missing, not safetensors, or shorter than its header says.
    """

    def __init__(self, path: Path):
        self.path = path
        refuse_pointer(path)
        try:
            self._file = safe_open(path, framework="numpy")
        except OSError as error:
            raise ClaraError(f"{path}: cannot be read ({first_line(error)})") from error
        except SafetensorError as error:
            raise ClaraError(
                f"{path}: is truncated or not a safetensors file "
                f"({first_line(error)}); fetch it again"
            ) from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in self._file.keys():  # noqa: SIM118 (it is not a dict)
            tensor = self.tensor(name)
            if tensor.get_dtype() not in _DTYPES:
                raise ClaraError(
                    f"{path}: tensor '{name}' has type {tensor.get_dtype()}; "
                    f"supported are {', '.join(_DTYPES)}"
                )
            self.shapes[name] = tuple(tensor.get_shape())

    def tensor(self, name: str) -> Any:
        """Return one tensor, whose slices are arrays and read when they are taken."""
        return self._file.get_slice(name)

    def tree(self, tensors: Sequence[TensorName], shapes: Mapping[str, Any]) -> Params:
        """Return our tree of `tensors` in float32, if the file has these `shapes`."""
        check_tensors(tensors, shapes, self.path)
        return build_tree(tensors, lambda t: self.tensor(t.name), np.float32)


def write_safetensors(path: Path, tensors: Mapping[str, Outgoing]) -> None:
    """Write one file with the tensors in their order."""
    # Not by the library: its `serialize_file` wants all tensors in memory at once.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, _progress_bar("writing", tensors) as bar:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for block in tensor.blocks():
                file.write(block)
            bar.update()


def write_shards(folder: Path, tensors: Mapping[str, Outgoing]) -> None:
    """Write ``model.safetensors``, or numbered files and their index."""
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        write_safetensors(folder / file, {n: tensors[n] for n in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)

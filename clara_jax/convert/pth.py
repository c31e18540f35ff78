"""PyTorch ``.pth`` files read without torch and without running their pickle.

A ``.pth`` file is a zip of raw storages and one pickle that says how tensors lie in
them. A pickle is a program; Python's own reader would call what it names. Here the
program is read by a small machine that can only build texts, numbers, tuples, lists,
dicts and descriptions of tensors: it holds no callable, imports nothing, and stops at
the first instruction or name that is not on its lists. Sizes are checked against the
zip before anything is read.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clara_jax.errors import ClaraError

STORAGES = {
    "torch.FloatStorage": np.float32,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.HalfStorage": np.float16,
    "torch.DoubleStorage": np.float64,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"
_NAMES = {*STORAGES, TENSOR, PARAMETER, ORDERED_DICT}

_CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
}
_MAX_PICKLE = 16 << 20
_MAX_ENTRIES = 200_000
_MAX_DIMENSIONS = 8


def read_pth(path: Path, keep: Callable[[str], bool] = lambda key: True) -> dict:
    """Read a ``.pth`` file.

    Args:
      path: written by ``torch.save`` in the zip form (torch 1.6 and later).
      keep: says by its key whether a tensor is wanted; others are neither read nor
        returned.

    Returns:
      The dict that was saved, nested dicts as they are, with a read-only numpy array
      for every tensor (bfloat16 as ``ml_dtypes.bfloat16``).

    Raises:
      ClaraError: the file is missing, truncated, compressed, in the old form; or its
        pickle holds anything but tensors and plain containers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries, pickle_name = _checked_entries(path, archive)
            prefix = pickle_name.removesuffix("data.pkl")
            order = f"{prefix}byteorder"
            if order in entries and archive.read(order) != b"little":
                raise ClaraError(f"{path}: is big-endian; save it again")
            program = archive.read(pickle_name)
            result = _Machine(path, f"{prefix}data/", entries).run(program)
            if not isinstance(result, dict):
                raise ClaraError(f"{path}: holds no dict of tensors")
            return _Contents(path, archive, keep, len(program)).read(result)
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error
    except (
        *(zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError),
        *(ValueError, OverflowError, struct.error),
    ) as error:
        raise ClaraError(
            f"{path}: is truncated, damaged or no zip file; fetch it again (files of "
            "before torch 1.6 must be saved again)"
        ) from error


def _checked_entries(
    where: Path, archive: zipfile.ZipFile
) -> tuple[dict[str, int], str]:
    """Sizes of all entries by name, and the name of the pickle."""
    infos = archive.infolist()
    if len(infos) > _MAX_ENTRIES:
        raise ClaraError(f"{where}: has {len(infos)} entries; refused")
    entries: dict[str, int] = {}
    for info in infos:
        name = info.filename
        parts = name.split("/")
        if name in entries or name[:1] == "/" or "\\" in name or ".." in parts:
            raise ClaraError(f"{where}: entry {name!r} has a name that is refused")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ClaraError(
                f"{where}: entry '{name}' is compressed or encrypted; torch writes "
                "neither, so the file is refused"
            )
        if info.file_size != info.compress_size:
            raise ClaraError(f"{where}: entry '{name}' lies about its size; refused")
        entries[name] = info.file_size
    if sum(entries.values()) > where.stat().st_size:
        raise ClaraError(f"{where}: entries overlap; refused")
    programs = [n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(programs) != 1:
        raise ClaraError(f"{where}: has no data.pkl, so torch did not write it")
    if entries[programs[0]] > _MAX_PICKLE:
        raise ClaraError(f"{where}: data.pkl is larger than 16 MiB; refused")
    prefix = programs[0].removesuffix("data.pkl")
    if any(not name.startswith(prefix) for name in entries):
        raise ClaraError(f"{where}: entries lie outside of '{prefix}'; refused")
    return entries, programs[0]


@dataclasses.dataclass(frozen=True)
class _Name:
    """A global that the pickle names; never looked up."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    entry: str
    dtype: np.dtype
    length: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """How a tensor lies in a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = _Name("mark")


class _Machine:
    """Reads a pickle's instructions; see the module's docstring."""

    def __init__(self, path: Path, folder: str, sizes: dict[str, int]):
        self._path, self._folder, self._sizes = path, folder, sizes
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """The object that the program leaves behind."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about bad escapes in texts
                for operation, argument, _ in pickletools.genops(program):
                    self._step(operation.name, argument)
            (result,) = self._stack
        except ClaraError:
            raise
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise self._refuse("is damaged") from error
        return result

    def _refuse(self, what: str) -> ClaraError:
        return ClaraError(f"{self._path}: its pickle {what}; the file is refused")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME", "STOP"):
            pass
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = [self._pop() for _ in range(count)][::-1]
            stack.append(tuple(items))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_mark() if name == "SETITEMS" else self._pop_two()
            self._set(stack[-1], items)
        elif name in ("APPEND", "APPENDS"):
            items = self._pop_mark() if name == "APPENDS" else [self._pop()]
            if type(stack[-1]) is not list:
                raise self._refuse("appends to what is no list")
            stack[-1].extend(items)
        elif name == "GLOBAL":
            stack.append(self._global(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            names = self._pop_two()
            if not all(type(name) is str for name in names):
                raise self._refuse("names what is no text")
            stack.append(self._global(".".join(names)))
        elif name == "BINPERSID":
            stack.append(self._storage(self._pop()))
        elif name == "REDUCE":
            function, arguments = self._pop_two()
            stack.append(self._reduce(function, arguments))
        else:
            raise self._refuse(f"uses the instruction {name}")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise self._refuse("is damaged")
        return value

    def _pop_two(self) -> list[Any]:
        second = self._pop()
        return [self._pop(), second]

    def _pop_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def _set(self, target: Any, items: list[Any]) -> None:
        if type(target) is not dict or len(items) % 2:
            raise self._refuse("sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise self._refuse("has a key that is no text")
            target[key] = value

    def _global(self, name: str) -> _Name:
        if name not in _NAMES:
            raise self._refuse(f"names '{name[:80]}', which is no part of a tensor")
        return _Name(name)

    def _storage(self, pid: Any) -> _Storage:
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise self._refuse("points to what is no storage")
        _, kind, key, _, length = pid
        if not isinstance(kind, _Name) or kind.text not in STORAGES:
            raise self._refuse("has a storage of an unknown type")
        if type(key) is not str or type(length) is not int:
            raise self._refuse("points to what is no storage")
        entry = f"{self._folder}{key}"
        dtype = np.dtype(STORAGES[kind.text])
        if not key.isdecimal() or entry not in self._sizes:
            raise self._refuse(f"points to storage {key[:40]!r}, which is missing")
        if length * dtype.itemsize != self._sizes[entry]:
            raise self._refuse(
                f"says {length} elements for storage {key}, which has "
                f"{self._sizes[entry]} bytes"
            )
        return _Storage(entry, dtype, length)

    def _reduce(self, function: Any, arguments: Any) -> Any:
        name = function.text if isinstance(function, _Name) else ""
        if type(arguments) is tuple:
            if name == ORDERED_DICT and arguments == ():
                return {}
            if name == TENSOR and len(arguments) in (6, 7):
                return self._tensor(*arguments)
            if name == PARAMETER and len(arguments) == 3:
                tensor, _, hooks = arguments
                if type(tensor) is _Tensor and hooks == {}:
                    return tensor
        raise self._refuse(f"calls '{name or type(function).__name__}' in a wrong way")

    def _tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        grad: Any,
        hooks: Any,
        metadata: Any = None,
    ) -> _Tensor:
        whole = (type(shape) is tuple and type(strides) is tuple) and all(
            type(n) is int and n >= 0 for n in (offset, *shape, *strides)
        )
        if (
            type(storage) is not _Storage
            or not whole
            or len(shape) != len(strides)
            or len(shape) > _MAX_DIMENSIONS
            or type(grad) is not bool
            or type(hooks) is not dict
            or hooks
            or metadata is not None
        ):
            raise self._refuse("builds a tensor in a wrong way")
        count = math.prod(shape)
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if count > storage.length or (count and offset + last >= storage.length):
            raise self._refuse(
                f"builds a tensor of shape {list(shape)} that does not fit its storage"
            )
        return _Tensor(storage, offset if count else 0, shape, strides)


class _Contents:
    """Puts arrays where the machine has left descriptions of tensors.

    A pickle can refer to one object many times; the number of visits is bounded by
    the program's length, and a storage is read once.
    """

    def __init__(
        self,
        path: Path,
        archive: zipfile.ZipFile,
        keep: Callable[[str], bool],
        visits: int,
    ):
        self._path, self._archive, self._keep = path, archive, keep
        self._visits = visits
        self._storages: dict[str, np.ndarray] = {}

    def read(self, group: dict, depth: int = 3) -> dict:
        """A dict of tensors and dicts, with arrays for the tensors that are kept."""
        result = {}
        for key, value in group.items():
            self._visits -= 1
            if type(value) is _Tensor:
                if self._keep(str(key)):
                    result[key] = self._array(value)
            elif type(value) is dict and depth and self._visits > 0:
                result[key] = self.read(value, depth - 1)
            elif value is None or type(value) in (str, int, float, bool):
                result[key] = value
            else:
                raise ClaraError(
                    f"{self._path}: its pickle holds more than dicts of tensors; the "
                    "file is refused"
                )
        return result

    def _array(self, tensor: _Tensor) -> np.ndarray:
        entry, dtype = tensor.storage.entry, tensor.storage.dtype
        if entry not in self._storages:
            flat = np.frombuffer(self._archive.read(entry), dtype)
            self._storages[entry] = flat
        # One entry may be named with two types of one width; the name's type counts.
        flat = self._storages[entry].view(dtype)[tensor.offset :]
        strides = tuple(n * dtype.itemsize for n in tensor.strides)
        return np.lib.stride_tricks.as_strided(
            flat, tensor.shape, strides, writeable=False
        )

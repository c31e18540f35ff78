"""PyTorch ``.pth`` files, read and written without torch.

A file is a zip of raw storages, and of one pickle that says how tensors lie in them. A
pickle is a program that calls what it names. Here no name is looked up: each of the
dozen that tensors need stands for a description that does nothing. Any other name or
instruction ends the reading. Sizes are checked before anything is read.

Source: PyTorch's notes on serialization semantics; the files of torch 2.13.
"""

import collections
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clara_jax.convert.tensors import Outgoing
from clara_jax.errors import ClaraError
from clara_jax.files import refuse_pointer

STORAGES = {
    f"torch.{kind}Storage": np.dtype(dtype)
    for kind, dtype in zip(
        "Float BFloat16 Half Double Long Int Short Char Byte Bool".split(),
        "float32 bfloat16 float16 float64 int64 int32 int16 int8 uint8 bool".split(),
        strict=True,
    )
}
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"

_INSTRUCTIONS = set(
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE "
    "NEWFALSE BINFLOAT BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS EMPTY_LIST "
    "APPEND APPENDS GLOBAL STACK_GLOBAL BINPERSID REDUCE".split()
)
_INSTRUCTION_NAMES = {ord(code.code): code.name for code in pickletools.opcodes}
# Python's own, written in Python: what they do at each step can be replaced.
_Pickler: Any = pickle._Pickler
_Unpickler: Any = pickle._Unpickler

_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError)
_DAMAGE += (ValueError, OverflowError, struct.error)
_MAX_PICKLE = 16 << 20
_MAX_ENTRIES = 200_000
_MAX_DIMENSIONS = 8
_ALIGNMENT = 64


def read_pth(path: Path) -> dict:
    """Read the dict that ``torch.save`` (1.6 or later) wrote.

    Tensors become read-only arrays. Anything but tensors and plain containers is
    refused.

    Raises:
      ClaraError: it is missing, truncated, compressed, in the old form, or refused.
    """
    refuse_pointer(path)
    try:
        with zipfile.ZipFile(path) as archive:
            sizes, folder = _checked_entries(archive, path.stat().st_size)
            order = f"{folder}byteorder"
            if order in sizes and archive.read(order) != b"little":
                raise ClaraError(f"{path}: is big-endian; save it again")
            return _Reader(archive, folder, sizes).arrays()
    except _Refused as error:
        raise ClaraError(f"{path}: {error}; the file is refused") from error
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error
    except _DAMAGE as error:
        raise ClaraError(
            f"{path}: is truncated, damaged or not a zip file; fetch it again (files "
            "of before torch 1.6 must be saved again)"
        ) from error


class _Refused(Exception):
    """What is wrong with a file that torch has not written."""


class _BadPickle(_Refused):
    def __str__(self) -> str:
        return f"its pickle {self.args[0]}"


def _checked_entries(
    archive: zipfile.ZipFile, file_size: int
) -> tuple[dict[str, int], str]:
    """Return the sizes of all entries by name, and the folder that they are in."""
    infos = archive.infolist()
    if len(infos) > _MAX_ENTRIES:
        raise _Refused(f"has {len(infos)} entries")
    sizes: dict[str, int] = {}
    for info in infos:
        name = info.filename
        if name in sizes or name[:1] == "/" or "\\" in name or ".." in name.split("/"):
            raise _Refused(f"entry {name!r} has a bad name")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise _Refused(f"entry '{name}' is compressed or encrypted, unlike torch's")
        if info.file_size != info.compress_size:
            raise _Refused(f"entry '{name}' lies about its size")
        sizes[name] = info.file_size
    if sum(sizes.values()) > file_size:
        raise _Refused("entries overlap")
    programs = [n for n in sizes if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(programs) != 1:
        raise _Refused("has no data.pkl, so torch did not write it")
    if sizes[programs[0]] > _MAX_PICKLE:
        raise _Refused("data.pkl is larger than 16 MiB")
    folder = programs[0].removesuffix("data.pkl")
    if any(not name.startswith(folder) for name in sizes):
        raise _Refused(f"entries lie outside of '{folder}'")
    return sizes, folder


class _Name(NamedTuple):
    """What a name in the pickle stands for; calls give descriptions, and do nothing."""

    text: str

    def __call__(self, *arguments: Any) -> Any:
        if self.text == ORDERED_DICT and not arguments:
            return {}
        if self.text == TENSOR and len(arguments) in (6, 7):
            return _tensor(*arguments)
        if self.text == PARAMETER and len(arguments) == 3:
            tensor, _, hooks = arguments
            if type(tensor) is _Tensor and hooks == {}:
                return tensor
        raise _BadPickle(f"calls '{self.text}' in a wrong way")


class _Storage(NamedTuple):
    entry: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """How a tensor lies in a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Reader(_Unpickler):
    """Python's own reader of pickles, held to a few instructions and names."""

    def __init__(
        self,
        archive: zipfile.ZipFile,
        folder: str,
        sizes: Mapping[str, int],
    ):
        program = archive.read(f"{folder}data.pkl")
        super().__init__(io.BytesIO(program))
        self._archive, self._folder = archive, f"{folder}data/"
        self._sizes = sizes
        self._storages: dict[str, bytes] = {}
        # It can refer to one object many times.
        self._size = self._visits = len(program)

    def arrays(self) -> dict:
        """Return what the pickle holds, with arrays for the tensors."""
        try:
            described = self.load()
        except _Refused:
            raise
        except KeyError as error:
            name = _INSTRUCTION_NAMES.get(error.args[0])
            what = f"uses the instruction {name}" if name else "is damaged"
            raise _BadPickle(what) from error
        except Exception as error:  # damaged pickles raise almost anything
            raise _BadPickle("is damaged") from error
        if type(described) is not dict or self.stack or self.metastack:
            raise _BadPickle("holds no dict of tensors")
        return self._group(described, depth=3)

    def find_class(self, module: str, name: str) -> _Name:
        full = f"{module}.{name}"
        if full not in (*STORAGES, TENSOR, PARAMETER, ORDERED_DICT):
            raise _BadPickle(f"names {full[:80]!r}, which is not part of a tensor")
        return _Name(full)

    def load_frame(self) -> None:
        if int.from_bytes(self.read(8), "little") > self._size:
            raise _BadPickle("is damaged")

    def load_long_binput(self) -> None:
        super().load_long_binput()
        if len(self.memo) - 1 not in self.memo:
            raise _BadPickle("leaves gaps in its memo")

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def _check_keys(self, keys: list[Any]) -> None:
        # The hash of tuples in tuples in tuples ... would overflow Python's stack.
        if any(type(key) not in (str, int) for key in keys):
            raise _BadPickle("has a key that is not text")

    def persistent_load(self, pid: Any) -> _Storage:
        types = [type(part) for part in pid] if type(pid) is tuple else []
        if types != [str, _Name, str, str, int] or pid[0] != "storage":
            raise _BadPickle("points to what is not a storage")
        _, kind, key, _, length = pid
        if kind.text not in STORAGES:
            raise _BadPickle("has a storage of an unknown type")
        entry, dtype = f"{self._folder}{key}", STORAGES[kind.text]
        if not key.isdecimal() or entry not in self._sizes:
            raise _BadPickle(f"points to storage {key[:40]!r}, missing here")
        if length * dtype.itemsize != self._sizes[entry]:
            size = self._sizes[entry]
            raise _BadPickle(
                f"says {length} elements for storage {key}, which has {size} bytes"
            )
        return _Storage(entry, dtype, length)

    def _group(self, group: dict, depth: int) -> dict:
        result = {}
        for key, value in group.items():
            self._visits -= 1
            if type(value) is _Tensor:
                result[key] = self._array(value)
            elif type(value) is dict and depth and self._visits > 0:
                result[key] = self._group(value, depth - 1)
            elif value is None or type(value) in (str, int, float, bool):
                result[key] = value
            else:
                raise _BadPickle("holds more than dicts of tensors")
        return result

    def _array(self, tensor: _Tensor) -> np.ndarray:
        entry, dtype, _ = tensor.storage
        if entry not in self._storages:
            self._storages[entry] = self._archive.read(entry)
        data, size = self._storages[entry], dtype.itemsize
        strides = tuple(n * size for n in tensor.strides)
        return np.ndarray(tensor.shape, dtype, data, tensor.offset * size, strides)


_Reader.dispatch = {
    ord(code.code): getattr(_Reader, _Unpickler.dispatch[ord(code.code)].__name__)
    for code in pickletools.opcodes
    if code.name in _INSTRUCTIONS
}


def _tensor(*parts: Any) -> _Tensor:
    storage, offset, shape, strides, grad, hooks = parts[:6]
    if (
        type(storage) is not _Storage
        or type(shape) is not tuple
        or type(strides) is not tuple
        or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
        or not len(shape) == len(strides) <= _MAX_DIMENSIONS
        or type(grad) is not bool
        or hooks != {}
        or parts[6:] not in ((), (None,))
    ):
        raise _BadPickle("builds a tensor in a wrong way")
    count = math.prod(shape)
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if count > storage.length or (count and offset + last >= storage.length):
        raise _BadPickle(
            f"builds a tensor of shape {list(shape)} that does not fit its storage"
        )
    return _Tensor(storage, offset if count else 0, shape, strides)


class Parameter(NamedTuple):
    """A tensor that torch shall read as ``torch.nn.Parameter``."""

    tensor: Outgoing
    requires_grad: bool = False


def write_pth(path: Path, values: dict[str, Any]) -> None:
    """Write nested dicts of `Outgoing` and `Parameter`, one storage at a time.

    An `Outgoing` that stands in several places becomes one storage.
    """
    program = io.BytesIO()
    writer = _Writer(program)
    writer.dump(values)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        first = {
            "data.pkl": program.getvalue(),
            ".format_version": b"1",
            ".storage_alignment": str(_ALIGNMENT).encode(),
            "byteorder": b"little",
        }
        for name, data in first.items():
            _add(archive, f"{path.stem}/{name}", len(data), [data])
        for key, tensor in enumerate(writer.storages):
            entry = f"{path.stem}/data/{key}"
            _add(archive, entry, tensor.nbytes, tensor.blocks())
        _add(archive, f"{path.stem}/version", 2, [b"3\n"])


def _add(
    archive: zipfile.ZipFile, name: str, size: int, blocks: Iterable[bytes | memoryview]
) -> None:
    """Put an entry at the archive's end, its data at a multiple of the alignment."""
    info = zipfile.ZipInfo(name)
    info.file_size = size
    large = size * 1.05 > zipfile.ZIP64_LIMIT
    end = archive.start_dir  # pyright: ignore[reportAttributeAccessIssue]
    # A local header, its name, our padding's own header, the two wide sizes.
    start = end + 30 + len(name.encode()) + 4 + (20 if large else 0)
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as entry:
        for block in blocks:
            entry.write(block)


_KINDS = {dtype: _Name(name) for name, dtype in STORAGES.items()}
_TENSOR, _PARAMETER = _Name(TENSOR), _Name(PARAMETER)


class _Writer(_Pickler):
    """Python's own writer of pickles, but names need not be there to be imported."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.storages: list[Outgoing] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        return "storage", _KINDS[obj.dtype], obj.entry, "cpu", obj.length

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _Name):
            return obj.text
        hooks = collections.OrderedDict()
        if isinstance(obj, Parameter):
            return _PARAMETER, (obj.tensor, obj.requires_grad, hooks)
        if not isinstance(obj, Outgoing):
            return NotImplemented
        # Asked once for each object: the next time it writes a reference.
        key, length = str(len(self.storages)), math.prod(obj.shape)
        self.storages.append(obj)
        strides = [1]
        for size in obj.shape[:0:-1]:
            strides.insert(0, strides[0] * size)
        storage = _Storage(key, obj.dtype, length)
        return _TENSOR, (storage, 0, obj.shape, tuple(strides), False, hooks)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, _, member = (name or ORDERED_DICT).rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{member}\n".encode())
        self.memoize(obj)

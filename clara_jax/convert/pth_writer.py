"""PyTorch ``.pth`` files written without torch.

The form is that of ``torch.save``: a zip whose ``data.pkl`` says how tensors lie in
storages, and one uncompressed entry, aligned to 64 bytes, for each storage. The pickle
is put together instruction by instruction (protocol 2), as Python's own pickler would
have to import the names that it writes. Source: PyTorch notes on serialization
semantics; the files of torch 2.13.
"""

from __future__ import annotations

import dataclasses
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.convert.outgoing import Outgoing
from clara_jax.convert.pth import ORDERED_DICT, PARAMETER, STORAGES, TENSOR

_KINDS = {np.dtype(kind): name for name, kind in STORAGES.items()}
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A tensor that torch shall read as ``torch.nn.Parameter``."""

    tensor: Outgoing
    requires_grad: bool = False


def write_pth(path: Path, values: Mapping[str, Any]) -> None:
    """Write a ``.pth`` file, one storage in memory at a time.

    Args:
      path: where; its stem names the folder inside the zip, as torch has it.
      values: nested dicts of `Outgoing` and `Parameter`. An `Outgoing` that stands in
        several places becomes one storage.

    Raises:
      OSError: the file cannot be written.
    """
    program = _Program(values)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (
            ("data.pkl", bytes(program.code)),
            (".format_version", b"1"),
            (".storage_alignment", str(_ALIGNMENT).encode()),
            ("byteorder", b"little"),
        ):
            _add(archive, f"{path.stem}/{name}", len(data), [data])
        for key, tensor in enumerate(program.storages):
            entry = f"{path.stem}/data/{key}"
            _add(archive, entry, tensor.nbytes, tensor.blocks())
        _add(archive, f"{path.stem}/version", 2, [b"3\n"])


def _add(
    archive: zipfile.ZipFile,
    name: str,
    size: int,
    blocks: Iterable[bytes | memoryview],
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


class _Program:
    """The pickle of nested dicts of tensors.

    Attributes:
      code: its instructions.
      storages: tensors in the order of their keys.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.code = bytearray(pickle.PROTO + b"\x02")
        self.storages: list[Outgoing] = []
        self._keys: dict[int, int] = {}
        self._memo: dict[str, int] = {}
        self._mapping(values)
        self.code += pickle.STOP

    def _mapping(self, values: Mapping[str, Any]) -> None:
        self.code += pickle.EMPTY_DICT + pickle.MARK
        for key, value in values.items():
            self._text(key)
            if isinstance(value, Mapping):
                self._mapping(value)
            elif isinstance(value, Parameter):
                self._parameter(value)
            else:
                self._tensor(value)
        self.code += pickle.SETITEMS

    def _parameter(self, value: Parameter) -> None:
        self._global(PARAMETER)
        self._tensor(value.tensor)
        self._flag(value.requires_grad)
        self._no_hooks()
        self.code += pickle.TUPLE3 + pickle.REDUCE

    def _tensor(self, tensor: Outgoing) -> None:
        strides = [1]
        for size in tensor.shape[:0:-1]:
            strides.insert(0, strides[0] * size)
        self._global(TENSOR)
        self.code += pickle.MARK
        self._storage(tensor)
        self._whole(0)
        self._wholes(tensor.shape)
        self._wholes(strides)
        self._flag(False)
        self._no_hooks()
        self.code += pickle.TUPLE + pickle.REDUCE

    def _storage(self, tensor: Outgoing) -> None:
        key = self._keys.setdefault(id(tensor), len(self.storages))
        if key == len(self.storages):
            self.storages.append(tensor)
        self.code += pickle.MARK
        self._text("storage")
        self._global(_KINDS[tensor.dtype])
        self._text(str(key))
        self._text("cpu")
        self._whole(tensor.nbytes // tensor.dtype.itemsize)
        self.code += pickle.TUPLE + pickle.BINPERSID

    def _no_hooks(self) -> None:
        self._global(ORDERED_DICT)
        self.code += pickle.EMPTY_TUPLE + pickle.REDUCE

    def _flag(self, value: bool) -> None:
        self.code += pickle.NEWTRUE if value else pickle.NEWFALSE

    def _wholes(self, values: Sequence[int]) -> None:
        self.code += pickle.MARK
        for value in values:
            self._whole(value)
        self.code += pickle.TUPLE

    def _whole(self, value: int) -> None:
        if value < 1 << 8:
            self.code += pickle.BININT1 + struct.pack("<B", value)
        elif value < 1 << 31:
            self.code += pickle.BININT + struct.pack("<i", value)
        else:
            data = pickle.encode_long(value)
            self.code += pickle.LONG1 + struct.pack("<B", len(data)) + data

    def _text(self, text: str) -> None:
        data = text.encode()
        code = pickle.BINUNICODE + struct.pack("<I", len(data)) + data
        self._remembered(f"text {text}", code)

    def _global(self, name: str) -> None:
        module, _, member = name.rpartition(".")
        code = pickle.GLOBAL + f"{module}\n{member}\n".encode()
        self._remembered(f"name {name}", code)

    def _remembered(self, what: str, code: bytes) -> None:
        """Write `code`, or where its object is known by now a reference to it."""
        if what in self._memo:
            self.code += pickle.LONG_BINGET + struct.pack("<I", self._memo[what])
            return
        index = self._memo[what] = len(self._memo)
        self.code += code + pickle.LONG_BINPUT + struct.pack("<I", index)

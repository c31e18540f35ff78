"""Data files of Lance on this machine: columns mapped into memory, and damage."""

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped
from lance.file import LanceFileReader
from lance.fragment import DataFile, LanceFragment

from clara_jax.files import is_remote


def map_columns(
    path: Path, rows: int, kinds: Mapping[str, np.dtype]
) -> dict[str, np.ndarray]:
    """Map the columns of a data file that are of fixed size and not compressed.

    `kinds` are the types of their rows. Compressed ones are read.
    """
    about = LanceFileReader(str(path)).metadata()
    found, packed = {}, []
    for name, column in zip(about.schema.names, about.columns, strict=True):
        if name not in kinds:
            continue
        size = kinds[name].itemsize
        spans = [(b.position, b.size) for p in column.pages for b in p.buffers]
        flat = all(
            "FullZip" in p.encoding and len(p.buffers) == 1 for p in column.pages
        )
        if not flat or sum(length for _, length in spans) != rows * size:
            packed.append(name)
            continue
        kind, shape = kinds[name].base, kinds[name].shape
        parts = [
            np.memmap(path, kind, "r", offset, (length // size, *shape))
            for offset, length in spans
        ]
        found[name] = np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)
    if packed:
        table = LanceFileReader(str(path), columns=packed).read_all().to_table()
        found |= {name: typed(table[name], kinds[name]) for name in packed}
    return found


def wrong_files(place: str, fragment: LanceFragment) -> Iterator[tuple[Path, str]]:
    """Yield files of a fragment of the dataset at a place with what is wrong with each.

    Of those in an object store nothing is known.
    """
    for file in () if is_remote(place) else fragment.data_files():
        path = Path(place, "data", file.path)
        if wrong := _what_is_wrong(path, file):
            yield path, wrong


def _what_is_wrong(path: Path, file: DataFile) -> str:
    """Return what is wrong with a data file, its size or its end, if anything.

    Lance takes as much memory as the last 40 bytes say: damaged, they end the process.
    """
    if not path.is_file():
        return "is missing"
    with path.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(size - 40, 0))
        end = opened.read()
    if (known := file.file_size_bytes or size) != size or len(end) < 40:
        what = "has grown" if size > known else "is truncated"
        return f"{what} ({size} bytes, not {known})"
    *places, buffers, columns, _, _, name = struct.unpack("<QQQIIHH4s", end)
    wrong = name != b"LANC" or max(*places, 16 * buffers, 16 * columns) > size
    return "is damaged at its end" if wrong else ""


def typed(column: pa.ChunkedArray, kind: np.dtype) -> Shaped[np.ndarray, "n ..."]:
    """Turn a column of fixed size into an array of a row's type."""
    return to_numpy(column).view(kind.base).reshape(-1, *kind.shape)


def to_numpy(column: pa.ChunkedArray | pa.Array) -> Shaped[np.ndarray, "n ..."]:
    """Turn a column without nulls into an array: numbers [n], lists [n, L], bytes."""
    array = column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks or [pa.array([], array.type)])
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        raw = np.frombuffer(array.buffers()[1], np.uint8)
        raw = raw[array.offset * width : (array.offset + len(array)) * width]
        return raw.reshape(len(array), width)
    if pa.types.is_fixed_size_list(array.type):
        return to_numpy(array.flatten()).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)

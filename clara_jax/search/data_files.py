"""A data file of Lance on this machine: columns mapped into memory, and its end."""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from lance.file import LanceFileReader
from lance.fragment import DataFile

from clara_jax.search.rows import typed


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


def what_is_wrong(path: Path, file: DataFile) -> str:
    """Return what is wrong with the size or the end of a data file, if anything.

    Lance takes as much memory as the last 40 bytes say: damaged, they end the process.
    """
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

"""One shard of a store: a folder of arrays and a table, written whole or not at all."""

from __future__ import annotations

import dataclasses
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Shaped, UInt64

from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_error
from clara_jax.search.codecs import code_type, decode, encode
from clara_jax.search.manifest import (
    ShardInfo,
    StoreSettings,
    checksum_of,
    json_bytes,
    new_checksum,
)
from clara_jax.search.pieces import Piece, table_bytes, text_hashes, to_table

NOTE = "shard.json"
TABLE = "pieces.arrow"

_AT_ONCE = 1 << 17
"""Codes decoded together."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a shard's files hold.

    Attributes:
      codes, scales: of the vectors, as ``codecs.encode`` gives them.
      norms: Euclidean norm of each decoded flat vector.
      texts, ids: hashes of each piece's text and document id.
      table: the pieces.
    """

    codes: Shaped[np.ndarray, "n M W"]
    scales: Float[np.ndarray, "n M"] | None
    norms: Float[np.ndarray, "n"]
    texts: UInt64[np.ndarray, "n"]
    ids: UInt64[np.ndarray, "n"]
    table: pa.Table


def contents_of(
    vectors: Float[np.ndarray, "n M D"],
    pieces: Sequence[Piece],
    dtype: str,
    center: Float[np.ndarray, "M D"] | None = None,
) -> Contents:
    """Encode the vectors of some pieces; see ``codecs.encode``.

    Raises:
      ClaraError: there are not as many pieces, or one of them cannot be kept.
    """
    if len(vectors) != len(pieces):
        raise ClaraError(
            f"a shard was given {len(vectors)} document vectors for {len(pieces)} "
            "pieces; each piece needs its own"
        )
    codes, scales = encode(vectors, dtype, center)
    return Contents(
        codes=codes,
        scales=scales,
        norms=_norms(codes, scales, dtype, vectors.shape[-1], center),
        table=to_table(pieces),
        texts=text_hashes(piece.text for piece in pieces),
        ids=text_hashes(piece.id for piece in pieces),
    )


def layout(settings: StoreSettings, rows: int) -> dict[str, tuple[np.dtype, tuple]]:
    """Type and shape of each array of a shard, by its file's name."""
    kind, length = code_type(settings.dtype, settings.width)
    count = settings.num_memory
    arrays: dict[str, tuple[np.dtype, tuple]] = {
        "vectors.npy": (kind, (rows, count, length)),
        "norms.npy": (np.dtype(np.float32), (rows,)),
        "texts.npy": (np.dtype(np.uint64), (rows,)),
        "ids.npy": (np.dtype(np.uint64), (rows,)),
    }
    if settings.dtype != "bfloat16":
        arrays["scales.npy"] = (np.dtype(np.float32), (rows, count))
    return arrays


def write_contents(
    folder: Path, contents: Contents, *, job: str = "", mark: str = ""
) -> ShardInfo:
    """Write a shard's folder; one that is there already is replaced.

    Args:
      folder: the shard.
      contents: what goes in.
      job: digest of the job that it is part of.
      mark: part of the name of the temporary folder beside it; a killed process leaves
        that behind.

    Returns:
      What the manifest keeps of it.

    Raises:
      ClaraError: it cannot be written, in which case nothing is left behind.
    """
    temporary = folder.with_name(f".{folder.name}.{mark or secrets.token_hex(4)}")
    arrays = {
        "vectors.npy": contents.codes,
        "norms.npy": contents.norms,
        "texts.npy": contents.texts,
        "ids.npy": contents.ids,
    }
    if contents.scales is not None:
        arrays["scales.npy"] = contents.scales
    try:
        temporary.mkdir(parents=True)
        files: dict[str, Any] = {}
        for name, array in arrays.items():
            with _Summed(temporary / name) as file:
                ordered = np.ascontiguousarray(array)
                np.lib.format.write_array(file, ordered, allow_pickle=False)
            files[name] = file.note()
        with _Summed(temporary / TABLE) as file:
            file.write(memoryview(table_bytes(contents.table)))
        files[TABLE] = file.note()
        rows = len(contents.codes)
        note = json_bytes({"rows": rows, "job": job, "files": files})
        with _Summed(temporary / NOTE) as file:
            file.write(note)
        _sync(sorted(temporary.iterdir()))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(folder, error) from error
        raise
    return _info(folder.name, note, rows, files)


def read_info(folder: Path) -> tuple[ShardInfo, str]:
    """Read what a whole shard is, and the job that it is part of.

    Raises:
      ClaraError: its note is missing or damaged.
    """
    path = folder / NOTE
    values = read_json(path)
    try:
        info = _info(
            folder.name, path.read_bytes(), values["rows"], dict(values["files"])
        )
        return info, str(values["job"])
    except (KeyError, TypeError) as error:
        raise ClaraError(
            f"{path}: is damaged; remove {folder} and start the command again"
        ) from error


def map_array(path: Path, kind: np.dtype, shape: tuple) -> Shaped[np.ndarray, "..."]:
    """Memory-map a ``.npy`` file whose type and shape are known.

    Its header is not read; ``--check`` looks at it.

    Raises:
      ClaraError: it is missing or too short.
    """
    size = int(np.prod(shape)) * kind.itemsize
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = len(mapped) - size
        flat = np.frombuffer(mapped, np.uint8, size, start)
    except (OSError, ValueError) as error:
        raise ClaraError(
            f"{path}: cannot be read; if the store was compacted since it was opened, "
            "open it again, else look at it with --check"
        ) from error
    return flat.view(kind).reshape(shape)


def leftovers(folder: Path) -> Iterator[Path]:
    """Temporary folders that killed writers of a shard left beside it."""
    return folder.parent.glob(f".{folder.name}.*")


def _norms(
    codes: Shaped[np.ndarray, "n M W"],
    scales: Float[np.ndarray, "n M"] | None,
    dtype: str,
    width: int,
    center: Float[np.ndarray, "M D"] | None,
) -> Float[np.ndarray, "n"]:
    norms = np.empty(len(codes), np.float32)
    step = max(1, _AT_ONCE // max(1, codes[:1].size))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        scale = None if scales is None else scales[part]
        vectors = decode(codes[part], scale, dtype, width, center=center)
        # Not a dot product, whose last bit depends on the number of threads.
        squares = np.square(vectors, dtype=np.float64)
        norms[part] = np.sqrt(squares.sum(axis=(1, 2)))
    return norms


def _info(name: str, note: bytes, rows: int, files: dict[str, Any]) -> ShardInfo:
    sizes = {file: int(values["size"]) for file, values in files.items()}
    sizes[NOTE] = len(note)
    return ShardInfo(
        name=name,
        rows=rows,
        sizes=dict(sorted(sizes.items())),
        digest=checksum_of(note),
    )


def _sync(files: Sequence[Path]) -> None:
    """Wait until files are on the disk; together that takes little longer than one."""

    def sync(file: Path) -> None:
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())

    with ThreadPoolExecutor(len(files)) as pool:
        list(pool.map(sync, files))


class _Summed:
    """A file being written, and the checksum of what went in.

    Numpy writes to it in parts: to a real file it would write in one go, and then not
    say that the disk is full.
    """

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._checksum = new_checksum()
        self._size = 0

    def __enter__(self) -> _Summed:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        self._checksum.update(data)
        self._size += len(data)
        return self._file.write(data)

    def note(self) -> dict[str, Any]:
        return {"size": self._size, "checksum": self._checksum.hexdigest()}

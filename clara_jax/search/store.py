"""A store of document vectors on disk: its shards, written whole and read lazily.

store.json              the manifest, written last
shards/NAME/            vectors.npy, scales.npy, norms.npy: the vectors, see ``codecs``
                        texts.npy, ids.npy: hashes to find documents by
                        pieces.arrow: the documents; shard.json: checksums
deleted-GENERATION.npy  rows that were deleted since the last compaction
job.json, .locks/       only while something is being written
index/                  see ``index_files``

A row's number is its place among all rows, deleted ones included.
"""

import functools
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int, Int64, Shaped, UInt64

from clara_jax.documents import Document, is_unicode, text_digest
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_bytes, writing
from clara_jax.search import manifest as disk
from clara_jax.search.codecs import decode, decode_parts, encode, read_center
from clara_jax.search.manifest import SHARDS, Manifest, ShardInfo, StoreSettings

NOTE = "shard.json"
TABLE = "pieces.arrow"

SCHEMA = pa.schema(
    {
        **dict.fromkeys(("text", "id", "title", "source"), pa.string()),
        **dict.fromkeys(("start", "stop"), pa.int64()),
        **dict.fromkeys(("part", "parts"), pa.int32()),
        "metadata": pa.string(),  # a JSON object, or empty
    }
)

Rows = Sequence[Any] | Int[np.ndarray, "k"]  # row numbers, in any order

Column = Literal["text", "id"]
Progress = Callable[[str], None]  # called with a line for each step

OPEN_FILES = 8192  # that stay mapped; Linux allows a process about 65,000 maps


class Store:
    """A whole store at one moment, for any thread; open it anew to see later changes.

    Attributes:
      path: the folder.
      manifest: what ``store.json`` says.
      rows: how many there are, deleted ones included.
      num_memory, width: M vectors of D numbers per document.
      row_bytes: of the codes of a row.
    """

    def __init__(self, path: Path, manifest: Manifest):
        """Take a manifest unchecked; use `open`."""
        self.path, self.manifest = path, manifest
        self.rows = sum(shard.rows for shard in manifest.shards)
        self.num_memory, self.width = manifest.memory.num_memory, manifest.width
        self.dtype, self.fingerprint = manifest.dtype, manifest.fingerprint
        self.epoch, self.generation = manifest.epoch, manifest.generation
        self._folders = [path / SHARDS / shard.name for shard in manifest.shards]
        # A shard without rows has the types of all others.
        none = shard_arrays(np.empty((0, self.num_memory, self.width)), [], manifest)
        self._row = {name: np.dtype((x.dtype, x.shape[1:])) for name, x in none.items()}
        self.row_bytes = self._row["vectors.npy"].itemsize
        self._ends = np.cumsum([shard.rows for shard in manifest.shards], dtype=int)
        self._map = functools.lru_cache(OPEN_FILES)(_map)
        self._sorted: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike, fingerprint: str | None = None) -> "Store":
        """Open a store, without reading vectors or documents.

        `fingerprint` is that of the model that is to read the vectors; None: any.

        Raises:
          ClaraError: there is none, it is unfinished, damaged or of another format, a
            file is missing or truncated, or another model made it.
        """
        path = Path(path)
        manifest = disk.read_manifest(path)
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            raise ClaraError(
                f"{path}: was made by another model: its fingerprint is "
                f"{manifest.fingerprint}, that of the model given is {fingerprint}; "
                f"give the model that made it ({manifest.model}), or compress the "
                "documents into another --store"
            )
        sizes = {
            path / SHARDS / shard.name / name: size
            for shard in manifest.shards
            for name, size in shard.sizes.items()
        }
        if manifest.deleted is not None:
            sizes[path / manifest.deleted.file] = manifest.deleted.size
        for file, size in sizes.items():
            if wrong := disk.wrong_file(file, size):
                raise ClaraError(f"{file}: {wrong}; look at the store with --check")
        return cls(path, manifest)

    def __len__(self) -> int:
        deleted = self.manifest.deleted
        return self.rows - (deleted.count if deleted else 0)

    @functools.cached_property
    def center(self) -> Float[np.ndarray, "M D"] | None:
        """What all vectors are kept without; None: nothing."""
        return read_center(self.manifest.center, (self.num_memory, self.width))

    @functools.cached_property
    def deleted(self) -> Int64[np.ndarray, "n"]:
        """Sorted numbers of the rows that are deleted."""
        return disk.read_deleted(self.path, self.manifest)

    @functools.cached_property
    def live(self) -> Bool[np.ndarray, "n"]:
        """Of each row, whether it is still part of the store."""
        live = np.ones(self.rows, bool)
        live[self.deleted] = False
        return live

    def vectors(self, rows: Rows) -> Float[np.ndarray, "k M D"]:
        """Read and decode the vectors of some rows, in the order asked for.

        Raises:
          ClaraError: there is no such row.
        """
        codes, scales = self.codes(rows)
        return decode(codes, scales, self.dtype, self.width, center=self.center)

    def codes(
        self, rows: Rows
    ) -> tuple[Shaped[np.ndarray, "k M W"], Float[np.ndarray, "k M"] | None]:
        """Read the codes and scales of some rows, see ``codecs.decode``."""
        scales = None if self.dtype == "bfloat16" else self._array("scales.npy", rows)
        return self._array("vectors.npy", rows), scales

    def norms(self, rows: Rows) -> Float[np.ndarray, "k"]:
        """Read the Euclidean norms of some rows' flat vectors."""
        return self._array("norms.npy", rows)

    def arrays(self, rows: Rows) -> dict[str, Shaped[np.ndarray, "k ..."]]:
        """Read all arrays of some rows, by the names of their files."""
        return {name: self._array(name, rows) for name in self._row}

    def table(self, rows: Rows, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
        """Read columns of the table of documents, in the rows' order."""
        tables, order = [SCHEMA.empty_table().select(columns)], [np.empty(0, np.int64)]
        for places, folder, local in self._split(rows):
            tables.append(self._map(folder / TABLE).select(columns).take(local))
            order.append(places)
        return pa.concat_tables(tables).take(np.argsort(np.concatenate(order)))

    def pieces(self, rows: Rows) -> list[Document]:
        """Read the documents, or pieces of documents, of some rows, in their order."""
        return [
            Document(**{**row, "metadata": json.loads(row["metadata"] or "{}")})
            for row in self.table(rows).to_pylist()
        ]

    def strings(self, rows: Rows, column: str) -> list[str]:
        """Read one field of some rows' documents: ``text``, ``id``, ``title``, ..."""
        return self.table(rows, [column])[column].to_pylist()

    def find(
        self, values: Sequence[str], column: Column = "text"
    ) -> Int64[np.ndarray, "n"]:
        """Return the lowest live row with each text or id, -1 where there is none.

        The first call reads 8 bytes of every row.
        """
        found = self._rows_with(column, values)
        return np.array([found.get(value, [-1])[0] for value in values], np.int64)

    def rows_of(self, id: str) -> Int64[np.ndarray, "n"]:
        """Return the rows of a document that are not deleted, ascending."""
        return np.array(self._rows_with("id", [id]).get(id, []), np.int64)

    def hashes(self, column: Column) -> UInt64[np.ndarray, "n"]:
        """Read the hashes of a column of all rows."""
        files = [folder / f"{column}s.npy" for folder in self._folders]
        return np.concatenate([np.empty(0, np.uint64), *map(self._map, files)])

    def _rows_with(self, column: Column, values: Sequence[str]) -> dict[str, list[int]]:
        """Return live rows by text or id: those of `values`, and perhaps others."""
        if column not in self._sorted:
            rows = np.flatnonzero(self.live)
            hashes = self.hashes(column)[rows]
            order = np.argsort(hashes, kind="stable")
            self._sorted[column] = hashes[order], rows[order]
        hashes, rows = self._sorted[column]
        wanted = np.unique(text_hashes(values))
        ends = [np.searchsorted(hashes, wanted, side) for side in ("left", "right")]
        parts = [rows[i:j] for i, j in zip(*ends, strict=True)]
        likely = np.sort(np.concatenate([rows[:0], *parts]))
        found: dict[str, list[int]] = {}
        for row, value in zip(likely, self.strings(likely, column), strict=True):
            found.setdefault(value, []).append(int(row))
        return found

    def _array(self, name: str, rows: Rows) -> np.ndarray:
        found = np.empty(len(rows), self._row[name])
        for places, folder, local in self._split(rows):
            found[places] = self._map(folder / name)[local]
        return found

    def _split(self, rows: Rows) -> Iterator[tuple[np.ndarray, Path, np.ndarray]]:
        """Yield by shard: places in `rows`, the shard, and rows within it."""
        numbers = np.asarray(rows, np.int64)
        wrong = numbers[(numbers < 0) | (numbers >= self.rows)]
        if len(wrong):
            what = f"has no row {wrong[0]}; it holds {self.rows} rows"
            raise ClaraError(f"{self.path}: {what}")
        shards = np.searchsorted(self._ends, numbers, "right")
        order = np.argsort(shards, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            if len(places):
                shard = shards[places[0]]
                start = self._ends[shard] - self.manifest.shards[shard].rows
                yield places, self._folders[shard], numbers[places] - start


def shard_arrays(
    vectors: Float[np.ndarray, "n M D"],
    documents: Sequence[Document],
    settings: StoreSettings,
) -> dict[str, Shaped[np.ndarray, "n ..."]]:
    """Return the arrays of a shard, by the names of their files."""
    center = read_center(settings.center, vectors.shape[1:])
    codes, scales = encode(vectors, settings.dtype, center)
    norms = np.empty(len(codes), np.float32)
    for part, decoded in decode_parts(codes, scales, settings.dtype, settings.width):
        whole = decoded if center is None else decoded + center
        # Not a dot product, whose last bit depends on the number of threads.
        norms[part] = np.sqrt(np.square(whole, dtype=np.float64).sum(axis=(1, 2)))
    arrays = {
        "vectors.npy": codes,
        "norms.npy": norms,
        "texts.npy": text_hashes(document.text for document in documents),
        "ids.npy": text_hashes(document.id for document in documents),
    }
    return arrays if scales is None else {**arrays, "scales.npy": scales}


def text_hashes(texts: Iterable[str]) -> UInt64[np.ndarray, "n"]:
    """Return 8 bytes of blake2b of each text, to find it by."""
    found = b"".join(text_digest(text, 8) for text in texts)
    return np.frombuffer(found, "<u8").astype(np.uint64)


def to_table(documents: Sequence[Document]) -> pa.Table:
    """Put documents into a table of `SCHEMA`; refuse what is not Unicode or JSON."""
    rows = []
    for document in documents:
        place = document.source or document.id or "a piece"
        place = place.encode("utf-8", "replace").decode()
        texts = (document.text, document.id, document.title, document.source)
        if not is_unicode("".join(texts)):
            what = "holds half of a surrogate pair, which is not text"
            raise ClaraError(f"{place}: {what}")
        metadata = document.metadata
        try:
            kept = json.dumps(metadata, sort_keys=True) if metadata else ""
        except (TypeError, ValueError) as error:
            raise ClaraError(f"{place}: its metadata are not JSON ({error})") from error
        rows.append({**vars(document), "metadata": kept})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_shard(
    folder: Path,
    arrays: Mapping[str, Shaped[np.ndarray, "n ..."]],
    table: pa.Table,
    job: str = "",
) -> ShardInfo:
    """Write a shard of the job with this digest, whole or not at all.

    Raises:
      ClaraError: it cannot be written; nothing is left behind.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        # Copied, so that slices and joined tables give the same bytes as new ones.
        writer.write_table(table.combine_chunks())
    contents = {name: disk.array_bytes(array) for name, array in arrays.items()}
    contents[TABLE] = buffer.getvalue().to_pybytes()
    files = {
        name: {"size": len(data), "checksum": disk.checksum_of(data)}
        for name, data in contents.items()
    }
    note = {"rows": table.num_rows, "job": job, "files": files}
    contents[NOTE] = disk.json_bytes(note)
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            for name, data in contents.items():
                write_bytes(temporary / name, data)
            shutil.rmtree(folder, ignore_errors=True)  # of another job, given up
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_shard(folder)[0]


def read_shard(folder: Path) -> tuple[ShardInfo, str]:
    """Read what the manifest keeps of a shard, and the job that it is part of."""
    path = folder / NOTE
    values = read_json(path)
    try:
        note = path.read_bytes()
        sizes = {name: int(file["size"]) for name, file in values["files"].items()}
        sizes = dict(sorted({**sizes, NOTE: len(note)}.items()))
        info = ShardInfo(folder.name, values["rows"], sizes, disk.checksum_of(note))
        return info, str(values["job"])
    except (AttributeError, KeyError, TypeError) as error:
        remedy = f"remove {folder} and start the command again"
        raise ClaraError(f"{path}: is damaged; {remedy}") from error


def _map(path: Path) -> Any:
    """Memory-map an array or a table."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, ValueError) as error:
        raise ClaraError(
            f"{path}: cannot be read; if the store was compacted since it was opened, "
            "open it again, else look at it with --check"
        ) from error

"""A store of document vectors on disk, read lazily.

store.json              the manifest, written last
shards/NAME/            vectors.npy, scales.npy, norms.npy: the vectors, see ``codecs``
                        texts.npy, ids.npy: hashes to find pieces by
                        pieces.arrow: text, id, title, offsets, metadata
                        shard.json: checksums
deleted-GENERATION.npy  rows that were deleted since the last compaction
job.json                only while something is being written
index/                  see ``scann_index`` and ``hybrid``

A piece's row number is its place among the rows of all shards, deleted ones included;
it changes by compaction only, which raises the epoch.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int, Int64, Shaped

from clara_jax.errors import ClaraError
from clara_jax.search.codecs import decode, read_center
from clara_jax.search.lookup import Lookup
from clara_jax.search.manifest import SHARDS, Manifest, checksum_of, read_manifest
from clara_jax.search.pieces import Piece, from_table, map_table, to_table
from clara_jax.search.shards import TABLE, Contents, layout, map_array

__all__ = ["Piece", "Rows", "Store", "Tile"]

Rows = Sequence[Any] | Int[np.ndarray, "k"]
"""Row numbers, in any order."""

OPEN_FILES = 8192
"""Arrays, and a quarter as many tables, that stay mapped: Linux allows a process about
65,000 maps, and a store may have more files."""


class Tile(NamedTuple):
    """Consecutive rows of one shard, memory-mapped.

    Attributes:
      start: number of the first row.
      codes, scales: of the vectors, see ``codecs.decode``; scales are None for
        bfloat16.
      norms: Euclidean norms of the flat vectors.
    """

    start: int
    codes: Shaped[np.ndarray, "n M W"]
    scales: Float[np.ndarray, "n M"] | None
    norms: Float[np.ndarray, "n"]


class Store:
    """A whole store at one moment; later changes show in one that is opened anew.

    Safe to read from several threads.
    """

    def __init__(self, path: Path, manifest: Manifest):
        """Take a manifest as it is; use `open`.

        Args:
          path: the folder.
          manifest: of the rows that are there.
        """
        self.path = path
        self.manifest = manifest
        self.rows = manifest.rows
        self._folders = [path / SHARDS / shard.name for shard in manifest.shards]
        counts = [shard.rows for shard in manifest.shards]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._starts = self._ends - counts
        self._array = functools.lru_cache(OPEN_FILES)(map_array)
        self._table = functools.lru_cache(OPEN_FILES // 4)(map_table)
        self._lookups: dict[str, Lookup] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | os.PathLike, fingerprint: str | None = None) -> Store:
        """Open a store; of vectors and pieces nothing is read.

        Args:
          path: the folder.
          fingerprint: of the model that is to read the vectors; None takes any.

        Returns:
          The store.

        Raises:
          ClaraError: there is none, it is unfinished, damaged or of another format, a
            file is missing or truncated, or another model made it.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            raise ClaraError(
                f"{path}: was made by another model: its fingerprint is "
                f"{manifest.fingerprint}, that of the model given is {fingerprint}; "
                f"give the model that made it ({manifest.model}), or compress the "
                "documents into another --store"
            )
        for finding in wrong_sizes(path, manifest):
            raise ClaraError(f"{finding}; look at the store with --check")
        return cls(path, manifest)

    def __len__(self) -> int:
        deleted = self.manifest.deleted
        return self.rows - (0 if deleted is None else deleted.count)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} pieces)"

    @property
    def num_memory(self) -> int:
        """M, vectors per piece."""
        return self.manifest.num_memory

    @property
    def width(self) -> int:
        """D."""
        return self.manifest.width

    @property
    def dtype(self) -> str:
        """How vectors are kept, one of ``codecs.CODECS``."""
        return self.manifest.dtype

    @property
    def fingerprint(self) -> str:
        """Of the model that made the vectors."""
        return self.manifest.fingerprint

    @property
    def epoch(self) -> int:
        """Raised by compaction, after which row numbers mean other pieces."""
        return self.manifest.epoch

    @property
    def generation(self) -> int:
        """Raised by every change."""
        return self.manifest.generation

    @functools.cached_property
    def center(self) -> Float[np.ndarray, "M D"] | None:
        """What the codes of all vectors are kept without; None: nothing."""
        return read_center(self.manifest.center, (self.num_memory, self.width))

    @functools.cached_property
    def deleted(self) -> Int64[np.ndarray, "n"]:
        """Sorted numbers of the rows that are deleted."""
        info = self.manifest.deleted
        if info is None:
            return np.empty(0, np.int64)
        return read_deleted(self.path / info.file, info.checksum)

    @functools.cached_property
    def live(self) -> Bool[np.ndarray, "n"]:
        """Of each row, whether it is still part of the store."""
        live = np.ones(self.rows, bool)
        live[self.deleted] = False
        return live

    def vectors(self, rows: Rows) -> Float[np.ndarray, "k M D"]:
        """Read and decode the vectors of some rows, in their order.

        Raises:
          ClaraError: there is no such row.
        """
        codes, scales = self.codes(rows)
        return decode(codes, scales, self.dtype, self.width, center=self.center)

    def codes(
        self, rows: Rows
    ) -> tuple[Shaped[np.ndarray, "k M W"], Float[np.ndarray, "k M"] | None]:
        """Read the codes and scales of some rows, see ``codecs.decode``."""
        scales = None if self.dtype == "bfloat16" else self._gather("scales.npy", rows)
        return self._gather("vectors.npy", rows), scales

    def norms(self, rows: Rows) -> Float[np.ndarray, "k"]:
        """Read the norms of some rows' flat vectors."""
        return self._gather("norms.npy", rows)

    def tiles(
        self, size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[Tile]:
        """Walk over consecutive rows, deleted ones included.

        Args:
          size: most rows of a tile; a tile never reaches over the end of a shard.
          start, stop: rows to begin and end at; None: the last.

        Yields:
          Memory-mapped views.
        """
        stop = self.rows if stop is None else min(stop, self.rows)
        for shard, (first, end) in enumerate(
            zip(self._starts, self._ends, strict=True)
        ):
            begin, until = max(start, int(first)), min(stop, int(end))
            for row in range(begin, until, size):
                part = slice(row - int(first), min(row + size, until) - int(first))
                scales = None
                if self.dtype != "bfloat16":
                    scales = self._file(shard, "scales.npy")[part]
                yield Tile(
                    row,
                    self._file(shard, "vectors.npy")[part],
                    scales,
                    self._file(shard, "norms.npy")[part],
                )

    def pieces(self, rows: Rows) -> list[Piece]:
        """Read the pieces of some rows, in their order."""
        found: list[Any] = [None] * len(rows)
        for places, shard, local in self._split(rows):
            pieces = from_table(self._table(self._folders[shard] / TABLE).take(local))
            for place, piece in zip(places, pieces, strict=True):
                found[place] = piece
        return found

    def strings(self, rows: Rows, column: str) -> list[str]:
        """Read one column of some rows' pieces: ``text``, ``id``, ``title``, ..."""
        found: list[Any] = [None] * len(rows)
        for places, shard, local in self._split(rows):
            values = self._table(self._folders[shard] / TABLE).column(column)
            for place, value in zip(places, values.take(local), strict=True):
                found[place] = value.as_py()
        return found

    def contents(self, rows: Rows) -> Contents:
        """Read all that a shard of some rows, in ascending order, would hold."""
        codes, scales = self.codes(rows)
        tables = [
            self._table(self._folders[shard] / TABLE).take(local)
            for _, shard, local in self._split(rows)
        ]
        return Contents(
            codes=codes,
            scales=scales,
            norms=self.norms(rows),
            texts=self._gather("texts.npy", rows),
            ids=self._gather("ids.npy", rows),
            table=pa.concat_tables([to_table([]), *tables]),
        )

    def find(self, texts: Sequence[str]) -> Int64[np.ndarray, "n"]:
        """Look texts up; the first call reads 8 bytes of every row.

        Args:
          texts: any.

        Returns:
          The lowest row of a piece that is not deleted and has exactly this text, -1
          where there is none.
        """
        return self._lookup("text").first(texts)

    def rows_of(self, id: str) -> Int64[np.ndarray, "n"]:
        """Rows of the pieces of a document that are not deleted, ascending."""
        return self._lookup("id").every(id)

    def known(self, ids: Sequence[str]) -> Bool[np.ndarray, "n"]:
        """Of each document id, whether a piece that is not deleted has it."""
        return self._lookup("id").first(ids) >= 0

    def hashes(self, column: str, start: int = 0) -> Shaped[np.ndarray, "n"]:
        """Hashes of ``text`` or ``id`` of all rows from a shard's first row on."""
        found = [self._file(k, f"{column}s.npy") for k in self._shards_from(start)]
        return np.concatenate([np.empty(0, np.uint64), *found])

    def numbers(self, column: str, start: int = 0) -> Int64[np.ndarray, "n"]:
        """One column of numbers (``part``, ...) of all rows from a shard's first on."""
        found = [np.empty(0, np.int64)]
        for shard in self._shards_from(start):
            table = self._table(self._folders[shard] / TABLE)
            found.append(table.column(column).to_numpy().astype(np.int64))
        return np.concatenate(found)

    def _shards_from(self, row: int) -> range:
        return range(int(np.searchsorted(self._starts, row)), len(self._folders))

    def _lookup(self, column: str) -> Lookup:
        with self._lock:
            if column not in self._lookups:
                rows = np.flatnonzero(self.live).astype(np.int64)
                hashes = self.hashes(column)[rows]
                read: Callable[..., list[str]]
                read = functools.partial(self.strings, column=column)
                self._lookups[column] = Lookup(hashes, rows, read)
            return self._lookups[column]

    def _file(self, shard: int, name: str) -> np.ndarray:
        kind, shape = layout(self.manifest, self.manifest.shards[shard].rows)[name]
        return self._array(self._folders[shard] / name, kind, shape)

    def _gather(self, name: str, rows: Rows) -> np.ndarray:
        kind, (_, *rest) = layout(self.manifest, 0)[name]
        found = np.empty((len(rows), *rest), kind)
        for places, shard, local in self._split(rows):
            found[places] = self._file(shard, name)[local]
        return found

    def _split(self, rows: Rows) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Rows by shard: their places in `rows`, the shard, their rows within it."""
        numbers = np.asarray(rows, np.int64)
        wrong = numbers[(numbers < 0) | (numbers >= self.rows)]
        if len(wrong):
            raise ClaraError(
                f"{self.path}: has no row {wrong[0]}; it holds {self.rows} rows"
            )
        order = np.argsort(numbers, kind="stable")
        shards = np.searchsorted(self._ends, numbers[order], "right")
        for places in np.split(order, np.flatnonzero(np.diff(shards)) + 1):
            if len(places):
                shard = int(np.searchsorted(self._ends, numbers[places[0]], "right"))
                yield places, shard, numbers[places] - self._starts[shard]


def wrong_sizes(path: Path, manifest: Manifest) -> Iterator[str]:
    """Say of each file of a store that is missing or has another size."""
    sizes = {
        f"{path / SHARDS / shard.name}{os.sep}{name}": size
        for shard in manifest.shards
        for name, size in shard.sizes.items()
    }
    if manifest.deleted is not None:
        sizes[str(path / manifest.deleted.file)] = manifest.deleted.size
    for file, size in sizes.items():
        try:
            found = os.stat(file).st_size
        except OSError:
            yield f"{file}: is missing"
            continue
        if found != size:
            what = "is truncated" if found < size else "has grown"
            yield f"{file}: {what} ({found} bytes, not {size})"


def read_deleted(path: Path, checksum: str) -> Int64[np.ndarray, "n"]:
    """Read a file of deleted rows.

    Raises:
      ClaraError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClaraError(
            f"{path}: cannot be read ({error.strerror}); if the store was changed "
            "since it was opened, open it again"
        ) from error
    if checksum_of(data) != checksum:
        raise ClaraError(f"{path}: is damaged (its checksum is wrong)")
    return np.load(io.BytesIO(data), allow_pickle=False)

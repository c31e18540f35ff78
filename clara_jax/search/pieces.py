"""Pieces of documents beside their vectors: as objects, and as an Arrow table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt64

from clara_jax.errors import ClaraError


@dataclasses.dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one: what one row of a store stands for.

    Attributes:
      text: what was compressed.
      id: of the document; all its pieces share it. Empty: it has none, and cannot be
        deleted or replaced.
      title: of the document; may be empty.
      source: file of the document, with the line in a JSONL file.
      start, stop: where the piece lies in the document, in characters.
      part, parts: it is part 1, 2, ... of so many.
      metadata: further fields; JSON values.
    """

    text: str
    id: str = ""
    title: str = ""
    source: str = ""
    start: int = 0
    stop: int = 0
    part: int = 1
    parts: int = 1
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """The shortest name that says which piece it is."""
        lines = self.text.strip().splitlines()
        name = self.title or self.id or (lines[0][:60] if lines else self.source)
        return name if self.parts == 1 else f"{name} (part {self.part} of {self.parts})"


SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("title", pa.string()),
        ("source", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("part", pa.int32()),
        ("parts", pa.int32()),
        ("metadata", pa.string()),  # a JSON object, or empty
    ]
)


def to_table(pieces: Sequence[Piece]) -> pa.Table:
    """Put pieces into a table of `SCHEMA`.

    Raises:
      ClaraError: a string is no Unicode text, or metadata are no JSON.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for piece in pieces:
        for name, column in columns.items():
            column.append(getattr(piece, name))
        columns["metadata"][-1] = _metadata(piece)
    try:
        return pa.table(columns, schema=SCHEMA)
    except UnicodeEncodeError as error:
        place = _not_unicode(pieces)
        raise ClaraError(
            f"{place}: holds half of a surrogate pair, which is no text"
        ) from error


def from_table(table: pa.Table) -> list[Piece]:
    """Read the pieces of a table of `SCHEMA`."""
    rows = table.to_pylist()
    return [
        Piece(**{**row, "metadata": json.loads(row["metadata"] or "{}")})
        for row in rows
    ]


def table_bytes(table: pa.Table) -> pa.Buffer:
    """Write a table as an Arrow file: one batch, uncompressed, to be memory-mapped."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        # Copied, so that slices and joined tables give the same bytes as new ones.
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return sink.getvalue()


def map_table(path: Path) -> pa.Table:
    """Memory-map an Arrow file.

    Raises:
      ClaraError: it is missing or damaged.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise ClaraError(
            f"{path}: cannot be read; look at the store with --check"
        ) from error


def text_hashes(texts: Iterable[str]) -> UInt64[np.ndarray, "n"]:
    """First 8 bytes of blake2b of each text, to find it by."""
    found = [_hash(text.encode()).digest() for text in texts]
    return np.frombuffer(b"".join(found), "<u8").astype(np.uint64)


def _hash(data: bytes) -> Any:
    return hashlib.blake2b(data, digest_size=8)


def _metadata(piece: Piece) -> str:
    if not piece.metadata:
        return ""
    try:
        return json.dumps(piece.metadata, sort_keys=True, ensure_ascii=True)
    except (TypeError, ValueError) as error:
        raise ClaraError(
            f"{piece.source or piece.label}: its metadata are no JSON ({error})"
        ) from error


def _not_unicode(pieces: Sequence[Piece]) -> str:
    for piece in pieces:
        try:
            "".join((piece.text, piece.id, piece.title, piece.source)).encode()
        except UnicodeEncodeError:
            name = piece.source or piece.id
            return name.encode("utf-8", "replace").decode() or "a piece"
    return "a piece"

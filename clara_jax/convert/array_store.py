"""Read a store of the format before Lance, of shards of arrays, to take it over."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clara_jax.documents import Document, fields_of, text_digest
from clara_jax.errors import ClaraError
from clara_jax.files import checksum, read_json


class ArrayStore:
    """A store that ``store.json`` describes.

    Attributes:
      settings: what its vectors have in common, as of ``search.StoreSettings``.
      shards: how many it has.
      digest: differs between stores.
      fields: of its documents' metadata, with their kinds.

    Raises:
      ClaraError: there is none, or it is damaged.
    """

    def __init__(self, path: Path):
        if not (path / "store.json").is_file():
            raise ClaraError(f"{path}: holds no store.json, so nothing to convert")
        values = read_json(path / "store.json")
        if values.pop("format", None) != 1:
            raise ClaraError(f"{path / 'store.json'}: is not of format 1")
        self.digest = values.pop("checksum", "")
        if (
            self.digest
            != text_digest(json.dumps({**values, "format": 1}, sort_keys=True)).hex()
        ):
            raise ClaraError(f"{path / 'store.json'}: is damaged (checksum)")
        self._path, self._shards = path, values.pop("shards")
        deleted = values.pop("deleted")
        for name in ("epoch", "generation", "job"):
            del values[name]
        self.settings = values
        self.shards = len(self._shards)
        self._deleted = np.empty(0, np.int64)
        if deleted is not None:
            _check(path / deleted["file"], deleted)
            self._deleted = np.load(path / deleted["file"])
        self._starts = np.cumsum([0, *(shard["rows"] for shard in self._shards)])
        self.fields = fields_of(
            d for k in range(self.shards) for d in self._documents(k)
        )

    def read(self, k: int) -> tuple[dict[str, np.ndarray], list[Document]]:
        """Read codes, scales and norms of a shard, and its documents, but deleted ones.

        Raises:
          ClaraError: a file of it is damaged.
        """
        folder = self._folder(k)
        for name, file in self._files(k).items():
            _check(folder / name, file)
        names = {"codes": "vectors", "scales": "scales", "norm": "norms"}
        arrays = {
            name: np.load(folder / f"{file}.npy", mmap_mode="r")
            for name, file in names.items()
            if (folder / f"{file}.npy").exists()
        }
        numbers = np.arange(*self._starts[k : k + 2])
        live = ~np.isin(numbers, self._deleted)
        documents = self._documents(k)
        kept = [documents[i] for i in np.flatnonzero(live)]
        return {name: array[live] for name, array in arrays.items()}, kept

    def _folder(self, k: int) -> Path:
        return self._path / "shards" / self._shards[k]["name"]

    def _files(self, k: int) -> dict[str, Any]:
        """Return the sizes and checksums of a shard's files, by name."""
        path, shard = self._folder(k) / "shard.json", self._shards[k]
        note = {"size": shard["sizes"]["shard.json"], "checksum": shard["digest"]}
        _check(path, note)
        return read_json(path)["files"]

    def _documents(self, k: int) -> list[Document]:
        path = self._folder(k) / "pieces.arrow"
        _check(path, self._files(k)["pieces.arrow"])
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return [
            Document(**{**row, "metadata": json.loads(row["metadata"] or "{}")})
            for row in table.to_pylist()
        ]


def _check(path: Path, note: Mapping[str, Any]) -> None:
    """Refuse a file that is not as it was written."""
    if checksum(path) != (note["size"], note["checksum"]):
        raise ClaraError(f"{path}: is damaged (its checksum is wrong)")

"""Read a store of the format before Lance, of shards of arrays, to take it over."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from clara_jax.config import parse
from clara_jax.documents import Document, fields_of, text_digest
from clara_jax.errors import ClaraError
from clara_jax.files import checksum, read_json
from clara_jax.search import StoreSettings


class OldStore:
    """A store that ``store.json`` describes.

    Attributes:
      settings: what its vectors have in common.
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
        self.settings = parse(StoreSettings, values, str(path / "store.json"))
        self.shards = len(self._shards)
        self._deleted = np.empty(0, np.int64)
        if deleted is not None:
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
        for name, file in read_json(folder / "shard.json")["files"].items():
            if checksum(folder / name) != (file["size"], file["checksum"]):
                raise ClaraError(f"{folder / name}: is damaged (its checksum is wrong)")
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

    def _documents(self, k: int) -> list[Document]:
        path = self._folder(k) / "pieces.arrow"
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowException) as error:
            raise ClaraError(f"{path}: cannot be read ({error})") from error
        return [
            Document(**{**row, "metadata": json.loads(row["metadata"] or "{}")})
            for row in table.to_pylist()
        ]

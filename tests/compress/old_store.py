"""Stores of the format before Lance, written as the code of that time wrote them."""

import dataclasses
import hashlib
import io
import json

import ml_dtypes
import numpy as np
import pyarrow as pa

SCHEMA = pa.schema(
    {
        **dict.fromkeys(("text", "id", "title", "source"), pa.string()),
        **dict.fromkeys(("start", "stop"), pa.int64()),
        **dict.fromkeys(("part", "parts"), pa.int32()),
        "metadata": pa.string(),
    }
)


def write_old_store(folder, settings, arrays, documents, shards=2, deleted=()):
    """Write a store.

    Args:
      folder: that it will be.
      settings: `StoreSettings`.
      arrays: codes, scales (if any) and norms, by the names that they have today.
      documents: of their rows.
      shards: how many to cut it into.
      deleted: numbers of rows that were deleted.
    """
    infos = []
    for k, rows in enumerate(np.array_split(np.arange(len(documents)), shards)):
        own = {name: array[rows] for name, array in arrays.items()}
        own_documents = [documents[i] for i in rows]
        infos.append(
            _write_shard(folder / "shards" / f"000001-{k:06d}", own, own_documents)
        )
    note = None
    if len(deleted):
        data = _array_bytes(np.asarray(deleted, np.int64))
        note = {"file": "deleted-000002.npy", "count": len(deleted)}
        note |= {"size": len(data), "checksum": _checksum(data)}
        (folder / note["file"]).write_bytes(data)
    values = dataclasses.asdict(settings)
    values |= {"epoch": 0, "generation": 2, "shards": infos, "deleted": note}
    values |= {"job": "", "format": 1}
    digest = _checksum(json.dumps(values, sort_keys=True).encode())
    (folder / "store.json").write_bytes(_json_bytes({**values, "checksum": digest}))


def _write_shard(folder, arrays, documents):
    folder.mkdir(parents=True)
    hashes = {
        f"{name}s": np.array(
            [_hash(getattr(document, name)) for document in documents], np.uint64
        )
        for name in ("text", "id")
    }
    names = {"codes": "vectors", "scales": "scales", "norm": "norms"}
    arrays = {names[name]: array for name, array in arrays.items()}
    contents = {
        f"{name}.npy": _array_bytes(array)
        for name, array in {**arrays, **hashes}.items()
    }
    rows = [
        {
            **vars(document),
            "metadata": json.dumps(document.metadata, sort_keys=True)
            if document.metadata
            else "",
        }
        for document in documents
    ]
    buffer = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    contents["pieces.arrow"] = buffer.getvalue().to_pybytes()
    files = {
        name: {"size": len(data), "checksum": _checksum(data)}
        for name, data in contents.items()
    }
    note = _json_bytes({"rows": len(documents), "job": "j" * 32, "files": files})
    for name, data in {**contents, "shard.json": note}.items():
        (folder / name).write_bytes(data)
    sizes = {name: file["size"] for name, file in files.items()}
    return {
        "name": folder.name,
        "rows": len(documents),
        "sizes": dict(sorted({**sizes, "shard.json": len(note)}.items())),
        "digest": _checksum(note),
    }


def _array_bytes(array):
    if array.dtype == ml_dtypes.bfloat16:
        array = array.view(np.uint16)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _json_bytes(values):
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=True)
    return text.encode() + b"\n"


def _checksum(data):
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _hash(text):
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")

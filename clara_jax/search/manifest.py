"""``store.json``: what a store of document vectors holds.

It is written last and by rename, so that it exists exactly when the store is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara_jax.config import MemoryConfig, parse, to_dict
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_error
from clara_jax.search.codecs import check_codec

FORMAT = 1
"""Of the folder; a program reads its own only."""

MANIFEST = "store.json"
JOB = "job.json"
SHARDS = "shards"


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """What all vectors of a store have in common.

    Attributes:
      fingerprint: of everything that document vectors depend on.
      model: how to load the model: a path relative to the store, an absolute one, or a
        hub name.
      base: the same for a backbone kept elsewhere; empty: none.
      memory: how a document became vectors.
      width: D.
      dtype: how vectors are kept, one of ``codecs.CODECS``.
      compute: type that the model computed in; for information.
      center: that int8 and int4 vectors are kept without, see ``codecs.center_of``.
    """

    fingerprint: str
    model: str
    base: str
    memory: MemoryConfig
    width: int
    dtype: str = "bfloat16"
    compute: str = ""
    center: str = ""

    def __post_init__(self) -> None:
        check_codec(self.dtype)

    @property
    def num_memory(self) -> int:
        """M, vectors per document."""
        return self.memory.num_memory


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard, as the manifest knows it.

    Attributes:
      name: its folder under ``shards/``.
      rows: pieces in it.
      sizes: bytes of each of its files.
      digest: checksum of its ``shard.json``, which holds those of its other files.
    """

    name: str
    rows: int
    sizes: Mapping[str, int]
    digest: str


@dataclasses.dataclass(frozen=True)
class DeletedInfo:
    """The file of deleted row numbers: sorted int64."""

    file: str
    count: int
    size: int
    checksum: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(StoreSettings):
    """A store at one moment.

    Attributes:
      epoch: raised by compaction, which gives pieces other row numbers.
      generation: raised by every change.
      shards: in the order of their rows.
      deleted: rows that are no longer part of it; None: all are.
      job: digest of the job that made this generation; empty after an edit.
    """

    epoch: int = 0
    generation: int = 1
    shards: tuple[ShardInfo, ...] = ()
    deleted: DeletedInfo | None = None
    job: str = ""

    @property
    def rows(self) -> int:
        """Rows of all shards, deleted ones included."""
        return sum(shard.rows for shard in self.shards)


def settings_dict(settings: StoreSettings) -> dict[str, Any]:
    """Settings as a JSON object."""
    names = [field.name for field in dataclasses.fields(StoreSettings)]
    values = {name: getattr(settings, name) for name in names}
    return {**values, "memory": to_dict(settings.memory)}


def parse_settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments of `StoreSettings` from a JSON object."""
    names = [field.name for field in dataclasses.fields(StoreSettings)]
    found = {name: values[name] for name in names if name in values}
    return {**found, "memory": parse(MemoryConfig, values["memory"], where)}


def read_manifest(store: Path) -> Manifest:
    """Read the manifest of a store.

    Raises:
      ClaraError: there is no store, or it is unfinished, damaged or of another format.
    """
    path = store / MANIFEST
    if not path.is_file():
        if (store / JOB).is_file():
            raise ClaraError(
                f"{store}: is not finished; go on with the same `python -m "
                "clara_jax.compress` command"
            )
        raise ClaraError(
            f"{store}: holds no {MANIFEST}, so it is no store of document vectors; "
            "make one with `python -m clara_jax.compress`"
        )
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise ClaraError(
            f"{path}: is of format {values.get('format')!r}, but this version of "
            f"clara_jax reads format {FORMAT}; use the version that wrote it, or "
            "compress the documents again"
        )
    checksum = values.pop("checksum", None)
    if checksum != digest_of(values):
        raise ClaraError(
            f"{path}: is damaged (its checksum is wrong); bring back a copy of the "
            "file, or compress the documents again"
        )
    deleted = values["deleted"]
    return Manifest(
        **parse_settings(values, str(path)),
        epoch=values["epoch"],
        generation=values["generation"],
        shards=tuple(ShardInfo(**shard) for shard in values["shards"]),
        deleted=None if deleted is None else DeletedInfo(**deleted),
        job=values["job"],
    )


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Put a manifest in place of the one that is there.

    Raises:
      ClaraError: it cannot be written; the old one stays.
    """
    values = {
        "format": FORMAT,
        **settings_dict(manifest),
        "epoch": manifest.epoch,
        "generation": manifest.generation,
        "shards": [dataclasses.asdict(shard) for shard in manifest.shards],
        "deleted": manifest.deleted and dataclasses.asdict(manifest.deleted),
        "job": manifest.job,
    }
    values["checksum"] = digest_of(values)
    replace_file(store / MANIFEST, json_bytes(values))


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Write a JSON object so that equal ones give the same bytes."""
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=True)
    return text.encode() + b"\n"


def digest_of(values: Mapping[str, Any]) -> str:
    """Digest of a JSON object, whatever the order of its keys."""
    return checksum_of(json.dumps(values, sort_keys=True).encode())


def checksum_of(data: Any) -> str:
    """Checksum of bytes, as all files of a store have one."""
    return new_checksum(data).hexdigest()


def new_checksum(data: Any = b"") -> Any:
    """Start a checksum of bytes that come in parts."""
    return hashlib.blake2b(data, digest_size=16)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; several processes may write the same one.

    Raises:
      ClaraError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error

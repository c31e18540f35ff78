"""Look every byte of a store over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.files import first_line, read_json
from clara_jax.search.commit import find_strays
from clara_jax.search.jobs import read_job, shard_name
from clara_jax.search.manifest import (
    MANIFEST,
    SHARDS,
    Manifest,
    ShardInfo,
    checksum_of,
    new_checksum,
    read_manifest,
)
from clara_jax.search.pieces import map_table
from clara_jax.search.shards import NOTE, TABLE, layout, read_info
from clara_jax.search.store import read_deleted

_AT_ONCE = 1 << 20


def check(
    path: str | os.PathLike, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Compare every file of a store with its checksum and its counts.

    Of a job that is still under way, the shards that are written are looked at, too.
    Search indexes are left out: they can be built again.

    Args:
      path: the store.
      progress: told now and then how many bytes are read, of how many.

    Returns:
      One line for each thing that is wrong, none if the store is whole.

    Raises:
      ClaraError: there is no store.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except ClaraError as error:
        if not (path / MANIFEST).is_file():
            raise
        return [str(error)]
    findings: list[str] = []
    shards, strays = list(manifest.shards), find_strays(path, manifest)
    try:
        job = read_job(path, manifest)
    except ClaraError as error:
        job = None
        findings.append(str(error))
    if job is not None:
        own = {shard_name(job["generation"], k) for k in range(job["shards"])}
        ours, strays = _of_job(strays, own, findings)
        shards += ours
    meter = _Meter(sum(sum(shard.sizes.values()) for shard in shards), progress)
    for shard in shards:
        findings += check_shard(path / SHARDS / shard.name, shard, manifest, meter)
    findings += _check_deleted(path, manifest)
    for stray in strays:
        findings.append(
            f"{stray}: does not belong to the store; a command that was killed left it "
            "there, and the next --add, --delete or --compact removes it"
        )
    return findings


class _Meter:
    """Counts bytes that were read."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None):
        self._done, self._total, self._progress = 0, total, progress

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _of_job(
    strays: list[Path], own: set[str], findings: list[str]
) -> tuple[list[ShardInfo], list[Path]]:
    """Shards that an unfinished job has written, and what else lies about."""
    shards, rest = [], []
    for stray in strays:
        if stray.parent.name != SHARDS or stray.name.lstrip(".")[:13] not in own:
            rest.append(stray)
        elif not stray.name.startswith("."):
            try:
                shards.append(read_info(stray)[0])
            except ClaraError as error:
                findings.append(str(error))
    return shards, rest


def check_shard(
    folder: Path, shard: ShardInfo, manifest: Manifest, meter: _Meter | None = None
) -> Iterator[str]:
    """Compare a shard's files with their checksums, and say what is wrong."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        yield f"{folder}: cannot be read ({error.strerror})"
        return
    for name in sorted(names - set(shard.sizes)):
        yield f"{folder / name}: does not belong to the store"
    checksums: dict[str, Any] = {}
    try:
        if checksum_of((folder / NOTE).read_bytes()) == shard.digest:
            checksums = read_json(folder / NOTE)["files"]
    except OSError:
        pass  # said below
    broken = False
    for name, size in shard.sizes.items():
        file = folder / name
        found = _read(file, size, meter)
        if isinstance(found, str):
            broken = True
            yield f"{file}: {found}"
        elif name == NOTE:
            if found.hexdigest() != shard.digest:
                yield (
                    f"{file}: is damaged (its checksum is wrong), so the other files "
                    "of this shard can be compared by size only"
                )
        elif checksums and found.hexdigest() != checksums[name]["checksum"]:
            broken = True
            yield f"{file}: is damaged (its checksum is wrong)"
    if not broken:
        yield from _check_counts(folder, shard, manifest)


def _read(file: Path, size: int, meter: _Meter | None) -> Any:
    """Checksum of a file, or what is wrong with it."""
    checksum, count = new_checksum(), 0
    try:
        with file.open("rb") as stream:
            while data := stream.read(_AT_ONCE):
                checksum.update(data)
                count += len(data)
                if meter is not None:
                    meter.add(len(data))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if count != size:
        what = "is truncated" if count < size else "has grown"
        return f"{what} ({count} bytes, not {size})"
    return checksum


def _check_counts(folder: Path, shard: ShardInfo, manifest: Manifest) -> Iterator[str]:
    """Whether the files themselves say what the manifest says of them."""
    for name, (kind, shape) in layout(manifest, shard.rows).items():
        try:
            array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            yield f"{folder / name}: cannot be read ({first_line(error)})"
            continue
        if (array.dtype, array.shape) != (kind, shape):
            yield (
                f"{folder / name}: holds {array.dtype} {array.shape}, but the manifest "
                f"says {kind} {shape}"
            )
    try:
        rows = map_table(folder / TABLE).num_rows
    except ClaraError as error:
        yield str(error)
        return
    if rows != shard.rows:
        yield f"{folder / TABLE}: holds {rows} pieces, the manifest says {shard.rows}"


def _check_deleted(path: Path, manifest: Manifest) -> Iterator[str]:
    info = manifest.deleted
    if info is None:
        return
    try:
        rows = read_deleted(path / info.file, info.checksum)
    except ClaraError as error:
        yield str(error)
        return
    inside = not len(rows) or (rows[0] >= 0 and rows[-1] < manifest.rows)
    if len(rows) != info.count or not inside or (np.diff(rows) <= 0).any():
        yield (
            f"{path / info.file}: does not hold {info.count} ascending row numbers of "
            "the store"
        )

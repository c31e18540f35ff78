"""The one step that changes a store: another manifest in place of the old one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clara_jax.errors import ClaraError
from clara_jax.search.jobs import read_job
from clara_jax.search.lookup import Lookup
from clara_jax.search.manifest import (
    JOB,
    SHARDS,
    DeletedInfo,
    Manifest,
    checksum_of,
    replace_file,
    write_manifest,
)
from clara_jax.search.pieces import text_hashes
from clara_jax.search.shards import NOTE, read_info
from clara_jax.search.store import Store

_MIX = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 4096


def check_ids(store: Store, start: int) -> None:
    """Refuse two documents of one id among the rows from `start` on.

    Two pieces that are the same part of the same id belong to two documents. Pieces
    without an id are not looked at.

    Raises:
      ClaraError: names the id and the sources of both.
    """
    hashes = store.hashes("id", start)
    parts = store.numbers("part", start)
    rows = start + np.flatnonzero(hashes != text_hashes([""])[0])
    keys = hashes[rows - start] ^ (parts[rows - start].astype(np.uint64) * _MIX)
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    # Only by chance do two equal keys mean nothing; the first true pair ends this.
    for place in twice:
        one, other = store.pieces(rows[order[place : place + 2]])
        if (one.id, one.part) == (other.id, other.part):
            raise ClaraError(
                f"{store.path}: two documents have the id '{one.id}' (from "
                f"{one.source or 'an unnamed source'} and from "
                f"{other.source or 'an unnamed source'}); give each its own id"
            )


def replaced(store: Store, start: int) -> Int64[np.ndarray, "n"]:
    """Find live rows before `start` whose document is among those from `start` on.

    Returns:
      Ascending row numbers.
    """
    hashes = store.hashes("id")
    old, new = hashes[:start], hashes[start:]
    new_rows = start + np.flatnonzero(new != text_hashes([""])[0])
    lookup = Lookup(hashes[new_rows], new_rows, lambda rows: store.strings(rows, "id"))
    likely = np.flatnonzero(np.isin(old, hashes[new_rows]) & store.live[:start])
    found = [np.empty(0, np.int64)]
    for place in range(0, len(likely), _AT_ONCE):
        rows = likely[place : place + _AT_ONCE]
        found.append(rows[lookup.first(store.strings(rows, "id")) >= 0])
    return np.concatenate(found)


def swap(path: Path, manifest: Manifest, deleted: Int64[np.ndarray, "n"]) -> Manifest:
    """Make `manifest` the store's, with some more rows deleted.

    Args:
      path: the store.
      manifest: new but for its deleted rows, which are still those before.
      deleted: ascending numbers of rows to delete besides.

    Returns:
      What was written.

    Raises:
      ClaraError: it cannot be written; the store stays as it was.
    """
    if len(deleted):
        rows = np.union1d(Store(path, manifest).deleted, deleted)
        buffer = io.BytesIO()
        np.save(buffer, rows.astype(np.int64), allow_pickle=False)
        data = buffer.getvalue()
        name = f"deleted-{manifest.generation:06d}.npy"
        replace_file(path / name, data)
        info = DeletedInfo(name, len(rows), len(data), checksum_of(data))
        manifest = dataclasses.replace(manifest, deleted=info)
    write_manifest(path, manifest)
    return manifest


def remove_strays(path: Path, manifest: Manifest | None, job: str) -> None:
    """Remove what no longer belongs to a store, as far as that can be done.

    Args:
      path: the store.
      manifest: names what belongs to it; None: nothing yet.
      job: digest of a job whose shards stay, too.
    """
    for stray in find_strays(path, manifest):
        if stray.is_dir():
            if job and _belongs(stray, job):
                continue
            shutil.rmtree(stray, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                stray.unlink(missing_ok=True)


def find_strays(path: Path, manifest: Manifest | None) -> list[Path]:
    """List what killed processes left in a store: files that it does not name."""
    shards = set() if manifest is None else {shard.name for shard in manifest.shards}
    found = [
        stray for stray in sorted(path.glob(f"{SHARDS}/*")) if stray.name not in shards
    ]
    named = None if manifest is None or not manifest.deleted else manifest.deleted.file
    found += [stray for stray in path.glob("deleted-*.npy") if stray.name != named]
    found += sorted(path.glob(".*.tmp"))
    with contextlib.suppress(ClaraError):
        if manifest is not None and read_job(path, manifest) is None:
            found += path.glob(JOB)
    return found


def _belongs(shard: Path, job: str) -> bool:
    if not (shard / NOTE).is_file():
        return False
    with contextlib.suppress(ClaraError):
        return read_info(shard)[1] == job
    return False

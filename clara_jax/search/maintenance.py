"""Take documents out of a store, give their room back, and check every byte."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clara_jax.errors import ClaraError
from clara_jax.files import read_json
from clara_jax.search import manifest as disk
from clara_jax.search.manifest import JOB, MANIFEST, SHARDS, ShardInfo, wrong_file
from clara_jax.search.store import NOTE, Store, read_shard, write_shard

SHARD_BYTES, SHARD_ROWS = 1 << 26, 8192
"""Most bytes of codes, and rows, of a shard that compaction writes from memory."""


def delete(path: str | os.PathLike, ids: Sequence[str]) -> int:
    """Take documents out of a store; return how many rows those were.

    The files stay as they are until `compact`.

    Raises:
      ClaraError: the store has no document of an id (then none is deleted), another
        process is changing it, or the disk is full.
    """
    with _alone(Path(path)) as store:
        rows = {id: store.rows_of(id) for id in ids}
        unknown = [f"'{id}'" for id, found in rows.items() if not id or not len(found)]
        if unknown:
            names = ", ".join(unknown[:5])
            names += f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            what = f"has no document with the id {names}; nothing was deleted"
            raise ClaraError(f"{path}: {what}")
        if not rows:
            return 0
        deleted = np.concatenate(list(rows.values()))
        disk.replace_manifest(store.path, store.manifest.edited(), deleted)
    return len(deleted)


def compact(
    path: str | os.PathLike, progress: Callable[[int, int], None] = lambda *_: None
) -> int:
    """Drop deleted rows for good, join small shards, and return how many were dropped.

    Rows keep their order but get other numbers: the epoch is raised. After each shard
    `progress` is called with how many rows are written, of how many.

    Raises:
      ClaraError: another process is changing the store, a shard to be rewritten is
        damaged, or the disk is full: new shards need room beside the old ones.
    """
    with _alone(Path(path)) as store:
        plan = _plan(store)
        todo = sum(len(group) for group in plan if not isinstance(group, ShardInfo))
        if not todo and len(plan) == len(store.manifest.shards):
            return 0
        kept = {group.name for group in plan if isinstance(group, ShardInfo)}
        for shard in store.manifest.shards:
            # Written anew, damage would get a checksum of its own.
            if shard.name not in kept:
                for finding in _check_shard(store.path, shard):
                    raise ClaraError(f"{finding}; nothing was compacted")
        shards: list[ShardInfo] = []
        generation, done, new = store.generation + 1, 0, itertools.count()
        for group in plan:
            if not isinstance(group, ShardInfo):
                folder = disk.shard_folder(store.path, generation, next(new))
                done += len(group)
                group = write_shard(folder, store.arrays(group), store.table(group))
                progress(done, todo)
            shards.append(group)
        changes = {"epoch": store.epoch + 1, "shards": tuple(shards), "deleted": None}
        disk.replace_manifest(store.path, store.manifest.edited(**changes))
    return store.rows - len(store)


def check(
    path: str | os.PathLike, progress: Callable[[int, int], None] = lambda *_: None
) -> list[str]:
    """Compare every file with its checksum; return a line for each thing that is wrong.

    Shards of a job under way are checked too; search indexes, which can be built again,
    are not. After each shard `progress` is called with the bytes read, of how many.

    Raises:
      ClaraError: there is no store.
    """
    path = Path(path)
    findings: list[str] = []
    try:
        manifest = disk.read_manifest(path)
    except ClaraError as error:
        if not (path / MANIFEST).is_file():
            raise
        return [str(error)]
    shards = list(manifest.shards)
    try:
        if job := disk.read_job(path, manifest):
            folders = path.glob(f"{SHARDS}/{job['generation']:06d}-*")
            shards += [read_shard(folder)[0] for folder in sorted(folders)]
    except ClaraError as error:
        findings.append(str(error))
    sizes = [sum(shard.sizes.values()) for shard in shards]
    for shard, done in zip(shards, itertools.accumulate(sizes), strict=True):
        findings += _check_shard(path, shard)
        progress(done, sum(sizes))
    try:
        disk.read_deleted(path, manifest)
    except ClaraError as error:
        findings.append(str(error))
    remedy = (
        "does not belong to the store; a command that was killed left it there, and "
        "the next --add, --delete or --compact removes it"
    )
    strays = disk.find_strays(path, manifest)
    return findings + [f"{stray}: {remedy}" for stray in strays]


def _check_shard(store: Path, shard: ShardInfo) -> Iterator[str]:
    """Compare a shard's files with their checksums; yield what is wrong."""
    folder = store / SHARDS / shard.name
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        yield f"{folder}: cannot be read ({error.strerror})"
        return
    for name in sorted(names - set(shard.sizes)):
        yield f"{folder / name}: does not belong to the store"
    checksums = {}
    if not wrong_file(folder / NOTE, shard.sizes[NOTE], shard.digest):
        files = read_json(folder / NOTE)["files"]
        checksums = {name: file["checksum"] for name, file in files.items()}
    checksums[NOTE] = shard.digest
    for name, size in shard.sizes.items():
        if wrong := wrong_file(folder / name, size, checksums.get(name, "")):
            if name == NOTE:
                wrong += ", so the other files of this shard are compared by size only"
            yield f"{folder / name}: {wrong}"


def _plan(store: Store) -> list[ShardInfo | Int64[np.ndarray, "n"]]:
    """Return the new shards in order: an old one that stays, or rows to write."""
    size = max(1, min(SHARD_ROWS, SHARD_BYTES // max(1, store.row_bytes)))
    groups: list[list[tuple[ShardInfo, Int64[np.ndarray, "k"]]]] = [[]]
    start = 0
    for info in store.manifest.shards:
        rows = start + np.flatnonzero(store.live[start : start + info.rows])
        start += info.rows
        if len(rows) == info.rows and 2 * len(rows) >= size:
            groups += [[(info, rows)], []]
            continue
        groups[-1].append((info, rows))
        if sum(len(part) for _, part in groups[-1]) >= size:
            groups.append([])
    plan: list[ShardInfo | Int64[np.ndarray, "n"]] = []
    for group in filter(None, groups):
        rows = np.concatenate([part for _, part in group])
        if len(group) == 1 and len(rows) == group[0][0].rows > 0:
            plan.append(group[0][0])
        else:
            plan += [rows[i : i + size] for i in range(0, len(rows), size)]
    return plan


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Store]:
    """Open a store and hold it alone; refuse one with an unfinished job."""
    disk.read_manifest(path)  # before a folder for locks is made where no store is
    with disk.hold_store(path):
        if disk.held_parts(path):
            what = "another process is writing to this store; wait until it has ended"
            raise ClaraError(f"{path}: {what}")
        store = Store.open(path)
        if disk.read_job(path, store.manifest) is not None:
            raise ClaraError(
                f"{path}: documents are still being added; finish that with the "
                f"command that began it, or remove {path / JOB} to give it up"
            )
        disk.remove(disk.find_strays(path, store.manifest))
        try:
            yield store
        finally:
            # What the old manifest named, or what was to be named by a new one.
            disk.remove(disk.find_strays(path, disk.read_manifest(path)))

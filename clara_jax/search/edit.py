"""Take documents out of a store, and give the room that they took back."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clara_jax.errors import ClaraError
from clara_jax.search.check import check_shard
from clara_jax.search.codecs import code_type
from clara_jax.search.commit import remove_strays, swap
from clara_jax.search.jobs import read_job, shard_name
from clara_jax.search.locks import hold_store, sweep
from clara_jax.search.manifest import (
    JOB,
    SHARDS,
    ShardInfo,
    StoreSettings,
    read_manifest,
)
from clara_jax.search.shards import write_contents
from clara_jax.search.store import Store

SHARD_BYTES = 1 << 26
"""Of codes, about, in a shard that compaction writes: it keeps one in memory."""

SHARD_ROWS = 8192
"""Most rows of such a shard."""


def delete(path: str | os.PathLike, ids: Sequence[str]) -> int:
    """Take documents out of a store; their pieces are found no more.

    The files stay as they are until `compact`.

    Args:
      path: the store.
      ids: of documents.

    Returns:
      How many pieces were deleted.

    Raises:
      ClaraError: the store has no document of an id (then none is deleted), another
        process is changing it, or the disk is full.
    """
    with _alone(Path(path)) as store:
        wanted = list(dict.fromkeys(ids))
        unknown = [
            f"'{id}'"
            for id, known in zip(wanted, store.known(wanted), strict=True)
            if not id or not known
        ]
        if unknown:
            rest = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ClaraError(
                f"{path}: has no document with the id {', '.join(unknown[:5])}{rest}; "
                "nothing was deleted"
            )
        if not wanted:
            return 0
        rows = np.sort(np.concatenate([store.rows_of(id) for id in wanted]))
        manifest = dataclasses.replace(
            store.manifest, generation=store.generation + 1, job=""
        )
        swap(store.path, manifest, rows)
    return len(rows)


def compact(
    path: str | os.PathLike, progress: Callable[[int, int], None] | None = None
) -> int:
    """Rewrite the shards of which something was deleted, and join small ones.

    Rows keep their order but get other numbers, so the epoch is raised. Killed at any
    moment, the store is what it was before, or compacted.

    Args:
      path: the store.
      progress: told after each shard how many rows are written, of how many to write.

    Returns:
      How many rows were dropped.

    Raises:
      ClaraError: another process is changing the store, a shard to be rewritten is
        damaged, or the disk is full: the new shards need their room before the old ones
        are removed.
    """
    with _alone(Path(path)) as store:
        plan = _plan(store)
        todo = sum(len(group) for group in plan if not isinstance(group, ShardInfo))
        if not todo and len(plan) == len(store.manifest.shards):
            return 0
        kept = {group.name for group in plan if isinstance(group, ShardInfo)}
        for shard in store.manifest.shards:
            if shard.name in kept:
                continue
            # Written anew, damage would get a checksum of its own.
            folder = store.path / SHARDS / shard.name
            for finding in check_shard(folder, shard, store.manifest):
                raise ClaraError(f"{finding}; nothing was compacted")
        shards: list[ShardInfo] = []
        done = written = 0
        for group in plan:
            if isinstance(group, ShardInfo):
                shards.append(group)
                continue
            name = shard_name(store.generation + 1, written)
            contents = store.contents(group)
            shards.append(write_contents(store.path / SHARDS / name, contents))
            done, written = done + len(group), written + 1
            if progress is not None:
                progress(done, todo)
        manifest = dataclasses.replace(
            store.manifest,
            epoch=store.epoch + 1,
            generation=store.generation + 1,
            shards=tuple(shards),
            deleted=None,
            job="",
        )
        swap(store.path, manifest, np.empty(0, np.int64))
    return store.rows - len(store)


def shard_rows(settings: StoreSettings) -> int:
    """Rows of a shard that compaction writes."""
    kind, length = code_type(settings.dtype, settings.width)
    size = settings.num_memory * length * kind.itemsize
    return max(1, min(SHARD_ROWS, SHARD_BYTES // max(1, size)))


def _plan(store: Store) -> list[ShardInfo | Int64[np.ndarray, "n"]]:
    """New shards in their order: old ones that stay, or the rows of one to write."""
    size = shard_rows(store.manifest)
    plan: list[ShardInfo | Int64[np.ndarray, "n"]] = []
    waiting: list[tuple[ShardInfo, Int64[np.ndarray, "k"]]] = []

    def flush() -> None:
        whole = len(waiting) == 1 and waiting[0][0].rows == len(waiting[0][1])
        rows = [part for _, part in waiting if len(part)]
        if whole and rows:
            plan.append(waiting[0][0])
        elif rows:
            joined = np.concatenate(rows)
            plan.extend(joined[i : i + size] for i in range(0, len(joined), size))
        waiting.clear()

    start = 0
    for info in store.manifest.shards:
        rows = start + np.flatnonzero(store.live[start : start + info.rows])
        start += info.rows
        if len(rows) == info.rows and 2 * len(rows) >= size:
            flush()
            plan.append(info)
            continue
        waiting.append((info, rows))
        if sum(len(part) for _, part in waiting) >= size:
            flush()
    flush()
    return plan


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Store]:
    """A store that nobody else changes meanwhile, and that nobody is adding to."""
    read_manifest(path)  # before a folder for locks is made where no store is
    lock = hold_store(path, shared=False)
    try:
        store = Store.open(path)
        if read_job(path, store.manifest) is not None:
            raise ClaraError(
                f"{path}: documents are still being added; finish that with the "
                f"command that began it, or remove {path / JOB} to give it up"
            )
        remove_strays(path, store.manifest, "")
        try:
            yield store
        finally:
            # What the old manifest named, or what was to be named by a new one.
            remove_strays(path, read_manifest(path), "")
    finally:
        lock.release()
        sweep(path)

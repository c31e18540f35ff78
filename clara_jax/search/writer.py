"""Write a store: a job cut in numbered shards, which any process may write.

Killed at any moment and begun again, a job loses the shard at hand at most, and the
finished store is byte for byte the same, whoever wrote which shard and in what order.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from clara_jax.errors import ClaraError
from clara_jax.files import read_json
from clara_jax.search.codecs import center_of, read_center
from clara_jax.search.commit import (
    check_ids,
    remove_strays,
    replaced,
    swap,
)
from clara_jax.search.jobs import (
    check_folder,
    check_same,
    check_settings,
    job_digest,
    new_job,
    read_job,
    shard_name,
    signed,
)
from clara_jax.search.locks import Lock, hold_begin, hold_part, hold_store, sweep
from clara_jax.search.manifest import (
    JOB,
    MANIFEST,
    SHARDS,
    Manifest,
    StoreSettings,
    json_bytes,
    parse_settings,
    read_manifest,
    replace_file,
)
from clara_jax.search.pieces import Piece
from clara_jax.search.shards import (
    NOTE,
    ShardInfo,
    contents_of,
    leftovers,
    read_info,
    write_contents,
)
from clara_jax.search.store import Store

__all__ = ["Job", "ShardInfo", "StoreSettings", "write_shard", "write_store"]


def write_shard(
    folder: Path,
    vectors: Float[np.ndarray, "n M D"],
    pieces: Sequence[Piece],
    dtype: str,
) -> ShardInfo:
    """Write one shard, whole or not at all; one that is there already is replaced.

    Args:
      folder: of the shard; its name is the shard's.
      vectors: document vectors; n may be 0.
      pieces: what each of them stands for.
      dtype: codec, one of ``codecs.CODECS``.

    Returns:
      What a manifest says of it.

    Raises:
      ClaraError: it cannot be written (nothing is left behind), a vector is not finite,
        or a piece cannot be kept.
    """
    return write_contents(folder, contents_of(vectors, pieces, dtype))


class Job:
    """One writing of a store: a new one, or more documents for one that is there.

    Every process begins the same job, asks for the shards of its part that are
    `missing`, writes them, and commits; whoever is last makes the store.

        with Job.begin(path, settings, shards, corpus) as job:
            for k in job.missing(part, parts):
                job.write(k, *vectors_and_pieces(k))
            store = job.commit()

    Attributes:
      store: the folder.
      shards: how many the job has.
      generation: of the store that it makes; names its shards.
      finished: the store is there, made by this very job.
    """

    def __init__(self, store: Path, values: Mapping[str, Any], lock: Lock):
        """Take what ``job.json`` holds; use `begin`."""
        self.store = store
        self.shards: int = values["shards"]
        self.generation: int = values["generation"]
        self.mode: str = values["mode"]
        self.finished = False
        self._settings = StoreSettings(**parse_settings(values["settings"], str(store)))
        self._digest = job_digest(values)
        self._locks = [lock]
        self._mark = "0-1"

    @classmethod
    def begin(
        cls,
        store: str | os.PathLike,
        settings: StoreSettings,
        shards: int,
        corpus: Mapping[str, Any],
        mode: Literal["new", "add", "replace"] = "new",
    ) -> Job:
        """Begin a job, or go on with it.

        Args:
          store: folder of the store.
          settings: what its vectors have in common. Of a job that goes on, ``model``
            and ``base`` may be other spellings and ``center`` another; when documents
            are added, they and ``compute`` stay the store's.
          shards: how many shards the corpus makes.
          corpus: a JSON object that says what is compressed, such as names, sizes and
            checksums of files; a job with another one is refused.
          mode: ``new`` makes a store; ``add`` puts documents into one and refuses ids
            that it has; ``replace`` takes out documents with the same ids.

        Returns:
          The job, which keeps edits out until it is closed.

        Raises:
          ClaraError: another job is under way here (names what differs), there is a
            store already (or none to add to), another model made it, or an edit is
            running.
        """
        path = Path(store)
        check_folder(path, mode)
        lock = hold_store(path, shared=True)
        try:
            begun = hold_begin(path)
            try:
                return cls._begin(path, settings, shards, corpus, mode, lock)
            finally:
                begun.release()
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _begin(
        cls,
        path: Path,
        settings: StoreSettings,
        shards: int,
        corpus: Mapping[str, Any],
        mode: str,
        lock: Lock,
    ) -> Job:
        before = read_manifest(path) if (path / MANIFEST).is_file() else None
        if before is not None:
            settings = dataclasses.replace(settings, center=before.center)
        values = new_job(settings, shards, corpus, mode, before)
        digest = job_digest(values)
        begun = read_job(path, before)
        if begun is None and before is not None and before.job == digest:
            job = cls(path, values, lock)
            job.generation, job.finished = before.generation, True
            remove_strays(path, before, "")
            return job
        if before is not None:
            check_settings(path, before, settings, mode)
        if begun is not None:
            check_same(path, begun, values)
            return cls(path, begun, lock)
        remove_strays(path, before, digest)
        replace_file(path / JOB, json_bytes(signed(values)))
        return cls(path, values, lock)

    def missing(self, part: int = 0, parts: int = 1) -> list[int]:
        """Take a part of the shards, and find which of them are not written yet.

        Args:
          part, parts: shards ``k`` with ``k % parts == part``; counted from 0.

        Returns:
          Numbers of shards.

        Raises:
          ClaraError: another process is writing this part, or counts other parts.
        """
        if not 0 <= part < parts:
            raise ClaraError(
                f"there is no part {part + 1} of {parts}; parts are counted from 1"
            )
        if self.finished:
            return []
        for lock in self._locks[1:]:
            lock.release()
        self._locks[1:] = [hold_part(self.store, part, parts)]
        self._mark = f"{part}-{parts}"
        numbers = range(part, self.shards, parts)
        for k in numbers:
            for path in leftovers(self._folder(k)):
                shutil.rmtree(path, ignore_errors=True)
        return [k for k in numbers if self._info(k) is None]

    def write(
        self, k: int, vectors: Float[np.ndarray, "n M D"], pieces: Sequence[Piece]
    ) -> None:
        """Write shard `k`, whole or not at all; nothing if it is there already.

        Args:
          k: its number.
          vectors: document vectors; n may be 0.
          pieces: what each of them stands for. All pieces of a document go into one
            shard.

        Raises:
          ClaraError: see `write_shard`; or the vectors are not of the store's shape.
        """
        expected = (self._settings.num_memory, self._settings.width)
        if vectors.shape[1:] != expected:
            raise ClaraError(
                f"{self.store}: keeps {expected[0]} vectors of width {expected[1]} for "
                f"a piece, but was given {vectors.shape[1]} of {vectors.shape[2]}"
            )
        if self._info(k) is None:
            center = read_center(self._settings.center, expected)
            contents = contents_of(vectors, pieces, self._settings.dtype, center)
            write_contents(self._folder(k), contents, job=self._digest, mark=self._mark)

    def commit(self) -> Store | None:
        """Make the store of all shards, once they are there.

        Returns:
          The store; None while shards of other parts are missing.

        Raises:
          ClaraError: two documents have one id, the store has it already (mode
            ``add``), or the disk is full; the store stays as it was.
        """
        if not self.finished:
            # Listed, which on network disks shows what other hosts wrote just now.
            there = {path.name for path in (self.store / SHARDS).glob("*")}
            infos = [
                self._info(k) if self._folder(k).name in there else None
                for k in range(self.shards)
            ]
            whole = [info for info in infos if info is not None]
            if len(whole) < self.shards:
                # The part that was last may have finished the store just now.
                if not self._is_committed():
                    return None
            else:
                # One after the other: the second finds the first one's store.
                begun = hold_begin(self.store)
                try:
                    self._commit(whole)
                except ClaraError:
                    if not self._is_committed():
                        raise
                finally:
                    begun.release()
            self.finished = True
        self.close()
        return Store.open(self.store)

    def abandon(self) -> None:
        """Give a job up of which nothing has been written yet."""
        if not any(map(Path.exists, map(self._folder, range(self.shards)))):
            (self.store / JOB).unlink(missing_ok=True)

    def close(self) -> None:
        """Let others in; a job that is not finished can be begun again."""
        for lock in reversed(self._locks):
            lock.release()
        sweep(self.store)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _commit(self, infos: list[ShardInfo]) -> None:
        if self._is_committed():
            return
        # Read again: the settings on disk are the same for whoever commits.
        settings = parse_settings(
            read_json(self.store / JOB)["settings"], str(self.store / JOB)
        )
        before = None
        if self.mode != "new":
            before = read_manifest(self.store)
            settings = {name: getattr(before, name) for name in settings}
        manifest = Manifest(
            **settings,
            epoch=0 if before is None else before.epoch,
            generation=self.generation,
            shards=(() if before is None else before.shards) + tuple(infos),
            deleted=None if before is None else before.deleted,
            job=self._digest,
        )
        rows = 0 if before is None else before.rows
        check_ids(Store(self.store, manifest), rows)
        found = replaced(Store(self.store, manifest), rows)
        if self.mode == "add" and len(found):
            piece = Store(self.store, manifest).pieces(found[:1])[0]
            raise ClaraError(
                f"{self.store}: already has a document with the id '{piece.id}' (from "
                f"{piece.source or 'an unnamed source'}); replace it with --replace, "
                "or give the new document another id"
            )
        manifest = swap(self.store, manifest, found)
        remove_strays(self.store, manifest, "")

    def _is_committed(self) -> bool:
        if not (self.store / MANIFEST).is_file():
            return False
        manifest = read_manifest(self.store)
        return (manifest.generation, manifest.job) == (self.generation, self._digest)

    def _folder(self, k: int) -> Path:
        return self.store / SHARDS / shard_name(self.generation, k)

    def _info(self, k: int) -> ShardInfo | None:
        folder = self._folder(k)
        if not (folder / NOTE).is_file():
            return None
        info, job = read_info(folder)
        return info if job == self._digest else None


def write_store(
    path: str | os.PathLike,
    settings: StoreSettings,
    vectors: Float[np.ndarray, "n M D"],
    pieces: Sequence[Piece],
    shard_size: int = 1024,
) -> Store:
    """Write a new store of vectors that are in memory, in shards of `shard_size`.

    Raises:
      ClaraError: the folder is in use, or cannot be written.
    """
    if not settings.center:
        center = center_of(vectors, settings.dtype)
        settings = dataclasses.replace(settings, center=center)
    shards = -(-len(vectors) // shard_size)
    with Job.begin(path, settings, shards, {"pieces": len(pieces)}) as job:
        for k in job.missing():
            part = slice(k * shard_size, (k + 1) * shard_size)
            job.write(k, vectors[part], pieces[part])
        store = job.commit()
    assert store is not None
    return store

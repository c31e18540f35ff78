"""Write a store: a job cut in numbered shards, which any process may write.

Killed and begun again, a job loses the shard at hand at most. A finished store is byte
for byte the same, whoever wrote which shard and in what order.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float, Int64

from clara_jax.config import parse
from clara_jax.config.parsing import flatten
from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.search import manifest as disk
from clara_jax.search.manifest import JOB, MANIFEST, Manifest, ShardInfo, StoreSettings
from clara_jax.search.store import (
    Store,
    read_shard,
    shard_arrays,
    to_table,
    write_shard,
)

FREE = ("model", "base", "center")
"""Settings in which a job that goes on may differ from what it began with, which is
kept: places, which hosts may spell differently, and what one of them measured."""

SAME = ("fingerprint", "memory", "width", "dtype")
"""Settings in which what is added to a store must agree with it."""


class Job(contextlib.AbstractContextManager):
    """One writing of a store: a new one, or more documents for one that is there.

    Every process begins the same job, asks for the shards of its part that are
    `missing`, writes them, and commits; whoever is last makes the store.

        with Job.begin(path, settings, shards, corpus) as job:
            for k in job.missing(part, parts):
                job.write(k, *vectors_and_documents(k))
            store = job.commit()

    Attributes:
      store: the folder.
      shards: how many the job has.
      finished: the store is there, made by this very job.
    """

    def __init__(self, store: Path, values: Mapping[str, Any]):
        """Take what ``job.json`` holds; use `begin`."""
        self.store, self.finished = store, False
        self.shards: int = values["shards"]
        self._mode: str = values["mode"]
        self._generation: int = values["generation"]
        self._settings = parse(StoreSettings, values["settings"], str(store / JOB))
        self._digest = disk.digest_of(_identity(values))
        self._part: disk.Lock | None = None

    @classmethod
    def begin(
        cls,
        store: str | os.PathLike,
        settings: StoreSettings,
        shards: int,
        corpus: Mapping[str, Any],
        mode: Literal["new", "add", "replace"] = "new",
    ) -> "Job":
        """Begin a job, or go on with it.

        Args:
          store: its folder.
          settings: what its vectors have in common; see also `FREE` and `SAME`.
          shards: how many the corpus makes.
          corpus: a JSON object that says what is compressed.
          mode: ``new`` makes a store; ``add`` puts documents into one and refuses ids
            that it has; ``replace`` takes out documents with the same ids.

        Raises:
          ClaraError: another job or an edit is under way here, there is a store already
            (or none to add to), or another model made it.
        """
        path = Path(store)
        check_folder(path, mode)
        with disk.hold_store(path):
            before = _manifest_of(path)
            if before is not None:
                settings = dataclasses.replace(settings, center=before.center)
            values = {
                "mode": mode,
                "generation": before.generation + 1 if before else 1,
                "shards": shards,
                # Through JSON, so that tuples compare with the lists that are read.
                "corpus": json.loads(json.dumps(corpus)),
                "settings": dataclasses.asdict(settings),
            }
            job, begun = cls(path, values), disk.read_job(path, before)
            if begun is None and before is not None and before.job == job._digest:
                job._generation, job.finished = before.generation, True
            elif before is not None:
                _check_added(path, before, values)
            if begun is not None:
                if changed := _differences(_identity(begun), _identity(values)):
                    way_out = f"remove {path / JOB}" if before else "remove the folder"
                    raise ClaraError(
                        f"{path}: another job is under way here; it differs in "
                        f"{changed}; finish it with the command that began it, or "
                        f"{way_out} to give it up"
                    )
                return cls(path, begun)
            disk.remove(disk.find_strays(path, before))
            if not job.finished:
                disk.write_signed(path / JOB, values)
        return job

    def missing(self, part: int = 0, parts: int = 1) -> list[int]:
        """Take shards ``k % parts == part``, and return those not written yet.

        Raises:
          ClaraError: another process is writing this part, or counts other parts.
        """
        if self.finished:
            return []
        self._part = disk.hold_part(self.store, part, parts)
        numbers = range(part, self.shards, parts)
        for k in numbers:
            folder = self._folder(k)
            disk.remove(folder.parent.glob(f".{folder.name}.*"))  # half written
        return [k for k in numbers if self._info(k) is None]

    def write(
        self, k: int, vectors: Float[np.ndarray, "n M D"], documents: Sequence[Document]
    ) -> None:
        """Write shard `k`, with all pieces of its documents, unless it is there.

        Raises:
          ClaraError: the disk is full, the vectors are not of the store's shape, or one
            or its document cannot be kept.
        """
        count, width = self._settings.memory.num_memory, self._settings.width
        if vectors.shape != (len(documents), count, width):
            raise ClaraError(
                f"{self.store}: keeps {count} vectors of width {width} for each piece, "
                f"but was given {vectors.shape} for {len(documents)} pieces"
            )
        if self._info(k) is None:
            table = to_table(documents)
            arrays = shard_arrays(vectors, documents, self._settings)
            write_shard(self._folder(k), arrays, table, self._digest)

    def commit(self) -> Store | None:
        """Make the store of all shards; None while some of other parts are missing.

        Raises:
          ClaraError: two documents have one id, the store has it already (mode
            ``add``), or the disk is full; the store stays as it was.
        """
        if not self.finished:
            # On network disks, listing shows what other hosts wrote just now.
            list(self.store.glob(f"{disk.SHARDS}/*"))
            infos = [info for k in range(self.shards) if (info := self._info(k))]
            if len(infos) == self.shards:
                # One after the other: the second finds the first one's store.
                with disk.hold_store(self.store):
                    if not self._is_committed():
                        self._commit(infos)
            elif not self._is_committed():
                return None
        self.close()
        return Store.open(self.store)

    def abandon(self) -> None:
        """Give a job up of which nothing has been written yet."""
        if not any(self._folder(k).exists() for k in range(self.shards)):
            (self.store / JOB).unlink(missing_ok=True)

    def close(self) -> None:
        """Release the part; a job that is not finished can be begun again."""
        if self._part is not None:
            self._part.release()
        disk.held_parts(self.store)  # removes what killed processes left

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _commit(self, infos: Sequence[ShardInfo]) -> None:
        before = _manifest_of(self.store)
        job = disk.read_job(self.store, before)
        if job is None or disk.digest_of(_identity(job)) != self._digest:
            raise ClaraError(
                f"{self.store}: the job was ended or given up meanwhile; start the "
                "command again"
            )
        old = before or Manifest(**vars(self._settings))
        shards, generation = (*old.shards, *infos), self._generation
        manifest = dataclasses.replace(
            old, generation=generation, shards=shards, job=self._digest
        )
        store = Store(self.store, manifest)
        deleted = _replaced(store, store.rows - sum(info.rows for info in infos))
        if self._mode == "add" and len(deleted):
            (piece,) = store.pieces(deleted[:1])
            raise ClaraError(
                f"{self.store}: already has a document with the id '{piece.id}' (from "
                f"{piece.source or 'an unnamed source'}); replace it with --replace, "
                "or give the new document another id"
            )
        disk.replace_manifest(self.store, manifest, deleted)

    def _is_committed(self) -> bool:
        made = _manifest_of(self.store)
        known = (self._generation, self._digest)
        return made is not None and (made.generation, made.job) == known

    def _folder(self, k: int) -> Path:
        return disk.shard_folder(self.store, self._generation, k)

    def _info(self, k: int) -> ShardInfo | None:
        if not self._folder(k).is_dir():
            return None
        info, job = read_shard(self._folder(k))
        return info if job == self._digest else None


def _manifest_of(store: Path) -> Manifest | None:
    return disk.read_manifest(store) if (store / MANIFEST).is_file() else None


def check_folder(path: Path, mode: str) -> None:
    """Refuse a place where this mode cannot write."""
    if path.exists() and not path.is_dir():
        raise ClaraError(f"{path}: is a file; give a folder with --store")
    # In this order: meanwhile another process may begin the job, or finish it.
    files = path.is_dir() and any(path.glob("[!.]*"))
    if (path / JOB).is_file() or (path / MANIFEST).is_file():
        return
    if mode != "new":
        raise ClaraError(
            f"{path}: is not a store yet, so nothing can be added; leave out --{mode}"
        )
    if files:
        raise ClaraError(
            f"{path}: holds other files and no store; give an empty folder with --store"
        )


def _check_added(path: Path, before: Manifest, values: Mapping[str, Any]) -> None:
    """Refuse to add to a finished store what does not go with it."""
    if values["mode"] == "new":
        raise ClaraError(
            f"{path}: holds a finished store of other documents or settings; put these "
            "in with --add or --replace, or give another --store"
        )
    old, new = dataclasses.asdict(before), values["settings"]
    if changed := _differences(*({k: x[k] for k in SAME} for x in (old, new))):
        raise ClaraError(
            f"{path}: was made with another model or other settings: {changed}; add "
            "with what it was made with, or give another --store"
        )


def _replaced(store: Store, start: int) -> Int64[np.ndarray, "n"]:
    """Return rows before `start` whose ids come again; refuse new ids used twice."""
    new = store.table(range(start, store.rows), ["id", "part", "source"])
    new = new.filter(pc.field("id") != "")
    counts = new.group_by(["id", "part"]).aggregate([([], "count_all")])
    twice = counts.filter(pc.field("count_all") > 1)
    if twice.num_rows:
        id, part = twice["id"][0].as_py(), twice["part"][0].as_py()
        same = new.filter((pc.field("id") == id) & (pc.field("part") == part))
        one, other, *_ = (s or "an unnamed source" for s in same["source"].to_pylist())
        raise ClaraError(
            f"{store.path}: two documents have the id '{id}' (from {one} and from "
            f"{other}); give each its own id"
        )
    old, added = np.split(store.hashes("id"), [start])
    likely = np.flatnonzero(np.isin(old, added) & store.live[:start])
    ids = set(new["id"].to_pylist())
    return likely[np.array([id in ids for id in store.strings(likely, "id")], bool)]


def _identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two jobs the same, wherever and onto whatever they are begun."""
    settings = {k: v for k, v in values["settings"].items() if k not in FREE}
    found = {name: values[name] for name in ("mode", "shards", "corpus")}
    return {**found, "settings": settings}


def _differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return all entries that differ, with both values."""
    old, new = flatten(begun), flatten(now)
    return ", ".join(
        f"{name} (was {json.dumps(old.get(name))}, now {json.dumps(new.get(name))})"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )

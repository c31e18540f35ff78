"""Write a store: a job cut in numbered shards, which any process may write.

A shard becomes a fragment of the dataset, of which nobody knows until one process
commits all of them in one transaction of Lance. Killed and begun again, a job loses the
shard at hand at most.

STORE/_jobs/DIGEST/job.json     what is written
STORE/_jobs/DIGEST/000007.json  a shard that is: its fragment, and its documents
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Shaped
from lance import FragmentMetadata, LanceOperation
from lance.fragment import write_fragments

from clara_jax.config import parse
from clara_jax.config.parsing import flatten
from clara_jax.documents import Document, widest
from clara_jax.errors import ClaraError
from clara_jax.files import digest_of, is_remote, json_bytes, sync
from clara_jax.native import Conflict, lance_at_work
from clara_jax.places import Folder
from clara_jax.search.maintenance import (
    JOB,
    Change,
    change,
    changes,
    exchange,
    store_of,
)
from clara_jax.search.rows import (
    RESERVED,
    StoreSettings,
    encoded,
    make_schema,
    own_columns,
    own_fields,
    to_table,
)
from clara_jax.search.store import JOBS, Store

FREE = ("model", "base", "center")  # may differ between the hosts of a job
SAME = ("fingerprint", "memory", "width", "dtype")  # of a store and what is added

_JOB = "job.json"


class Job:
    """One writing of a store: a new one, or more documents for one that is there.

    Every process begins the same job, writes the shards of its part that are
    `missing`, and commits; whoever is last makes the store.

        job = Job.begin(path, settings, shards, corpus)
        for k in job.missing(part, parts):
            job.write(k, *vectors_and_documents(k))
        store = job.commit()

    Attributes:
      store: the folder or URL.
      shards: how many the job has.
      finished: the store is there, made by this very job.
    """

    def __init__(self, store: str, values: Mapping[str, Any]):
        """Take what ``job.json`` holds; use `begin`."""
        self.store, self.finished, self._values = store, False, values
        self.shards: int = values["shards"]
        self.digest = digest_of(_identity(values))
        self._settings = parse(StoreSettings, values["settings"], f"{store}: {_JOB}")
        self._notes = Folder(f"{store}/{JOBS}/{self.digest}")
        self._target: Any = store  # what fragments are written for
        self._schema = make_schema(self._settings, values["fields"])

    @classmethod
    def begin(
        cls,
        store: str | os.PathLike,
        settings: StoreSettings,
        shards: int,
        corpus: Mapping[str, Any],
        mode: Literal["new", "add", "replace"] = "new",
        fields: Mapping[str, str] | None = None,
        refuse: Callable[[Store], object] = lambda _: None,
    ) -> "Job":
        """Begin a job, or go on with it.

        Args:
          store: its folder, or a URL.
          settings: what its vectors have in common; of `FREE` the first are kept.
          shards: how many the corpus makes.
          corpus: a JSON object that says what is compressed.
          mode: ``new`` makes a store; ``add`` puts documents into one and refuses ids
            that it has; ``replace`` takes out documents with the same ids.
          fields: of the documents' metadata, with their kinds, see
            ``documents.kind_of``; documents without metadata need none.
          refuse: called with the store that is there, if any; may raise if the
            documents do not go with it.

        Raises:
          ClaraError: another job is making the store, there is a store already (or none
            to add to), another model made it, or a field of it has another type.
        """
        place = str(store)
        before = open_place(place, mode)
        if before is not None:
            settings = dataclasses.replace(settings, center=before.settings.center)
        values = {
            "mode": mode,
            "version": before.version if before else 0,
            "shards": shards,
            # Through JSON, so that tuples compare with the lists that are read.
            "corpus": json.loads(json.dumps(corpus)),
            "settings": dataclasses.asdict(settings),
            # Sorted, as they are when read again, so that columns keep their order.
            "fields": dict(sorted((fields or {}).items())),
        }
        job = cls(place, values)
        begun = job._read(_JOB)
        if begun is not None:
            job = cls(place, begun)
        if before is not None:
            job.finished = job._is_committed(before, last=begun is None)
            if job.finished:
                job._notes.remove()
                return job
            _check_added(place, before, values)
            refuse(before)
            missing_fields(before, job._values["fields"])
            job._target, job._schema = before.dataset, before.schema
        else:
            _refuse_other(place, values)
        if begun is None:
            job._note(_JOB, values)
        return job

    def missing(self, part: int = 0, parts: int = 1) -> list[int]:
        """Return shards ``k % parts == part`` that are not written yet."""
        if self.finished:
            return []
        there = set(self._notes.names())
        return [k for k in range(part, self.shards, parts) if _name(k) not in there]

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
        if self._read(_name(k)) is None:
            self.write_rows(k, encoded(vectors, self._settings), documents)

    def write_rows(
        self,
        k: int,
        arrays: Mapping[str, Shaped[np.ndarray, "n ..."]],
        documents: Sequence[Document],
    ) -> None:
        """Write shard `k` of codes, scales (if any) and norms, as ``encoded`` gives."""
        if self._target != self.store:
            self._add_columns()
        table = to_table(documents, arrays, self._schema)
        fragments = []
        if documents:
            with lance_at_work(self.store, "written"):
                fragments = write_fragments(
                    table,
                    self._target,
                    mode="append",
                    max_rows_per_file=1 << 30,  # one file
                    data_storage_version="2.2",
                    enable_stable_row_ids=True,
                )
                for fragment in fragments if not is_remote(self.store) else ():
                    for file in fragment.files:
                        sync(Path(self.store, "data", file.path))
        ids: dict[str, Any] = {}
        for document in documents:
            if document.id:
                _, parts = ids.setdefault(document.id, (document.source, []))
                parts.append(document.part)
        note = {
            "fragments": [fragment.to_json() for fragment in fragments],
            "ids": ids,
            "layout": self._layout(),
        }
        self._note(_name(k), note)

    def _add_columns(self) -> None:
        """Give the store columns for new fields; only its schema changes."""
        store = Store(self.store, self._target)
        while kinds := missing_fields(store, self._values["fields"]):
            store = store.newest()
            if kinds := missing_fields(store, kinds):
                new = own_fields(kinds, (*RESERVED, *store.schema.names))
                with (
                    contextlib.suppress(Conflict),
                    lance_at_work(store.place, "written"),
                ):
                    store.dataset.add_columns(pa.schema(new))
        self._target, self._schema = store.dataset, store.dataset.schema

    def _note(self, name: str, note: Mapping[str, Any]) -> None:
        """Note what the job is, or that a shard is written."""
        self._notes.write(name, json_bytes({**note, "checksum": digest_of(note)}))

    def _layout(self) -> dict[str, Any]:
        """Return what the rows of fragments depend on: the centre, columns' numbers.

        The columns of a new store are numbered in the order of its schema.
        """
        new = self._target == self.store
        columns = () if new else self._target.lance_schema.fields()
        numbers = {c.name(): c.id() for c in columns if c.name() != "key"}
        return {"center": self._settings.center, "columns": numbers}

    def join(self, places: Sequence[str]) -> None:
        """Take over the shards that were written for this job at other places.

        Raises:
          ClaraError: a place holds nothing of this job, or a file is missing.
        """
        here = Folder(self.store)
        if places and self._target != self.store:
            self._add_columns()
        for place in places:
            there, job = Folder(place), Job(place, self._values)
            if job._read(_JOB) is None:
                if self._notes.names() == [_JOB]:
                    self._notes.remove()
                _refuse_other(place, self._values)
                raise ClaraError(
                    f"{place}: holds no part of this job; write one there with the "
                    "same command, with --part and with this place as its --store"
                )
            for k in self.missing():
                if (note := job._read(_name(k))) is None:
                    continue
                if note["layout"] != self._layout():
                    raise ClaraError(
                        f"{place}: its parts do not go with {self.store}, which others "
                        "have changed, or whose vectors are kept less another mean; "
                        "copy that store there, and write the part again on a machine "
                        "of one kind with this, or with --codec bfloat16"
                    )
                for fragment in note["fragments"]:
                    for file in fragment["files"]:
                        here.copy(there, f"data/{file['path']}")
                self._note(_name(k), note)

    def commit(self, shards: int | None = None) -> Store | None:
        """Make the store of all shards; None while some of other parts are missing.

        Given a number of `shards`, of the first so many.

        Raises:
          ClaraError: two documents have one id, the store has it already (mode
            ``add``), or the disk is full; the store stays as it was.
        """
        if not self.finished:
            count = self.shards if shards is None else shards
            notes = [self._read(_name(k)) for k in range(count)]
            written = [note for note in notes if note is not None]
            self._refuse_stale(notes)

            def make() -> Change | None:
                before = store_of(self.store)
                if before is not None and self._is_committed(before):
                    return None
                if self._read(_JOB) is None:
                    raise ClaraError(
                        f"{self.store}: another process has ended the job meanwhile; "
                        "start the command again"
                    )
                if before is not None:
                    _check_added(self.store, before, self._values)
                return self._change(before, written) if len(written) == count else None

            change(self.store, make, {JOB: self.digest})
            done = store_of(self.store)
            if done is None or not self._is_committed(done):
                return None
            self._notes.remove()
        return Store.open(self.store)

    def _refuse_stale(self, notes: Sequence[Mapping[str, Any] | None]) -> None:
        """Refuse shards whose files are gone, as a compaction removes old ones.

        Or which were kept less another mean, by a host that began at the same moment.
        """
        there, stale = set(Folder(f"{self.store}/data").names()), 0
        for k, note in enumerate(notes):
            parts = note["fragments"] if note else ()
            files = {file["path"] for part in parts for file in part["files"]}
            mean = note["layout"]["center"] if note else self._settings.center
            if not files <= there or mean != self._settings.center:
                self._notes.remove(_name(k))
                stale += 1
        if stale:
            raise ClaraError(
                f"{self.store}: {stale} of the shards no longer serve; start the same "
                "command again, which writes them anew"
            )

    def _change(
        self, before: Store | None, notes: Sequence[Mapping[str, Any]]
    ) -> Change:
        """Return what makes the shards of these notes part of the store."""
        ids: dict[str, str] = {}
        for note in notes:
            for id, (source, parts) in note["ids"].items():
                if id in ids or len(set(parts)) < len(parts):
                    sources = dict.fromkeys((ids.get(id, source), source))
                    names = " and ".join(filter(None, sources)) or "unnamed sources"
                    raise ClaraError(
                        f"{self.store}: two documents have the id '{id}' (from {names})"
                        "; give each its own id"
                    )
                ids[id] = source
        new = [
            FragmentMetadata.from_json(json.dumps(fragment))
            for note in notes
            for fragment in note["fragments"]
        ]
        if before is None:
            return 0, LanceOperation.Overwrite(self._schema, new)
        old = before.matching(list(ids))
        if self._values["mode"] == "add" and len(old):
            (piece,) = before.pieces(old[:1])
            raise ClaraError(
                f"{self.store}: already has a document with the id '{piece.id}' (from "
                f"{piece.source or 'an unnamed source'}); replace it with --replace, "
                "or give the new document another id"
            )
        return exchange(before, old, new)

    def _is_committed(self, store: Store, last: bool = False) -> bool:
        """Return whether the job is part of a store.

        With `last`, only if no documents were changed after it.
        """
        for version, job in changes(store):
            before = 0 < version <= self._values["version"]
            if job == self.digest and (last or not before):
                return True
            if last or before:
                return False
        return False

    def _read(self, name: str) -> dict[str, Any] | None:
        """Read a note of this job; refuse a damaged one."""
        data = self._notes.read(name)
        if data is None:
            return None
        try:
            values = json.loads(data)
            if values.pop("checksum") != digest_of(values):
                raise ValueError("its checksum is wrong")
            return values
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ClaraError(
                f"{self._notes}/{name}: is damaged ({error}); remove it and start the "
                "command again"
            ) from error


def open_place(place: str, mode: str) -> Store | None:
    """Open the store that is there, if any; refuse where this mode cannot write."""
    if (before := store_of(place)) is not None:
        return before
    names = Folder(place).names()
    if mode != "new" and not any(name.startswith(f"{JOBS}/") for name in names):
        raise ClaraError(
            f"{place}: is not a store yet, so nothing can be added; leave out --{mode}"
        )
    begun = (f"{JOBS}/", "data/", "_transactions/", "_versions/", ".")
    if any(not name.startswith(begun) for name in names):
        raise ClaraError(
            f"{place}: holds other files and no store; give an empty folder with "
            "--store"
        )
    return None


def _refuse_other(place: str, values: Mapping[str, Any]) -> None:
    """Refuse to make a store while another job does."""
    own, folder = digest_of(_identity(values)), Folder(f"{place}/{JOBS}")
    for name in folder.names():
        digest, _, file = name.partition("/")
        if file != _JOB or digest == own:
            continue
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            begun = json.loads(folder.read(name) or b"")
            changed = _differences(_identity(begun), _identity(values))
            raise ClaraError(
                f"{place}: another job is under way here; it differs in {changed}; "
                f"finish it with the command that began it, or remove {JOBS}/{digest} "
                "there to give it up"
            )


def _check_added(place: str, before: Store, values: Mapping[str, Any]) -> None:
    """Refuse to add to a finished store what does not go with it."""
    if values["mode"] == "new":
        raise ClaraError(
            f"{place}: holds a finished store of other documents or settings; put "
            "these in with --add or --replace, or give another --store"
        )
    old, new = dataclasses.asdict(before.settings), values["settings"]
    if changed := _differences(*({k: x[k] for k in SAME} for x in (old, new))):
        raise ClaraError(
            f"{place}: was made with another model or other settings: {changed}; add "
            "with what it was made with, or give another --store"
        )


def missing_fields(store: Store, kinds: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that a store lacks; refuse values that it cannot hold."""
    own = own_columns(store.schema)
    for name, kind in kinds.items():
        has = own[name][1] if name in own else "json"
        if has != "json" and widest([has, kind]) != has:
            raise ClaraError(
                f"{store.place}: its field '{name}' holds {has}, but the new documents "
                f"have {kind}; change them, or compress all into another --store"
            )
    return {name: kind for name, kind in kinds.items() if name not in own}


def _name(k: int) -> str:
    return f"{k:06d}.json"


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

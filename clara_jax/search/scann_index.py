"""Approximate search: ScaNN over short keys, then exact cosines of the best few.

Documents that were added since the index was built are compared exactly beside it, and
deleted ones are left out, so that an index is usable until compaction renumbers rows.

ScaNN 1.4.2 corrupts memory when a point is deleted from a tree with SOAR to which
points were added, so nothing is ever deleted from an index: `update_index` adds, and
builds anew when much has changed.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from clara_jax.errors import ClaraError
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.index_files import (
    IndexFolder,
    Settings,
    has_index,
    load,
    save,
    scann,
    scann_at_work,
)
from clara_jax.search.keys import DIMS, SAMPLE, Keys, Short, learn_keys, unit_vectors
from clara_jax.search.searcher import (
    Flat,
    Found,
    Searcher,
    best_of,
    check_queries,
    rescore,
)
from clara_jax.search.store import Progress, Store

SEARCHES = ("auto", "exact", "scann")
METHODS = ("brute_force", "hashing", "tree")
CANDIDATES = 200
BRUTE_FORCE_BELOW, HASHING_BELOW = 20_000, 100_000
"""ScaNN's rules of thumb: documents from which on the next method is worth it."""

CHANGED = 0.2
"""Share of documents added or deleted from which on an update builds anew."""

HELD_OUT = 200
"""Documents that keys are not learnt from, at most; a tenth of a small store."""

_UPSERTED = 256  # keys that ScaNN takes in together


def open_searcher(
    store: Store, kind: str = "auto", *, memory_limit: int | None = None
) -> Searcher:
    """Open a search over a store.

    Args:
      store: what is searched.
      kind: ``exact``; ``scann``, which needs an index; ``auto``: ``scann`` where there
        is an index, else ``exact``.
      memory_limit: of the exact search, see `ExactSearcher`.

    Raises:
      ClaraError: the index is missing, damaged or of another store.
    """
    if kind not in SEARCHES:
        raise ClaraError(
            f"there is no search '{kind}'; give one of {', '.join(SEARCHES)}"
        )
    if kind == "exact" or (kind == "auto" and not has_index(store)):
        return ExactSearcher(store, memory_limit=memory_limit)
    return ScannSearcher(store, memory_limit=memory_limit)


class ScannSearcher:
    """Search through a store's ScaNN index; a ``Searcher``, for any thread.

    The index is loaded into memory, after comparing its checksums. What it holds, see
    `build_index`, is its `note`. Of documents that were added since, the exact search
    keeps within the `memory_limit`.

    Raises:
      ClaraError: there is no index, it is damaged, or of other vectors or row numbers.
    """

    def __init__(self, store: Store, *, memory_limit: int | None = None):
        index = IndexFolder(store, "scann")
        self.store = store
        self.note = index.read()
        index.check(self.note)
        self._settings = Settings(**self.note["settings"])
        self._keys, self._rows, self._scann = load(index.files(self.note))
        self._live = store.live[self._rows]
        self._documents = int(np.count_nonzero(self._live))
        self._added = None
        start = self.note["rows"]
        if np.any(store.live[start:]):
            self._added = ExactSearcher(store, memory_limit=memory_limit, start=start)

    def __call__(self, queries: Flat, k: int) -> Found:
        """Return cosines and row numbers of the `k` nearest of the candidates."""
        units = check_queries(queries, k, self.store)
        wanted = max(self._settings.candidates, k)
        rows = self._find(self._keys.of_queries(units), wanted)
        scores = rescore(self.store, units, rows)
        if self._added is not None and len(units):
            more = self._added(units, min(k, self._added.documents))
            scores = list(map(np.append, scores, more[0]))
            rows = list(map(np.append, rows, more[1]))
        best = np.empty((len(units), k), np.float32), np.empty((len(units), k), int)
        for i in range(len(units)):
            best[0][i], best[1][i] = best_of(scores[i], rows[i], k)
        return best

    def _find(self, keys: Short, wanted: int) -> list[Int[np.ndarray, "_"]]:
        """Rows of the best keys; more are asked for until `wanted` are not deleted."""
        wanted = min(wanted, self._documents)
        found: list[Int[np.ndarray, "_"]] = [self._rows[:0]] * len(keys)
        waiting = np.arange(len(keys) if wanted else 0)
        most, all_leaves = len(self._rows), self._settings.leaves
        count, leaves = wanted, self._settings.leaves_to_search
        while len(waiting):
            asked = self._ask(keys[waiting], count, leaves)
            for i, places in zip(waiting, asked, strict=True):
                found[i] = self._rows[places[self._live[places]]]
            if (count, leaves) == (most, all_leaves):
                break
            waiting = waiting[[len(found[i]) < wanted for i in waiting]]
            count, leaves = min(2 * count, most), min(2 * leaves, all_leaves)
        return [rows[:wanted] for rows in found]

    def _ask(self, keys: Short, count: int, leaves: int) -> list[Int[np.ndarray, "_"]]:
        """Places in the index of the best keys, `count` or less of them."""
        many = len(keys) > 1
        library = self._scann
        search = library.search_batched_parallel if many else library.search_batched
        places, scores = search(
            np.ascontiguousarray(keys, np.float32),
            final_num_neighbors=count,
            leaves_to_search=leaves or None,
        )
        # Where there are fewer, ScaNN fills up with place 0 and no score.
        return [
            row[~np.isnan(score)].astype(np.int64)
            for row, score in zip(places, scores, strict=True)
        ]


def choose(documents: int, **given: Any) -> Settings:
    """Choose what is not given, or None, of an index's settings, by ScaNN's rules.

    Below 20,000 documents the method is ``brute_force``, below 100,000 ``hashing``,
    else ``tree``, also where leaves are given: about the square root of the documents,
    of which a fifth is searched, 20 at least.
    """
    given = {name: value for name, value in given.items() if value is not None}
    usual = {"dims": DIMS, "candidates": CANDIDATES, "sample": SAMPLE}
    for name, default in usual.items():
        if given.setdefault(name, default) < 1:
            raise ClaraError(f"{name} {given[name]}: give 1 or more")
    method = "brute_force" if documents < BRUTE_FORCE_BELOW else "hashing"
    if "leaves" in given or documents >= HASHING_BELOW:
        method = "tree"
    method = given.setdefault("method", method)
    if method not in METHODS:
        raise ClaraError(f"no index is called '{method}'; give {', '.join(METHODS)}")
    leaves = given.setdefault("leaves", max(1, round(math.sqrt(documents))))
    if not 1 <= leaves <= max(documents, 1):
        raise ClaraError(f"{leaves} leaves: give 1 to {documents}, one per document")
    fifth = min(leaves, max(20, math.ceil(leaves / 5)))
    searched = given.setdefault("leaves_to_search", fifth)
    if not 1 <= searched <= leaves:
        raise ClaraError(f"{searched} leaves to search: give 1 to {leaves}")
    settings = Settings(**{"soar": True, "seed": 0, **given})
    if method == "tree":
        return settings
    return dataclasses.replace(settings, leaves=0, leaves_to_search=0, soar=False)


def build_index(
    store: Store, *, progress: Progress = lambda _: None, **given: Any
) -> dict[str, Any]:
    """Build the ScaNN index of a store, in place of the one that is there.

    In memory are the keys (4 bytes x 129 a document) and ScaNN's own copy. Killed at
    any moment, the old index stays whole.

    Args:
      store: what is indexed.
      progress: is told each step.
      **given: fields of `Settings`; see `choose`.

    Returns:
      What the index holds, see `IndexFolder.read`. ScaNN's adds: ``documents``, how
      many; ``trained``, how many there were when it was built anew, and ``deleted``,
      rows deleted by then; ``settings``, and those ``given``; ``held_out``, rows that
      keys were not learnt from; ``measured``, the last report.

    Raises:
      ClaraError: a setting makes no sense, the store is empty, another process is
        building the index, the disk is full, or ScaNN is not installed.
    """
    names = [field.name for field in dataclasses.fields(Settings)]
    index = IndexFolder(store, "scann")
    with index.hold():
        return _build(index, {**dict.fromkeys(names), "seed": 0, **given}, progress)


def update_index(
    store: Store, *, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Bring an index up to date with its store; see `build_index`.

    Added documents are put in with the keys and hashes that were learnt before. Where
    it is damaged, the epoch or the model differs, more than a fifth of the documents
    were added or deleted, or their number asks for another method, the index is built
    anew, with the settings that were given then.
    """
    index = IndexFolder(store, "scann")
    with index.hold():
        note: dict[str, Any] = {}
        folder = index.path
        try:
            note = index.read()
            folder = index.files(note)
            reason = _outgrown(index, note)
        except ClaraError:
            if not has_index(store):
                raise
            reason = "the index is damaged"
        if reason:
            progress(f"{reason}: building anew")
            return _build(index, note.get("given", {}), progress)
        added = note["rows"] + np.flatnonzero(store.live[note["rows"] :])
        if not len(added):
            return note
        keys, rows, searcher = load(folder)
        progress(f"{len(added):,} documents added")
        new = _document_keys(store, keys, added, progress)
        with scann_at_work(folder, "add documents"):
            searcher.searcher.upsert([None] * len(new), new, _UPSERTED)
        rows = np.concatenate([rows, added])
        note |= {"documents": len(rows), "measured": {}}
        return index.write(lambda to: save(to, keys, rows, searcher), note)


def _outgrown(index: IndexFolder, note: Mapping[str, Any]) -> str:
    """Why an index must be built anew; empty where it need not."""
    try:
        index.check(note)
    except ClaraError:
        return "the store was made again or compacted"
    store, rows = index.store, note["rows"]
    method = choose(len(store), **note["given"]).method
    if method != note["settings"]["method"]:
        return f"{len(store):,} documents are better indexed by {method}"
    added = np.count_nonzero(store.live[rows:]) + note["documents"] - note["trained"]
    deleted = np.count_nonzero(store.deleted < rows) - note["deleted"]
    return "much has changed" if added + deleted > CHANGED * note["trained"] else ""


def _build(
    index: IndexFolder, given: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    library, store = scann(), index.store
    rows = np.flatnonzero(store.live)
    if not len(rows):
        raise ClaraError(f"{store.path}: holds no documents to index")
    settings = choose(len(rows), **given)
    draw = np.random.default_rng(settings.seed)
    count = min(HELD_OUT, len(rows) // 10)
    held_out = np.sort(draw.choice(rows, count, replace=False))
    keys = learn_keys(
        store,
        dims=settings.dims,
        sample=settings.sample,
        seed=settings.seed,
        leave_out=held_out,
        progress=progress,
    )
    found = _document_keys(store, keys, rows, progress)
    progress(f"ScaNN: {settings.method}, {len(rows):,} keys of {keys.dims}")
    with scann_at_work(index.path, "build an index"):
        builder = library.builder(found, settings.candidates, "dot_product")
        builder.set_n_training_threads(len(os.sched_getaffinity(0)))
        if settings.method == "tree":
            soar = {"soar_lambda": 1.5, "overretrieve_factor": 2.0}
            more = soar if settings.soar else {}
            builder.tree(settings.leaves, settings.leaves_to_search, **more)
        if settings.method == "brute_force":
            builder.score_brute_force()
        else:
            # Four bits for every number of a key. ScaNN's rule, for every two, finds
            # less where there is no tree, and saves little beside the vectors.
            builder.score_ah(1, anisotropic_quantization_threshold=0.2)
        searcher = builder.build()
    note = {
        "documents": len(rows),
        "trained": len(rows),
        "deleted": store.rows - len(rows),
        "settings": dataclasses.asdict(settings),
        "given": dict(given),
        "held_out": held_out.tolist(),
        "measured": {},
    }
    return index.write(lambda to: save(to, keys, rows, searcher), note)


def _document_keys(
    store: Store, keys: Keys, rows: np.ndarray, progress: Progress
) -> Short:
    """Keys of some rows, in ascending order, read once from front to back."""
    found = np.empty((len(rows), keys.dims), np.float32)
    told = end = 0
    for units in unit_vectors(store, rows):
        begin, end = end, end + len(units)
        found[begin:end] = keys.of_documents(units)
        if end * 10 // len(rows) > told:
            told = end * 10 // len(rows)
            progress(f"keys: {end:,} of {len(rows):,} documents")
    return found

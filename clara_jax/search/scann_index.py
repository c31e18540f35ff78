"""Approximate search: ScaNN over short keys, then exact cosines of the best few.

Documents that the index lacks, which were added since or are of an earlier version, are
compared exactly beside it, and deleted ones are left out.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from clara_jax.errors import ClaraError
from clara_jax.search import index_files
from clara_jax.search.exact import (
    ExactSearcher,
    Flat,
    Found,
    Searcher,
    check_queries,
    few,
    meeting,
    nearest_of,
)
from clara_jax.search.index_files import Index, Settings, has_index
from clara_jax.search.keys import Keys, Short, keep_keys, learn_keys, unit_vectors
from clara_jax.search.store import Progress, Store

SEARCHES = ("auto", "exact", "scann")
METHODS = ("brute_force", "hashing", "tree")
BRUTE_FORCE_BELOW, HASHING_BELOW = 20_000, 100_000
"""ScaNN's rules of thumb: documents from which on the next method is worth it."""

HELD_OUT = 200  # documents that keys are not learnt from, at most; a tenth of few


def open_searcher(
    store: Store, kind: str = "auto", *, memory_limit: int | None = None
) -> Searcher:
    """Open a search over a store.

    Args:
      store: what is searched.
      kind: one of `SEARCHES`; ``auto`` is ``scann`` where there is an index.
      memory_limit: of the exact search, see `ExactSearcher`.

    Raises:
      ClaraError: the index is missing, damaged or of another store.
    """
    if kind not in SEARCHES:
        raise ClaraError(f"no search '{kind}'; give one of {', '.join(SEARCHES)}")
    if kind == "exact" or (kind == "auto" and not has_index(store)):
        return ExactSearcher(store, memory_limit=memory_limit)
    return ScannSearcher(store, memory_limit=memory_limit)


class ScannSearcher:
    """Search through a store's ScaNN index, in memory; a ``Searcher``, for any thread.

    `memory_limit` is of the exact search among documents that the index lacks; `note`
    is what it holds, see `build_index`.

    Raises:
      ClaraError: there is no index, it is damaged, or of other vectors.
    """

    def __init__(self, store: Store, *, memory_limit: int | None = None):
        self._limit = memory_limit
        self._open(store)

    def _open(self, store: Store) -> None:
        self.store = store
        self.note, self._keys, self._rows, self._scann = index_files.read(store)
        self._settings = Settings(**self.note["settings"])
        self._live = store.has(self._rows)
        self._others, others = None, np.setdiff1d(store.ids, self._rows, True)
        if len(others):
            self._others = ExactSearcher(store, memory_limit=self._limit, among=others)

    def renew(self) -> None:
        """Go on with the newest version of the store."""
        self._open(self.store.newest())

    def __call__(
        self,
        queries: Flat,
        k: int,
        texts: Sequence[str] | None = None,
        where: str | None = None,
    ) -> Found:
        """Return cosines and ids of the `k` nearest of the candidates."""
        units = check_queries(queries, k, self.store)
        live, others = self._live, self._others
        if where is not None:
            allowed = meeting(self.store, where)
            k = min(k, len(allowed))
            if len(allowed) <= few(self.store):
                return nearest_of(self.store, units, [allowed] * len(units), k)
            live = live & np.isin(self._rows, allowed)
            if others is not None and not np.isin(others.ids, allowed).any():
                others = None
        wanted = max(self._settings.candidates, k)
        ids = self._find(self._keys.of_queries(units), wanted, live)
        if others is not None and len(units):
            more = others(units, min(k, others.documents), where=where)[1]
            ids = [np.append(*both) for both in zip(ids, more, strict=True)]
        return nearest_of(self.store, units, ids, k)

    def _find(
        self, keys: Short, wanted: int, live: Bool[np.ndarray, "N"]
    ) -> list[Int[np.ndarray, "_"]]:
        """Return ids of the best keys; ask for more until `wanted` are `live`."""
        documents = int(np.count_nonzero(live))
        wanted = min(wanted, documents)
        found: list[Int[np.ndarray, "_"]] = [self._rows[:0]] * len(keys)
        waiting = np.arange(len(keys) if wanted else 0)
        most, all_leaves = len(self._rows), self._settings.leaves
        # As many as there must be among them, were they no nearer than others.
        count = min(wanted * most // max(documents, 1), most)
        leaves = self._settings.leaves_to_search
        while len(waiting):
            search = self._scann.search_batched
            if len(waiting) > 1:
                search = self._scann.search_batched_parallel
            asked = search(
                np.ascontiguousarray(keys[waiting], np.float32),
                final_num_neighbors=count,
                leaves_to_search=leaves or None,
            )
            for i, places, scores in zip(waiting, *asked, strict=True):
                # Where there are fewer, ScaNN fills up with place 0 and no score.
                places = places[~np.isnan(scores)]
                found[i] = self._rows[places[live[places]]]
            if (count, leaves) == (most, all_leaves):
                break
            waiting = waiting[[len(found[i]) < wanted for i in waiting]]
            count, leaves = min(2 * count, most), min(2 * leaves, all_leaves)
        return [rows[:wanted] for rows in found]


def choose(documents: int, **given: Any) -> Settings:
    """Choose what is not given, or None, of an index's settings, by ScaNN's rules.

    A tree has about the square root of the documents as leaves, of which a fifth is
    searched, 20 at least.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("dims", "candidates", "sample"):
        if given.get(name, 1) < 1:
            raise ClaraError(f"{name} {given[name]}: give 1 or more")
    if given.get("seed", 0) < 0:
        raise ClaraError(f"seed {given['seed']}: give 0 or more")
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
    if method != "tree":
        given |= {"leaves": 0, "leaves_to_search": 0, "soar": False}
    return Settings(**given)


def build_index(
    store: Store, *, progress: Progress = lambda _: None, **given: Any
) -> dict[str, Any]:
    """Build the ScaNN index of a store, in place of the one that is there.

    In memory are the keys (4 bytes x 129 a document) and ScaNN's own copy. For what may
    be `given`, fields of `Settings`, see `choose`.

    Returns:
      What the index holds, see `Index`.

    Raises:
      ClaraError: a setting makes no sense, the store is empty, the disk is full, or
        ScaNN is not installed.
    """
    index_files.scann()  # missing, it is missed before any work
    ids = store.ids
    if not len(ids):
        raise ClaraError(f"{store.place}: holds no documents to index")
    settings = choose(len(ids), **given)
    count = min(HELD_OUT, len(ids) // 10)
    draw = np.random.default_rng(settings.seed)
    held_out = np.sort(draw.choice(ids, count, replace=False))
    sizes = {name: getattr(settings, name) for name in ("dims", "sample", "seed")}
    keys = learn_keys(store, **sizes, leave_out=held_out, progress=progress)
    found = _document_keys(store, keys, ids, progress)
    progress(f"ScaNN: {settings.method}, {len(ids):,} keys of {keys.dims}")
    searcher = index_files.build(store.place, found, settings)
    note = {
        "documents": len(ids),
        "settings": dataclasses.asdict(settings),
        "held_out": held_out.tolist(),
        "fingerprint": store.fingerprint,
    }
    index_files.write(store, Index(note, keys, ids, searcher))
    keep_keys(store, ids, found)
    return note


def _document_keys(
    store: Store, keys: Keys, rows: np.ndarray, progress: Progress
) -> Short:
    """Return keys of some rows, read once; report every tenth of them."""
    found = np.empty((len(rows), keys.dims), np.float32)
    end = 0
    for units in unit_vectors(store, rows):
        begin, end = end, end + len(units)
        found[begin:end] = keys.of_documents(units)
        if end * 10 // len(rows) > begin * 10 // len(rows):
            progress(f"keys: {end:,} of {len(rows):,} documents")
    return found

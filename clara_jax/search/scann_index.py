"""Approximate search: ScaNN over short keys, then exact cosines of the best few.

Documents added since the index was built are compared exactly beside it, and deleted
ones are left out. ScaNN 1.4.2 corrupts memory when a point is deleted from a tree with
SOAR to which points were added, so `update_index` only adds, and builds anew when much
has changed.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
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
    unit,
)
from clara_jax.search.index_files import IndexFolder, Settings, has_index, scann_at_work
from clara_jax.search.keys import Keys, Short, keep_keys, learn_keys, unit_vectors
from clara_jax.search.store import Progress, Store

SEARCHES = ("auto", "exact", "scann")
METHODS = ("brute_force", "hashing", "tree")
BRUTE_FORCE_BELOW, HASHING_BELOW = 20_000, 100_000
"""ScaNN's rules of thumb: documents from which on the next method is worth it."""

CHANGED = 0.2  # share of documents added or deleted from which on an update builds anew
HELD_OUT = 200  # documents that keys are not learnt from, at most; a tenth of few
_UPSERTED = 256  # keys that ScaNN takes in together
_ENOUGH = 0.95  # recall below which a report warns
OWN, OTHER, NOISE = 0.7, 0.3, 0.5
MADE_UP = (
    f"made up: {OWN:g} of a document that keys were not learnt from, {OTHER:g} of "
    f"another one, and noise of {NOISE:g} of the typical distance of two documents"
)

_CLOSE = 1e-6  # of two cosines that count as equal
_PATIENCE = 20.0  # seconds after which no further single questions are timed


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

    `memory_limit` is of the exact search among documents that were added since; `note`
    is what the index holds, see `build_index`.

    Raises:
      ClaraError: there is no index, it is damaged, or of other vectors.
    """

    def __init__(self, store: Store, *, memory_limit: int | None = None):
        self._limit = memory_limit
        self._open(store)

    def _open(self, store: Store) -> None:
        self.store = store
        self.note, folder = IndexFolder(store).open()
        self._settings = Settings(**self.note["settings"])
        self._keys, self._rows, self._scann = index_files.load(folder)
        self._live = store.has(self._rows)
        self._added, since = None, self.note["next"]
        if np.any(store.ids >= since):
            self._added = ExactSearcher(store, memory_limit=self._limit, since=since)

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
        live, added, younger = self._live, self._added, None
        if where is not None:
            allowed = meeting(self.store, where)
            k = min(k, len(allowed))
            if len(allowed) <= few(self.store):
                return nearest_of(self.store, units, [allowed] * len(units), k)
            live = live & np.isin(self._rows, allowed)
            added = added if allowed[-1] >= self.note["next"] else None
        wanted = max(self._settings.candidates, k)
        ids = self._find(self._keys.of_queries(units), wanted, live)
        if added is not None and len(units):
            younger = added(units, min(k, added.documents), where=where)[1]
            ids = [np.append(*both) for both in zip(ids, younger, strict=True)]
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
      What the index holds, see `IndexFolder.read`. ScaNN's adds: ``documents``, how
      many; ``trained``, how many there were when it was built anew; ``settings``, and
      those ``given``; ``held_out``, ids of rows that keys were not learnt from;
      ``measured``, the last report.

    Raises:
      ClaraError: a setting makes no sense, the store is empty, another process builds
        the index, the disk is full, or ScaNN is not installed.
    """
    index = IndexFolder(store)
    unset = dict.fromkeys(field.name for field in dataclasses.fields(Settings))
    with index.hold():
        return _build(index, {**unset, "seed": 0, **given}, progress)


def update_index(
    store: Store, *, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Bring an index up to date with its store; see `build_index`.

    Added documents are put in with the keys and hashes that were learnt before. Where
    it is damaged, the epoch or the model differs, much has changed, or the number of
    documents asks for another method, it is built anew, with the settings given then.
    """
    index = IndexFolder(store)
    with index.hold():
        note, folder = {}, Path()
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
        added = store.ids[store.ids >= note["next"]]
        if not len(added):
            return note
        keys, rows, searcher = index_files.load(folder)
        progress(f"{len(added):,} documents added")
        new = _document_keys(store, keys, added, progress)
        with scann_at_work(folder, "add documents"):
            searcher.searcher.upsert([None] * len(new), new, _UPSERTED)
        rows = np.concatenate([rows, added])
        note |= {"documents": len(rows), "measured": {}}
        return index.write(lambda to: index_files.save(to, keys, rows, searcher), note)


def _outgrown(index: IndexFolder, note: Mapping[str, Any]) -> str:
    """Return why an index must be built anew; empty where it need not."""
    try:
        index.check(note)
    except ClaraError:
        return "the store was made again"
    store = index.store
    method = choose(len(store), **note["given"]).method
    if method != note["settings"]["method"]:
        return f"{len(store):,} documents are better indexed by {method}"
    added = np.count_nonzero(store.ids >= note["next"])
    # Those that were added by updates, and those that were deleted.
    added += note["documents"] - note["trained"]
    deleted = note["documents"] - np.count_nonzero(store.ids < note["next"])
    return "much has changed" if added + deleted > CHANGED * note["trained"] else ""


def _build(
    index: IndexFolder, given: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    index_files.scann()  # missing, it is missed before any work
    store = index.store
    rows = store.ids
    if not len(rows):
        raise ClaraError(f"{store.place}: holds no documents to index")
    settings = choose(len(rows), **given)
    count = min(HELD_OUT, len(rows) // 10)
    draw = np.random.default_rng(settings.seed)
    held_out = np.sort(draw.choice(rows, count, replace=False))
    sizes = {name: getattr(settings, name) for name in ("dims", "sample", "seed")}
    keys = learn_keys(store, **sizes, leave_out=held_out, progress=progress)
    found = _document_keys(store, keys, rows, progress)
    progress(f"ScaNN: {settings.method}, {len(rows):,} keys of {keys.dims}")
    searcher = index_files.build(store.place, found, settings)
    note = {
        "documents": len(rows),
        "trained": len(rows),
        "settings": dataclasses.asdict(settings),
        "given": dict(given),
        "held_out": held_out.tolist(),
        "measured": {},
    }
    note = index.write(lambda to: index_files.save(to, keys, rows, searcher), note)
    keep_keys(store, rows, found)
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


@dataclasses.dataclass(frozen=True)
class Report:
    """A comparison of ScaNN with the exact search.

    `recall` is the share of the best `k` documents, or ones as near as the last of
    them, that ScaNN finds; seconds are medians over questions asked one at a time.
    """

    recall: float
    k: int  # documents per question
    queries: int  # how many
    source: str  # of the queries
    documents: int  # in the store
    exact_seconds: float
    scann_seconds: float  # rescoring included
    streamed: bool  # the exact search read its vectors from disk

    @property
    def crossover(self) -> float:
        """Documents from which on ScaNN is the faster, its time taken as constant."""
        return self.documents * self.scann_seconds / self.exact_seconds

    def lines(self) -> list[str]:
        """Return what a command prints."""
        faster = self.exact_seconds / self.scann_seconds
        found = [
            f"recall@{self.k} of scann: {self.recall:.3f} of what the exact search "
            f"finds ({self.queries} questions {self.source})",
            f"time per question: exact {1e3 * self.exact_seconds:.1f} ms"
            f"{' (from disk)' if self.streamed else ''}, scann "
            f"{1e3 * self.scann_seconds:.1f} ms: {faster:.1f} times as fast; at this "
            f"rate scann is the faster from about {self.crossover:,.0f} documents on",
        ]
        if self.recall < _ENOUGH:
            found.append(
                f"warning: recall@{self.k} is below {_ENOUGH:g}; build the index with "
                "more dims, candidates or leaves to search, or search exactly"
            )
        return found


def report(
    store: Store,
    queries: Flat | None = None,
    k: int = 5,
    *,
    progress: Progress = lambda _: None,
) -> Report:
    """Compare the ScaNN index of a store with the exact search, and note it there.

    Without flat `queries` they are made up, see `made_up_queries`; `k` documents are
    compared for each, fewer where the store holds fewer.
    """
    scann = ScannSearcher(store)
    held_out = np.array(scann.note["held_out"], np.int64)
    held_out = held_out[store.has(held_out)]
    if not len(held_out if queries is None else queries):
        raise ClaraError(
            f"{store.place}: too few documents to make questions of; give questions"
        )
    source = MADE_UP if queries is None else "given"
    if queries is None:
        queries = made_up_queries(store, held_out)
    k = min(k, len(store))
    progress(f"exact search for {len(queries)} questions")
    exact = ExactSearcher(store)
    truth = exact(queries, k)[0]
    progress("the same with scann")
    found = scann(queries, k)[0]
    result = Report(
        recall=float(np.mean(found >= truth[:, -1:] - _CLOSE)),
        k=k,
        queries=len(queries),
        source=source,
        documents=len(store),
        exact_seconds=float(np.median(single_times(exact, queries, k))),
        scann_seconds=float(np.median(single_times(scann, queries, k))),
        streamed=exact.streamed,
    )
    index = IndexFolder(store)
    # Noted if nobody is changing the index, and it is still the one that was measured.
    with contextlib.suppress(ClaraError), index.hold():
        note = index.read()
        if note["folder"] == scann.note["folder"]:
            index.write_note({**note, "measured": dataclasses.asdict(result)})
    return result


def made_up_queries(store: Store, rows: Int[np.ndarray, "B"]) -> Flat:
    """Make questions whose neighbours are not trivially known, of documents.

    One is ``0.7 u + 0.3 u' + 0.5 d g``: unit vectors of a row and of another document,
    and Gaussian noise of length about 1; ``d`` is the median distance of the two.
    """
    draw = np.random.default_rng([1, 0])
    others = draw.choice(store.ids, len(rows))
    own, other = (
        unit(store.vectors(chosen).reshape(len(rows), -1)) for chosen in (rows, others)
    )
    typical = np.median(np.linalg.norm(own - other, axis=1))
    noise = draw.standard_normal(own.shape, np.float32) / np.sqrt(own.shape[1])
    made = OWN * own + OTHER * other + NOISE * typical * noise
    return made.astype(np.float32)


def single_times(search: Searcher, queries: Flat, k: int) -> list[float]:
    """Return the seconds of each question, asked alone after one that compiles."""
    search(queries[:1], k)
    found: list[float] = []
    for query in queries:
        start = time.perf_counter()
        search(query[None], k)
        found.append(time.perf_counter() - start)
        if sum(found) > _PATIENCE:
            break
    return found

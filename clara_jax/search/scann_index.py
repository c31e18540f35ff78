"""Approximate search: ScaNN over short keys, then exact cosines of the best few.

ScaNN's hashes stand for keys (see ``keys``), which stand for the vectors: what it finds
are candidates only. Documents that were added since the index was built are compared
exactly beside it, and deleted ones are left out, so that an index is usable until
compaction renumbers rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from clara_jax.errors import ClaraError
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.index_files import check_files, check_note
from clara_jax.search.queries import best_of, check_queries
from clara_jax.search.rescore import rescore
from clara_jax.search.scann_build import build_index, choose, update_index
from clara_jax.search.scann_files import (
    KIND,
    Meta,
    Settings,
    has_index,
    load,
    read_meta,
)
from clara_jax.search.store import Store

__all__ = [
    "Meta",
    "ScannSearcher",
    "Settings",
    "build_index",
    "choose",
    "has_index",
    "update_index",
]


class ScannSearcher:
    """Search through a store's ScaNN index; a ``Searcher``.

    May be called from any thread.
    """

    def __init__(
        self,
        store: Store,
        *,
        candidates: int | None = None,
        leaves_to_search: int | None = None,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
        memory_limit: int | None = None,
    ):
        """Load the index into memory, after comparing its checksums.

        Args:
          store: what is searched, as it is now.
          candidates: documents rescored exactly for each question; at least as many as
            are asked for. None: what the index was built with.
          leaves_to_search: of a tree; more find more and take longer. None: what the
            index was built with.
          devices, memory_limit: for the exact search among the documents added since
            the index was built, see `ExactSearcher`.

        Raises:
          ClaraError: there is no index, it is damaged, or of other vectors or row
            numbers.
        """
        self.store = store
        self.meta = read_meta(store)
        note = self.meta.note()
        check_note(store, KIND, note)
        settings = self.meta.settings
        self.candidates = settings.candidates if candidates is None else candidates
        if leaves_to_search is None:
            leaves_to_search = settings.leaves_to_search
        if self.candidates < 1 or (settings.leaves and leaves_to_search < 1):
            raise ClaraError("candidates and leaves to search must be 1 or more")
        self._leaves = min(leaves_to_search, settings.leaves)
        self._keys, self._rows, self._scann = load(check_files(store, KIND, note))
        self._live = store.live[self._rows]
        self._documents = int(np.count_nonzero(self._live))
        self._added = None
        if np.any(store.live[self.meta.rows :]):
            self._added = ExactSearcher(
                store, devices=devices, memory_limit=memory_limit, start=self.meta.rows
            )

    def __call__(
        self, queries: Float[np.ndarray, "B W"], k: int
    ) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
        """Return cosines and row numbers of the `k` nearest of the candidates.

        See ``Searcher``.
        """
        units = check_queries(queries, k, self.store)
        rows = self._find(self._keys.of_queries(units), max(self.candidates, k))
        scores = rescore(self.store, units, rows)
        if self._added is not None and len(units):
            count = min(k, self._added.documents)
            more_scores, more_rows = self._added(units, count)
            scores = list(map(np.append, scores, more_scores))
            rows = list(map(np.append, rows, more_rows))
        best = [
            best_of(score[None], row[None], k)
            for score, row in zip(scores, rows, strict=True)
        ]
        none = np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        found = [np.concatenate(each) for each in zip(none, *best, strict=True)]
        return found[0], found[1]

    def _find(
        self, keys: Float[np.ndarray, "B Q"], wanted: int
    ) -> list[Int[np.ndarray, "_"]]:
        """Rows of the best keys of documents that are not deleted.

        Where deleted documents or too few leaves leave less than `wanted`, more are
        asked for until there are so many, or all of the index.
        """
        wanted = min(wanted, self._documents)
        found: list[Int[np.ndarray, "_"]] = [self._rows[:0]] * len(keys)
        waiting = np.arange(len(keys) if wanted else 0)
        count, leaves = wanted, self._leaves
        most, all_leaves = self.meta.documents, self.meta.settings.leaves
        while len(waiting):
            for i, places in zip(
                waiting, self._ask(keys[waiting], count, leaves), strict=True
            ):
                found[i] = self._rows[places[self._live[places]]]
            if (count, leaves) == (most, all_leaves):
                break
            short = [len(found[i]) < wanted for i in waiting]
            waiting = waiting[short]
            count, leaves = min(2 * count, most), min(2 * leaves, all_leaves)
        return [rows[:wanted] for rows in found]

    def _ask(
        self, keys: Float[np.ndarray, "B Q"], count: int, leaves: int
    ) -> list[Int[np.ndarray, "_"]]:
        """Places in the index of the best keys, `count` or less of them."""
        search = (
            self._scann.search_batched
            if len(keys) == 1
            else self._scann.search_batched_parallel
        )
        places, scores = search(
            np.ascontiguousarray(keys, np.float32),
            final_num_neighbors=count,
            leaves_to_search=leaves or None,
        )
        # Where there are fewer, ScaNN fills up with place 0 and no score.
        there = ~np.isnan(scores)
        return [
            row[keep].astype(np.int64) for row, keep in zip(places, there, strict=True)
        ]

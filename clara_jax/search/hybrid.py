"""Words and meaning together: full text and a latent search, fused by rank.

Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a document's score is
the sum over both rankings of ``1 / (60 + rank)``. Ranks need no common scale. Words are
ranked by Lance's full-text index (BM25), cut by the rules of Unicode and dictionaries
for Chinese and Japanese; what was added since it was built, is read beside it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from lance.query import MultiMatchQuery

from clara_jax.errors import ClaraError
from clara_jax.lance_files import to_numpy
from clara_jax.native import lance_at_work
from clara_jax.search.exact import (
    Flat,
    Found,
    Searcher,
    check_queries,
    meeting,
    rescore,
)
from clara_jax.search.store import Store
from clara_jax.text.bm25 import TOKENIZER

K0 = 60
DEPTH = 100  # documents of each ranking, or more: twice as many as asked for
COLUMNS = ("text", "title")


def index_words(store: Store) -> None:
    """Build the full-text index of a store, in place of the one that is there.

    Raises:
      ClaraError: the store is empty, or the disk is full.
    """
    if not len(store):
        raise ClaraError(f"{store.place}: holds no documents to index")
    with lance_at_work(store.place, "written"):
        for column in COLUMNS:
            store.dataset.create_scalar_index(
                column, "INVERTED", replace=True, with_position=False, **TOKENIZER
            )


def has_words(store: Store) -> bool:
    """Return whether a store has a full-text index, be it out of date."""
    with lance_at_work(store.place):
        found = store.dataset.describe_indices()
    return set(COLUMNS) <= {name for index in found for name in index.field_names}


class HybridSearcher:
    """Full text and another search of a store, fused by rank; needs texts.

    Raises:
      ClaraError: there is no full-text index.
    """

    def __init__(self, store: Store, latent: Searcher):
        if not has_words(store):
            raise ClaraError(
                f"{store.place}: has no full-text index; build it with `python -m "
                f"clara_jax.compress index --store {store.place} --words`, or search "
                "without --hybrid"
            )
        self.store, self.latent = store, latent

    def renew(self) -> None:
        """Go on with the newest version of the store."""
        self.latent.renew()
        self.store = self.latent.store

    def __call__(
        self,
        queries: Flat,
        k: int,
        texts: Sequence[str] | None = None,
        where: str | None = None,
    ) -> Found:
        """Return the `k` best rows of each question, given as vector and as text.

        Cosines need not be descending, since the order is that of the fused ranks.
        """
        texts = texts or ()
        if len(texts) != len(queries):
            raise ClaraError(f"{len(queries)} question vectors, but {len(texts)} texts")
        units = check_queries(queries, k, self.store)
        if where is not None:
            k = min(k, len(meeting(self.store, where)))
        depth = min(max(DEPTH, 2 * k), len(self.store))
        _, near = self.latent(queries, depth, where=where)
        ids = np.empty((len(texts), k), np.int64)
        for i, text in enumerate(texts):
            ids[i] = _fused(near[i], self.by_words(text, depth, where))[:k]
        scores = rescore(self.store, units, list(ids))
        return np.array(scores, np.float32).reshape(ids.shape), ids

    def by_words(
        self, text: str, count: int, where: str | None = None
    ) -> Int[np.ndarray, "_"]:
        """Return ids of rows that share a word with a text, best first."""
        ids, scores = self._by_words(text, count, where)
        if not self.store.has(ids).all():
            # Lance's index keeps rows that a compaction dropped; a condition does not.
            ids, scores = self._by_words(text, count, where or "true")
        # Of equals the lower first.
        return ids[np.lexsort((ids, -scores))]

    def _by_words(
        self, text: str, count: int, where: str | None
    ) -> tuple[np.ndarray, np.ndarray]:
        with lance_at_work(self.store.place):
            found = self.store.dataset.scanner(
                columns=["_score"],
                full_text_query=MultiMatchQuery(text, list(COLUMNS)),
                filter=where,
                prefilter=True,
                limit=count,
                with_row_id=True,
            ).to_table()
        return to_numpy(found["_rowid"]).astype(np.int64), to_numpy(found["_score"])


def _fused(*rankings: Int[np.ndarray, "_"]) -> Int[np.ndarray, "_"]:
    """Return all ids of some rankings by fused rank, lower ids first if equal."""
    ids, places = np.unique(np.concatenate(rankings), return_inverse=True)
    shares = [1 / (K0 + 1 + np.arange(len(ranking))) for ranking in rankings]
    scores = np.bincount(places, np.concatenate(shares))
    return ids[np.argsort(-scores, kind="stable")]

"""Words and meaning together: BM25 and a latent search, fused by rank.

Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a document's score is
the sum over both rankings of ``weight / (60 + rank)``. Ranks need no common scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from clara_jax.errors import ClaraError
from clara_jax.search.index_files import (
    check_files,
    check_note,
    hold,
    index_folder,
    is_there,
    read_note,
    remedy,
    write_index,
)
from clara_jax.search.queries import check_queries
from clara_jax.search.rescore import rescore
from clara_jax.search.searcher import Searcher
from clara_jax.search.store import Store
from clara_jax.text.bm25 import best_of, library, tokenize

KIND = "bm25"
K0 = 60
DEPTH = 100
"""Documents of each ranking that are fused, at least."""

_AT_ONCE = 4096
"""Pieces read together."""


def has_bm25(store: Store) -> bool:
    """Whether a store has a BM25 index, be it out of date."""
    return is_there(store, KIND)


def build_bm25(
    store: Store, *, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Build the BM25 index of a store's pieces, in place of the one that is there.

    Titles count as part of the text. English stop words are left out.

    Args:
      store: what is indexed.
      progress: told each step.

    Returns:
      What the index holds.

    Raises:
      ClaraError: bm25s is not installed, there are no words to index, another process
        is building the index, or the disk is full.
    """
    bm25s = library()
    rows = np.flatnonzero(store.live)

    def texts() -> Iterator[str]:
        for begin in range(0, len(rows), _AT_ONCE):
            part = rows[begin : begin + _AT_ONCE]
            titles = store.strings(part, "title")
            for title, text in zip(titles, store.strings(part, "text"), strict=True):
                yield text if title in text else f"{title}\n{text}"

    with hold(store, KIND):
        progress(f"words of {len(rows):,} documents")
        words = bm25s.tokenize(texts(), stopwords="en", show_progress=False)
        if not words.vocab:
            raise ClaraError(f"{store.path}: its documents hold no words to index")
        progress(f"BM25 of {len(words.vocab):,} words")
        ranker = bm25s.BM25()
        ranker.index(words, show_progress=False)

        def write(folder: Any) -> None:
            ranker.save(str(folder), show_progress=False)
            np.save(folder / "rows.npy", rows)

        return write_index(store, KIND, write, {"documents": len(rows)})


class HybridSearcher:
    """BM25 and a latent search fused by rank; a ``Searcher`` that takes texts too.

    May be called from any thread.
    """

    def __init__(
        self,
        store: Store,
        latent: Searcher,
        *,
        weights: tuple[float, float] = (1.0, 1.0),
        depth: int = DEPTH,
    ):
        """Map the BM25 index into memory, after comparing its checksums.

        Args:
          store: with a BM25 index.
          latent: a search over the same store.
          weights: of the latent ranking and of BM25's.
          depth: documents of each ranking that are fused; at least twice as many as are
            asked for.

        Raises:
          ClaraError: bm25s is not installed, there is no BM25 index, it is damaged, of
            other rows, or lacks documents that were added since; a weight is negative.
        """
        if min(weights) < 0 or not any(weights) or depth < 1:
            raise ClaraError(
                f"weights {weights} and depth {depth}: give weights of 0 or more, not "
                "both 0, and a depth of 1 or more"
            )
        bm25s = library()
        self.store, self.latent = store, latent
        self.weights, self.depth = weights, depth
        note = read_note(store, KIND)
        check_note(store, KIND, note)
        missing = int(np.count_nonzero(store.live[note["rows"] :]))
        if missing:
            raise ClaraError(
                f"{index_folder(store, KIND)}: lacks {missing} documents that were "
                f"added since it was built; {remedy(store, KIND)}"
            )
        folder = check_files(store, KIND, note)
        self._ranker = bm25s.BM25.load(str(folder), mmap=True, show_progress=False)
        self._rows = np.load(folder / "rows.npy")
        self._live = store.live[self._rows]

    def __call__(
        self,
        queries: Float[np.ndarray, "B W"],
        k: int,
        texts: Sequence[str],
    ) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
        """Return the `k` best rows of each question.

        Args:
          queries: flat question vectors.
          k: rows per question.
          texts: the questions.

        Returns:
          Exact cosines (float32), which need not be descending, since the order is that
          of the fused ranks; and row numbers (int64).

        Raises:
          ClaraError: as of any ``Searcher``, or there are not as many texts as queries.
        """
        if len(texts) != len(queries):
            raise ClaraError(f"{len(queries)} question vectors, but {len(texts)} texts")
        units = check_queries(queries, k, self.store)
        depth = min(max(self.depth, 2 * k), len(self.store))
        _, near = self.latent(queries, depth)
        rows = np.stack(
            [
                self._fuse(row, self.by_words(text, depth))[:k]
                for row, text in zip(near, texts, strict=True)
            ]
            or [np.empty(k, np.int64)]
        )[: len(texts)]
        scores = rescore(self.store, units, list(rows))
        return np.array(scores, np.float32).reshape(rows.shape), rows

    def by_words(self, text: str, count: int) -> Int[np.ndarray, "_"]:
        """Rows that share a word with a text, best first, at most `count`."""
        (words,) = tokenize([text])
        ids = self._ranker.get_tokens_ids(words)
        if not ids:
            return self._rows[:0]
        scores = self._ranker.get_scores_from_ids(ids)
        return self._rows[best_of(scores, count, self._live)]

    def _fuse(
        self, near: Int[np.ndarray, "n"], words: Int[np.ndarray, "m"]
    ) -> Int[np.ndarray, "_"]:
        """All rows of both rankings, by fused rank; of equals the lower row first."""
        fused: dict[int, float] = {}
        for weight, ranking in zip(self.weights, (near, words), strict=True):
            for rank, row in enumerate(ranking.tolist(), 1):
                fused[row] = fused.get(row, 0.0) + weight / (K0 + rank)
        order = sorted(fused, key=lambda row: (-fused[row], row))
        return np.array(order, np.int64)

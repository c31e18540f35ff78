"""Words and meaning together: BM25 and a latent search, fused by rank.

Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a document's score is
the sum over both rankings of ``1 / (60 + rank)``. Ranks need no common scale.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from clara_jax.errors import ClaraError
from clara_jax.search.exact import Flat, Found, Searcher, check_queries, rescore
from clara_jax.search.index_files import ROWS, IndexFolder
from clara_jax.search.store import Progress, Store
from clara_jax.text.bm25 import best_of, library, tokenize

K0 = 60
DEPTH = 100
"""Documents of each ranking that are fused; at least twice as many as asked for."""

_AT_ONCE = 4096  # documents read together


def build_bm25(store: Store, *, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Build the BM25 index of a store, in place of the one that is there.

    Titles count as part of the text. English stop words are left out. Returns what the
    index holds, see `IndexFolder.read`.

    Raises:
      ClaraError: bm25s is not installed, there are no words to index, another process
        is building the index, or the disk is full.
    """
    bm25s = library()
    index = IndexFolder(store, "bm25")
    rows = np.flatnonzero(store.live)

    def texts() -> Iterator[str]:
        for begin in range(0, len(rows), _AT_ONCE):
            for piece in store.pieces(rows[begin : begin + _AT_ONCE]):
                titled = piece.title in piece.text
                yield piece.text if titled else f"{piece.title}\n{piece.text}"

    with index.hold():
        progress(f"words of {len(rows):,} documents")
        words = bm25s.tokenize(texts(), stopwords="en", show_progress=False)
        if not words.vocab:
            raise ClaraError(f"{store.path}: its documents hold no words to index")
        progress(f"BM25 of {len(words.vocab):,} words")
        ranker = bm25s.BM25()
        ranker.index(words, show_progress=False)

        def write(folder: Path) -> None:
            ranker.save(str(folder), show_progress=False)
            np.save(folder / ROWS, rows)

        return index.write(write, {"documents": len(rows)})


class HybridSearcher:
    """BM25 and another search of a store, fused by rank; a ``Searcher`` with texts.

    Raises:
      ClaraError: bm25s is not installed, there is no BM25 index, it is damaged, of
        other rows, or lacks documents that were added since.
    """

    def __init__(self, store: Store, latent: Searcher):
        bm25s = library()
        self.store, self.latent = store, latent
        index = IndexFolder(store, "bm25")
        note, folder = index.open()
        missing = int(np.count_nonzero(store.live[note["rows"] :]))
        if missing:
            what = f"lacks {missing} documents that were added since it was built"
            raise index.useless(index.path, what)
        self._ranker = bm25s.BM25.load(str(folder), mmap=True, show_progress=False)
        self._rows = np.load(folder / ROWS)
        self._live = store.live[self._rows]

    def __call__(self, queries: Flat, k: int, texts: Sequence[str]) -> Found:
        """Return the `k` best rows of each question, given as vector and as text.

        Cosines need not be descending, since the order is that of the fused ranks.
        """
        if len(texts) != len(queries):
            raise ClaraError(f"{len(queries)} question vectors, but {len(texts)} texts")
        units = check_queries(queries, k, self.store)
        depth = min(max(DEPTH, 2 * k), len(self.store))
        _, near = self.latent(queries, depth)
        rows = np.empty((len(texts), k), np.int64)
        for i, text in enumerate(texts):
            rows[i] = _fused(near[i], self.by_words(text, depth))[:k]
        scores = rescore(self.store, units, list(rows))
        return np.array(scores, np.float32).reshape(rows.shape), rows

    def by_words(self, text: str, count: int) -> Int[np.ndarray, "_"]:
        """Return rows that share a word with a text, best first, at most `count`."""
        (words,) = tokenize([text])
        ids = self._ranker.get_tokens_ids(words)
        if not ids:
            return self._rows[:0]
        scores = self._ranker.get_scores_from_ids(ids)
        return self._rows[best_of(scores, count, self._live)]


def _fused(*rankings: Int[np.ndarray, "_"]) -> Int[np.ndarray, "_"]:
    """Return all rows of some rankings by fused rank, lower rows first if equal."""
    rows, places = np.unique(np.concatenate(rankings), return_inverse=True)
    shares = [1 / (K0 + 1 + np.arange(len(ranking))) for ranking in rankings]
    scores = np.bincount(places, np.concatenate(shares))
    return rows[np.argsort(-scores, kind="stable")]

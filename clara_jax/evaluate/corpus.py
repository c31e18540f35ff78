"""Search among a whole corpus, and the answers from what is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clara_jax.evaluate.evaluators import (
    Question,
    Result,
    Trained,
    answer_results,
    with_adapters,
)
from clara_jax.evaluate.metrics import score_retrieval
from clara_jax.generate import Clara
from clara_jax.search import Store
from clara_jax.shapes import Float, Int

Search = Callable[
    [Float[np.ndarray, "B W"], int],
    tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]],
]
"""Queries and k to cosines and row numbers, best first; any searcher is one."""

_AT_ONCE = 256
"""Questions whose documents' vectors are in memory together."""


class CorpusRetrieval:
    """What the reasoner finds in a whole store, and the answers from the best of it.

    A question's right documents are known in the store by their text. Questions of
    which one is not there, or not told, do not count for recall.

    Args:
      clara: the model, with the frozen adapters; its compressor made the store.
      questions: held out.
      store: the corpus.
      search: over it.
      ks: cut-offs of recall; those above the number of documents are left out.
      decode: also answer from the best ``clara.selection.top_k``; costs most of the
        time.
    """

    def __init__(
        self,
        clara: Clara,
        questions: Sequence[Question],
        store: Store,
        search: Search,
        ks: Sequence[int] = (1, 5),
        decode: bool = True,
    ):
        self._clara, self._questions = clara, list(questions)
        self._store, self._search, self._decode = store, search, decode
        self._top_k = min(clara.selection.top_k, len(store))
        self._ks = sorted({k for k in ks if k <= len(store)})
        self._gold = [
            self._rows([q.documents[i] for i in q.positives]) for q in self._questions
        ]

    @property
    def left_out(self) -> int:
        """Questions that do not count for recall."""
        return sum(not gold for gold in self._gold)

    def run(self, state: Trained) -> Iterator[Result]:
        """Yield ``corpus/recall@k`` for each k and ``corpus/exact_match``, ``f1`` etc.

        ``corpus/left_out`` is the number of questions that do not count for recall.
        """
        clara = with_adapters(self._clara, state.trainable)
        texts = [q.question for q in self._questions]
        chosen: list[list[int]] = []
        answers: list[str] = []
        for start in range(0, len(texts), _AT_ONCE):
            asked = texts[start : start + _AT_ONCE]
            found = self._find(clara, asked)
            chosen += self._lowest(found).tolist()
            if self._decode:
                best = found[:, : self._top_k]
                shape = (*best.shape, self._store.num_memory, self._store.width)
                vectors = self._store.vectors(best.ravel()).reshape(shape)
                answers += clara.answer_from_vectors(asked, vectors)
        recall = score_retrieval(self._gold, chosen, self._ks)
        if self.left_out < len(texts):
            yield from ((f"corpus/recall@{k}", recall[f"recall@{k}"]) for k in self._ks)
        yield "corpus/left_out", float(self.left_out)
        if self._decode:
            yield from answer_results("corpus", answers, self._questions)

    def _find(self, clara: Clara, texts: Sequence[str]) -> Int[np.ndarray, "B k"]:
        queries = clara.reason(texts).reshape(len(texts), -1).astype(np.float32)
        return self._search(queries, max([self._top_k, *self._ks]))[1]

    def _rows(self, texts: Sequence[str]) -> list[int]:
        """Rows of all these texts, or none at all."""
        rows = self._store.find(texts).tolist()
        return [] if -1 in rows else rows

    def _lowest(self, rows: Int[np.ndarray, "B k"]) -> Int[np.ndarray, "B k"]:
        """Of each row the lowest one with its text: a corpus may have a text twice."""
        distinct, places = np.unique(rows, return_inverse=True)
        lowest = self._store.find(self._store.strings(distinct, "text"))
        return lowest[places.reshape(rows.shape)]

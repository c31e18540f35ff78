"""BM25 over texts (library bm25s, English stop words left out), best first.

Scores are those of the library's default, which is Lucene's: a word of a question adds
``log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + 1.5 * (0.25 + 0.75 * l / mean l))`` to a
document of l words that holds it f times, where n of N documents hold it. They are
computed here, so that a corpus can be scored in blocks with the numbers n, N and mean l
of the whole of it; words are the library's.
"""

import importlib
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from clara_jax.errors import ClaraError

K1, B = 1.5, 0.75


def library() -> Any:
    """Return the module bm25s, set to be quiet, or say how to install it."""
    try:
        module = importlib.import_module("bm25s")
    except ImportError as error:
        raise ClaraError("this needs the package bm25s: pip install bm25s") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return module


def tokenize(texts: Iterable[str]) -> list[list[str]]:
    """Return the words of each text in lower case, without stop words."""
    return library().tokenize(
        list(texts), stopwords="en", return_ids=False, show_progress=False
    )


def best_of(
    scores: Float[np.ndarray, " N"], k: int, among: np.ndarray | None = None
) -> Int64[np.ndarray, " _"]:
    """Return the places of the `k` highest scores above 0, of equals the lower first.

    With `among` ``[N]``, only of documents for which it is true.
    """
    places = np.flatnonzero(scores > 0 if among is None else (scores > 0) & among)
    found = scores[places]
    if len(places) > k:
        enough = found >= np.partition(found, len(places) - k)[-k]
        places, found = places[enough], found[enough]
    return places[np.lexsort((places, -found))][:k]


class Statistics:
    """Counts of a whole corpus, filled block by block with `add`.

    Args:
      words: the only words that count, those of the questions, numbered 0, 1, ...

    Attributes:
      holding: number of documents that hold each word ``[V]``.
      documents: number of documents.
      length: number of words in all of them.
    """

    def __init__(self, words: Mapping[str, int]):
        self.words = words
        self.holding = np.zeros(len(words), np.int64)
        self.documents = 0
        self.length = 0

    def add(self, texts: Iterable[str]) -> None:
        """Count the documents of a block."""
        self._add(*_count(texts, self.words)[:2])

    def _add(self, pairs: np.ndarray, lengths: np.ndarray) -> None:
        self.holding += np.bincount(pairs[0], minlength=len(self.words))
        self.documents += len(lengths)
        self.length += int(lengths.sum())


class Bm25:
    """Texts that questions are compared with.

    Args:
      texts: the documents.
      statistics: of the corpus that they are a part of; None if they are all of it.

    Example::

      ranker = Bm25(["a red fox", "the blue sea"])
      scores, places = ranker.best(["where is the sea?"], 1)  # places [[1]]
    """

    def __init__(self, texts: Iterable[str], statistics: Statistics | None = None):
        known = None if statistics is None else statistics.words
        pairs, lengths, counts, self._words = _count(texts, known)
        if statistics is None:
            statistics = Statistics(self._words)
            statistics._add(pairs, lengths)
        words, self._documents = pairs
        number, holding = statistics.documents, statistics.holding
        mean = statistics.length / max(number, 1) or 1.0
        rare = np.log(1 + (number - holding + 0.5) / (holding + 0.5))
        relative = lengths[self._documents] / mean
        share = counts / (K1 * ((1 - B) + B * relative) + counts)
        self._values = (rare.astype(np.float32)[words] * share).astype(np.float32)
        self._ends = np.searchsorted(words, np.arange(len(self._words) + 1))
        self._count = len(lengths)

    def scores(self, words: Iterable[str]) -> Float32[np.ndarray, " N"]:
        """Return the score of every document for the words of one question."""
        scores = np.zeros(self._count, np.float32)
        for word in words:
            number = self._words.get(word, -1)
            if number >= 0:
                part = slice(self._ends[number], self._ends[number + 1])
                scores[self._documents[part]] += self._values[part]
        return scores

    def best(
        self, questions: Sequence[str], k: int
    ) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
        """Return the `k` best documents of each question.

        Returns:
          Scores, descending, and places of the documents, of equals the lower first.
          Where fewer than `k` documents share a word with a question, the rest of its
          row holds score 0 and place -1.
        """
        scores = np.zeros((len(questions), k), np.float32)
        places = np.full((len(questions), k), -1, np.int64)
        for row, words in enumerate(tokenize(questions)):
            found = self.scores(words)
            best = best_of(found, k)
            scores[row, : len(best)] = found[best]
            places[row, : len(best)] = best
        return scores, places

    def ranking(self, question: str) -> Int[np.ndarray, " N"]:
        """Return the places of all documents, best first, of equals the lower."""
        (words,) = tokenize([question])
        return np.argsort(-self.scores(words), kind="stable")


def _count(
    texts: Iterable[str], words: Mapping[str, int] | None
) -> tuple[
    Int64[np.ndarray, "2 n"],
    Int64[np.ndarray, " N"],
    Int64[np.ndarray, " n"],
    Mapping[str, int],
]:
    """Count the `words` (all words if None) of texts.

    Returns:
      Words and documents that hold them, sorted; how many words each document has in
      all; how often it holds the word; the words.
    """
    found = library().tokenize(list(texts), stopwords="en", show_progress=False)
    lengths = np.fromiter(map(len, found.ids), np.int64, len(found.ids))
    every = itertools.chain.from_iterable(found.ids)
    numbers = np.fromiter(every, np.int64, int(lengths.sum()))
    documents = np.repeat(np.arange(len(lengths)), lengths)
    known = found.vocab if words is None else words
    if words is not None:
        own = np.asarray([words.get(word, -1) for word in found.vocab], np.int64)
        numbers = own[numbers]
        documents, numbers = documents[numbers >= 0], numbers[numbers >= 0]
    size = max(len(lengths), 1)
    pairs, counts = np.unique(numbers * size + documents, return_counts=True)
    return np.stack(np.divmod(pairs, size)), lengths, counts, known

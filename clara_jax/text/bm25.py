"""BM25 over texts, best first, with the words and scores of Lance's full-text index.

A word of a question adds ``log(1 + (N - n + 0.5) / (n + 0.5)) * 2.2 * f / (f + 1.2 *
(0.25 + 0.75 * l / mean l))`` to a document of l words that holds it f times, where n of
the N documents that are not empty hold it. Words are those of the ICU segmentation,
which finds them in Chinese and Japanese, too, without stop words. A store's index of
words scores alike. Here a corpus can be scored in blocks, with the numbers n, N and
mean l of the whole of it.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

K1, B = 1.2, 0.75

_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the "
    "their then there these they this to was will with"
)
"""Lucene's, for English. The tokenizer's own list is of many languages at once, and
would leave out words such as ``son``."""

TOKENIZER: dict[str, Any] = {
    "base_tokenizer": "icu",
    "language": "English",
    "lower_case": True,
    "stem": False,
    "remove_stop_words": True,
    "custom_stop_words": _STOP_WORDS.split(),
    "ascii_folding": True,
}
"""How texts become words: for ``lance.tokenize`` and an index of type INVERTED."""

_MARK = "xqendoftextqx"
"""A word put between texts that are tokenized together, with newlines around it."""

_CHARACTERS = 1 << 20
"""Characters to tokenize in one call, of which even an empty one takes 1 to 3 ms."""


def tokenize(texts: Iterable[str]) -> list[list[str]]:
    """Return the words of each text in lower case, without stop words and accents."""
    return list(itertools.chain.from_iterable(_in_batches(texts)))


def best_of(scores: Float[np.ndarray, " N"], k: int) -> Int64[np.ndarray, " _"]:
    """Return places of the `k` highest scores above 0, of equals the lower first."""
    places = np.flatnonzero(scores > 0)
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
      documents: number of documents that are not empty: they hold some word.
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
        self.documents += int(np.count_nonzero(lengths))
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
        share = (K1 + 1) * counts / (K1 * ((1 - B) + B * relative) + counts)
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
    seen = collections.defaultdict(itertools.count().__next__)
    known = seen if words is None else words
    number = seen.__getitem__ if words is None else lambda word: known.get(word, -1)
    held, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    begin = 0
    for batch in _in_batches(texts):
        each = np.fromiter(map(len, batch), np.int64, len(batch))
        every = map(number, itertools.chain.from_iterable(batch))
        numbers = np.fromiter(every, np.int64, int(each.sum()))
        documents = np.repeat(np.arange(begin, begin + len(batch)), each)
        # One number for both takes half the memory, and sorts faster.
        held.append((numbers << 32 | documents)[numbers >= 0])
        lengths.append(each)
        begin += len(batch)
    pairs, counts = np.unique(np.concatenate(held), return_counts=True)
    pairs = np.stack([pairs >> 32, pairs & 0xFFFFFFFF])
    return pairs, np.concatenate(lengths), counts, dict(known)


def _in_batches(texts: Iterable[str]) -> Iterator[list[list[str]]]:
    """Yield the words of each text, of many texts at a time."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) + len(_MARK)
        if size >= _CHARACTERS:
            yield _words(batch)
            batch, size = [], 0
    if batch:
        yield _words(batch)


def _words(texts: list[str]) -> list[list[str]]:
    """Return the words of each of one or more texts."""
    import lance  # not above: it takes a quarter of a second, and few commands use it

    found = lance.tokenize(f"\n{_MARK}\n".join(texts), **TOKENIZER)
    words = [token.text for token in found]
    if len(texts) == 1:
        return [words]
    marks = [i for i, word in enumerate(words) if word == _MARK]
    if len(marks) >= len(texts):  # a text holds the mark itself
        half = len(texts) // 2
        return _words(texts[:half]) + _words(texts[half:])
    begins, ends = [0, *(i + 1 for i in marks)], [*marks, len(words)]
    return [words[begin:end] for begin, end in zip(begins, ends, strict=True)]

"""From files to rows of tokens, shard by shard and one shard ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from clara_jax.config import MemoryConfig
from clara_jax.data import Corpus, split_documents
from clara_jax.documents import Document
from clara_jax.shapes import Int
from clara_jax.text import ClaraTokenizer

T = TypeVar("T")

LETTERS = 4
"""Characters a token, about, in most languages with an alphabet."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """What goes into one shard.

    Attributes:
      shard: its number.
      pieces: in the corpus's order.
      rows: of token ids, one a piece, as the compressor reads them.
      documents: how many the pieces make.
      cut: how many of them are longer than the model reads.
      unknown: how many pieces hold words that the tokenizer has no token for.
    """

    shard: int
    pieces: list[Document]
    rows: list[list[int]]
    documents: int
    cut: int
    unknown: int


def shard_bounds(
    lengths: Int[np.ndarray, " n"], entries: int, characters: int
) -> Int[np.ndarray, " k"]:
    """Share the entries of a corpus out over shards.

    Args:
      lengths: characters of each entry.
      entries: most entries of a shard.
      characters: most characters of a shard that has more than one entry, so that long
        documents do not make it too large for the memory.

    Returns:
      Where each shard begins, and last the number of entries.

    Example:
      >>> shard_bounds(np.asarray([1, 1, 1, 90, 1]), entries=2, characters=50)
      array([0, 2, 3, 4, 5])
    """
    ends = np.cumsum(lengths)
    bounds = [0]
    while bounds[-1] < len(lengths):
        start = bounds[-1]
        before = int(ends[start - 1]) if start else 0
        full = int(np.searchsorted(ends, before + characters, "right"))
        bounds.append(min(max(full, start + 1), start + entries, len(lengths)))
    return np.asarray(bounds, np.int64)


class Reader:
    """Reads shards of a corpus.

    Args:
      corpus: of documents.
      tokenizer, memory: how a document becomes a row.
      entries: most entries of a shard.
      split: cut documents that are longer than the model reads into pieces that are
        not; else their ends are left out.

    Attributes:
      bounds: where each shard begins, see `shard_bounds`.
      unit: what an entry is called: a document, or a record that may hold several.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: ClaraTokenizer,
        memory: MemoryConfig,
        entries: int,
        *,
        split: bool = True,
    ):
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._limit = memory.doc_max_length
        self._split = split
        self.unit = "doc" if corpus.documents == len(corpus) else "record"
        most = entries * self._limit * LETTERS if split else np.iinfo(np.int64).max
        # Entries first: the sum must not go beyond 64 bits.
        most = min(most, int(corpus.lengths.sum()))
        self.bounds = shard_bounds(corpus.lengths, entries, most)

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self.bounds) - 1

    def entries(self, shard: int) -> int:
        """How many entries a shard has."""
        return int(self.bounds[shard + 1] - self.bounds[shard])

    def sample(self, count: int) -> list[list[int]]:
        """Rows of the beginnings of documents from all over the corpus.

        Args:
          count: of entries that are read, at most.

        Raises:
          ClaraError: a file has changed or can no longer be read.
        """
        entries = np.unique(np.linspace(0, len(self._corpus) - 1, count, dtype=int))
        firsts = [found for i in entries for found in self._corpus[int(i)][:1]]
        texts = [document.text for document in firsts]
        return self._tokenizer.encode_documents(texts, self._limit)

    def read(self, shard: int) -> Texts:
        """Read, split and tokenise the documents of one shard.

        Raises:
          ClaraError: a file has changed or can no longer be read.
        """
        entries = range(self.bounds[shard], self.bounds[shard + 1])
        documents = [found for i in entries for found in self._corpus[i]]
        tokenizer, limit = self._tokenizer, self._limit
        pieces, cut = documents, 0
        if self._split:
            pieces = split_documents(documents, tokenizer, limit)
        else:
            lengths = tokenizer.document_lengths([found.text for found in documents])
            cut = sum(length > limit for length in lengths)
        rows = tokenizer.encode_documents([piece.text for piece in pieces], limit)
        missing = tokenizer.base.unk_token_id
        return Texts(
            shard=shard,
            pieces=pieces,
            rows=rows,
            documents=len(documents),
            cut=cut,
            unknown=0 if missing is None else sum(missing in row for row in rows),
        )


def ahead(read: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """Call `read` for each number in a thread, one number ahead.

    Args:
      read: called in the numbers' order, by one thread.
      numbers: what to read.

    Yields:
      What `read` returns, or raises.
    """
    with ThreadPoolExecutor(1, "read") as pool:
        waiting = None
        for number in numbers:
            following = pool.submit(read, number)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()

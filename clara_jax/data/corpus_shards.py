"""A corpus cut into shards, which are read, split and tokenised one by one."""

import dataclasses

import numpy as np

from clara_jax.config import MemoryConfig
from clara_jax.data.chunking import split_documents
from clara_jax.data.document_corpus import Corpus
from clara_jax.documents import Document
from clara_jax.shapes import Int
from clara_jax.text import ClaraTokenizer

LETTERS = 4  # characters a token, about, in most languages with an alphabet


@dataclasses.dataclass(frozen=True)
class Texts:
    """What goes into one shard.

    Counts are ``documents``, ``pieces`` and ``tokens``; ``cut``, documents longer than
    the model reads; ``unknown``, pieces with words that have no token.
    """

    shard: int  # its number
    pieces: list[Document]  # in the corpus's order
    rows: list[list[int]]  # token ids of each piece, as the compressor reads them
    counts: dict[str, int]


def shard_bounds(
    lengths: Int[np.ndarray, " n"], entries: int, characters: int
) -> Int[np.ndarray, " k"]:
    """Return where each shard of a corpus begins, and last the number of entries.

    Args:
      lengths: characters of each entry.
      entries: most entries of a shard.
      characters: most characters of a shard that has more than one entry, so that long
        documents do not make it too large for the memory.

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


class ShardReader:
    """Reads shards of a corpus, of so many entries at most.

    With `split`, documents that are longer than the model reads are cut into pieces
    that are not; else their ends are left out.

    Attributes:
      sizes: how many entries each shard has.
      unit: what an entry is called: a document, or a record that may hold several.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: ClaraTokenizer,
        memory: MemoryConfig,
        entries: int,
        *,
        split: bool,
    ):
        self._corpus, self._tokenizer = corpus, tokenizer
        self._limit, self._split = memory.doc_max_length, split
        self.unit = "doc" if corpus.documents == len(corpus) else "record"
        most = int(corpus.lengths.sum())
        if split:
            most = min(most, entries * self._limit * LETTERS)
        self._bounds = shard_bounds(corpus.lengths, entries, most)
        self.sizes = np.diff(self._bounds)

    def sample(self, count: int) -> list[list[int]]:
        """Return rows of the beginnings of `count` documents from all over."""
        entries = np.unique(np.linspace(0, len(self._corpus) - 1, count, dtype=int))
        firsts = [found for i in entries for found in self._corpus[int(i)][:1]]
        texts = [document.text for document in firsts]
        return self._tokenizer.encode_documents(texts, self._limit)

    def read(self, shard: int) -> Texts:
        """Read, split and tokenise the documents of one shard.

        Raises:
          ClaraError: a file has changed or can no longer be read.
        """
        entries = range(*self._bounds[shard : shard + 2])
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
        counts = {
            "documents": len(documents),
            "pieces": len(pieces),
            "tokens": sum(map(len, rows)),
            "cut": cut,
            "unknown": 0 if missing is None else sum(missing in row for row in rows),
        }
        return Texts(shard, pieces, rows, counts)

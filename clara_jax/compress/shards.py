"""From a corpus to the shards of a store: read, compressed and written one by one.

While one shard is compressed, a thread reads the next one.
"""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from clara_jax.config import MemoryConfig
from clara_jax.data import Corpus, split_documents
from clara_jax.documents import Document
from clara_jax.files import read_ahead
from clara_jax.generate import Clara, encode_rows
from clara_jax.search import Job
from clara_jax.shapes import Float, Int
from clara_jax.text import ClaraTokenizer

LETTERS = 4  # characters a token, about, in most languages with an alphabet


class Part(NamedTuple):
    """One of so many parts of the shards; counted from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"part {self.index + 1} of {self.count}"


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


class Reader:
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


def make_compressor(
    clara: Clara, mesh: Mesh, batch_size: int, *, merge: bool
) -> Callable[..., Float[np.ndarray, "n M D"]]:
    """Return what makes document vectors on all devices of a mesh, and nothing else.

    Args:
      clara: the model, laid out over `mesh`.
      mesh: the rows of a batch are split over it.
      batch_size: rows read together, on all devices.
      merge: put the adapter into the weights, which must not be quantized: one product
        per matrix in place of three.

    Returns:
      ``(rows, tell) -> vectors``, as of ``generate.encode_rows``.
    """
    network, memory = clara.network, clara.memory
    with jax.set_mesh(mesh):
        network = network.merge("compressor") if merge else network
    own = {name: network.adapters[name] for name in ("compressor", "memory")}
    encode = functools.partial(
        encode_rows,
        dataclasses.replace(network, adapters=own),
        role=None if merge else "compressor",
        pad_id=clara.tokenizer.pad_id,
        batch_size=batch_size,
        largest=memory.row_length(memory.doc_max_length),
    )

    def compress(
        rows: Sequence[Sequence[int]], tell: Callable[[int], object]
    ) -> Float[np.ndarray, "n M D"]:
        with jax.set_mesh(mesh):
            return encode(rows, tell=tell)

    return compress


def write_shards(
    job: Job,
    reader: Reader,
    compress: Callable[..., np.ndarray],
    part: Part,
    check: Callable[[int], object],
) -> Counter[str]:
    """Write the shards of a part that are missing; return the sums of their counts.

    After every batch `check` is called with the number of shards that are left; what it
    raises ends the work, and the shard at hand is dropped.
    """
    missing = job.missing(*part)
    total = int(reader.sizes[part.index :: part.count].sum())
    there = total - int(reader.sizes[missing].sum())
    counts, begin = Counter(), time.perf_counter()
    with tqdm(desc="compress", total=total, initial=there, unit=reader.unit) as bar:
        for done, texts in enumerate(read_ahead(reader.read, missing)):
            still = functools.partial(check, len(missing) - done)
            size = int(reader.sizes[texts.shard])
            tell = _meter(bar, size, len(texts.rows), still)
            vectors = compress(texts.rows, tell)
            job.write(texts.shard, vectors, texts.pieces)
            counts.update(texts.counts)
            seconds = time.perf_counter() - begin
            bar.set_postfix_str(f"{counts['tokens'] / seconds:,.0f} tokens/s")
    return counts


def _meter(
    bar: tqdm, entries: int, rows: int, check: Callable[[], object]
) -> Callable[[int], None]:
    """What moves a bar over the entries of a shard as its rows are done."""
    begin, done = bar.n, 0

    def add(more: int) -> None:
        nonlocal done
        check()
        done += more
        bar.update(begin + entries * done // rows - bar.n)

    return add

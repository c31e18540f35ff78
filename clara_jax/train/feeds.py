"""Training batches of a run: where its candidates and their vectors come from.

| candidates | store | vectors of documents |
|---|---|---|
| given | - | compressed in every step, or once (``data.cache_vectors``) |
| given | yes | of the store where it has the text, else compressed once |
| corpus | yes | of the store, for whatever is found; see `corpus` |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.clara import Batch
from clara_jax.config import RunConfig
from clara_jax.data import (
    Records,
    UniqueDocuments,
    Windows,
    make_batches,
)
from clara_jax.errors import ClaraError
from clara_jax.search import Store
from clara_jax.search.manifest import digest_of
from clara_jax.search.scann_index import ScannSearcher
from clara_jax.shapes import Float, Int
from clara_jax.train.corpus_feed import CorpusFeed, question_encoder
from clara_jax.train.loop import Feed
from clara_jax.train.parts import Parts
from clara_jax.train.vectors import cached_vectors

_AT_ONCE = 4096
"""Documents that are looked up in a store together."""


def make_feed(
    parts: Parts,
    say: Callable[[str], None],
    claim: Callable[[], None],
    stop: Callable[[], bool],
    late: Callable[[], bool] | None = None,
) -> tuple[Feed, CorpusFeed | None] | None:
    """Make the training batches; vectors that are cached are made now.

    Args:
      parts: of the run.
      say: takes remarks for the user.
      claim: makes the run's folder, before anything is written to it.
      stop: asked from time to time whether to end early.
      late: likewise, whether to make do with the records whose documents are compressed
        by then; None compresses all.

    Returns:
      The feed, and within it the one that is a hook too, where there is one. None after
      `stop`; the vectors so far are kept.
    """
    config, store = parts.config, parts.store
    if config.candidates == "corpus":
        assert store is not None
        feed = CorpusFeed(
            iter(_batches(parts, parts.train)),
            question_encoder(parts.network, parts.training, parts.mesh),
            parts.searcher(),
            store,
            config.data.candidates,
            rows=parts.training.part.rows,
            dtype=config.dtype,
        )
        # ``auto`` may find an index that was not there before.
        kind = "scann" if isinstance(parts.searcher(), ScannSearcher) else "exact"
        return Pinned(feed, {**note_of(store), "search": kind}), feed
    documents = vectors = None
    if parts.stage.caches_vectors(config):
        claim()
        documents = UniqueDocuments(parts.train)
        need = max(
            int(documents.candidates(i).max()) + 1
            for i in range(min(config.data.batch_size, len(parts.train)))
        )
        enough = late and (lambda done: done >= need and late())
        vectors = _vectors(parts, documents, say, stop, enough)
        if vectors is None:
            return None
    records = parts.train
    if documents is not None and isinstance(vectors, np.ndarray):
        count = _covered(documents, len(vectors), len(records))
        if count < len(records):
            say(f"time for the documents of {count} records, of {len(records)}")
            records = records.first(count)
    batches = _batches(parts, records, documents=documents, vectors=vectors)
    return Pinned(iter(batches), None if store is None else note_of(store)), None


class Pinned:
    """A feed that goes on only with the store that it began with.

    Args:
      feed: the batches.
      note: of `note_of`; None where there is no store.
    """

    def __init__(self, feed: Feed, note: dict[str, Any] | None):
        self._feed, self._note = feed, note

    def __next__(self) -> Batch:
        return next(self._feed)

    def get_state(self) -> Any:
        """The feed's position, and what the store was."""
        state = self._feed.get_state()
        return state if self._note is None else {"store": self._note, "feed": state}

    def set_state(self, state: Any) -> None:
        """Go to a position of `get_state`.

        Raises:
          ClaraError: the run had another store, or other documents in it.
        """
        before = state.get("store")
        if before != self._note:
            was, now = (_told(note) for note in (before, self._note))
            raise ClaraError(
                f"config field 'store': this run was begun with {was}, and now has "
                f"{now}; give the store as it was, or another --config.workdir"
            )
        self._feed.set_state(state if before is None else state["feed"])


def note_of(store: Store) -> dict[str, Any]:
    """What tells a store from every other, wherever its folder lies."""
    manifest = store.manifest
    deleted = None if manifest.deleted is None else manifest.deleted.checksum
    contents = {"shards": [s.digest for s in manifest.shards], "deleted": deleted}
    return {
        "fingerprint": store.fingerprint,
        "generation": store.generation,
        "rows": store.rows,
        "contents": digest_of(contents),
    }


def _told(note: dict[str, Any] | None) -> str:
    if note is None:
        return "no store"
    names = ("generation", "rows", "fingerprint", "contents", "search")
    told = [f"{name} {note[name]}" for name in names if name in note]
    return f"one of {', '.join(told)}"


@dataclasses.dataclass(frozen=True)
class StoredVectors:
    """Vectors by number of a document, from a store and from those compressed besides.

    Attributes:
      store: of the first kind.
      rows: of each document its row there, or ``~i`` where it is the i-th of `others`.
      others: ``[U, M, D]`` vectors of documents that the store does not have.
      dtype: of what is returned.
    """

    store: Store
    rows: Int[np.ndarray, "U"]
    others: np.ndarray | None
    dtype: str

    def __call__(self, numbers: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n M D"]:
        """Vectors of the documents of these numbers, in their order."""
        rows = self.rows[numbers]
        distinct, places = np.unique(rows[rows >= 0], return_inverse=True)
        shape = (len(rows), self.store.num_memory, self.store.width)
        found = np.empty(shape, np.dtype(self.dtype))
        found[rows >= 0] = self.store.vectors(distinct).astype(found.dtype)[places]
        if self.others is not None:
            found[rows < 0] = self.others[~rows[rows < 0]]
        return found


def rows_in(store: Store, documents: UniqueDocuments) -> Int[np.ndarray, "U"]:
    """Row of each document's text in a store, -1 where there is none."""
    chunks = range(0, len(documents), _AT_ONCE)
    found = [store.find(documents[start : start + _AT_ONCE]) for start in chunks]
    return np.concatenate([np.zeros(0, np.int64), *found])


class _Some(Sequence[str]):
    """Those documents of a data set that have these numbers."""

    def __init__(self, documents: UniqueDocuments, numbers: Sequence[int]):
        self._documents, self._numbers = documents, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._documents[i] for i in self._numbers[index]]
        return self._documents[self._numbers[index]]


def _vectors(
    parts: Parts,
    documents: UniqueDocuments,
    say: Callable[[str], None],
    stop: Callable[[], bool],
    late: Callable[[int], bool] | None,
) -> Any:
    """Vectors of all documents, compressed where no store has them; None: stopped.

    Without a store there may be fewer of them, see `cached_vectors`.
    """
    config, store = parts.config, parts.store
    compressed: Sequence[str] | UniqueDocuments = documents
    rows = np.zeros(0, np.int64)
    if store is not None:
        rows = rows_in(store, documents)
        missing = np.flatnonzero(rows < 0)
        rows[missing] = ~np.arange(len(missing))
        compressed = _Some(documents, missing.tolist())
        have = len(documents) - len(missing)
        say(f"{config.store}: has {have} of {len(documents)} candidate documents")
    vectors = None
    if len(compressed):
        vectors = cached_vectors(
            folder_of_vectors(config),
            parts.network,
            parts.tokenizer,
            config.memory,
            compressed,
            batch_size=max(32, config.data.eval_batch_size),
            stop=stop,
            late=late if store is None else None,
        )
        if vectors is None:
            return None
    if store is None:
        return vectors
    return StoredVectors(store, rows, vectors, config.dtype)


def _covered(documents: UniqueDocuments, done: int, records: int) -> int:
    """Count the first records of which all documents are among the first `done`.

    Documents are numbered as they come first in the records.
    """
    if done == len(documents):
        return records
    needs = (int(documents.candidates(i).max(initial=-1)) for i in range(records))
    return next((i for i, need in enumerate(needs) if need >= done), records)


def _batches(parts: Parts, records: Records, **options: Any) -> Windows:
    return make_batches(records, parts.make, part=parts.training.part, **options)


def folder_of_vectors(config: RunConfig) -> Path:
    """Where a run keeps the vectors of its training documents."""
    return Path(config.workdir) / "vectors"

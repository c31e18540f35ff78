"""Training batches of a run: where its candidates and their vectors come from.

| candidates | store | vectors of documents |
|---|---|---|
| given | - | compressed in every step, or once (``data.cache_vectors``) |
| given | yes | of the store where it has the text, else compressed once |
| corpus | yes | of the store, for whatever is found; see `corpus_feed` |
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from clara_jax.clara import Batch
from clara_jax.config import require
from clara_jax.data import UniqueDocuments, make_batches
from clara_jax.distributed import report
from clara_jax.search import Store
from clara_jax.search.scann_index import ScannSearcher
from clara_jax.train.corpus_feed import CorpusFeed, question_encoder
from clara_jax.train.document_vectors import document_vectors
from clara_jax.train.loop import Feed
from clara_jax.train.parts import Parts


def make_feed(
    parts: Parts,
    claim: Callable[[], object],
    check: Callable[[], object],
    late: Callable[[], bool] | None = None,
) -> tuple[Feed, CorpusFeed | None]:
    """Make the training batches; vectors that are cached are made now.

    Args:
      parts, claim: of the run; makes its folder, before vectors are written to it.
      check: called from time to time; what it raises ends the work.
      late: asked likewise whether to make do with the records whose documents are
        compressed by then; None compresses all.

    Returns:
      The feed, and within it the one that is a hook too, where there is one.
    """
    config, store, records = parts.config, parts.store, parts.train
    note, part = None if store is None else note_of(store), parts.training.part
    if config.candidates == "corpus":
        assert store is not None and note is not None
        search = parts.searcher()
        corpus = CorpusFeed(
            iter(make_batches(records, parts.make, part=part)),
            question_encoder(parts.network, parts.training, parts.mesh),
            search,
            store,
            config.data.candidates,
            rows=part.rows,
            dtype=config.dtype,
        )
        # ``auto`` may find an index that was not there before.
        kind = "scann" if isinstance(search, ScannSearcher) else "exact"
        return Pinned(corpus, {**note, "search": kind}), corpus
    cached: dict[str, Any] = {}
    if parts.make.stage.caches_vectors(config):
        claim()
        documents = UniqueDocuments(records)
        # Documents are numbered as they come first in the records.
        needs = [
            int(documents.candidates(i).max(initial=-1)) for i in range(len(records))
        ]
        least = max(needs[: config.data.batch_size]) + 1
        enough = late and (lambda done: done >= least and late())
        vectors = document_vectors(parts, documents, check, enough)
        if len(vectors) < len(documents):
            count = next(i for i, need in enumerate(needs) if need >= len(vectors))
            report(f"time for the documents of {count} records, of {len(records)}")
            records = records.first(count)
        cached = {"documents": documents, "vectors": vectors}
    batches = make_batches(records, parts.make, part=part, **cached)
    return Pinned(iter(batches), note), None


@dataclasses.dataclass
class Pinned:
    """A feed that goes on only with the store that it began with, as of `note_of`."""

    feed: Feed
    note: dict[str, Any] | None

    def __next__(self) -> Batch:
        return next(self.feed)

    def get_state(self) -> Any:
        """Return the feed's position, and what the store was."""
        state = self.feed.get_state()
        return state if self.note is None else {"store": self.note, "feed": state}

    def set_state(self, state: Any) -> None:
        """Go to a position of `get_state`; refuse another store or its documents."""
        before = state.get("store")
        other = (
            f"this run was begun with {_named(before)}, and now has "
            f"{_named(self.note)}; give the store as it was, or another "
            "--config.workdir"
        )
        require(before == self.note, "store", other)
        self.feed.set_state(state if before is None else state["feed"])


def note_of(store: Store) -> dict[str, Any]:
    """Return what tells a store from every other, wherever its folder lies."""
    return {
        "fingerprint": store.fingerprint,
        "rows": len(store),
        "contents": store.contents(),
    }


def _named(note: dict[str, Any] | None) -> str:
    if note is None:
        return "no store"
    names = ("rows", "fingerprint", "contents", "search")
    parts = [f"{name} {note[name]}" for name in names if name in note]
    return f"one of {', '.join(parts)}"

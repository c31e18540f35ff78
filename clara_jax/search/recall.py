"""How much of the exact search an index finds, and how fast."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time

import numpy as np
from jaxtyping import Int

from clara_jax.errors import ClaraError
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.index_files import IndexFolder
from clara_jax.search.scann_index import ScannSearcher
from clara_jax.search.searcher import Flat, Searcher, unit
from clara_jax.search.store import Progress, Store

ENOUGH = 0.95
"""Recall below which a report warns."""

OWN, OTHER, NOISE = 0.7, 0.3, 0.5
MADE_UP = (
    f"made up: {OWN:g} of a document that keys were not learnt from, {OTHER:g} of "
    f"another one, and noise of {NOISE:g} of the typical distance of two documents"
)

_CLOSE = 1e-6
_PATIENCE = 20.0
"""Seconds after which no further single questions are timed."""


@dataclasses.dataclass(frozen=True)
class Report:
    """A comparison of the two searches.

    Attributes:
      recall: share of the exact search's best `k` documents that ScaNN finds, or
        documents as near as the last of them.
      k: documents per question.
      queries: how many questions.
      source: where they are from.
      documents: how many the store holds.
      exact_seconds: median over questions asked one at a time.
      scann_seconds: the same, rescoring included.
      streamed: the exact search read its vectors from disk.
    """

    recall: float
    k: int
    queries: int
    source: str
    documents: int
    exact_seconds: float
    scann_seconds: float
    streamed: bool

    @property
    def crossover(self) -> float:
        """Documents from which on ScaNN is the faster, its time taken as constant."""
        return self.documents * self.scann_seconds / self.exact_seconds

    def lines(self) -> list[str]:
        """Return what a command prints."""
        faster = self.exact_seconds / self.scann_seconds
        found = [
            f"recall@{self.k} of scann: {self.recall:.3f} of what the exact search "
            f"finds ({self.queries} questions {self.source})",
            f"time per question: exact {1e3 * self.exact_seconds:.1f} ms"
            f"{' (from disk)' if self.streamed else ''}, scann "
            f"{1e3 * self.scann_seconds:.1f} ms: {faster:.1f} times as fast; at this "
            f"rate scann is the faster from about {self.crossover:,.0f} documents on",
        ]
        if self.recall < ENOUGH:
            found.append(
                f"warning: recall@{self.k} is below {ENOUGH:g}; build the index with "
                "more dims, candidates or leaves to search, or search exactly"
            )
        return found


def report(
    store: Store,
    queries: Flat | None = None,
    k: int = 5,
    *,
    progress: Progress = lambda _: None,
) -> Report:
    """Measure the ScaNN index of a store against the exact search, and note it there.

    Args:
      store: with an index.
      queries: flat question vectors; None makes them up, see `made_up_queries`.
      k: documents per question; fewer where the store holds fewer.
      progress: is told each step.
    """
    scann = ScannSearcher(store)
    held_out = np.array(scann.note["held_out"], np.int64)
    if not len(held_out if queries is None else queries):
        raise ClaraError(
            f"{store.path}: too few documents to make questions of; give questions"
        )
    source = MADE_UP if queries is None else "given"
    if queries is None:
        queries = made_up_queries(store, held_out)
    k = min(k, len(store))
    progress(f"exact search for {len(queries)} questions")
    exact = ExactSearcher(store)
    truth = exact(queries, k)[0]
    progress("the same with scann")
    found = scann(queries, k)[0]
    result = Report(
        recall=float(np.mean(found >= truth[:, -1:] - _CLOSE)),
        k=k,
        queries=len(queries),
        source=source,
        documents=len(store),
        exact_seconds=statistics.median(single_times(exact, queries, k)),
        scann_seconds=statistics.median(single_times(scann, queries, k)),
        streamed=exact.streamed,
    )
    index = IndexFolder(store, "scann")
    # Noted if nobody is changing the index, and it is still the one that was measured.
    with contextlib.suppress(ClaraError), index.hold():
        note = index.read()
        if note["folder"] == scann.note["folder"]:
            index.write_note({**note, "measured": dataclasses.asdict(result)})
    return result


def made_up_queries(store: Store, rows: Int[np.ndarray, "B"]) -> Flat:
    """Make questions of documents, so that their neighbours are not trivially known.

    With ``u`` unit vectors, `rows` giving the first and another document the second,
    and ``g`` Gaussian noise of length about 1, a question is ``0.7 u + 0.3 u' + 0.5 d
    g``, where ``d`` is the median distance of the two.
    """
    draw = np.random.default_rng([1, 0])
    others = draw.choice(np.flatnonzero(store.live), len(rows))
    own, other = (
        unit(store.vectors(chosen).reshape(len(rows), -1)) for chosen in (rows, others)
    )
    typical = np.median(np.linalg.norm(own - other, axis=1))
    noise = draw.standard_normal(own.shape, np.float32) / np.sqrt(own.shape[1])
    made = OWN * own + OTHER * other + NOISE * typical * noise
    return made.astype(np.float32)


def single_times(search: Searcher, queries: Flat, k: int) -> list[float]:
    """Return the seconds of each question, asked alone after one that compiles."""
    search(queries[:1], k)
    begin = time.perf_counter()
    found = []
    for i in range(len(queries)):
        start = time.perf_counter()
        search(queries[i : i + 1], k)
        found.append(time.perf_counter() - start)
        if time.perf_counter() - begin > _PATIENCE:
            break
    return found

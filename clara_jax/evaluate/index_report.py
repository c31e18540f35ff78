"""How a store's ScaNN index compares with the exact search: recall and time."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from clara_jax.errors import ClaraError
from clara_jax.search import Store
from clara_jax.search.exact import ExactSearcher, Flat, Searcher, unit
from clara_jax.search.scann_index import ScannSearcher

OWN, OTHER, NOISE = 0.7, 0.3, 0.5
MADE_UP = (
    f"made up: {OWN:g} of a document that keys were not learnt from, {OTHER:g} of "
    f"another one, and noise of {NOISE:g} of the typical distance of two documents"
)

_ENOUGH = 0.95  # recall below which a report warns
_CLOSE = 1e-6  # of two cosines that count as equal
_PATIENCE = 20.0  # seconds after which no further single questions are timed


@dataclasses.dataclass(frozen=True)
class IndexReport:
    """A comparison of ScaNN with the exact search.

    `recall` is the share of the best `k` documents, or ones as near as the last of
    them, that ScaNN finds; seconds are medians over questions asked one at a time.
    """

    recall: float
    k: int  # documents per question
    queries: int  # how many
    source: str  # of the queries
    documents: int  # in the store
    exact_seconds: float
    scann_seconds: float  # rescoring included
    streamed: bool  # the exact search read its vectors from disk

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
        if self.recall < _ENOUGH:
            found.append(
                f"warning: recall@{self.k} is below {_ENOUGH:g}; build the index with "
                "more dims, candidates or leaves to search, or search exactly"
            )
        return found


def compare(
    store: Store,
    queries: Flat | None = None,
    k: int = 5,
    *,
    progress: Callable[[str], object] = lambda _: None,
) -> IndexReport:
    """Compare the ScaNN index of a store with the exact search.

    Without flat `queries` they are made up, see `made_up_queries`; `k` documents are
    compared for each, fewer where the store holds fewer.
    """
    scann = ScannSearcher(store)
    held_out = np.array(scann.note["held_out"], np.int64)
    held_out = held_out[store.has(held_out)]
    if not len(held_out if queries is None else queries):
        raise ClaraError(
            f"{store.place}: too few documents to make questions of; give questions"
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
    return IndexReport(
        recall=float(np.mean(found >= truth[:, -1:] - _CLOSE)),
        k=k,
        queries=len(queries),
        source=source,
        documents=len(store),
        exact_seconds=float(np.median(single_times(exact, queries, k))),
        scann_seconds=float(np.median(single_times(scann, queries, k))),
        streamed=exact.streamed,
    )


def made_up_queries(store: Store, rows: Int[np.ndarray, "B"]) -> Flat:
    """Make questions whose neighbours are not trivially known, of documents.

    One is ``0.7 u + 0.3 u' + 0.5 d g``: unit vectors of a row and of another document,
    and Gaussian noise of length about 1; ``d`` is the median distance of the two.
    """
    draw = np.random.default_rng([1, 0])
    others = draw.choice(store.ids, len(rows))
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
    found: list[float] = []
    for query in queries:
        start = time.perf_counter()
        search(query[None], k)
        found.append(time.perf_counter() - start)
        if sum(found) > _PATIENCE:
            break
    return found

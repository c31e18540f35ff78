"""How much of the exact search an index finds, and how fast."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from clara_jax.errors import ClaraError
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.index_files import hold, read_note, write_note
from clara_jax.search.queries import unit
from clara_jax.search.scann_files import KIND
from clara_jax.search.scann_index import ScannSearcher
from clara_jax.search.store import Store

ENOUGH = 0.95
"""Recall below which a report warns."""

OWN, OTHER, NOISE = 0.7, 0.3, 0.5
"""Shares of a made-up question, see `made_up_queries`."""

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
      recall: share of the exact search's best `k` documents that ScaNN finds. A
        document that is as near as the exact search's last one counts as one of them.
      k: documents per question. queries: questions. source: where they are from.
      documents: in the store.
      exact_seconds, scann_seconds: medians over questions asked one at a time,
        rescoring included.
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
        """Documents from which on ScaNN is the faster.

        Taking the exact search's time as proportional to the documents, and ScaNN's as
        constant.
        """
        return self.documents * self.scann_seconds / self.exact_seconds

    def lines(self) -> list[str]:
        """What a command prints."""
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
    queries: Float[np.ndarray, "B W"] | None = None,
    k: int = 5,
    *,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Report:
    """Measure the ScaNN index of a store against the exact search.

    Args:
      store: with an index.
      queries: flat question vectors; None makes them up, see `made_up_queries`.
      k: documents per question; fewer where the store holds fewer.
      progress: told each step.
      **options: of `ScannSearcher`.

    Returns:
      What was measured; it is noted in the index, too.

    Raises:
      ClaraError: there is no index that serves, or the queries do not fit the store.
    """
    scann = ScannSearcher(store, **options)
    source = "given"
    if queries is None:
        queries = made_up_queries(store, np.array(scann.meta.held_out, np.int64))
        source = MADE_UP
    if not len(queries):
        raise ClaraError(
            f"{store.path}: too few documents to make questions of; give questions"
        )
    k = min(k, len(store))
    progress(f"exact search for {len(queries)} questions")
    exact = ExactSearcher(
        store,
        devices=options.get("devices"),
        memory_limit=options.get("memory_limit"),
    )
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
    _keep(store, scann.meta.folder, result)
    return result


def made_up_queries(
    store: Store, rows: np.ndarray, seed: int = 0
) -> Float[np.ndarray, "B W"]:
    """Make questions of documents, so that their neighbours are not trivially known.

    With ``u`` unit vectors, `rows` giving the first and another document the second,
    and ``g`` Gaussian noise of length about 1, a question is

        0.7 u + 0.3 u' + 0.5 d g,

    where ``d`` is the median distance of the two.

    Args:
      store: of the documents.
      rows: one for each question.
      seed: of the other documents and of the noise.
    """
    draw = np.random.default_rng([1, seed])
    others = draw.choice(np.flatnonzero(store.live), len(rows))
    width = store.num_memory * store.width
    own, other = (
        unit(store.vectors(chosen).reshape(-1, width)) for chosen in (rows, others)
    )
    if not len(rows):
        return own
    typical = np.median(np.linalg.norm(own - other, axis=1))
    noise = draw.standard_normal(own.shape, np.float32) / np.sqrt(width)
    made = OWN * own + OTHER * other + NOISE * typical * noise
    return made.astype(np.float32)


def single_times(
    search: Callable[..., Any], queries: Float[np.ndarray, "B W"], k: int
) -> list[float]:
    """Seconds of each question, asked alone; the first, which compiles, is left out."""
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


def _keep(store: Store, folder: str, result: Report) -> None:
    """Note a report in the index that it is about, if nobody is changing it."""
    with contextlib.suppress(ClaraError), hold(store, KIND):
        note = read_note(store, KIND)
        if note["folder"] == folder:
            write_note(store, KIND, {**note, "measured": dataclasses.asdict(result)})

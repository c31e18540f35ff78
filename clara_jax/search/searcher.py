"""The interface of every search, and what all of them check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int

from clara_jax.errors import ClaraError
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.scann_index import ScannSearcher, has_index
from clara_jax.search.store import Store

SEARCHES = ("auto", "exact", "scann")
"""Kinds of `open_searcher`."""


@runtime_checkable
class Searcher(Protocol):
    """Finds the documents nearest to questions."""

    def __call__(
        self, queries: Float[np.ndarray, "B W"], k: int
    ) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
        """Return the `k` best rows of each question.

        Args:
          queries: flat question vectors of any length, ``W = M * D``.
          k: rows per question.

        Returns:
          Exact cosines (float32) of the full vectors, descending, and row numbers of
          the store (int64). Deleted rows are never among them.

        Raises:
          ClaraError: the queries do not fit the store, or it holds fewer than `k`
            documents.
        """
        ...


def open_searcher(
    store: Store,
    kind: str = "auto",
    *,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    memory_limit: int | None = None,
    candidates: int | None = None,
) -> Searcher:
    """Open a search over a store.

    Args:
      store: what is searched.
      kind: ``exact``; ``scann``, which needs an index; ``auto``: ``scann`` where there
        is an index, else ``exact``.
      devices, memory_limit: of the exact search, see `ExactSearcher`.
      candidates: that ScaNN finds to be rescored, see `ScannSearcher`.

    Raises:
      ClaraError: there is no such search, or its index is missing, damaged or of
        another store.
    """
    if kind not in SEARCHES:
        raise ClaraError(
            f"there is no search '{kind}'; give one of {', '.join(SEARCHES)}"
        )
    if kind == "exact" or (kind == "auto" and not has_index(store)):
        return ExactSearcher(store, devices=devices, memory_limit=memory_limit)
    return ScannSearcher(
        store, candidates=candidates, devices=devices, memory_limit=memory_limit
    )

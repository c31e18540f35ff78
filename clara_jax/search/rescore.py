"""Exact cosines of a few chosen documents: the last step of every inexact search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from clara_jax.search.store import Store

_AT_ONCE = 1 << 24
"""Numbers decoded at a time: 64 MB."""


def rescore(
    store: Store,
    queries: Float[np.ndarray, "B W"],
    rows: Sequence[Int[np.ndarray, "_"]],
) -> list[Float[np.ndarray, "_"]]:
    """Exact cosines of each query with its own candidates.

    Args:
      store: which only the candidates are read from.
      queries: unit vectors.
      rows: for each query row numbers, any number of them.

    Returns:
      For each query float32 cosines, in the order of its rows; 0 for a vector of zeros.
    """
    step = max(1, _AT_ONCE // queries.shape[1])
    found = []
    for query, candidates in zip(queries, rows, strict=True):
        scores = np.empty(len(candidates), np.float32)
        for begin in range(0, len(candidates), step):
            part = candidates[begin : begin + step]
            vectors = store.vectors(part).reshape(len(part), -1)
            norms = store.norms(part)
            scores[begin : begin + step] = (
                vectors @ query / np.where(norms > 0, norms, 1)
            )
        found.append(scores)
    return found

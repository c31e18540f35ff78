"""Exact cosines of a few chosen documents: the last step of every inexact search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from clara_jax.search.codecs import decode
from clara_jax.search.store import Store

_READ, _DECODED = 1 << 24, 1 << 18
"""Numbers read together, and of them decoded together: 1 MB stays in the cache."""


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
    width = queries.shape[1]
    read, decoded = (max(1, numbers // width) for numbers in (_READ, _DECODED))
    found = []
    for query, candidates in zip(queries, rows, strict=True):
        products = np.empty(len(candidates), np.float32)
        for begin in range(0, len(candidates), read):
            codes, scales = store.codes(candidates[begin : begin + read])
            for start in range(0, len(codes), decoded):
                part = slice(start, start + decoded)
                vectors = decode(
                    codes[part],
                    None if scales is None else scales[part],
                    store.dtype,
                    store.width,
                )
                end = begin + start + len(vectors)
                products[begin + start : end] = vectors.reshape(-1, width) @ query
        if store.center is not None:
            products += store.center.reshape(-1) @ query
        norms = store.norms(candidates)
        found.append(products / np.where(norms > 0, norms, 1))
    return found

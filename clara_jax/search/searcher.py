"""What all searches have in common: their interface, their checks, exact rescoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from clara_jax.errors import ClaraError
from clara_jax.search.codecs import decode_parts
from clara_jax.search.store import Store

Flat = Float[np.ndarray, "n W"]
"""Flat vectors, ``W = M * D``."""

Found = tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]
"""For each question exact cosines (float32) of the full vectors, descending, and row
numbers of the store (int64). Deleted rows are never among them."""


@runtime_checkable
class Searcher(Protocol):
    """Finds the documents nearest to questions."""

    def __call__(self, queries: Flat, k: int) -> Found:
        """Return the `k` best rows of each question, a vector of any length.

        Raises:
          ClaraError: the store holds other vectors, or fewer than `k` documents.
        """
        ...


def check_queries(queries: Flat, k: int, store: Store) -> Flat:
    """Bring queries to length 1, in float32; refuse what no search can answer."""
    width = store.num_memory * store.width
    if queries.shape[1] != width:
        raise ClaraError(
            f"{store.path}: its documents are {store.num_memory} x {store.width} = "
            f"{width} numbers, but the question vectors have {queries.shape[1]}; "
            "encode questions with the model that made the store"
        )
    if k < 1:
        raise ClaraError(f"{k} documents per question were asked for; take 1 or more")
    if k > len(store):
        raise ClaraError(
            f"{store.path}: holds {len(store)} documents, but {k} per question were "
            "asked for; ask for fewer"
        )
    units = unit(queries)
    wrong = np.flatnonzero(~np.isfinite(units).all(1))
    if len(wrong):
        raise ClaraError(
            f"question vector {wrong[0]} holds numbers that are not finite; look at "
            "the model that made it"
        )
    return units


def unit(vectors: Flat) -> Flat:
    """Return float32 rows of length 1; rows of zeros stay."""
    wide = np.asarray(vectors, np.float32)
    norms = np.sqrt(np.einsum("nw,nw->n", wide, wide))
    return wide / np.where(norms > 0, norms, 1)[:, None]


def best_of(
    scores: Float[np.ndarray, "*B n"], rows: Int[np.ndarray, "*B n"], k: int
) -> tuple[Float[np.ndarray, "*B k"], Int[np.ndarray, "*B k"]]:
    """Return the `k` highest scores and their rows, of equal scores the lower row."""
    order = np.lexsort((rows, -scores), axis=-1)[..., :k]
    return np.take_along_axis(scores, order, -1), np.take_along_axis(rows, order, -1)


def rescore(
    store: Store, units: Flat, rows: Sequence[Int[np.ndarray, "_"]]
) -> list[Float[np.ndarray, "_"]]:
    """Return exact cosines of each question, of length 1, with rows of its own.

    Only these rows are read. For a vector of zeros the cosine is 0.
    """
    found = []
    for query, candidates in zip(units, rows, strict=True):
        products = np.empty(len(candidates), np.float32)
        codes, scales = store.codes(candidates)
        for part, vectors in decode_parts(codes, scales, store.dtype, store.width):
            products[part] = vectors.reshape(len(vectors), -1) @ query
        if store.center is not None:
            products += store.center.reshape(-1) @ query
        norms = store.norms(candidates)
        found.append(products / np.where(norms > 0, norms, 1))
    return found

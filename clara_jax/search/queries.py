"""What all searches do with questions, and with what they found."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from clara_jax.errors import ClaraError
from clara_jax.search.store import Store


def check_queries(
    queries: Float[np.ndarray, "B W"], k: int, store: Store
) -> Float[np.ndarray, "B W"]:
    """Bring queries to length 1, in float32; a query of zeros stays.

    Raises:
      ClaraError: they do not fit the store, a number is not finite, or `k` is below 1
        or above the number of documents.
    """
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


def unit(vectors: Float[np.ndarray, "n W"]) -> Float[np.ndarray, "n W"]:
    """Float32 rows of length 1; rows of zeros stay."""
    wide = np.asarray(vectors, np.float32)
    norms = np.sqrt(np.einsum("nw,nw->n", wide, wide))
    return wide / np.where(norms > 0, norms, 1)[:, None]


def best_of(
    scores: Float[np.ndarray, "B n"], rows: Int[np.ndarray, "B n"], k: int
) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
    """Return the `k` highest scores and their rows, of equal scores the lower row."""
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return (
        np.take_along_axis(scores, order, 1),
        np.take_along_axis(rows, order, 1),
    )

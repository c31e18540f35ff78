"""Short keys of document vectors, for indexes that 10^4 to 10^5 dimensions overwhelm.

A key is what principal component analysis keeps of a flat unit vector, centred, and its
part along the mean. With ``u`` a document's unit vector, ``m`` the mean of all of them
and ``P`` an orthonormal basis whose first direction is ``m``'s,

    cos(q, u) = q·m + q·(u - m),   and   q·(u - m) ≈ (Pᵀq)·(Pᵀ(u - m)).

The first term is the same for every document: the inner product of ``Pᵀq`` and the key
``Pᵀ(u - m)`` ranks documents as the cosine does, but for what the basis leaves out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from clara_jax.errors import ClaraError
from clara_jax.search.queries import unit
from clara_jax.search.store import Store

DIMS = 128
"""Principal directions of a key."""

SAMPLE = 20_000
"""Documents that keys are learnt from, at most."""

PASSES = 3
"""Readings of the sample after the one for its mean."""

_OVERSAMPLE = 16
_AT_ONCE = 1 << 24
"""Numbers decoded at a time: 64 MB."""

FILES = ("mean.npy", "basis.npy")


@dataclasses.dataclass(frozen=True)
class Keys:
    """A projection from flat vectors to keys.

    Attributes:
      mean: of unit vectors, ``[W]``.
      basis: orthonormal columns, ``[W, Q]``; the first is the mean's direction.
    """

    mean: Float[np.ndarray, "W"]
    basis: Float[np.ndarray, "W Q"]

    @property
    def dims(self) -> int:
        """Q, numbers in a key."""
        return self.basis.shape[1]

    def of_documents(self, units: Float[np.ndarray, "n W"]) -> Float[np.ndarray, "n Q"]:
        """Keys of documents.

        Args:
          units: flat vectors of length 1.
        """
        return units @ self.basis - self.mean @ self.basis

    def of_queries(self, queries: Float[np.ndarray, "B W"]) -> Float[np.ndarray, "B Q"]:
        """Keys of questions, to be multiplied with those of documents.

        Args:
          queries: flat vectors of any length.
        """
        return unit(queries) @ self.basis

    def save(self, folder: Path) -> None:
        """Write `FILES`."""
        np.save(folder / "mean.npy", self.mean)
        np.save(folder / "basis.npy", self.basis)

    @classmethod
    def load(cls, folder: Path) -> Keys:
        """Read what `save` wrote."""
        return cls(*(np.load(folder / name) for name in FILES))


def learn_keys(
    store: Store,
    *,
    dims: int = DIMS,
    sample: int = SAMPLE,
    seed: int = 0,
    leave_out: Int[np.ndarray, "h"] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Keys:
    """Learn keys from a sample of a store, by randomized subspace iteration.

    The sample is read `PASSES` + 1 times, 64 MB at a time, and no matrix has more than
    W rows of `dims` + 16 columns. The same seed gives the same keys.

    Args:
      store: where document vectors lie.
      dims: principal directions; the mean's is one more. Fewer where the vectors are
        narrow, or few.
      sample: documents to learn from, at most.
      seed: of the sample and of the first subspace.
      leave_out: rows that the sample must not hold.
      progress: told each pass.

    Raises:
      ClaraError: `dims` or `sample` is below 1, or there is nothing to learn from.
    """
    if dims < 1 or sample < 1:
        raise ClaraError(
            f"keys of {dims} dimensions from {sample} documents; both must be 1 or more"
        )
    rows = live_rows(store)
    if leave_out is not None:
        rows = np.setdiff1d(rows, leave_out, assume_unique=True)
    if not len(rows):
        raise ClaraError(f"{store.path}: holds no documents to learn keys from")
    draw = np.random.default_rng(seed)
    if len(rows) > sample:
        rows = np.sort(draw.choice(rows, sample, replace=False))
    width = store.num_memory * store.width
    progress(f"mean of {len(rows):,} documents")
    total = np.zeros(width, np.float64)
    for units in _units(store, rows):
        total += units.sum(0, dtype=np.float64)
    mean = (total / len(rows)).astype(np.float32)
    length = np.linalg.norm(mean)
    first = mean / (length if length > 0 else 1)

    dims = min(dims, width - 1, len(rows) - 1)
    span = min(dims + _OVERSAMPLE, width - 1, len(rows) - 1)
    if not dims:
        return Keys(mean, first[:, None])
    start = draw.standard_normal((width, span), np.float32)
    basis, product = _orthonormal(start, first), start
    for number in range(PASSES):
        progress(f"directions, pass {number + 1} of {PASSES}")
        product = _covariance(store, rows, mean, basis)
        if number + 1 < PASSES:
            basis = _orthonormal(product, first)
    inner = basis.T @ product
    _, turn = np.linalg.eigh((inner + inner.T) / 2)
    chosen = basis @ turn[:, ::-1][:, :dims]
    return Keys(mean, np.concatenate([first[:, None], chosen], 1, dtype=np.float32))


def live_rows(store: Store) -> Int[np.ndarray, "n"]:
    """Rows that are not deleted, in order."""
    return np.flatnonzero(store.live)


def _orthonormal(
    columns: Float[np.ndarray, "W span"], first: Float[np.ndarray, "W"]
) -> Float[np.ndarray, "W span"]:
    """Orthonormal columns of the same span, at right angles to `first`."""
    return np.linalg.qr(columns - np.outer(first, first @ columns))[0]


def _covariance(
    store: Store,
    rows: Int[np.ndarray, "n"],
    mean: Float[np.ndarray, "W"],
    basis: Float[np.ndarray, "W span"],
) -> Float[np.ndarray, "W span"]:
    """Covariance matrix of the unit vectors times `basis`, without making it."""
    product = np.zeros_like(basis)
    total = np.zeros(basis.shape[1], np.float32)
    shift = mean @ basis
    for units in _units(store, rows):
        projected = units @ basis - shift
        product += units.T @ projected
        total += projected.sum(0)
    return (product - np.outer(mean, total)) / len(rows)


def _units(
    store: Store, rows: Int[np.ndarray, "n"]
) -> Iterator[Float[np.ndarray, "tile W"]]:
    step = max(1, _AT_ONCE // (store.num_memory * store.width))
    for begin in range(0, len(rows), step):
        vectors = store.vectors(rows[begin : begin + step])
        yield unit(vectors.reshape(len(vectors), -1))

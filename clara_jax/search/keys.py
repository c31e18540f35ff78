"""Short keys of document vectors, for indexes that 10^4 to 10^5 dimensions overwhelm.

For a document's unit vector ``u``, the mean ``m`` of all, and an orthonormal basis
``P`` of ``m``'s direction and the principal ones, the cosine is ``q·m + q·(u - m)``,
about ``q·m + (Pᵀq)·(Pᵀ(u - m))``: products of ``Pᵀq`` and keys ``Pᵀ(u - m)`` rank so.

Questions are nearly parallel to ``m``, along which documents differ least: hashed so,
only 26% of questions' best five were among ScaNN's 200 candidates. So keys are
balanced: documents are stretched along ``m`` until they vary as much as along the first
principal direction, questions shrunk by as much, and both turned at random. That
changes no product, and makes it 100%.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from tqdm import tqdm

from clara_jax.lance_files import to_numpy
from clara_jax.native import lance_at_work
from clara_jax.search.exact import Flat, unit
from clara_jax.search.store import Store

Short = Float[np.ndarray, "n Q"]  # keys of documents or questions

DIMS, SAMPLE = 128, 20_000
PASSES = 3  # readings of the sample after the one for its mean
_OVERSAMPLE = 16
_AT_ONCE = 1 << 24  # numbers decoded at a time: 64 MB
_STRETCHED = 1000.0  # the most that documents are stretched along the mean


@dataclasses.dataclass(frozen=True)
class Keys:
    """A projection from flat vectors to keys.

    Attributes:
      mean: of unit vectors.
      basis: orthonormal columns; the first is the mean's direction.
      documents, questions: what balances and turns their parts along `basis`; the
        product of one with the other transposed is the identity.
    """

    mean: Float[np.ndarray, "W"]
    basis: Float[np.ndarray, "W Q"]
    documents: Float[np.ndarray, "Q Q"]
    questions: Float[np.ndarray, "Q Q"]

    @property
    def dims(self) -> int:
        """Q, numbers in a key."""
        return self.basis.shape[1]

    def of_documents(self, units: Flat) -> Short:
        """Return keys of documents, given as flat vectors of length 1."""
        return (units @ self.basis - self.mean @ self.basis) @ self.documents

    def of_queries(self, queries: Flat) -> Short:
        """Return keys of questions, to be multiplied with those of documents."""
        return unit(queries) @ self.basis @ self.questions

    def save(self, file: Path) -> None:
        """Write an ``.npz`` file of all attributes."""
        np.savez(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, file: Path) -> "Keys":
        """Read what `save` wrote."""
        with np.load(file) as arrays:
            return cls(**arrays)


def learn_keys(
    store: Store,
    *,
    dims: int = DIMS,
    sample: int = SAMPLE,
    seed: int = 0,
    leave_out: Int[np.ndarray, "h"] | tuple[()] = (),
) -> Keys:
    """Learn keys from a sample of a store, by randomized subspace iteration.

    The sample is read `PASSES` + 1 times, and no matrix has more than W rows of
    `dims` + 16 columns. The same seed gives the same keys.

    Args:
      store: of one document at least that is not left out.
      dims: principal directions, the mean's besides; fewer where there are not as many.
      sample: rows that are read, at most.
      seed: of the sample, and of what is random besides.
      leave_out: ids of rows that are not read.
    """
    rows = np.setdiff1d(store.ids, leave_out, assume_unique=True)
    draw = np.random.default_rng(seed)
    if len(rows) > sample:
        rows = np.sort(draw.choice(rows, sample, replace=False))
    width = store.num_memory * store.width
    total = np.zeros(width, np.float64)
    for units in unit_vectors(store, rows, "mean of documents"):
        total += units.sum(0, dtype=np.float64)
    mean = (total / len(rows)).astype(np.float32)
    length = np.linalg.norm(mean)
    first = mean / (length if length > 0 else 1)

    dims = min(dims, width - 1, len(rows) - 1)
    span = min(dims + _OVERSAMPLE, width - 1, len(rows) - 1)
    near = draw.standard_normal((width, span), np.float32)
    for number in range(PASSES):
        # Orthonormal columns of the same span, at right angles to `first`.
        basis = np.linalg.qr(near - np.outer(first, first @ near))[0]
        both = np.concatenate([first[:, None], basis], 1)
        # The covariance matrix of the unit vectors times `both`, without making it.
        product = np.zeros_like(both)
        total, shift = np.zeros(both.shape[1], np.float32), mean @ both
        what = f"directions, pass {number + 1} of {PASSES}"
        for units in unit_vectors(store, rows, what):
            projected = units @ both - shift
            product += units.T @ projected
            total += projected.sum(0)
        product = (product - np.outer(mean, total)) / len(rows)
        near = product[:, 1:]
    inner = both.T @ product
    inner = (inner + inner.T) / 2
    values, turn = np.linalg.eigh(inner[1:, 1:])
    chosen = basis @ turn[:, ::-1][:, :dims]
    basis = np.concatenate([first[:, None], chosen], 1)
    # Balanced: the first direction is stretched to vary as much as the second, and a
    # random rotation then spreads the variance over all numbers of a key.
    stretch = np.ones(dims + 1, np.float32)
    along, *others = np.maximum(np.append(inner[0, 0], values[::-1][:dims]), 0)
    if others and along > 0:
        stretch[0] = np.clip(np.sqrt(others[0] / along), 1, _STRETCHED)
    turn = np.linalg.qr(draw.standard_normal((dims + 1, dims + 1)))[0]
    turn = turn.astype(np.float32)
    return Keys(mean, basis, stretch[:, None] * turn, turn / stretch[:, None])


def unit_vectors(store: Store, ids: Int[np.ndarray, "n"], what: str) -> Iterator[Flat]:
    """Read rows as flat vectors of length 1, 64 MB at a time; show a bar if slow."""
    step = max(1, _AT_ONCE // (store.num_memory * store.width))
    with tqdm(total=len(ids), desc=what, unit="doc", delay=2) as bar:
        for begin in range(0, len(ids), step):
            vectors = store.vectors(ids[begin : begin + step])
            yield unit(vectors.reshape(len(vectors), -1))
            bar.update(len(vectors))


def keep_keys(store: Store, ids: Int[np.ndarray, "n"], keys: Short) -> None:
    """Put keys of rows into the column ``key``, for other engines to search by.

    Rows without one, and all rows added later, have none.

    Raises:
      ClaraError: the disk is full, or another process is changing the store.
    """
    type = pa.list_(pa.float16(), keys.shape[1])
    store.refresh()  # others may have changed it while the keys were made
    with lance_at_work(store.place, "written"):
        if "key" in store.dataset.schema.names:
            store.dataset.drop_columns(["key"])
        own = to_numpy(store.dataset.scanner([], with_row_id=True).to_table()["_rowid"])
        at = np.minimum(np.searchsorted(ids, own), len(ids) - 1)
        values = pa.array(keys[at].astype(np.float16).reshape(-1))
        without = pa.array(ids[at] != own)
        column = pa.FixedSizeListArray.from_arrays(values, type=type, mask=without)
        store.dataset.add_columns(pa.table({"key": column}).to_reader())
    store.refresh()

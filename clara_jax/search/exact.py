"""Exact search: cosines of questions with all documents of a store, or chosen ones.

Documents lie as codes on the local devices, split among them by rows, and are decoded
tile by tile in one compiled program. A store too large for the devices is streamed from
disk through the same program, the next block being read meanwhile.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Int32, Shaped

from clara_jax.errors import ClaraError
from clara_jax.files import read_ahead
from clara_jax.search.codecs import decode, decode_parts
from clara_jax.search.store import Store
from clara_jax.shapes import Array

BLOCK = 256 << 20  # bytes of codes on all devices together: one call of the program
LARGEST_BATCH = 256  # questions searched together; more go in several passes
# Of ``approx_max_k`` within a tile, on TPUs only: few of the nearest lie in one.
RECALL = 0.99
# Bytes of a decoded tile: on CPUs it should stay in the cache.
_CPU_TILE, _TILE = 4 << 20, 64 << 20
# Of rows that meet a condition, up to which they are read one by one and compared.
_FEW_BYTES, _FEW = 4 << 20, 256
_ROWS = PartitionSpec("rows")

Flat = Float[np.ndarray, "n W"]  # flat vectors, ``W = M * D``

Found = tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]
"""For each question exact cosines (float32) of the full vectors, descending, and ids of
rows of the store (int64). Where fewer than `k` rows meet a condition, these."""

Block = tuple[
    Shaped[Array | np.ndarray, "rows M _"],
    Float[Array | np.ndarray, "rows M"] | None,
    Float[Array | np.ndarray, "rows"],
]
"""Consecutive rows, an equal number for every device, on host or devices: codes and
scales, see ``codecs``, and 1 / norm: 0 for a vector of zeros, -1 for no document."""

Best = tuple[Float[Array, "devices B k"], Int32[Array, "devices B k"]]
"""The best found so far, for each device its own: scores, descending, of equal ones
that of the lower row first; and places, rows among those of the device."""


@runtime_checkable
class Searcher(Protocol):
    """Finds the `k` documents nearest to each question, a vector of any length.

    Refuses vectors of other stores, a `k` that is too large, and a condition that makes
    no sense, or that no row meets.
    """

    store: Store

    def __call__(
        self,
        queries: Flat,
        k: int,
        texts: Sequence[str] | None = None,
        where: str | None = None,
    ) -> Found:
        """Search for questions as vectors, and as texts where words count, too.

        `where` is a condition on the documents, see ``Store.where``.
        """
        ...

    def renew(self) -> None:
        """Go on with the newest version of the store; not while others search."""


class Scan(NamedTuple):
    """How the compiled program reads a block, `tile` rows of a device at a time."""

    mesh: Mesh
    tile: int
    dtype: str
    width: int
    recall: float | None  # None sorts exactly


class ExactSearcher:
    """A ``Searcher``, for any thread, in float32 at the highest precision.

    Args:
      store: what is searched, as it is now.
      devices: of this process; None takes all of them.
      memory_limit: bytes for codes on all devices together. Larger stores are
        `streamed`: read from disk at every call. None: what is free, see `free_memory`.
      among: ids of the rows that are searched, ascending; None searches all.
    """

    def __init__(
        self,
        store: Store,
        *,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
        memory_limit: int | None = None,
        among: Int[np.ndarray, "_"] | None = None,
    ):
        self._among, self._limit = among, memory_limit
        self._devices = list(jax.local_devices() if devices is None else devices)
        self._open(store)

    def _open(self, store: Store) -> None:
        self.store, devices = store, self._devices
        self.ids = store.ids
        if self._among is not None:
            self.ids = self._among[store.has(self._among)]
        self.documents = count = len(self.ids)
        kind, limit = devices[0].platform, self._limit
        if limit is None:
            limit = free_memory(devices)
        self.streamed = store.row_bytes * count > limit
        share = -(-count // len(devices))
        tile = _CPU_TILE if kind == "cpu" else _TILE
        tile = max(1, min(tile // (4 * store.num_memory * store.width), share))
        self._mesh = Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))
        recall = RECALL if kind == "tpu" else None
        self._scan = Scan(self._mesh, tile, store.dtype, store.width, recall)
        # Three blocks at a time when streaming: searched, waiting, being read.
        block = min(BLOCK, max(limit // 3, 1)) if self.streamed else BLOCK
        most = max(1, block // (store.row_bytes * tile * len(devices)))
        tiles = -(-share // tile)
        self._blocks = -(-tiles // most)
        self._share = tile * -(-tiles // max(self._blocks, 1))
        kept = range(0 if self.streamed else self._blocks)
        self._split = NamedSharding(self._mesh, _ROWS)
        self._resident = [jax.device_put(self._read(i), self._split) for i in kept]

    def renew(self) -> None:
        """Go on with the newest version of the store."""
        self._open(self.store.newest())

    def __call__(
        self,
        queries: Flat,
        k: int,
        texts: Sequence[str] | None = None,
        where: str | None = None,
    ) -> Found:
        """Return cosines and ids of the `k` nearest documents."""
        del texts
        units = check_queries(queries, k, self.store)
        allowed = None if where is None else meeting(self.store, where)
        if allowed is not None:
            if self._among is not None:
                allowed = np.intersect1d(allowed, self.ids, assume_unique=True)
            k = min(k, len(allowed))
            if len(allowed) <= few(self.store):
                return nearest_of(self.store, units, [allowed] * len(units), k)
        found = [(np.empty((0, k), np.float32), np.empty((0, k), np.int64))]
        for begin in range(0, len(units), LARGEST_BATCH):
            part = units[begin : begin + LARGEST_BATCH]
            found.append(self._search(part, k, allowed))
        scores, ids = map(np.concatenate, zip(*found, strict=True))
        return scores, ids

    def _search(
        self, units: Flat, k: int, allowed: Int[np.ndarray, "_"] | None
    ) -> Found:
        # Filled up to powers of two, as is `k`, so that few programs are compiled.
        padded = np.pad(units, [(0, _bucket(len(units)) - len(units)), (0, 0)])
        offsets = np.zeros(len(padded), np.float32)
        if self.store.center is not None:
            offsets = padded @ self.store.center.reshape(-1)
        devices, wide = self._mesh.size, _bucket(k)
        # In a thread of training another mesh may be in place.
        with jax.set_mesh(self._mesh):
            whole = NamedSharding(self._mesh, PartitionSpec())
            shape = (devices, len(padded), wide)
            query = jax.device_put((padded, offsets), whole)
            none = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)
            best = jax.device_put(none, self._split)
            blocks = self._resident
            if self.streamed:
                blocks = read_ahead(self._read, range(self._blocks))
            for number, block in enumerate(blocks):
                first = jax.device_put(np.int32(number * self._share), whole)
                there = jax.device_put(block, self._split)
                if allowed is not None:
                    out = ~np.isin(self._rows(number)[0], allowed)
                    out = jax.device_put(out, self._split)
                    there = (*there[:2], jnp.where(out, np.float32(-1), there[2]))
                best = _scan(query, there, first, best, self._scan)
            scores, places = jax.device_get(best)
        device = np.arange(devices, dtype=np.int64)[:, None, None]
        number, local = np.divmod(places.astype(np.int64), self._share)
        rows = (number * devices + device) * self._share + local
        ids = self.ids[np.where(places < 0, 0, np.minimum(rows, self.documents - 1))]
        flat = (len(padded), devices * wide)
        scores, ids = (x.transpose(1, 0, 2).reshape(flat) for x in (scores, ids))
        return best_of(scores[: len(units)], ids[: len(units)], k)

    def _rows(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of a block's rows, and which only fill it up."""
        size = self._share * self._mesh.size
        rows = np.arange(number * size, (number + 1) * size)
        inside = np.minimum(rows, self.documents - 1)
        return self.ids[inside], inside != rows

    def _read(self, number: int) -> Block:
        """Copy a block out of the store's files; the store's last row fills it up."""
        ids, filling = self._rows(number)
        arrays = self.store.arrays(ids)
        norms = arrays["norm"]
        inverse = 1 / np.where(norms > 0, norms, np.float32(np.inf))
        inverse[filling] = -1
        return arrays["codes"], arrays.get("scales"), inverse


def meeting(store: Store, where: str) -> Int[np.ndarray, "_"]:
    """Return the ids of rows that meet a condition; refuse one that none meets."""
    found = store.where(where)
    if not len(found):
        raise ClaraError(f"{store.place}: no document meets the condition {where!r}")
    return found


def check_queries(queries: Flat, k: int, store: Store) -> Flat:
    """Bring queries to length 1, in float32; refuse what no search can answer."""
    width, given = store.num_memory * store.width, queries.shape[1]
    if given != width:
        raise ClaraError(
            f"{store.place}: its documents are {store.num_memory} x {store.width} = "
            f"{width} numbers, but the question vectors have {given}; encode "
            "questions with the model that made the store"
        )
    if not 1 <= k <= len(store):
        what = "1 or more" if k < 1 else "fewer"
        raise ClaraError(
            f"{store.place}: holds {len(store)} documents, but {k} per question were "
            f"asked for; ask for {what}"
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


def few(store: Store) -> int:
    """Return how many rows are compared faster one by one than by a search."""
    return max(_FEW, _FEW_BYTES // store.row_bytes)


def nearest_of(
    store: Store, units: Flat, candidates: Sequence[Int[np.ndarray, "_"]], k: int
) -> Found:
    """Return the `k` nearest of each question's own candidates, `k` or more of them."""
    best = np.empty((len(units), k), np.float32), np.empty((len(units), k), np.int64)
    scores = rescore(store, units, candidates)
    for i, found in enumerate(zip(scores, candidates, strict=True)):
        best[0][i], best[1][i] = best_of(*found, k)
    return best


def rescore(
    store: Store, units: Flat, ids: Sequence[Int[np.ndarray, "_"]]
) -> list[Float[np.ndarray, "_"]]:
    """Return exact cosines of each question, of length 1, with rows of its own.

    Only these rows are read. For a vector of zeros the cosine is 0.
    """
    found = []
    for query, candidates in zip(units, ids, strict=True):
        products = np.empty(len(candidates), np.float32)
        arrays = store.arrays(candidates)
        codes, scales = arrays["codes"], arrays.get("scales")
        for part, vectors in decode_parts(codes, scales, store.dtype, store.width):
            products[part] = vectors.reshape(len(vectors), -1) @ query
        if store.center is not None:
            products += store.center.reshape(-1) @ query
        norms = arrays["norm"]
        found.append(products / np.where(norms > 0, norms, 1))
    return found


def free_memory(devices: Sequence[Any]) -> int:
    """Return 80% of the bytes free on devices; if one does not say, half the host's."""
    stats = [device.memory_stats() for device in devices]
    if all(each and "bytes_limit" in each for each in stats):
        free = min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
        return len(devices) * free * 8 // 10
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024 // 2
    except (OSError, KeyError, ValueError):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def _bucket(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


@functools.partial(jax.jit, static_argnames="how")
def _scan(
    queries: tuple[Float[Array, "B W"], Float[Array, "B"]],
    block: Block,
    first: Int32[Array, ""],
    best: Best,
    how: Scan,
) -> Best:
    """Merge a block's best rows into those found so far, on each device its own.

    With the queries come their products with the store's center; `first` is the place
    of the block's first row on each device.
    """
    select = jax.lax.top_k
    if how.recall is not None:
        select = functools.partial(jax.lax.approx_max_k, recall_target=how.recall)

    def on_device(queries, block, first, best):
        units, offsets = queries
        tiles = jax.tree.map(lambda x: x.reshape(-1, how.tile, *x.shape[1:]), block)
        starts = first + how.tile * jnp.arange(len(tiles[0]), dtype=jnp.int32)
        found = jax.tree.map(lambda x: x[0], best)

        def merge(found, part):
            start, (codes, scales, inverse) = part
            vectors = decode(codes, scales, how.dtype, how.width, jnp)
            products = jax.lax.dot_general(
                units,
                vectors.reshape(how.tile, -1),
                (((1,), (1,)), ((), ())),
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
            scores = (products + offsets[:, None]) * inverse[None]
            scores = jnp.where(inverse[None] < 0, -jnp.inf, scores)
            top, place = select(scores, min(how.tile, found[0].shape[-1]))
            scores = jnp.concatenate([found[0], top], -1)
            places = jnp.concatenate([found[1], start + place], -1)
            # Of equal numbers the first is taken: the earlier, lower row.
            top, place = jax.lax.top_k(scores, found[0].shape[-1])
            return (top, jnp.take_along_axis(places, place, -1)), None

        found, _ = jax.lax.scan(merge, found, (starts, tiles))
        return jax.tree.map(lambda x: x[None], found)

    return jax.shard_map(
        on_device,
        mesh=how.mesh,
        in_specs=(PartitionSpec(), _ROWS, PartitionSpec(), _ROWS),
        out_specs=_ROWS,
    )(queries, block, first, best)

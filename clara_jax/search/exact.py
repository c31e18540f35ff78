"""Exact search: cosines of questions with all documents of a store, or chosen ones.

Documents lie as codes on the local devices, split among them by rows, and are decoded
tile by tile in one compiled program. A store too large for the devices is streamed from
disk through the same program, the next block being read meanwhile.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

RECALL = 0.99
"""Of ``approx_max_k`` within a tile, on TPUs only: few of the nearest lie in one."""

_CPU_TILE, _TILE = 4 << 20, 64 << 20
"""Bytes of a decoded tile: on CPUs it should stay in the cache."""

_ROWS = PartitionSpec("rows")

Flat = Float[np.ndarray, "n W"]  # flat vectors, ``W = M * D``

Found = tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]
"""For each question exact cosines (float32) of the full vectors, descending, and row
numbers of the store (int64). Deleted rows are never among them."""

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


Searcher = Callable[[Flat, int], Found]
"""Finds the `k` documents nearest to each question, a vector of any length; refuses
vectors of other stores, and a `k` that is too large."""


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
      start: first row that is searched.
    """

    def __init__(
        self,
        store: Store,
        *,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
        memory_limit: int | None = None,
        start: int = 0,
    ):
        self.store, self.start = store, start
        devices = list(jax.local_devices() if devices is None else devices)
        kind, count = devices[0].platform, store.rows - start
        self.documents = int(np.count_nonzero(store.live[start:]))
        limit = free_memory(devices) if memory_limit is None else memory_limit
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

    def __call__(self, queries: Flat, k: int) -> Found:
        """Return cosines and row numbers of the `k` nearest documents."""
        units = check_queries(queries, k, self.store)
        found = [(np.empty((0, k), np.float32), np.empty((0, k), np.int64))]
        for begin in range(0, len(units), LARGEST_BATCH):
            found.append(self._search(units[begin : begin + LARGEST_BATCH], k))
        scores, rows = map(np.concatenate, zip(*found, strict=True))
        return scores, rows

    def _search(self, units: Flat, k: int) -> Found:
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
                best = _scan(query, there, first, best, self._scan)
            scores, places = jax.device_get(best)
        device = np.arange(devices, dtype=np.int64)[:, None, None]
        number, local = np.divmod(places.astype(np.int64), self._share)
        rows = self.start + (number * devices + device) * self._share + local
        flat = (len(padded), devices * wide)
        scores, rows = (x.transpose(1, 0, 2).reshape(flat) for x in (scores, rows))
        return best_of(scores[: len(units)], rows[: len(units)], k)

    def _read(self, number: int) -> Block:
        """Copy a block out of the store's files; the store's last row fills it up."""
        store, size = self.store, self._share * self._mesh.size
        begin = self.start + number * size
        numbers = np.arange(begin, begin + size)
        rows = np.minimum(numbers, store.rows - 1)
        norms = store.norms(rows)
        inverse = 1 / np.where(norms > 0, norms, np.float32(np.inf))
        inverse[~store.live[rows] | (numbers != rows)] = -1
        return *store.codes(rows), inverse


def check_queries(queries: Flat, k: int, store: Store) -> Flat:
    """Bring queries to length 1, in float32; refuse what no search can answer."""
    width, given = store.num_memory * store.width, queries.shape[1]
    if given != width:
        raise ClaraError(
            f"{store.path}: its documents are {store.num_memory} x {store.width} = "
            f"{width} numbers, but the question vectors have {given}; encode "
            "questions with the model that made the store"
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

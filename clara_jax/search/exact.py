"""Exact search: the cosine of a question with every document of a store.

Documents lie as codes on the local devices, split among them by rows, and are decoded
tile by tile inside one compiled program. A store too large for the devices is streamed
from disk through the same program, the next block being read meanwhile.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Int32, Shaped

from clara_jax.errors import ClaraError
from clara_jax.search.codecs import code_type, decode
from clara_jax.search.queries import best_of, check_queries
from clara_jax.search.store import Store
from clara_jax.shapes import Array

BLOCK = 256 << 20
"""Bytes of codes of a block, on all devices together: one call of the program."""

LARGEST_BATCH = 256
"""Questions searched together; more go in several passes."""

_CPU_TILE, _TILE = 4 << 20, 64 << 20
"""Bytes of a decoded tile: on CPUs it should stay in the cache."""

_ROWS = PartitionSpec("rows")


class Block(NamedTuple):
    """Consecutive rows, an equal number for every device, on host or devices.

    Attributes:
      codes, scales: see ``codecs.decode``; scales are None for bfloat16.
      inverse: 1 / norm; 0 for a vector of zeros; -1 where there is no document.
    """

    codes: Shaped[Array | np.ndarray, "rows M W"]
    scales: Float[Array | np.ndarray, "rows M"] | None
    inverse: Float[Array | np.ndarray, "rows"]


class Best(NamedTuple):
    """The best found so far, for each device its own.

    Attributes:
      scores: descending; of equal scores the one of the lower row comes first.
      places: rows among those of the device.
    """

    scores: Float[Array, "devices B k"]
    places: Int32[Array, "devices B k"]


class ExactSearcher:
    """The search that all others are measured by; a ``Searcher``.

    Float32 throughout, at the highest precision of matrix products. May be called from
    any thread, and inside ``jax.set_mesh`` of another mesh.
    """

    def __init__(
        self,
        store: Store,
        *,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
        memory_limit: int | None = None,
        tile: int | None = None,
        recall_target: float | None = 0.99,
        start: int = 0,
    ):
        """Put the store's codes on the devices, or prepare to stream them.

        Args:
          store: what is searched, as it is now.
          devices: of this process; None takes all of them.
          memory_limit: bytes for codes on all devices together. Larger stores are read
            from disk at every call. None: what is free, see `free_memory`.
          tile: rows decoded at a time on each device; None chooses.
          recall_target: of ``jax.lax.approx_max_k`` within a tile, on TPUs only: of all
            nearest documents far less is lost, since few lie in one tile. None is exact
            there too, and slower.
          start: first row that is searched.

        Raises:
          ClaraError: `tile`, `memory_limit` or `recall_target` makes no sense, or a
            shard cannot be read.
        """
        if tile is not None and tile < 1:
            raise ClaraError(f"tiles of {tile} rows; give 1 or more")
        if memory_limit is not None and memory_limit < 0:
            raise ClaraError(f"a memory limit of {memory_limit} bytes; give 0 or more")
        if recall_target is not None and not 0 < recall_target <= 1:
            raise ClaraError(f"recall target {recall_target}: give 0 to 1, or None")
        self.store = store
        self.start = start
        devices = list(jax.local_devices() if devices is None else devices)
        self._mesh = Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))
        self._recall = recall_target if devices[0].platform == "tpu" else None
        self._live = store.live
        self.documents = int(np.count_nonzero(self._live[start:]))
        count = store.rows - start
        kind, codes = code_type(store.dtype, store.width)
        per_row = store.num_memory * codes * kind.itemsize
        limit = free_memory(devices) if memory_limit is None else memory_limit
        self.streamed = per_row * count > limit
        share = -(-count // len(devices))
        if tile is None:
            wanted = _CPU_TILE if devices[0].platform == "cpu" else _TILE
            tile = max(8, wanted // (4 * store.num_memory * store.width))
        self._tile = max(1, min(tile, share))
        # Three blocks at a time when streaming: searched, waiting, being read.
        block = min(BLOCK, max(limit // 3, 1)) if self.streamed else BLOCK
        most = max(1, block // (per_row * self._tile * len(devices)))
        tiles = -(-share // self._tile)
        blocks = -(-tiles // most)
        self._share = self._tile * -(-tiles // max(blocks, 1))
        self._resident: list[Block] | None = None
        if not self.streamed:
            self._resident = [self._put(self._read(i)) for i in range(blocks)]
        self._blocks = blocks

    def __call__(
        self, queries: Float[np.ndarray, "B W"], k: int
    ) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
        """Return cosines and row numbers of the `k` nearest documents.

        Batches are filled up to powers of two and so is `k`, so that few programs are
        compiled. See ``Searcher``.
        """
        units = check_queries(queries, k, self.store)
        if k > self.documents:
            raise ClaraError(
                f"{self.store.path}: {self.documents} documents from row {self.start} "
                f"on, but {k} per question were asked for"
            )
        parts = [
            self._search(units[begin : begin + LARGEST_BATCH], k)
            for begin in range(0, len(units), LARGEST_BATCH)
        ]
        if not parts:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        scores, rows = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(rows)

    def _search(
        self, units: Float[np.ndarray, "B W"], k: int
    ) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
        padded = np.zeros((_bucket(len(units)), units.shape[1]), np.float32)
        padded[: len(units)] = units
        offsets = np.zeros(len(padded), np.float32)
        if self.store.center is not None:
            offsets = padded @ self.store.center.reshape(-1)
        devices, wide = self._mesh.size, _bucket(k)
        # In a thread of training another mesh may be in place.
        with jax.set_mesh(self._mesh):
            whole = NamedSharding(self._mesh, PartitionSpec())
            split = NamedSharding(self._mesh, _ROWS)
            shape = (devices, len(padded), wide)
            query = jax.device_put((padded, offsets), whole)
            best = Best(
                jax.device_put(np.full(shape, -np.inf, np.float32), split),
                jax.device_put(np.full(shape, -1, np.int32), split),
            )
            for number, block in enumerate(self._walk()):
                first = jax.device_put(np.int32(number * self._share), whole)
                best = _scan(
                    query,
                    block,
                    first,
                    best,
                    mesh=self._mesh,
                    tile=self._tile,
                    dtype=self.store.dtype,
                    width=self.store.width,
                    recall=self._recall,
                )
            scores, places = jax.device_get(best)
        place = places.astype(np.int64)
        device = np.arange(devices, dtype=np.int64)[:, None, None]
        number, local = np.divmod(place, self._share)
        rows = self.start + (number * devices + device) * self._share + local
        flat = (len(padded), devices * wide)
        scores, rows = (x.transpose(1, 0, 2).reshape(flat) for x in (scores, rows))
        return best_of(scores[: len(units)], rows[: len(units)], k)

    def _walk(self) -> Iterator[Block]:
        """All blocks, on the devices; when streaming, the next is read meanwhile."""
        if self._resident is not None:
            yield from self._resident
            return
        with concurrent.futures.ThreadPoolExecutor(1, "read_block") as thread:
            coming = thread.submit(self._read, 0)
            for number in range(self._blocks):
                block = self._put(coming.result())
                if number + 1 < self._blocks:
                    coming = thread.submit(self._read, number + 1)
                yield block

    def _read(self, number: int) -> Block:
        """Copy one block out of the store's files."""
        store, size = self.store, self._share * self._mesh.size
        begin = self.start + number * size
        kind, codes = code_type(store.dtype, store.width)
        block = Block(
            np.zeros((size, store.num_memory, codes), kind),
            None
            if store.dtype == "bfloat16"
            else np.zeros((size, store.num_memory), np.float32),
            np.full(size, -1, np.float32),
        )
        for tile in store.tiles(size, begin, begin + size):
            part = slice(tile.start - begin, tile.start - begin + len(tile.norms))
            block.codes[part] = tile.codes
            if block.scales is not None:
                block.scales[part] = tile.scales
            norms = np.where(tile.norms > 0, tile.norms, np.inf)
            live = self._live[tile.start : tile.start + len(norms)]
            block.inverse[part] = np.where(live, 1 / norms, -1)
        return block

    def _put(self, block: Block) -> Block:
        split = NamedSharding(self._mesh, _ROWS)
        return jax.tree.map(lambda x: jax.device_put(x, split), block)


def free_memory(devices: Sequence[Any]) -> int:
    """Bytes that codes may take: 80% of what is free on the devices, half of a host's.

    Where a device does not tell, the host's memory counts.
    """
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


@functools.partial(
    jax.jit, static_argnames=("mesh", "tile", "dtype", "width", "recall")
)
def _scan(
    queries: tuple[Float[Array, "B W"], Float[Array, "B"]],
    block: Block,
    first: Int32[Array, ""],
    best: Best,
    *,
    mesh: Mesh,
    tile: int,
    dtype: str,
    width: int,
    recall: float | None,
) -> Best:
    """Merge a block's best rows into those found so far, on each device its own.

    Args:
      queries: unit vectors, and their products with the store's center.
      block: on the devices, split by rows; each device's part is a multiple of `tile`.
      first: place of the block's first row among those of each device.
      best: of earlier blocks.
      mesh: of the devices. tile: rows decoded at a time.
      dtype, width: see ``codecs.decode``.
      recall: None sorts exactly.
    """

    def on_device(queries, block, first, best):
        tiles = jax.tree.map(lambda x: x.reshape(-1, tile, *x.shape[1:]), block)
        starts = first + tile * jnp.arange(len(tiles.inverse), dtype=jnp.int32)
        found = jax.tree.map(lambda x: x[0], best)

        def merge(found, part):
            start, part = part
            scores = _cosines(queries, part, dtype, width)
            count = min(tile, found.scores.shape[-1])
            if recall is None:
                top, place = jax.lax.top_k(scores, count)
            else:
                top, place = jax.lax.approx_max_k(scores, count, recall_target=recall)
            scores = jnp.concatenate([found.scores, top], -1)
            places = jnp.concatenate([found.places, start + place], -1)
            # Of equal numbers the first is taken: the earlier, lower row.
            top, place = jax.lax.top_k(scores, found.scores.shape[-1])
            return Best(top, jnp.take_along_axis(places, place, -1)), None

        found, _ = jax.lax.scan(merge, found, (starts, tiles))
        return jax.tree.map(lambda x: x[None], found)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), _ROWS, PartitionSpec(), _ROWS),
        out_specs=_ROWS,
    )(queries, block, first, best)


def _cosines(
    queries: tuple[Float[Array, "B W"], Float[Array, "B"]],
    block: Block,
    dtype: str,
    width: int,
) -> Float[Array, "B rows"]:
    """Cosines with decoded documents; -inf where there is none."""
    units, offsets = queries
    vectors = decode(block.codes, block.scales, dtype, width, jnp)
    products = jax.lax.dot_general(
        units,
        vectors.reshape(len(vectors), -1),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    inverse = block.inverse[None]
    scores = (products + offsets[:, None]) * inverse
    return jnp.where(inverse < 0, -jnp.inf, scores)

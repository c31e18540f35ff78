"""Batches and counts of one step, spread over the devices of all processes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clara_jax.clara import Batch
from clara_jax.data import Part
from clara_jax.distributed import gather, to_host
from clara_jax.sharding import batch_parts, named_sharding


class Placer:
    """Puts batches of one size on a mesh.

    Rows are split where the devices divide them evenly; else every device holds all.
    Attribute `part` says which rows this process makes.
    """

    def __init__(self, mesh: Mesh, batch_size: int):
        self._batch_size = batch_size
        split = batch_size % batch_parts(mesh) == 0
        self._sharding = named_sharding(mesh, *(("batch",) if split else ()))
        places = self._sharding.addressable_devices_indices_map((batch_size,))
        rows = range(batch_size)
        parts = [rows[index[0]] for index in places.values() if index is not None]
        self._rows = tuple(sorted({row for part in parts for row in part}))
        self.part = Part(self._rows, jax.process_index(), jax.process_count(), gather)

    def put(self, batch: Batch) -> Batch:
        """Make global arrays ``[B, ...]`` of this process's rows."""
        if self._sharding.is_fully_addressable:
            return jax.device_put(batch, self._sharding)
        place = {row: i for i, row in enumerate(self._rows)}

        def whole(x: np.ndarray) -> jax.Array:
            def local(index: Any) -> np.ndarray:
                rows = range(self._batch_size)[index[0]]
                start = place[rows[0]]
                return x[start : start + len(rows)]

            shape = (self._batch_size, *x.shape[1:])
            return jax.make_array_from_callback(shape, self._sharding, local)

        return jax.tree.map(whole, batch)


class Tally:
    """Adds counts of all processes up, on the devices.

    A sum is asked for before a step and read after it, so that nobody waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        places = self._split.addressable_devices_indices_map((mesh.size,))
        self._row = min(i[0].start or 0 for i in places.values() if i is not None)
        whole = NamedSharding(mesh, PartitionSpec())
        self._sum = jax.jit(lambda x: x.sum(0), out_shardings=whole)

    def __call__(self, *counts: int) -> Callable[[], list[int]]:
        """Begin to add up counts (int32); what is returned waits for the sums."""
        # One of this process's devices holds its counts, the others hold zeros.
        rows = np.zeros((self._split.num_devices, len(counts)), np.int32)
        rows[self._row] = counts
        rows = jax.make_array_from_callback(rows.shape, self._split, rows.__getitem__)
        found = self._sum(rows)
        return lambda: to_host(found).tolist()

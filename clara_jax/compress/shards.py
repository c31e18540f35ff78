"""From a corpus to the shards of a store: read, compressed and written one by one.

While one shard is compressed, a thread reads the next one.
"""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from clara_jax.data import ShardReader
from clara_jax.distributed.sharing import Part
from clara_jax.files import read_ahead
from clara_jax.generate import Clara, encode_rows
from clara_jax.search import Job
from clara_jax.shapes import Float


def make_compressor(
    clara: Clara, mesh: Mesh, batch_size: int, *, merge: bool
) -> Callable[..., Float[np.ndarray, "n M D"]]:
    """Return what makes document vectors on all devices of a mesh, and nothing else.

    Args:
      clara: the model, laid out over `mesh`.
      mesh: the rows of a batch are split over it.
      batch_size: rows read together, on all devices.
      merge: put the adapter into the weights, which must not be quantized: one product
        per matrix in place of three.

    Returns:
      ``(rows, tell) -> vectors``, as of ``generate.encode_rows``.
    """
    network, memory = clara.network, clara.memory
    with jax.set_mesh(mesh):
        network = network.merge("compressor") if merge else network
    own = {name: network.adapters[name] for name in ("compressor", "memory")}
    encode = functools.partial(
        encode_rows,
        dataclasses.replace(network, adapters=own),
        role=None if merge else "compressor",
        pad_id=clara.tokenizer.pad_id,
        batch_size=batch_size,
        largest=memory.row_length(memory.doc_max_length),
    )

    def compress(
        rows: Sequence[Sequence[int]], tell: Callable[[int], object]
    ) -> Float[np.ndarray, "n M D"]:
        with jax.set_mesh(mesh):
            return encode(rows, tell=tell)

    return compress


def write_shards(
    job: Job,
    reader: ShardReader,
    compress: Callable[..., np.ndarray],
    part: Part,
    check: Callable[[int], object],
) -> Counter[str]:
    """Write the shards of a part that are missing; return the sums of their counts.

    After every batch `check` is called with the number of shards that are left; what it
    raises ends the work, and the shard at hand is dropped.
    """
    missing = job.missing(*part)
    total = int(reader.sizes[part.index :: part.count].sum())
    there = total - int(reader.sizes[missing].sum())
    counts, begin = Counter(), time.perf_counter()
    with tqdm(desc="compress", total=total, initial=there, unit=reader.unit) as bar:
        for done, texts in enumerate(read_ahead(reader.read, missing)):
            still = functools.partial(check, len(missing) - done)
            size = int(reader.sizes[texts.shard])
            tell = _meter(bar, size, len(texts.rows), still)
            vectors = compress(texts.rows, tell)
            job.write(texts.shard, vectors, texts.pieces)
            counts.update(texts.counts)
            seconds = time.perf_counter() - begin
            bar.set_postfix_str(f"{counts['tokens'] / seconds:,.0f} tokens/s")
    return counts


def _meter(
    bar: tqdm, entries: int, rows: int, check: Callable[[], object]
) -> Callable[[int], None]:
    """What moves a bar over the entries of a shard as its rows are done."""
    begin, done = bar.n, 0

    def add(more: int) -> None:
        nonlocal done
        check()
        done += more
        bar.update(begin + entries * done // rows - bar.n)

    return add

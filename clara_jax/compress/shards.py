"""From a corpus to the shards of a store: read, compressed and written one by one.

While one shard is compressed, a thread reads the next one.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from clara_jax.data import ShardReader
from clara_jax.distributed.sharing import Part
from clara_jax.files import read_ahead
from clara_jax.search import Job


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

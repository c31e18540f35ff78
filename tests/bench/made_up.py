"""Stores of made-up documents, as large as one likes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clara_jax.config import MemoryConfig
from clara_jax.documents import Document
from clara_jax.search import Job, Store, StoreSettings

SHARD = 64 << 20
"""Bytes of float32 vectors in a shard."""

RANK, GROUP, SPREAD, NOISE = 48, 50, 0.5, 0.1


def write(
    path: Path, settings: StoreSettings, count: int, vectors, numbered: bool = False
) -> Store:
    """Write a store.

    Args:
      path: the folder.
      settings: of the store.
      count: documents.
      vectors: a function of first and last row that gives their vectors ``[n, M, D]``.
      numbered: give each document a field ``number``: 0, 1, ...
    """
    width = settings.memory.num_memory * settings.width
    starts = range(0, count, max(1, SHARD // (4 * width)))
    corpus, fields = {"made up": count}, {"number": "int"} if numbered else {}
    job = Job.begin(path, settings, len(starts), corpus, fields=fields)
    for number, start in enumerate(starts):
        stop = min(start + starts.step, count)
        pieces = [
            Document(f"made-up document {i}", str(i), metadata=dict.fromkeys(fields, i))
            for i in range(start, stop)
        ]
        job.write(number, vectors(start, stop), pieces)
    store = job.commit()
    assert store is not None
    return store


def settings_of(num_memory: int, width: int, dtype: str = "bfloat16") -> StoreSettings:
    """Settings of a store that no model made."""
    memory = MemoryConfig(doc_max_length=16 * num_memory, compression_rate=16)
    return StoreSettings("made-up", "none", "", memory, width, dtype)


def topical(count: int, num_memory: int, width: int, seed: int = 0):
    """A function that gives made-up documents ``[n, M, D]``, any part of `count`.

    Documents lie around topics, one for every 50 of them, in a plane of 48 dimensions:
    topic + 0.5 own part, both Gaussian in the plane, + 0.1 Gaussian noise in all
    dimensions; far from the origin, so that the cosine of two is about 0.94, as it is
    of real ones.
    """
    rng = np.random.default_rng([seed, 0])
    whole = num_memory * width
    plane = rng.standard_normal((RANK, whole), np.float32)
    middle = 30 * rng.standard_normal(whole, np.float32)
    topics = rng.standard_normal((-(-count // GROUP), RANK), np.float32)

    def vectors(start: int, stop: int) -> np.ndarray:
        draw = np.random.default_rng([seed, 1, start])
        size = stop - start
        own = draw.standard_normal((size, RANK), np.float32)
        found = (topics[draw.integers(0, len(topics), size)] + SPREAD * own) @ plane
        found += middle + NOISE * draw.standard_normal((size, whole), np.float32)
        return found.reshape(size, num_memory, width)

    return vectors


def perturbed(store: Store, noise: float, seed: int = 0):
    """A function that gives the documents of a store, and after them copies of them.

    Copy i, of document ``i mod n``, is

        (1 - a) v + a v' + noise * d * g

    with ``v'`` another document drawn at random, ``a`` uniform in [0, 0.5], ``d`` the
    median distance of 1,000 random pairs of documents, and ``g`` Gaussian in all
    dimensions, of length about 1. So copies of one document are not alike, and a
    question's nearest documents are several copies of several documents.
    """
    rows = store.ids
    shape = store.num_memory, store.width
    draw = np.random.default_rng([seed, 0])
    pairs = draw.choice(rows, (2, min(1000, len(rows))))
    one, two = (store.vectors(part).reshape(len(part), -1) for part in pairs)
    typical = np.median(np.linalg.norm(one - two, axis=1))
    width = one.shape[1]

    def vectors(start: int, stop: int) -> np.ndarray:
        draw = np.random.default_rng([seed, 1, start])
        places = np.arange(start, stop)
        found = store.vectors(rows[places % len(rows)]).reshape(-1, width)
        copies = np.flatnonzero(places >= len(rows))
        other = store.vectors(draw.choice(rows, len(copies))).reshape(-1, width)
        share = draw.uniform(0, 0.5, (len(copies), 1)).astype(np.float32)
        dirt = draw.standard_normal((len(copies), width), np.float32)
        found[copies] = (
            (1 - share) * found[copies]
            + share * other
            + np.float32(noise * typical / np.sqrt(width)) * dirt
        )
        return found.reshape(-1, *shape)

    return vectors


def table(rows: list[dict[str, str]]) -> Iterator[str]:
    """Lines of a markdown table."""
    yield f"| {' | '.join(rows[0])} |"
    yield "|" + "---|" * len(rows[0])
    for row in rows:
        yield f"| {' | '.join(row.values())} |"

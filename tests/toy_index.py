"""Stores whose documents lie in groups, and processes that die while they index."""

import multiprocessing
import os
import signal

import numpy as np
from lance import LanceDataset
from toy_store import (
    STEPS,
    before_step,
    toy_pieces,
    toy_settings,
    write_store,
)

from clara_jax.search import Job, Store
from clara_jax.search.hybrid import index_words
from clara_jax.search.scann_index import build_index

WIDTH = 16


def grouped(n, seed=0):
    """Vectors ``[n, 2, WIDTH]`` near a subspace of 12 dimensions, in a narrow cone."""
    rng, plane = np.random.default_rng([1, seed]), np.random.default_rng(0)
    turn = plane.standard_normal((12, 2 * WIDTH))
    found = rng.standard_normal((n, 12)) @ turn + 15 * plane.standard_normal(2 * WIDTH)
    found += 0.3 * rng.standard_normal(found.shape)
    return found.astype(np.float32).reshape(n, 2, WIDTH)


def questions(n, seed=5):
    return grouped(n, seed).reshape(n, 2 * WIDTH)


def grouped_store(path, n, **changes):
    """Documents d0, d1, ...; the id of each row is the document's number."""
    settings = toy_settings(width=WIDTH, **changes)
    return write_store(path, settings, grouped(n), toy_pieces(n))


def add(path, n, name="a", seed=1):
    """Add documents a0, a1, ... to a store."""
    return add_documents(path, grouped(n, seed), toy_pieces(n, name=name))


def add_documents(path, vectors, pieces):
    settings = toy_settings(width=WIDTH)
    corpus, fields = {"first": pieces[0].id}, {"number": "int"}
    job = Job.begin(path, settings, 1, corpus, "add", fields)
    job.write(0, vectors, pieces)
    return job.commit()


def brute_force(store, queries, k, meets=lambda number: True):
    """The k best rows by brute force in float64, of equal scores the lower id.

    Args:
      store: what is searched.
      queries: flat vectors.
      k: documents for each.
      meets: whether a document counts, of its number.
    """
    pieces = store.pieces(store.ids)
    ids = store.ids[[bool(meets(piece.metadata["number"])) for piece in pieces]]
    documents = store.vectors(ids).reshape(len(ids), queries.shape[1]).astype(float)
    norms = np.linalg.norm(documents, axis=1)
    scores = queries.astype(np.float64) @ documents.T / np.where(norms > 0, norms, 1)
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    scores /= np.where(lengths > 0, lengths, 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), ids[order]


def _build(store):
    build_index(store, method="hashing")


ACTIONS = {"build": _build, "words": index_words}

INDEX_STEPS = (
    # It is all the same to a process that is killed what has got to the disk.
    *(step for step in STEPS if step[1] != "fsync"),
    (LanceDataset, "drop_columns"),
    (LanceDataset, "create_scalar_index"),
)


def killed(action, path, step):
    """Index in another process, which kills itself at a step.

    Returns:
      Whether it came to that step.
    """
    # A fork would be without the threads of Lance.
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(action, str(path), step))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _run(action, path, step):
    store = Store.open(path)
    before_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL), steps=INDEX_STEPS)
    ACTIONS[action](store)

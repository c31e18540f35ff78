"""Stores whose documents lie in groups, and processes that die while they index."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
from toy_store import (
    SHARD,
    before_step,
    toy_pieces,
    toy_settings,
    write_store,
)

from clara_jax.search import Job, Store
from clara_jax.search.scann_index import build_index, update_index

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
    settings = toy_settings(width=WIDTH, **changes)
    return write_store(path, settings, grouped(n), toy_pieces(n), 100 * SHARD)


def add(path, n, name="a", seed=1):
    """Add documents a0, a1, ... to a store."""
    fields = {"number": "int"}
    settings = toy_settings(width=WIDTH)
    with Job.begin(path, settings, 1, {"name": name}, "add", fields) as job:
        job.write(0, grouped(n, seed), toy_pieces(n, name=name))
        return job.commit()


def _build(store):
    build_index(store, method="hashing")


def _update(store):
    update_index(store)


def _words(store):
    from clara_jax.search.hybrid import index_words

    index_words(store)


ACTIONS = {"build": _build, "update": _update, "words": _words}


def killed(action, path, step):
    """Index in another process, which kills itself before a step.

    Returns:
      Whether it came to that step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy_store", "toy_index"])
    process = context.Process(target=_run, args=(action, str(path), step))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _run(action, path, step):
    store = Store.open(Path(path))
    before_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    ACTIONS[action](store)

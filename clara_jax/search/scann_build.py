"""Build and update ScaNN indexes.

ScaNN 1.4.2 corrupts memory when a point is deleted from a tree with SOAR to which
points were added, so nothing is ever deleted from an index: `update_index` adds, and
builds anew when much has changed.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from clara_jax.errors import ClaraError
from clara_jax.search.codecs import decode
from clara_jax.search.index_files import (
    check_files,
    check_note,
    hold,
    index_folder,
    write_index,
)
from clara_jax.search.keys import DIMS, SAMPLE, Keys, learn_keys, live_rows
from clara_jax.search.queries import unit
from clara_jax.search.scann_files import (
    KIND,
    Meta,
    Settings,
    failed,
    has_index,
    load,
    quiet,
    read_meta,
    save,
    scann,
)
from clara_jax.search.store import Store

METHODS = ("brute_force", "hashing", "tree")
CANDIDATES = 200
BRUTE_FORCE_BELOW, HASHING_BELOW = 20_000, 100_000
"""ScaNN's rules of thumb: documents from which on the next method is worth it."""

CHANGED = 0.2
"""Share of documents added or deleted from which on an update builds anew."""

HELD_OUT = 200
"""Documents that keys are not learnt from, at most; a tenth of a small store."""

_AT_ONCE = 1 << 24
"""Numbers decoded at a time: 64 MB."""

_UPSERTED = 256
"""Keys that ScaNN takes in together."""


def choose(
    documents: int,
    *,
    method: str | None = None,
    dims: int | None = None,
    leaves: int | None = None,
    leaves_to_search: int | None = None,
    soar: bool | None = None,
    candidates: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Settings:
    """Choose settings by the number of documents, by ScaNN's rules.

    Args:
      documents: to be indexed.
      method: see `Settings`; below 20,000 documents ``brute_force``, below 100,000
        ``hashing``, else ``tree``; also where `leaves` are given.
      dims: of a key, 128.
      leaves: about the square root of the documents.
      leaves_to_search: a fifth of them, 20 at least.
      soar: True.
      candidates: rescored for each question, 200.
      sample: documents that keys are learnt from, 20,000 at most.
      seed: of the sample.

    Raises:
      ClaraError: a number makes no sense.
    """
    if method is None:
        if leaves is not None or documents >= HASHING_BELOW:
            method = "tree"
        else:
            method = "brute_force" if documents < BRUTE_FORCE_BELOW else "hashing"
    if method not in METHODS:
        raise ClaraError(f"no index is called '{method}'; give {', '.join(METHODS)}")
    if leaves is None:
        leaves = max(1, round(math.sqrt(documents)))
    if leaves_to_search is None:
        leaves_to_search = min(leaves, max(20, math.ceil(leaves / 5)))
    settings = Settings(
        method=method,
        dims=DIMS if dims is None else dims,
        leaves=leaves if method == "tree" else 0,
        leaves_to_search=leaves_to_search if method == "tree" else 0,
        soar=method == "tree" and soar is not False,
        candidates=CANDIDATES if candidates is None else candidates,
        sample=SAMPLE if sample is None else sample,
        seed=seed,
    )
    for name in ("dims", "candidates", "sample"):
        if getattr(settings, name) < 1:
            raise ClaraError(f"{name} {getattr(settings, name)}: give 1 or more")
    if not 1 <= leaves <= max(documents, 1):
        raise ClaraError(f"{leaves} leaves: give 1 to {documents}, one per document")
    if not 1 <= leaves_to_search <= leaves:
        raise ClaraError(f"{leaves_to_search} leaves to search: give 1 to {leaves}")
    return settings


def build_index(
    store: Store,
    *,
    method: str | None = None,
    dims: int | None = None,
    leaves: int | None = None,
    leaves_to_search: int | None = None,
    soar: bool | None = None,
    candidates: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Meta:
    """Build the ScaNN index of a store, in place of the one that is there.

    In memory are the keys (4 bytes x 129 a document) and ScaNN's own copy. Killed at
    any moment, the old index stays whole.

    Args:
      store: what is indexed.
      method, dims, leaves, leaves_to_search, soar, candidates, sample, seed: see
        `choose`, which takes the place of what is None.
      threads: of ScaNN's training; None: one per processor.
      progress: told each step.

    Returns:
      What the index holds.

    Raises:
      ClaraError: a setting makes no sense, the store is empty, another process is
        building the index, the disk is full, or ScaNN is not installed.
    """
    given = {
        "method": method,
        "dims": dims,
        "leaves": leaves,
        "leaves_to_search": leaves_to_search,
        "soar": soar,
        "candidates": candidates,
        "sample": sample,
        "seed": seed,
    }
    with hold(store, KIND):
        return _build(store, given, threads, progress)


def update_index(
    store: Store,
    *,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Meta:
    """Bring an index up to date with its store.

    Added documents are put in with the keys and hashes that were learnt before. Where
    it is damaged, the epoch or the model differs, more than a fifth of the documents
    were added or deleted, or their number asks for another method, the index is built
    anew, with the settings that were given then.

    Args:
      store, threads, progress: see `build_index`.

    Returns:
      What the index holds now.

    Raises:
      ClaraError: there is no index, or as of `build_index`.
    """
    with hold(store, KIND):
        given: Mapping[str, Any] = {}
        try:
            meta = read_meta(store)
            given = meta.given
            folder = check_files(store, KIND, meta.note())
        except ClaraError:
            if not has_index(store):
                raise
            progress("the index is damaged: building anew")
            return _build(store, given, threads, progress)
        if reason := _outgrown(store, meta):
            progress(f"{reason}: building anew")
            return _build(store, given, threads, progress)
        added = meta.rows + np.flatnonzero(store.live[meta.rows :])
        if not len(added):
            return meta
        keys, rows, searcher = load(folder)
        progress(f"{len(added):,} documents added")
        new = _document_keys(store, keys, added, progress)
        try:
            with quiet():
                searcher.searcher.upsert([None] * len(new), new, _UPSERTED)
        except RuntimeError as error:
            raise failed(folder, "add documents", error) from error
        rows = np.concatenate([rows, added])
        note = {**meta.note(), "documents": len(rows), "measured": {}}
        written = write_index(
            store, KIND, lambda to: save(to, keys, rows, searcher), note
        )
        return Meta.of(written)


def _outgrown(store: Store, meta: Meta) -> str:
    """Why an index must be built anew; empty where it need not."""
    try:
        check_note(store, KIND, meta.note())
    except ClaraError:
        return "the store was made again or compacted"
    settings = choose(len(store), **meta.given)
    if settings.method != meta.settings.method:
        return f"{len(store):,} documents are better indexed by {settings.method}"
    added = np.count_nonzero(store.live[meta.rows :])
    deleted = np.count_nonzero(store.deleted < meta.rows) - meta.deleted
    if meta.documents - meta.trained + added + deleted > CHANGED * meta.trained:
        return "much has changed"
    return ""


def _build(
    store: Store,
    given: Mapping[str, Any],
    threads: int | None,
    progress: Callable[[str], None],
) -> Meta:
    scann()
    rows = live_rows(store)
    if not len(rows):
        raise ClaraError(f"{store.path}: holds no documents to index")
    settings = choose(len(rows), **given)
    draw = np.random.default_rng(settings.seed)
    count = min(HELD_OUT, len(rows) // 10)
    held_out = np.sort(draw.choice(rows, count, replace=False))
    keys = learn_keys(
        store,
        dims=settings.dims,
        sample=settings.sample,
        seed=settings.seed,
        leave_out=held_out,
        progress=progress,
    )
    found = _document_keys(store, keys, rows, progress)
    progress(f"ScaNN: {settings.method}, {len(rows):,} keys of {keys.dims}")
    try:
        with quiet():
            searcher = _train(found, settings, threads or _processors())
    except RuntimeError as error:
        raise failed(index_folder(store, KIND), "build an index", error) from error

    note = {
        "documents": len(rows),
        "trained": len(rows),
        "deleted": store.rows - len(rows),
        "settings": dataclasses.asdict(settings),
        "given": dict(given),
        "held_out": held_out.tolist(),
        "measured": {},
    }
    return Meta.of(
        write_index(store, KIND, lambda to: save(to, keys, rows, searcher), note)
    )


def _document_keys(
    store: Store,
    keys: Keys,
    rows: Int[np.ndarray, "n"],
    progress: Callable[[str], None],
) -> Float[np.ndarray, "n Q"]:
    """Keys of some rows, in ascending order, read once from front to back."""
    found = np.empty((len(rows), keys.dims), np.float32)
    step = max(1, _AT_ONCE // (store.num_memory * store.width))
    told = 0
    for tile in store.tiles(step, int(rows[0]), int(rows[-1]) + 1):
        begin, end = np.searchsorted(rows, [tile.start, tile.start + len(tile.norms)])
        local = rows[begin:end] - tile.start
        scales = None if tile.scales is None else tile.scales[local]
        vectors = decode(
            tile.codes[local], scales, store.dtype, store.width, center=store.center
        )
        found[begin:end] = keys.of_documents(unit(vectors.reshape(len(local), -1)))
        if end * 10 // len(rows) > told:
            told = end * 10 // len(rows)
            progress(f"keys: {end:,} of {len(rows):,} documents")
    if not np.isfinite(found).all():
        raise ClaraError(
            f"{store.path}: holds vectors with numbers that are not finite; look at it "
            "with --check"
        )
    return found


def _train(keys: Float[np.ndarray, "n Q"], settings: Settings, threads: int) -> Any:
    """Train a ScaNN searcher, and put all keys into it."""
    builder = scann().builder(keys, settings.candidates, "dot_product")
    builder.set_n_training_threads(threads)
    if settings.method == "brute_force":
        return builder.score_brute_force().build()
    if settings.method == "tree":
        soar = {"soar_lambda": 1.5, "overretrieve_factor": 2.0} if settings.soar else {}
        builder.tree(settings.leaves, settings.leaves_to_search, **soar)
    # Four bits for every number of a key. ScaNN's rule is for every two of them, which
    # finds less where there is no tree, and saves little beside the vectors.
    return builder.score_ah(1, anisotropic_quantization_threshold=0.2).build()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

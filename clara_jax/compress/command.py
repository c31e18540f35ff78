"""A corpus into a store: the command from its arguments to its last line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from clara_jax.clara import vector_fingerprint
from clara_jax.commands import Interrupt, Interrupted, model_options, parse_mesh
from clara_jax.compress.edits import megabytes, size_of
from clara_jax.compress.reading import Reader
from clara_jax.compress.writing import (
    Compressor,
    Counts,
    Task,
    model_place,
    own_part,
    parse_part,
)
from clara_jax.data import Corpus, find_files
from clara_jax.errors import ClaraError
from clara_jax.generate import Clara
from clara_jax.generate.batched import require_role
from clara_jax.loading import load
from clara_jax.search import Job, Store, StoreSettings
from clara_jax.search.codecs import center_of
from clara_jax.search.manifest import JOB, MANIFEST
from clara_jax.search.writer import check_folder
from clara_jax.sharding import batch_parts, make_mesh

T = TypeVar("T")

PER_DEVICE = 32
"""Documents that a device reads together by default."""

SAMPLE = 64
"""Documents that tell what all vectors have in common, see ``codecs.center_of``."""

_AT_ONCE = 4096


def compress_corpus(arguments: argparse.Namespace, interrupt: Interrupt) -> int:
    """Compress a corpus into a store, or what is missing of it.

    Args:
      arguments: of the command.
      interrupt: notes signals; the command ends after the batch at hand.

    Returns:
      The exit status.

    Raises:
      ClaraError: bad input. Interrupted: a signal arrived.
    """
    path = Path(arguments.store)
    part = parse_part(arguments.part) if arguments.part else own_part()
    mesh = _mesh(arguments.mesh)
    _tell_others(find_files(arguments.corpus)[1])
    clara = _load(arguments, mesh)
    _check(interrupt, path)
    corpus = Corpus(arguments.corpus, _watched(interrupt, path))
    reader = Reader(
        corpus,
        clara.tokenizer,
        clara.memory,
        arguments.shard_size,
        split=not arguments.whole,
    )
    settings = _settings(arguments, clara, path)
    mode = "add" if arguments.add else "replace" if arguments.replace else "new"
    if (path / MANIFEST).is_file():
        Store.open(path, settings.fingerprint)  # refuses another model, naming both
    goes_on = (path / JOB).is_file()
    size = arguments.batch_size or PER_DEVICE * batch_parts(mesh)
    compressor = None
    begins = not goes_on and not (path / MANIFEST).is_file()
    if settings.dtype != "bfloat16" and begins:
        check_folder(path, mode)
        compressor = Compressor(clara, mesh, size, merge=not arguments.no_merge)
        vectors = compressor(reader.sample(SAMPLE), lambda _: _check(interrupt, path))
        center = center_of(vectors, settings.dtype)
        settings = dataclasses.replace(settings, center=center)
    counts = Counts()
    searches = "reasoner" in clara.network.adapters
    identity = _identity(corpus, arguments)
    with Job.begin(path, settings, len(reader), identity, mode) as job:
        if job.finished:
            _note(f"{path}: is finished already; there is nothing to do")
        else:
            if mode == "add":
                try:
                    _refuse_known(Store.open(path), corpus, _watched(interrupt, path))
                except (ClaraError, Interrupted):
                    job.abandon()
                    raise
            if compressor is None:
                merge = not arguments.no_merge
                compressor = Compressor(clara, mesh, size, merge=merge)
            del clara  # and with it the weights that were merged, and other adapters
            task = Task(job, reader, compressor, lambda: _check(interrupt, path, task))
            counts = task.run(*part)
        store = job.commit()
    _tell(counts)
    if store is None:
        print(
            f"{part} is written; {path} is finished by the part that ends last, so "
            "start the others, too"
        )
        return 0
    _report(store, corpus.documents if mode == "new" else 0)
    if searches:
        print(
            f'next: python -m clara_jax.answer --store {path} "question"\n'
            f"from some thousands of pieces on, searching is faster with an index: "
            f"python -m clara_jax.compress index --store {path}"
        )
    else:
        _note(
            "this model has no reasoner, which stage end_to_end trains, to search the "
            "store with"
        )
    return 0


def _check(interrupt: Interrupt, store: Path, task: Task | None = None) -> None:
    """End in order after a signal."""
    if interrupt.signal is None:
        return
    left = "" if task is None else f", {len(task.left)} shards are left"
    raise Interrupted(
        interrupt.signal,
        f"{interrupt.signal}: {store} is not finished{left}; start the same command "
        "again to go on",
    )


def _watched(interrupt: Interrupt, store: Path) -> Any:
    """A bar for the loop over the corpus's entries, which a signal ends."""

    def watched(entries: Iterable[T]) -> Iterator[T]:
        for entry in tqdm(entries, "read the corpus", unit="doc", delay=2):
            _check(interrupt, store)
            yield entry

    return watched


def _mesh(text: str) -> Mesh:
    """The mesh of this host's devices: ``fsdp=2,tensor=2``; data takes the rest."""
    sizes = parse_mesh(text, ("data", "fsdp", "tensor"))
    # Other hosts have work of their own: nothing is asked of their devices.
    return make_mesh(**sizes, devices=jax.local_devices())


def _load(arguments: argparse.Namespace, mesh: Mesh) -> Clara:
    clara = load(arguments.model, mesh=mesh, **model_options(arguments))
    require_role(clara.network, "compressor")
    return clara


def _settings(arguments: argparse.Namespace, clara: Clara, path: Path) -> StoreSettings:
    codec = arguments.codec
    if codec is None and (path / MANIFEST).is_file():
        codec = Store.open(path).dtype
    compute = clara.network.model.config.dtype
    if arguments.quantize != "none":
        compute += f", {arguments.quantize}"
    return StoreSettings(
        fingerprint=vector_fingerprint(clara.network),
        model=model_place(arguments.model, path),
        base=model_place(arguments.base, path),
        memory=clara.memory,
        width=clara.network.model.config.width,
        dtype=codec or "bfloat16",
        compute=compute,
    )


def _identity(corpus: Corpus, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is compressed, to refuse another corpus when a job goes on."""
    return {
        "files": len(corpus.files),
        "bytes": corpus.size,
        "documents": corpus.documents,
        "digest": corpus.digest,
        "shard_size": arguments.shard_size,
        "whole": arguments.whole,
    }


def _refuse_known(store: Store, corpus: Corpus, progress: Any) -> None:
    """Refuse documents that the store has, before any work is done."""
    found: dict[str, str] = {}

    def look() -> None:
        for id, row in zip(found, store.find(list(found), "id"), strict=True):
            if row >= 0:
                raise ClaraError(
                    f"{found[id]}: {store.path} already has a document with the id "
                    f"'{id}'; replace it with --replace, or give the new document "
                    "another id"
                )
        found.clear()

    for i in progress(range(len(corpus))):
        found.update({document.id: corpus.place(i) for document in corpus[i]})
        if len(found) >= _AT_ONCE:
            look()
    look()


def _tell_others(others: Sequence[Path]) -> None:
    """Say which files of a folder are not taken."""
    if not others:
        return
    names = [other.name for other in others[:3]] + ["..."] * (len(others) > 3)
    what = "files are no documents" if len(others) > 1 else "file is no document"
    _note(f"{len(others)} {what} and left out: {', '.join(names)}")


def _tell(counts: Counts) -> None:
    """Say what this command did."""
    if counts.cut:
        _note(
            f"{counts.cut:,} of {counts.documents:,} documents are longer than the "
            "model reads; their ends are left out"
        )
    if counts.unknown:
        _note(
            f"{counts.unknown:,} of {counts.pieces:,} pieces hold words that the "
            "model's tokenizer does not know"
        )
    if not counts.documents:
        return
    seconds = max(counts.seconds, 1e-9)
    print(
        f"compressed {counts.documents:,} documents in {counts.pieces:,} pieces: "
        f"{counts.seconds:,.1f} s, {counts.documents / seconds:,.1f} documents/s, "
        f"{counts.tokens / seconds:,.0f} tokens/s"
    )


def _report(store: Store, documents: int) -> None:
    """Say what the store holds, with what a document takes if their number is known."""
    size = size_of(store)
    each = f"{megabytes(size / max(store.rows, 1))} a piece"
    if documents:
        each = f"{megabytes(size / documents)} a document, {each}"
    print(
        f"{store.path}: {len(store):,} pieces of {store.num_memory} x {store.width} "
        f"numbers in {store.dtype}, {megabytes(size)} ({each})"
    )


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)

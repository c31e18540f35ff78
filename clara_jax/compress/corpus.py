"""A corpus into a store: the command from its arguments to its last line."""

import argparse
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from clara_jax.commands import Interrupt, model_options, note, parse_mesh
from clara_jax.compress.stores import megabytes, size_of
from clara_jax.convert import require_model
from clara_jax.data import Corpus, ShardReader, reading_of
from clara_jax.distributed.sharing import Part, own_part, parse_part
from clara_jax.documents import fields_of
from clara_jax.errors import ClaraError
from clara_jax.files import read_ahead
from clara_jax.generate import AnswerConfig, Clara, make_compressor
from clara_jax.generate.batched import require_role
from clara_jax.loading import load, model_place, store_settings
from clara_jax.search import Job, Store, StoreSettings
from clara_jax.search.codecs import FLOATS, center_of
from clara_jax.search.rows import own_columns
from clara_jax.search.writer import missing_fields, open_place
from clara_jax.sharding import batch_parts, make_mesh

Watched = Callable[[Iterable[Any]], Iterator[Any]]

PER_DEVICE = 32  # documents that a device reads together by default
SAMPLE = 64  # documents that tell what all have in common, see ``codecs.center_of``


def compress_corpus(arguments: argparse.Namespace, interrupt: Interrupt) -> None:
    """Compress a corpus into a store, or what is missing of it.

    Raises:
      ClaraError: bad input.
      Interrupted: a signal arrived; the batch at hand was finished.
    """
    path = arguments.store

    def check(left: int | None = None) -> None:
        """End in order after a signal, naming how many shards are left."""
        shards = "" if left is None else f", {left} shards are left"
        interrupt.check(f"{path} is not finished{shards}")

    def watched(entries: Iterable[Any]) -> Iterator[Any]:
        """Wrap a loop over the corpus's entries in a bar; a signal ends it."""
        for entry in tqdm(entries, "read the corpus", unit="doc", delay=2):
            check()
            yield entry

    part = parse_part(arguments.part) if arguments.part else own_part()
    sizes = parse_mesh(arguments.mesh, ("data", "fsdp", "tensor"))
    # Other hosts have work of their own: nothing is asked of their devices.
    mesh = make_mesh(**sizes, devices=jax.local_devices())
    mode = "add" if arguments.add else "replace" if arguments.replace else "new"
    before = open_place(path, mode)
    require_model(arguments.model, arguments.rate)
    corpus = Corpus(arguments.corpus, watched, reading_of(arguments))
    for line in corpus.notes:
        note(line)
    config = AnswerConfig(control_tokens=arguments.control_tokens)
    clara = load(arguments.model, config, mesh=mesh, **model_options(arguments))
    require_role(clara.network, "compressor")
    settings = _settings(arguments, clara, before)
    check()
    split, shard_size = not arguments.whole, arguments.shard_size
    reader = ShardReader(corpus, clara.tokenizer, clara.memory, shard_size, split=split)
    make = partial(
        make_compressor,
        clara.network,
        mesh,
        merge=not arguments.no_merge and arguments.quantize == "none",
        pad_id=clara.tokenizer.pad_id,
        batch_size=arguments.batch_size or PER_DEVICE * batch_parts(mesh),
        largest=clara.memory.row_length(clara.memory.doc_max_length),
    )
    compress = None
    if settings.dtype not in FLOATS and before is None:
        compress = make()
        vectors = compress(reader.sample(SAMPLE), lambda _: check())
        center = center_of(vectors, settings.dtype)
        settings = dataclasses.replace(settings, center=center)
    identity = {
        "files": len(corpus.files),
        "bytes": corpus.size,
        "documents": corpus.documents,
        "digest": corpus.digest,
        "shard_size": shard_size,
        "whole": arguments.whole,
        **({"control_tokens": True} if arguments.control_tokens else {}),
    }
    counts, seconds = Counter(), 0.0
    searches = "reasoner" in clara.network.adapters
    refuse = partial(_refuse, corpus=corpus, watched=watched, ids=mode == "add")
    given = settings, len(reader.sizes), identity, mode, corpus.fields, refuse
    job = Job.begin(path, *given)
    if job.finished:
        note(f"{path}: is finished already; there is nothing to do")
    else:
        job.join(arguments.join)
        compress = compress or make()
        del clara, make  # and so the weights that were merged, and other adapters
        known = before.known_ids() if before and mode == "replace" else None
        counts, seconds = _write_shards(job, reader, compress, part, check, known)
    store = job.commit()
    if store is not None:
        own = own_columns(store.schema).items()
        names = [
            f"{column} for '{name}'" for name, (column, _) in own if name != column
        ]
        if names:
            note(f"names of fields in conditions: {', '.join(names)}")
    _report_counts(counts, seconds)
    if store is None:
        rest = f"{path} is finished by the part that ends last"
        print(f"{part} is written; {rest}, so start the others, too")
        return
    held = size_of(store)
    each = f"{megabytes(held / max(len(store), 1))} a piece"
    if mode == "new" and corpus.documents:
        each = f"{megabytes(held / corpus.documents)} a document, {each}"
    print(
        f"{path}: {len(store):,} pieces of {store.num_memory} x {store.width} numbers "
        f"in {store.dtype}, {megabytes(held)} ({each})"
    )
    if searches:
        print(
            f'next: python -m clara_jax.answer --store {path} "question"\n'
            f"from some thousands of pieces on, searching is faster with an index: "
            f"python -m clara_jax.compress index --store {path}"
        )
    else:
        reasoner = "no reasoner, which stage end_to_end trains"
        note(f"this model has {reasoner}, to search the store with")


def _write_shards(
    job: Job,
    reader: ShardReader,
    compress: Callable[..., np.ndarray],
    part: Part,
    check: Callable[[int], object],
    known: Collection[str] | None,
) -> tuple[Counter[str], float]:
    """Write the shards of a part that are missing; return their counts and the time.

    While one is compressed, a thread reads the next one. After every batch `check` is
    called with the number of shards that are left; what it raises ends the work, and
    the shard at hand is dropped. Documents without an id of `known` ones are counted.
    """
    missing = job.missing(*part)
    total = int(reader.sizes[part.index :: part.count].sum())
    there = total - int(reader.sizes[missing].sum())
    counts, seconds, begin = Counter(), 0.0, time.perf_counter()
    with tqdm(desc="compress", total=total, initial=there, unit=reader.unit) as bar:
        for done, texts in enumerate(read_ahead(reader.read, missing)):
            still = partial(check, len(missing) - done)
            size = int(reader.sizes[texts.shard])
            tell = _meter(bar, size, len(texts.rows), still)
            vectors = compress(texts.rows, tell)
            job.write(texts.shard, vectors, texts.pieces)
            counts.update(texts.counts)
            if known is not None:
                firsts = (piece.id for piece in texts.pieces if piece.part == 1)
                counts["new"] += sum(name not in known for name in firsts)
            seconds = time.perf_counter() - begin
            bar.set_postfix_str(f"{counts['tokens'] / seconds:,.0f} tokens/s")
    return counts, seconds


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


def _settings(
    arguments: argparse.Namespace, clara: Clara, before: Store | None
) -> StoreSettings:
    """Settings of the store; refuses a store that another model has made."""
    path, compute = arguments.store, clara.network.model.config.dtype
    if arguments.quantize != "none":
        compute += f", {arguments.quantize}"
    settings = store_settings(
        clara,
        model=model_place(arguments.model, path),
        base=model_place(arguments.base, path),
        dtype=arguments.codec or (before.dtype if before else "bfloat16"),
        compute=compute,
    )
    if before is not None:
        before.require(settings.fingerprint)
    return settings


def _refuse(store: Store, corpus: Corpus, watched: Watched, ids: bool) -> None:
    """Refuse documents that do not go into a store; say where the first stands.

    Its columns cannot hold their fields, or, with `ids`, it has documents of their ids.
    """
    known = store.known_ids() if ids else set()
    try:
        missing_fields(store, corpus.fields)
        if not known:
            return
    except ClaraError:
        pass
    for i in watched(range(len(corpus))):
        documents = corpus[i]
        try:
            missing_fields(store, fields_of(documents))
        except ClaraError as error:
            raise ClaraError(f"{corpus.place(i)}: {error}") from error
        for document in documents:
            if document.id in known:
                raise ClaraError(
                    f"{corpus.place(i)}: the store already has a document with the id "
                    f"'{document.id}'; replace it with --replace, or give the new "
                    "document another id"
                )


def _report_counts(counts: Counter[str], seconds: float) -> None:
    documents, pieces = counts["documents"], counts["pieces"]
    if counts["cut"]:
        note(
            f"{counts['cut']:,} of {documents:,} documents are longer than the model "
            "reads; their ends are left out"
        )
    if counts["new"]:
        note(
            f"{counts['new']:,} of {documents:,} documents have ids that the store "
            "does not have, and are added; the id of a file is its path below the "
            "folder that is given"
        )
    if counts["unknown"]:
        note(
            f"{counts['unknown']:,} of {pieces:,} pieces hold words that the model's "
            "tokenizer does not know"
        )
    if documents:
        print(
            f"compressed {documents:,} documents in {pieces:,} pieces: "
            f"{seconds:,.1f} s, {documents / seconds:,.1f} documents/s, "
            f"{counts['tokens'] / seconds:,.0f} tokens/s"
        )

"""What is done to a store that is there: delete, compact, check, index, convert."""

import argparse
import dataclasses
import datetime
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clara_jax import commands
from clara_jax.config import parse
from clara_jax.convert.array_store import ArrayStore
from clara_jax.data import read_questions
from clara_jax.errors import ClaraError
from clara_jax.evaluate.index_report import compare
from clara_jax.generate import AnswerConfig
from clara_jax.loading import find_model, load_for, model_place
from clara_jax.search import Job, Store, StoreSettings, check, compact, delete, versions
from clara_jax.search.hybrid import has_words, index_words
from clara_jax.search.scann_index import METHODS, Settings, build_index
from clara_jax.shapes import Float

megabytes = partial(tqdm.format_sizeof, suffix="B")
"""Write a number of bytes in the unit that suits it."""


def delete_documents(arguments: argparse.Namespace) -> None:
    """Take documents out of a store."""
    store, ids = arguments.store, arguments.delete
    pieces, count = delete(store, ids), len(set(ids))
    print(
        f"deleted {count} document{'s' * (count > 1)} in {pieces} "
        f"piece{'s' * (pieces > 1)}; {len(Store.open(store)):,} pieces are left. "
        "Their room is given back by --compact"
    )


def compact_store(arguments: argparse.Namespace) -> None:
    """Give back the room of deleted documents and of earlier versions."""
    freed = compact(
        arguments.store, datetime.timedelta(days=min(arguments.keep, 999_999))
    )
    opened = Store.open(arguments.store)
    print(
        f"gave back {megabytes(freed)}; {len(opened):,} pieces are left in "
        f"{megabytes(size_of(opened))}"
    )


def check_store(arguments: argparse.Namespace) -> int:
    """Compare all rows with their checksums; return an exit status, 1 for damage."""
    store = arguments.store
    findings = check(store)
    for finding in findings:
        print(finding)
    if findings:
        return 1
    opened = Store.open(store)
    size = megabytes(size_of(opened))
    print(f"{store}: whole: {len(opened):,} pieces, {opened.dtype}, {size}")
    return 0


def list_versions(arguments: argparse.Namespace) -> None:
    """Print the versions of a store that are kept."""
    for number, time_made, rows in versions(arguments.store):
        print(f"{number:>6}  {time_made:%Y-%m-%d %H:%M:%S} UTC  {rows:,} pieces")


def convert_store(arguments: argparse.Namespace) -> None:
    """Make a store of one of the format before Lance."""
    old = ArrayStore(Path(arguments.convert))
    settings = parse(StoreSettings, old.settings, arguments.convert)
    found = find_model(arguments.convert, settings)
    model, base = (model_place(each, arguments.store) for each in found)
    settings = dataclasses.replace(settings, model=model, base=base)
    given = settings, old.shards, {"converted": old.digest}, "new", old.fields
    job = Job.begin(arguments.store, *given)
    for k in tqdm(job.missing(), "convert", unit="shard", delay=2):
        job.write_rows(k, *old.read(k))
    store = job.commit()
    assert store is not None
    print(f"{arguments.store}: {len(store):,} pieces, {megabytes(size_of(store))}")


def size_of(store: Store) -> int:
    """Return the bytes of the rows of a store, its indexes not counted."""
    files = (f for part in store.dataset.get_fragments() for f in part.data_files())
    return sum(file.file_size_bytes or 0 for file in files)


def index_parser() -> argparse.ArgumentParser:
    """Return the arguments of ``index``."""
    parser = commands.Parser(
        prog="python -m clara_jax.compress index",
        description="Build the index of a store, and measure it.",
    )
    add = parser.add_argument
    add("--store", required=True, metavar="PLACE", help="the store")
    add("--method", choices=METHODS, help="default: by the number of documents")
    number = partial(add, type=int, metavar="N")
    number("--dims", help="directions of a key (default 128)")
    number("--leaves", help="of a tree (default: the square root of the documents)")
    number("--leaves-to-search", help="of them, for a question (default: a fifth)")
    text = "documents rescored exactly for a question (default 200)"
    number("--candidates", help=text)
    number("--sample", help="documents that keys are learnt from (default 20000)")
    number("--seed", help="of that sample")
    text = "put each key into one leaf only"
    add("--no-soar", dest="soar", action="store_const", const=False, help=text)
    add("--words", action="store_true", help="index the words, too, for --hybrid")
    add("--no-report", action="store_true", help="do not compare with exact search")
    add(
        "--top-k", type=commands.count, default=5, help="documents compared (default 5)"
    )
    text = "compare with these (.txt: one a line; JSONL: question), read by the "
    text += "store's model; else with questions made up from documents"
    add("--questions", default="", metavar="FILE", help=text)
    add("--model", default="", help="default: the one that the store names")
    commands.add_model_options(parser)
    return parser


def index_store(arguments: argparse.Namespace) -> None:
    """Build the indexes of a store, and measure them.

    Raises:
      ClaraError: there is no store, a setting makes no sense, or see
        ``search.scann_index.build_index``.
    """
    if arguments.no_report and arguments.questions:
        raise ClaraError("--questions are for the report; leave --no-report out")
    if arguments.model and not arguments.questions:
        raise ClaraError("--model reads questions; give some with --questions FILE")
    store = Store.open(arguments.store)
    queries = _queries(arguments, store) if arguments.questions else None
    begin = time.perf_counter()
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {n: v for n, v in vars(arguments).items() if n in names}
    _say(f"ScaNN index of {len(store):,} pieces")
    note = build_index(store, **given)
    seconds = time.perf_counter() - begin
    how = ", ".join(f"{name} {value}" for name, value in note["settings"].items())
    print(f"ScaNN index of {note['documents']:,} pieces ({how}): {seconds:.1f} s")
    if arguments.words or has_words(store):
        begin = time.perf_counter()
        _say(f"full-text index of {len(store):,} pieces")
        index_words(store)
        seconds = time.perf_counter() - begin
        print(f"full-text index of {len(store):,} pieces: {seconds:.1f} s")
    if arguments.no_report:
        return
    if queries is None and not note["held_out"]:
        commands.note("there are too few documents to make questions of: no report")
    else:
        found = compare(store, queries, arguments.top_k, progress=_say)
        print("\n".join(found.lines()))


def _queries(arguments: argparse.Namespace, store: Store) -> Float[np.ndarray, "B W"]:
    """Encode a file of questions by the model that made the store."""
    questions = [question for question, _ in read_questions(arguments.questions)]
    config = AnswerConfig(
        batch_size=32, too_long="cut", control_tokens=arguments.control_tokens
    )
    options = commands.model_options(arguments)
    clara = load_for(store, config, arguments.model, **options)
    _say(f"vectors of {len(questions):,} questions")
    found = clara.reason(questions).astype(np.float32)
    return found.reshape(len(questions), -1)


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)

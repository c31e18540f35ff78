"""Build or update the indexes of a store, and measure them against exact search."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from clara_jax import commands
from clara_jax.clara import vector_fingerprint
from clara_jax.compress.writing import find_model
from clara_jax.data import read_questions
from clara_jax.errors import ClaraError
from clara_jax.generate import AnswerConfig
from clara_jax.loading import load
from clara_jax.search import Store
from clara_jax.search.hybrid import build_bm25
from clara_jax.search.index_files import has_index
from clara_jax.search.recall import report
from clara_jax.search.scann_index import METHODS, build_index, update_index
from clara_jax.shapes import Float

_SETTINGS = (
    ("dims", "directions of a key (default 128)"),
    ("leaves", "of a tree (default: the square root of the documents)"),
    ("leaves-to-search", "of them, for a question (default: a fifth)"),
    ("candidates", "documents rescored exactly for a question (default 200)"),
    ("sample", "documents that keys are learnt from (default 20000)"),
    ("seed", "of that sample"),
)
"""Settings of ``search.scann_index.choose`` that are numbers."""


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``index`` to a parser."""
    add = parser.add_argument
    add("--store", required=True, metavar="DIR", help="the store")
    add("--method", choices=METHODS, help="default: by the number of documents")
    for name, text in _SETTINGS:
        add(f"--{name}", type=int, metavar="N", help=text)
    add("--no-soar", action="store_true", help="put each key into one leaf only")
    add(
        "--rebuild",
        action="store_true",
        help="build anew; else an index that is there is brought up to date, unless "
        "other settings are given",
    )
    add("--bm25", action="store_true", help="index the words, too, for --hybrid")
    add("--no-report", action="store_true", help="do not compare with exact search")
    add("--top-k", type=int, default=5, help="documents compared (default 5)")
    add(
        "--questions",
        default="",
        metavar="FILE",
        help="compare with these (.txt: one a line; JSONL: question), read by the "
        "store's model; else with questions made up from documents",
    )
    add("--model", default="", help="default: the one that the store names")
    commands.add_model_options(parser)


def index_store(arguments: argparse.Namespace) -> int:
    """Build or update the indexes of a store.

    Args:
      arguments: see `add_index_arguments`.

    Returns:
      The exit status.

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
    if arguments.bm25 or has_index(store, "bm25"):
        begin = time.perf_counter()
        note = build_bm25(store, progress=_say)
        seconds = time.perf_counter() - begin
        print(f"BM25 index of {note['documents']:,} pieces: {seconds:.1f} s")
    begin = time.perf_counter()
    given = _given(arguments)
    if has_index(store) and not given and not arguments.rebuild:
        note = update_index(store, progress=_say)
    else:
        note = build_index(store, **given, progress=_say)
    seconds = time.perf_counter() - begin
    settings = note["settings"]
    parts = [settings["method"].replace("_", " "), f"{settings['dims']} dims"]
    if settings["leaves"]:
        searched = settings["leaves_to_search"]
        parts.append(f"{searched} of {settings['leaves']} leaves")
    parts.append(f"{settings['candidates']} candidates")
    how = ", ".join(parts)
    print(f"ScaNN index of {note['documents']:,} pieces ({how}): {seconds:.1f} s")
    if not arguments.no_report:
        found = report(store, queries, arguments.top_k, progress=_say)
        print("\n".join(found.lines()))
    return 0


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings that are not left to the rules."""
    names = ["method", *(name.replace("-", "_") for name, _ in _SETTINGS)]
    found = {name: getattr(arguments, name) for name in names}
    if arguments.no_soar:
        found["soar"] = False
    return {name: value for name, value in found.items() if value is not None}


def _queries(arguments: argparse.Namespace, store: Store) -> Float[np.ndarray, "B W"]:
    """Vectors of a file of questions, by the model that made the store."""
    questions = [question for question, _ in read_questions(arguments.questions)]
    model, base = find_model(store)
    config = AnswerConfig(batch_size=32, too_long="cut")
    options = commands.model_options(arguments)
    options["base"] = arguments.base or ("" if arguments.model else base)
    clara = load(arguments.model or model, config, **options)
    Store.open(store.path, vector_fingerprint(clara.network))
    _say(f"vectors of {len(questions):,} questions")
    found = clara.reason(questions).astype(np.float32)
    return found.reshape(len(questions), -1)


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)

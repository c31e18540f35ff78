"""Ask a model about documents.

    python -m clara_jax.answer --model DIR --documents docs.jsonl "question" ...
    python -m clara_jax.answer --store DIR "question" ...

Documents are compressed once, now or into a store before; for each question the
reasoner chooses among them and the generator answers from the chosen vectors. Times
hold compilation where a part meets a new length.
"""

import argparse
import functools
import io
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tqdm import tqdm

from clara_jax import commands
from clara_jax.answer.session import (
    Session,
    Stored,
    as_json,
    as_text,
    as_tokens,
    check_question,
)
from clara_jax.commands import note
from clara_jax.convert import named_folder
from clara_jax.data import Corpus, add_reading_options, read_questions, reading_of
from clara_jax.errors import ClaraError
from clara_jax.generate import AnswerConfig, Clara, Sampling
from clara_jax.loading import load, load_for
from clara_jax.search.hybrid import HybridSearcher
from clara_jax.search.scann_index import SEARCHES, open_searcher
from clara_jax.search.store import Store

DOCUMENTS = "documents.jsonl"
EXPLAINED = 10
_UNKNOWN = "that the model's tokenizer does not know"


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = commands.Parser(
        "python -m clara_jax.answer", description="Ask a model about documents."
    )
    add = parser.add_argument
    add("questions", nargs="*", help="questions; - reads them from standard input")
    add("--model", help=f"{commands.MODEL}; default: that of the store")
    add("--store", help="folder or URL that python -m clara_jax.compress has made")
    how = "how to search the store; auto: by its ScaNN index, if any, else exact"
    add("--search", choices=SEARCHES, default="auto", help=how)
    fused = "fuse the latent ranking of the store with that of its words (BM25)"
    add("--hybrid", action="store_true", help=fused)
    only = 'answer from documents that meet a condition: "year >= 2020 and team = '
    add("--where", metavar="CONDITION", help=only + "'legal'\"")
    add(
        "--at",
        type=commands.count,
        metavar="N",
        help="a version of the store; default: newest",
    )
    texts = (
        "text, PDF, Word, PowerPoint or HTML file; JSONL, Parquet or CSV with text "
        "(and title, id); or a folder of such files; may be repeated; default: "
        f"{DOCUMENTS} in the model's folder"
    )
    add("--documents", action="append", metavar="PATH", help=texts)
    add("--top-k", type=int, help="documents to answer from; default: as trained")
    add("--max-new-tokens", type=int, default=64, help="longest answer")
    add("--temperature", type=float, default=0.0, help="0 takes the best token")
    add("--top-p", type=float, default=1.0, help="share of probability to draw from")
    add("--seed", type=int, default=0, help="of the draws")
    add("--json", action="store_true", help="print one JSON object per question")
    file = "text file with one question a line, or JSONL, CSV, ... with question"
    add("--questions", dest="file", help=file)
    stream = "print answers as they are decoded; default: on a terminal"
    add("--stream", action=argparse.BooleanOptionalAction, help=stream)
    add(
        "--explain",
        type=int,
        nargs="?",
        const=EXPLAINED,
        default=0,
        metavar="N",
        help="print the N tokens nearest to each of the reasoner's vectors "
        "(default %(const)s)",
    )
    add_reading_options(parser)
    commands.add_model_options(parser)
    whole = "leave out the ends of long documents instead of cutting them in pieces"
    add("--whole", action="store_true", help=whole)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    for i, text in enumerate(given):  # --explain before a question is no --explain N
        if text == "--explain" and not "".join(given[i + 1 : i + 2]).isdecimal():
            given[i] = f"--explain={EXPLAINED}"
    arguments = parser().parse_args(given)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    return commands.run(lambda: _run(arguments), "nothing is lost")


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.questions and not arguments.file:
        raise ClaraError("there is no question; give one, or - to type them")
    stream = arguments.stream
    if stream is None:
        stream = sys.stdout.isatty() and not arguments.json
    asked = (
        []
        if arguments.file is None
        else read_questions(arguments.file, arguments.encoding)
    )
    tell = functools.partial(print, end="", flush=True) if stream else None
    session = _stored(arguments) if arguments.store else _given(arguments)
    if not session.selects:
        note("this model has no reasoner; all documents are read in the order given")
    failed = 0
    bar = tqdm(asked, "questions", unit="q", delay=2, disable=not asked)
    for question, place in itertools.chain(bar, _questions(arguments.questions)):
        try:
            if arguments.explain and not arguments.json:
                print(as_tokens(session.explain(question, arguments.explain)))
            answer = session.ask(question, tell)
        except ClaraError as error:
            if not place:
                raise
            print(f"error: {place}: {error}", file=sys.stderr)
            failed += 1
            continue
        if stream:
            print()
        if session.unknown([question]):
            note(f"the question holds words {_UNKNOWN}")
        if arguments.json:
            print(as_json(answer, session, arguments.explain))
        else:
            print(as_text(answer))
    return 1 if failed and not sys.stdin.isatty() else 0


def _given(arguments: argparse.Namespace) -> Session:
    """Compress documents now."""
    if not arguments.model:
        raise ClaraError("no --model given; give a run's folder, or a --store")
    ways = arguments.hybrid or arguments.where is not None or arguments.at is not None
    if ways or arguments.search != "auto":
        raise ClaraError(
            "--search, --hybrid, --where and --at are ways to search a --store; give "
            "one"
        )
    files = arguments.documents or [named_folder(arguments.model) / DOCUMENTS]
    if not arguments.documents and not files[0].is_file():
        raise ClaraError(
            f"there are no documents: {arguments.model} holds no {DOCUMENTS}; give a "
            "file with --documents"
        )
    corpus = Corpus(files, reading=reading_of(arguments))
    for line in corpus.notes:
        note(line)
    documents = corpus.all()
    clara = _load(arguments, partial(load, arguments.model))
    session = Session(clara, documents, arguments.top_k, split=not arguments.whole)
    if pieces := session.pieces - len(documents):
        note(f"long documents were cut: {pieces} pieces more, {len(documents)} given")
    if session.cut_documents:
        note(
            f"{session.cut_documents} of {len(documents)} documents are longer than "
            "the model reads; their ends are left out"
        )
    if not arguments.json:
        seconds = session.seconds["compress"]
        print(f"compressed {len(documents)} documents in {seconds:.2f} s")
    if unknown := session.unknown([document.text for document in documents]):
        note(f"{unknown} of {len(documents)} documents hold words {_UNKNOWN}")
    return session


def _stored(arguments: argparse.Namespace) -> Session:
    """Open a store, and the model that made it."""
    if arguments.documents or arguments.whole:
        raise ClaraError("--store brings its own documents; leave --documents out")
    store = Store.open(arguments.store, at=arguments.at)
    clara = _load(arguments, partial(load_for, store, model=arguments.model or ""))
    searcher = open_searcher(store, arguments.search)
    if arguments.hybrid:
        searcher = HybridSearcher(store, searcher)
    stored = Stored(searcher, arguments.where)
    session = Session(clara, stored, arguments.top_k)
    if not arguments.json:
        print(f"{len(stored):,} documents in {arguments.store}")
    return session


def _load(arguments: argparse.Namespace, load: Callable[..., Clara]) -> Clara:
    """Load a model by a function that takes the settings of answers; look at it."""
    config = AnswerConfig(
        control_tokens=arguments.control_tokens,
        max_new_tokens=arguments.max_new_tokens,
        sampling=Sampling(arguments.temperature, arguments.top_p),
        seed=arguments.seed,
    )
    clara = load(config=config, **commands.model_options(arguments))
    if arguments.explain and "reasoner" not in clara.network.adapters:
        raise ClaraError("--explain: this model has no reasoner to look at")
    for question in arguments.questions:
        if question != "-":
            check_question(clara, question)
    return clara


def _questions(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield questions, each with the line of standard input it came from, if any."""
    for question in given:
        if question != "-":
            yield question, ""
            continue
        for number in itertools.count(1):
            if sys.stdin.isatty():
                print("question> ", end="", file=sys.stderr, flush=True)
            # Bytes that are no text pass as half surrogates, and are refused as such.
            if not (line := sys.stdin.readline()):
                break
            if line.strip():
                yield line.strip(), f"standard input, line {number}"


if __name__ == "__main__":
    commands.start(main)

"""Prepare data: mix what training needs, find candidates for questions, write TFDS.

    python -m clara_jax.data mix RECIPE FOLDER [--data DIR] [--tokenizer NAME]
    python -m clara_jax.data candidates --records FILE --corpus PATH --out FILE
    python -m clara_jax.data [tfds] SOURCE ... FOLDER

``mix`` makes the files of all stages, and held-out questions, out of a recipe of
sources. ``candidates`` finds the best documents of a corpus or a store for every
question. ``tfds`` writes records as a TFDS folder. Interrupted in whatever way, the
first two go on when the same command is started again.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from clara_jax.convert import load_base_tokenizer
from clara_jax.data.candidates import Asked, Searched, find_candidates
from clara_jax.data.corpus import Corpus
from clara_jax.data.mix import is_mixed, mix
from clara_jax.data.mix_manifest import table
from clara_jax.data.recipe import read_recipe
from clara_jax.data.sources import open_records, write_tfds
from clara_jax.errors import ClaraError
from clara_jax.files import told
from clara_jax.text import ClaraTokenizer

TOKENIZER = "HuggingFaceTB/SmolLM2-135M-Instruct"

_bar = functools.partial(tqdm, delay=1)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, with its own status."""


class _Parser(argparse.ArgumentParser):
    """Print mistakes in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the arguments\n")


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    parser = _Parser(
        prog="python -m clara_jax.data",
        description="Prepare data: mix what training needs, find candidates for "
        "questions, write TFDS.",
        epilog="COMMAND --help lists its arguments. SOURCE ... FOLDER without a "
        "command is tfds.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _mix_arguments(
        commands.add_parser(
            "mix",
            help="make the files of all stages, and held-out questions, out of a "
            "recipe of sources",
            allow_abbrev=False,
        ).add_argument
    )
    _candidates_arguments(
        commands.add_parser(
            "candidates",
            help="find the best documents of a corpus or a store for every question",
            allow_abbrev=False,
        ).add_argument
    )
    _tfds_arguments(
        commands.add_parser("tfds", help="write records as a TFDS folder").add_argument
    )
    return parser


def _mix_arguments(add: Callable[..., Any]) -> None:
    add("recipe", metavar="RECIPE", help="TOML file that lists the sources")
    add("folder", metavar="FOLDER", help="where to; appears when it is complete")
    add(
        "--data",
        metavar="DIR",
        help="where relative paths of the recipe start; default: at the recipe",
    )
    add(
        "--tokenizer",
        default=TOKENIZER,
        metavar="NAME",
        help="folder, hub name or .gguf file, that counts tokens (default %(default)s)",
    )
    add(
        "--max-length",
        type=_count,
        default=256,
        help="longest piece of a passage, in tokens (default %(default)s)",
    )


def _candidates_arguments(add: Callable[..., Any]) -> None:
    add(
        "--records",
        action="append",
        required=True,
        metavar="FILE",
        help="questions, of any format that training reads; may be repeated",
    )
    add(
        "--corpus",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="documents to search by BM25: files and folders, as for "
        "clara_jax.compress",
    )
    add("--store", metavar="DIR", help="documents to search with a model's reasoner")
    add("--model", metavar="DIR", help="the model of the store: run or model folder")
    add(
        "--count",
        type=_count,
        default=20,
        help="documents a question (default %(default)s)",
    )
    add(
        "--oracle",
        action="store_true",
        help="put the right documents in place of the last ones where they are not "
        "found",
    )
    add("--out", required=True, metavar="FILE", help="JSONL; appears when complete")


def _tfds_arguments(add: Callable[..., Any]) -> None:
    add(
        "sources",
        nargs="+",
        metavar="[SPLIT=]SOURCE",
        help="becomes part of the split train, or of another; any format that training "
        "reads",
    )
    add("folder", metavar="FOLDER", help="must not exist yet")
    add("--format", default="auto", help="format of the sources")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
      The exit status: 0 done, 1 bad input, 2 a wrong argument, 130 after Ctrl-C, 143
      after SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] not in (*_COMMANDS, "-h", "--help"):
        given.insert(0, "tfds")
    options = parser().parse_args(given)
    try:
        return _COMMANDS[options.command](options)
    except (ClaraError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        left = "nothing was written"
        if options.command != "tfds":
            left = "the same command goes on"
        print(f"interrupted; {left}", file=sys.stderr)
        return 143 if isinstance(stopped, _Terminated) else 130


def _mix(options: argparse.Namespace) -> int:
    recipe = read_recipe(options.recipe)
    known = is_mixed(options.folder)
    manifest = mix(
        recipe,
        options.folder,
        _tokenizer(options.tokenizer),
        options.max_length,
        data=options.data,
        progress=_bar,
    )
    if known:
        print(f"{options.folder}: is finished already; there is nothing to do")
    else:
        print(f"{table(manifest)}\n{options.folder}: finished")
    return 0


def _tokenizer(source: str) -> ClaraTokenizer:
    try:
        return ClaraTokenizer(load_base_tokenizer(source), 1)
    except ClaraError as error:
        raise ClaraError(
            f"{str(error).rstrip(' :')}; give a folder, a hub name or a .gguf file "
            "with --tokenizer"
        ) from error


def _candidates(options: argparse.Namespace) -> int:
    if bool(options.corpus) == bool(options.store):
        raise ClaraError("give either --corpus or --store, where documents are found")
    if bool(options.store) != bool(options.model):
        raise ClaraError(
            "--store and --model belong together: the model that made the store asks "
            "it; give both"
        )
    records = open_records(options.records)
    if options.store:
        corpus = _searched(options.store, options.model)
    else:
        corpus = Corpus(options.corpus, lambda rows: _bar(rows, desc="check corpus"))
    found = find_candidates(
        Asked(records, options.records),
        corpus,
        options.count,
        Path(options.out),
        oracle=options.oracle,
        progress=_bar,
    )
    print(f"{options.out}: {found}")
    return 0


def _searched(folder: str, model: str) -> Searched:
    """A store as a model's reasoner searches it."""
    import numpy as np

    from clara_jax.clara import vector_fingerprint
    from clara_jax.generate import AnswerConfig
    from clara_jax.loading import load
    from clara_jax.search.searcher import open_searcher
    from clara_jax.search.store import Store

    clara = load(model, AnswerConfig(too_long="cut"))
    if "reasoner" not in clara.adapters:
        raise ClaraError(
            f"{model}: has no reasoner to search with, which stage end_to_end trains"
        )
    made = vector_fingerprint(
        clara.model, clara.backbone, clara.adapters, clara.memory.num_memory
    )
    store = Store.open(folder, made)
    searcher = open_searcher(store)

    def search(questions: Sequence[str], count: int) -> list[list[str]]:
        queries = np.asarray(clara.reason(questions), np.float32)
        _, rows = searcher(queries.reshape(len(questions), -1), count)
        texts = store.strings(rows.reshape(-1), "text")
        return [list(texts[i : i + count]) for i in range(0, rows.size, count)]

    return Searched(search, len(store), f"{folder} {made}")


def _tfds(options: argparse.Namespace) -> int:
    splits: dict[str, list[str]] = {}
    for source in options.sources:
        name, sign, path = source.partition("=")
        split, path = (
            (name, path) if sign and name.isidentifier() else ("train", source)
        )
        splits.setdefault(split, []).append(path)
    records = {
        name: open_records(paths, options.format) for name, paths in splits.items()
    }
    folder = write_tfds(records, options.folder)
    counts = ", ".join(f"{name} {len(items)}" for name, items in records.items())
    print(f"{folder}: {counts} records")
    return 0


_COMMANDS = {"mix": _mix, "candidates": _candidates, "tfds": _tfds}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return int(text)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)  # and tidy up
    sys.exit(main())

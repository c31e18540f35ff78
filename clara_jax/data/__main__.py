"""Prepare data: mix what training needs, find candidates for questions, write TFDS.

    python -m clara_jax.data mix RECIPE FOLDER [--data DIR] [--tokenizer NAME]
    python -m clara_jax.data candidates --records FILE --corpus PATH --out FILE
    python -m clara_jax.data [tfds] SOURCE ... FOLDER

Interrupted in whatever way, the first two go on when started again.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from tqdm import tqdm

from clara_jax.commands import (
    Parser,
    add_record_options,
    count,
    note,
    record_options,
    run,
    start,
)
from clara_jax.convert import load_base_tokenizer
from clara_jax.data.candidates import Searched, find_candidates
from clara_jax.data.document_corpus import Corpus
from clara_jax.data.mix import is_mixed, mix, table
from clara_jax.data.reading import add_reading_options, reading_of
from clara_jax.data.recipe import read_recipe
from clara_jax.data.sources import open_records, write_tfds
from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer

TOKENIZER = "HuggingFaceTB/SmolLM2-135M-Instruct"

_bar = functools.partial(tqdm, delay=1)


def parser() -> argparse.ArgumentParser:
    """Return the arguments of all commands."""
    parser = Parser(
        prog="python -m clara_jax.data",
        description=(__doc__ or "").partition("\n")[0],
        epilog="COMMAND --help lists its arguments. SOURCE ... FOLDER without a "
        "command is tfds.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    text = "make the files of all stages, and held-out questions, from a recipe"
    add = commands.add_parser("mix", help=text).add_argument
    add("recipe", metavar="RECIPE", help="TOML file that lists the sources")
    add("folder", metavar="FOLDER", help="where to; appears when it is complete")
    text = "where relative paths of the recipe start; default: at the recipe"
    add("--data", metavar="DIR", help=text)
    text = "folder, hub name or .gguf file, that counts tokens (default %(default)s)"
    add("--tokenizer", default=TOKENIZER, metavar="NAME", help=text)
    text = "longest piece of a passage, in tokens (default %(default)s)"
    add("--max-length", type=count, default=256, help=text)

    text = "find the best documents of a corpus or a store for every question"
    command = commands.add_parser("candidates", help=text)
    add_record_options(command)
    add = command.add_argument
    text = "questions, of any format that training reads; may be repeated"
    add("--records", action="append", required=True, metavar="FILE", help=text)
    text = "documents to search by BM25: files and folders, as for clara_jax.compress"
    several = {"nargs": "+", "action": "extend", "default": []}
    add("--corpus", **several, metavar="PATH", help=text)
    add_reading_options(command, encoding=False)  # that of the records
    add("--store", metavar="DIR", help="documents to search with a model's reasoner")
    add("--model", metavar="DIR", help="the model of the store: run or model folder")
    text = "documents a question (default %(default)s)"
    add("--count", type=count, default=20, help=text)
    text = "put the right documents in place of the last ones where they are not found"
    add("--oracle", action="store_true", help=text)
    add("--out", required=True, metavar="FILE", help="JSONL; appears when complete")

    text = "write records as a TFDS folder"
    command = commands.add_parser("tfds", help=text)
    add_record_options(command)
    add = command.add_argument
    text = "part of the split train, or of another; any format that training reads"
    add("sources", nargs="+", metavar="[SPLIT=]SOURCE", help=text)
    add("folder", metavar="FOLDER", help="must not exist yet")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its result is the exit status, see `clara_jax.commands`."""
    commands = {"mix": _mix, "candidates": _candidates, "tfds": _tfds}
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] not in (*commands, "-h", "--help"):
        given.insert(0, "tfds")
    options = parser().parse_args(given)
    left = "the same command goes on"
    if options.command == "tfds":
        left = "nothing was written"
    return run(lambda: commands[options.command](options), left)


def _mix(options: argparse.Namespace) -> None:
    recipe = read_recipe(options.recipe)
    known = is_mixed(options.folder)
    try:
        tokenizer = ClaraTokenizer(load_base_tokenizer(options.tokenizer), 1)
    except ClaraError as error:
        raise ClaraError(
            f"{str(error).rstrip(' :')}; give a folder, a hub name or a .gguf file "
            "with --tokenizer"
        ) from error
    given = (recipe, options.folder, tokenizer, options.max_length)
    manifest = mix(*given, data=options.data, progress=_bar)
    if known:
        print(f"{options.folder}: is finished already; there is nothing to do")
    else:
        print(f"{table(manifest)}\n{options.folder}: finished")


def _candidates(options: argparse.Namespace) -> None:
    if bool(options.corpus) == bool(options.store):
        raise ClaraError("give either --corpus or --store, where documents are found")
    if bool(options.store) != bool(options.model):
        raise ClaraError(
            "--store and --model belong together: the model that made the store asks "
            "it; give both"
        )
    records = open_records(options.records, **record_options(options))
    if options.store:
        corpus = _searched(options.store, options.model)
    else:
        watched = functools.partial(_bar, desc="check corpus")
        corpus = Corpus(options.corpus, watched, reading_of(options))
        for line in corpus.notes:
            note(line)
    given = (records, corpus, options.count, options.out)
    found = find_candidates(*given, oracle=options.oracle, progress=_bar)
    print(f"{options.out}: {found}")


def _searched(folder: str, model: str) -> Searched:
    """A store as a model's reasoner searches it."""
    import numpy as np

    from clara_jax.clara import vector_fingerprint
    from clara_jax.generate import AnswerConfig
    from clara_jax.loading import load
    from clara_jax.search.scann_index import open_searcher
    from clara_jax.search.store import Store

    clara = load(model, AnswerConfig(too_long="cut"))
    if "reasoner" not in clara.network.adapters:
        raise ClaraError(
            f"{model}: has no reasoner to search with, which stage end_to_end trains"
        )
    made = vector_fingerprint(clara.network)
    store = Store.open(folder, made)
    searcher = open_searcher(store)

    def search(questions: Sequence[str], count: int) -> list[list[str]]:
        queries = np.asarray(clara.reason(questions), np.float32)
        _, rows = searcher(queries.reshape(len(questions), -1), count, questions)
        texts = store.strings(rows.reshape(-1), "text")
        return [list(texts[i : i + count]) for i in range(0, rows.size, count)]

    return Searched(search, len(store), f"{folder} {made}")


def _tfds(options: argparse.Namespace) -> None:
    splits: dict[str, list[str]] = {}
    for source in options.sources:
        split, sign, path = source.partition("=")
        if not sign or not split.isidentifier():
            split, path = "train", source
        splits.setdefault(split, []).append(path)
    how = record_options(options)
    records = {name: open_records(paths, **how) for name, paths in splits.items()}
    folder = write_tfds(records, options.folder)
    counts = ", ".join(f"{name} {len(items)}" for name, items in records.items())
    print(f"{folder}: {counts} records")


if __name__ == "__main__":
    start(main)

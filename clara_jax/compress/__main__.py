"""Compress a corpus into a store of document vectors, and look after it.

    python -m clara_jax.compress --model DIR --corpus PATH... --store DIR [--add]
    python -m clara_jax.compress --store DIR --delete ID... | --compact | --check
    python -m clara_jax.compress --store DIR --versions | --convert OLD
    python -m clara_jax.compress index --store DIR

A store is a folder, or a URL such as s3://bucket/store.

The corpus is texts, documents of offices, rows of JSON, Parquet or CSV, and folders of
them. Interrupted in whatever way, the same command goes on where it was. Started on
several hosts, each with its --part (or in a job of SLURM or Open MPI), they write one
store; the last to end finishes it.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from clara_jax import commands
from clara_jax.compress.corpus import compress_corpus
from clara_jax.compress.stores import (
    check_store,
    compact_store,
    convert_store,
    delete_documents,
    index_parser,
    index_store,
    list_versions,
)
from clara_jax.data import add_reading_options
from clara_jax.errors import ClaraError
from clara_jax.search import CODECS


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = commands.Parser(
        prog="python -m clara_jax.compress",
        description="Compress a corpus into a store of document vectors.",
        epilog="To build an index for a large store: python -m clara_jax.compress "
        "index --help",
    )
    add = parser.add_argument
    add("--store", required=True, metavar="PLACE", help="folder, or URL")
    add("--model", default="", metavar="DIR", help=commands.MODEL)
    files = {"nargs": "+", "action": "extend", "default": [], "metavar": "PATH"}
    text = "text, PDF, Word, PowerPoint or HTML file; JSONL, Parquet or CSV with text "
    text += "(and title, id, fields of your own); or a folder of such files"
    add("--corpus", **files, help=text)
    how = parser.add_mutually_exclusive_group()
    flag = functools.partial(how.add_argument, action="store_true")
    flag("--add", help="put documents into a store")
    flag("--replace", help="as --add, but in place of documents with the same ids")
    how.add_argument("--delete", nargs="+", metavar="ID", help="take documents out")
    flag("--compact", help="give back the room of deleted documents")
    text = "keep versions of the last so many days, too"
    add("--keep", type=commands.count, default=0, metavar="DAYS", help=text)
    flag("--check", help="compare every row with its checksum")
    flag("--versions", help="list the versions that are kept")
    text = "take over a store of the format before Lance"
    how.add_argument("--convert", default="", metavar="OLD", help=text)
    text = "how vectors are kept (default bfloat16, or as the store has them)"
    add("--codec", choices=CODECS, help=text)
    add("--whole", action="store_true", help="leave out the ends of long documents")
    number = functools.partial(add, type=commands.count)
    number("--shard-size", default=1024, help="documents (default 1024)")
    text = "documents read together by all devices (default 32 for each device)"
    number("--batch-size", default=0, help=text)
    add("--mesh", default="", help="such as fsdp=4 or fsdp=2,tensor=2: split the model")
    add("--part", default="", metavar="I/N", help="one of N that write this store")
    text = "take over the parts that were written into these stores"
    add("--join", nargs="+", default=[], metavar="DIR", help=text)
    add_reading_options(parser)
    commands.add_model_options(parser)
    text = "do not put the adapter into the weights: less memory, less speed"
    add("--no-merge", action="store_true", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see ``clara_jax.commands``."""
    given = list(sys.argv[1:] if argv is None else argv)
    index = given[:1] == ["index"]
    arguments = (index_parser() if index else parser()).parse_args(given[index:])
    work = index_store if index else _run
    return commands.run(
        lambda: work(arguments), "start the same command again to go on"
    )


def _run(arguments: argparse.Namespace) -> int | None:
    edits = {
        "delete": delete_documents,
        "compact": compact_store,
        "check": check_store,
        "versions": list_versions,
        "convert": convert_store,
    }
    for name, work in edits.items():
        if getattr(arguments, name):
            own = (name, "store", *(["keep"] if name == "compact" else []))
            plain = vars(parser().parse_args(["--store", arguments.store]))
            given = [n for n, v in vars(arguments).items() if v != plain[n]]
            if more := [n.replace("_", "-") for n in given if n not in own]:
                names = " and ".join(f"--{n}" for n in more)
                raise ClaraError(
                    f"--{name} takes a --store and no more; leave {names} out"
                )
            return work(arguments)
    if arguments.keep:
        raise ClaraError("--keep goes with --compact; leave it out")
    for name in ("model", "corpus"):
        if not getattr(arguments, name):
            raise ClaraError(
                f"--{name} is missing; give --store DIR with --model DIR --corpus "
                "PATH..., or --check, --compact, ..."
            )
    with commands.Interrupt().listen() as interrupt:
        return compress_corpus(arguments, interrupt)


if __name__ == "__main__":
    commands.start(main)

"""Compress a corpus into a store of document vectors, and look after it.

    python -m clara_jax.compress --model DIR --corpus PATH... --store DIR [--add]
    python -m clara_jax.compress --store DIR --delete ID... | --compact | --check
    python -m clara_jax.compress index --store DIR

The corpus is text files, JSONL files and folders of them. Interrupted in whatever way,
the same command goes on where it was. Started on several hosts, each with its --part
(or in a job of SLURM or Open MPI), they write one store; the last to end finishes it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clara_jax import commands
from clara_jax.compress.corpus import compress_corpus
from clara_jax.compress.stores import (
    check_store,
    compact_store,
    delete_documents,
    index_parser,
    index_store,
)
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
    add("--store", required=True, metavar="DIR", help="folder of the store")
    add("--model", default="", metavar="DIR", help=commands.MODEL)
    add(
        "--corpus",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help=".txt or .md file (one document), JSONL with text (and title, id, fields "
        "of your own) or docs, or a folder of such files",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--add", action="store_true", help="put documents into a store")
    how.add_argument(
        "--replace",
        action="store_true",
        help="as --add, but in place of documents with the same ids",
    )
    how.add_argument("--delete", nargs="+", metavar="ID", help="take documents out")
    how.add_argument(
        "--compact", action="store_true", help="give back the room of deleted documents"
    )
    how.add_argument("--check", action="store_true", help="look every byte over")
    add(
        "--codec",
        choices=CODECS,
        help="how vectors are kept (default bfloat16, or as the store has them)",
    )
    add("--whole", action="store_true", help="leave out the ends of long documents")
    add(
        "--shard-size",
        type=commands.count,
        default=1024,
        help="documents (default 1024)",
    )
    add(
        "--batch-size",
        type=commands.count,
        default=0,
        help="documents read together by all devices (default 32 for each device)",
    )
    add("--mesh", default="", help="such as fsdp=4 or fsdp=2,tensor=2: split the model")
    add("--part", default="", metavar="I/N", help="one of N that write this store")
    commands.add_model_options(parser)
    add(
        "--no-merge",
        action="store_true",
        help="do not put the adapter into the weights: less memory, less speed",
    )
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


def _run(arguments: argparse.Namespace) -> int:
    store, given = Path(arguments.store), vars(arguments)
    edits = ("delete", "compact", "check")
    plain = vars(parser().parse_args(["--store", arguments.store]))
    more = [n for n, v in given.items() if n not in edits and v != plain[n]]
    if any(given[name] for name in edits) and more:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in more)
        raise ClaraError(
            "--delete, --compact and --check take a --store and nothing else; leave "
            f"{names} out"
        )
    if arguments.delete:
        return delete_documents(store, arguments.delete)
    if arguments.compact:
        return compact_store(store)
    if arguments.check:
        return check_store(store)
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

"""How documents are read: the settings, and the arguments of commands for them."""

import argparse
import dataclasses

from clara_jax.data.encodings import require_encoding


@dataclasses.dataclass(frozen=True)
class Reading:
    """How documents are read.

    Attributes:
      text, title, id: fields of objects that hold them; empty takes the first known one
        that is there, see ``document_fields``.
      encoding: of text files and tables; empty finds it, see ``find_encoding``.
      skip: leave out what cannot be read, instead of refusing it all.
    """

    text: str = ""
    title: str = ""
    id: str = ""
    encoding: str = ""
    skip: bool = False

    def __post_init__(self) -> None:
        require_encoding(self.encoding)


def add_reading_options(parser: argparse.ArgumentParser, encoding: bool = True) -> None:
    """Add arguments for a `Reading`, with or without its encoding; see `reading_of`."""
    add = parser.add_argument
    for name in ("text", "title", "id"):
        text = f"field of JSON, Parquet and CSV that holds a document's {name}"
        add(f"--{name}-field", default="", metavar="NAME", help=text)
    if encoding:
        text = "of text files and tables, such as cp1252; default: recognised"
        add("--encoding", default="", metavar="NAME", help=text)
    text = "what cannot be read: stop and list it all, or leave it out (default stop)"
    add("--on-error", choices=("stop", "skip"), default="stop", help=text)


def reading_of(arguments: argparse.Namespace) -> Reading:
    """Return what `add_reading_options` added."""
    return Reading(
        text=arguments.text_field,
        title=arguments.title_field,
        id=arguments.id_field,
        encoding=arguments.encoding,
        skip=arguments.on_error == "skip",
    )

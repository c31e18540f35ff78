"""What a document is, from the file that it is found in to the answer that cites it."""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Document:
    """One document, or a part of a long one.

    Attributes:
      text: what is compressed, the title included.
      id: of the document, shared by all its parts. Without one it cannot be deleted
        from a store or replaced.
      title: of the document; may be empty.
      source: file, with the line in a JSONL file.
      start: where a part begins in the whole document's `text`, in characters.
      stop: where it ends.
      part: it is part 1, 2, ...
      parts: of so many; a whole document is part 1 of 1.
      metadata: further fields; JSON values.
    """

    text: str
    id: str = ""
    title: str = ""
    source: str = ""
    start: int = 0
    stop: int = -1
    part: int = 1
    parts: int = 1
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.stop < 0:
            object.__setattr__(self, "stop", self.start + len(self.text))

    @property
    def label(self) -> str:
        """The shortest name that says which document or part it is."""
        lines = self.text.strip().splitlines()
        name = self.title or self.id or (lines[0][:60] if lines else self.source)
        return name if self.parts == 1 else f"{name} (part {self.part} of {self.parts})"


def text_digest(text: str, size: int = 16) -> bytes:
    """Return so many bytes that tell a text from others."""
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def is_unicode(text: str) -> bool:
    """Return whether a string is text: JSON can spell halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """Return what a field of metadata holds, a JSON value.

    ``bool``, ``int``, ``float``, ``text``, ``list KIND`` of one of these, or ``json``
    for all else; empty for null, ``list `` for an empty list.
    """
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        inner = widest(map(kind_of, value))
        plain = " " not in inner and inner != "json" and None not in value
        return f"list {inner}" if plain else "json"
    kinds = {bool: "bool", int: "int", float: "float", str: "text"}
    kind = kinds.get(type(value), "json")
    # Larger numbers than columns hold are kept as they are spelt.
    return "json" if kind == "int" and not -(2**63) <= value < 2**63 else kind


def fields_of(documents: Iterable[Document]) -> dict[str, str]:
    """Return the fields of documents' metadata with their kinds, see `kind_of`."""
    found: dict[str, str] = {}
    for document in documents:
        for name, value in document.metadata.items():
            found[name] = widest([found.get(name, ""), kind_of(value)])
    return found


def widest(kinds: Iterable[str]) -> str:
    """Return the kind that holds values of all these kinds, see `kind_of`.

    Example:
      >>> widest(["int", "", "float"]), widest(["text", "int"])
      ('float', 'json')
    """
    found = ""
    for kind in kinds:
        if found in ("", kind) or (found == "list " and kind.startswith("list ")):
            found = kind
        elif kind == "" or (kind == "list " and found.startswith("list ")):
            continue
        elif {found, kind} == {"int", "float"}:
            found = "float"
        elif {found, kind} == {"list int", "list float"}:
            found = "list float"
        else:
            return "json"
    return found

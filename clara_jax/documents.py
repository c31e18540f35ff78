"""What a document is, from the file that it is found in to the answer that cites it."""

import dataclasses
import hashlib
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

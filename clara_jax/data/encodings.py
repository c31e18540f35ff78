"""The encoding of a text file: named, marked, UTF-8, or recognised by its bytes."""

import codecs
import re
from pathlib import Path
from typing import IO

import charset_normalizer

from clara_jax.data.plain_files import open_plain
from clara_jax.errors import ClaraError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a part of it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BLOCK = 1 << 20
_SAMPLE = 1 << 17
"""Bytes, from the block where UTF-8 ends on, by which an encoding is recognised."""

_WIDE = 0.3
"""Share of NUL bytes at every other place above which text is in UTF-16."""

_WESTERN = "cp1252"
"""What is taken where it fits a text as well as any other: the most common."""

_DOS = re.compile(r"cp[4-8]\d\d$")
"""Encodings that fit everything, and are hardly in use any more."""

_REMEDY = "save it in UTF-8, or name its encoding with --encoding"


def require_encoding(name: str) -> None:
    """Refuse a name that is not one of Python's text encodings; empty is none.

    Raises:
      ClaraError: it is unknown.
    """
    try:
        "".encode(name or "utf-8")
    except LookupError as error:
        raise ClaraError(
            f"encoding '{name}' is unknown; try utf-8, cp1252, shift_jis or gb18030"
        ) from error


def find_encoding(file: IO[bytes], path: str, named: str = "") -> str:
    """Return the encoding of a file, by Python's name; the file is read from its start.

    A byte order mark decides. Without one, text in which every other byte is 0 is
    UTF-16, and text with letters beyond ASCII that is UTF-8 throughout is UTF-8. Other
    text is in the encoding that is `named`; without a name, charset-normalizer looks at
    it, and where Western European letters (cp1252) fit as well as what it finds, they
    are taken.

    Raises:
      ClaraError: no encoding fits, or most of what is not ASCII is UTF-8, so that the
        file is damaged; names the file and the byte.
    """
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    block, begin, plain = file.read(_BLOCK), 0, True
    for mark, encoding in _MARKS:
        if block.startswith(mark):
            return encoding
    first, second = (block[i::2].count(0) / max(len(block), 1) for i in (0, 1))
    if abs(first - second) > _WIDE:
        return "utf-16-be" if first > second else "utf-16-le"
    while True:
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            place = begin - pending + error.start
            break
        if not block:
            return named if named and plain else "utf-8"
        begin, plain = begin + len(block), plain and block.isascii()
        block = file.read(_BLOCK)
    if named:
        return named
    file.seek(max(place - _SAMPLE // 2, 0))
    sample = file.read(_SAMPLE)
    if found := _recognised(sample):
        return found
    if b"\0" in sample:
        raise ClaraError(f"{path}: is not text (byte {place}); leave it out")
    raise ClaraError(f"{path}: is not UTF-8 (byte {place}); {_REMEDY}")


def _recognised(sample: bytes) -> str:
    """The encoding of bytes that are not UTF-8; empty if they are damaged UTF-8."""
    text = sample.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = sum(not letter.isascii() for letter in text) - wrong
    if right > wrong:
        return ""
    matches = charset_normalizer.from_bytes(sample)
    best = matches.best()
    if best is None:
        return ""
    western = (m for m in matches if _WESTERN in m.could_be_from_charset)
    found = next(western, None)
    if found and (found.coherence >= best.coherence or _DOS.match(best.encoding)):
        return _WESTERN
    return best.encoding


def read_text(path: Path | str, encoding: str = "") -> tuple[str, str]:
    """Return a file's text, its lines ended by newlines alone, and its encoding.

    Args:
      path: the file.
      encoding: of what is not UTF-8; empty finds it, see `find_encoding`.

    Raises:
      ClaraError: the file cannot be read, or is not in this encoding.
    """
    with open_plain(path) as file:
        name = find_encoding(file, str(path), encoding)
        file.seek(0)
        data = file.read()
    try:
        text = data.decode(name)
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        raise ClaraError(f"{path}: is not {name} (byte {start}); {_REMEDY}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n"), name

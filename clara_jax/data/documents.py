"""Documents to ask about, from text and JSONL files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clara_jax.data.files import JsonFile
from clara_jax.data.records import is_unicode, passage
from clara_jax.errors import ClaraError

TEXT_SUFFIXES = (".txt", ".md")


@dataclasses.dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
      text: what is compressed, the title included.
      id, title: as found; may be empty.
      source: file, with the line in a JSONL file.
    """

    text: str
    id: str = ""
    title: str = ""
    source: str = ""

    @property
    def label(self) -> str:
        """The shortest name that says which document it is."""
        first_line = self.text.strip().splitlines()[0]
        return self.title or self.id or first_line[:60]


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Read files of documents.

    Args:
      paths: ``.txt`` and ``.md`` files, each one document; other files hold JSON
        objects, one a line or in an array, with ``text`` (and ``title``, ``id``) for
        one document or ``docs`` for several.

    Returns:
      Documents in the order of files and lines.

    Raises:
      ClaraError: a file cannot be read or holds nothing, an object has neither field,
        or a document is blank.
    """
    found = [document for path in paths for document in _read_file(Path(path))]
    if not found:
        raise ClaraError("there are no documents; give a file with --documents")
    return found


def read_questions(path: str | Path) -> list[tuple[str, str]]:
    """Read a file of questions.

    Args:
      path: ``.txt`` and ``.md`` files hold one a line; other files JSON objects with
        ``question``, or texts, one a line or in an array.

    Returns:
      Questions, each with where it stands, ``file:line``.

    Raises:
      ClaraError: the file cannot be read, or holds none.
    """
    path = Path(path)
    found: list[tuple[str, str]] = []
    if path.suffix.lower() in TEXT_SUFFIXES:
        lines = enumerate(_read_text(path).splitlines(), 1)
        found = [(line.strip(), f"{path}:{i}") for i, line in lines if line.strip()]
    else:
        file = JsonFile(path)
        for i in range(len(file)):
            values, source = file[i]
            if isinstance(values, dict):
                values = values.get("question")
            if not isinstance(values, str):
                raise ClaraError(f"{source}: has no 'question' that is one text")
            found.append((values, source))
    if not found:
        raise ClaraError(f"{path}: holds no questions")
    return found


def _read_file(path: Path) -> Iterator[Document]:
    if path.is_dir():
        raise ClaraError(f"{path}: is a folder; give files of documents")
    if path.suffix.lower() in TEXT_SUFFIXES:
        yield _document(_read_text(path), str(path), title=path.name)
        return
    file = JsonFile(path)
    for i in range(len(file)):
        values, source = file[i]
        yield from _from_object(values, source)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClaraError(f"{path}: is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise ClaraError(f"{path}: {error.strerror or error}") from error


def _from_object(values: Any, source: str) -> Iterator[Document]:
    if isinstance(values, str):
        values = {"text": values}
    if not isinstance(values, dict) or not ("text" in values or "docs" in values):
        raise ClaraError(f"{source}: has neither 'text' nor 'docs'")
    if "text" in values:
        title, text = values.get("title") or "", values["text"]
        if not isinstance(title, str) or not isinstance(text, str):
            raise ClaraError(f"{source}: 'text' and 'title' must be strings")
        name = values.get("id", values.get("_id", ""))
        if not text.strip():
            raise ClaraError(f"{source}: the document is empty or blank")
        yield _document(passage(title, text), source, str(name), title.strip())
        return
    texts = values["docs"]
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise ClaraError(f"{source}: 'docs' must be a list of strings")
    for text in texts:
        yield _document(text, source)


def _document(text: str, source: str, name: str = "", title: str = "") -> Document:
    if not is_unicode(text):
        raise ClaraError(f"{source}: holds half of a surrogate pair, which is no text")
    if not text.strip():
        raise ClaraError(f"{source}: the document is empty or blank")
    return Document(text, name, title, source)

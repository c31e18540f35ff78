"""Documents to ask about, from text and JSONL files and folders of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clara_jax.data.json_files import JsonFile
from clara_jax.data.records import passage
from clara_jax.documents import Document, is_unicode
from clara_jax.errors import ClaraError

TEXT_SUFFIXES = (".txt", ".md")
JSON_SUFFIXES = (".jsonl", ".json")


class DocumentFile(NamedTuple):
    """A file of documents.

    Attributes:
      path: where it is.
      name: its path below the folder that was given, with slashes; its own name if the
        file itself was given.
    """

    path: Path
    name: str


def find_files(
    paths: Sequence[str | Path],
) -> tuple[list[DocumentFile], list[Path]]:
    """Find the files of documents in folders.

    Args:
      paths: files, which are taken whatever they are called, and folders. In a folder
        and the folders below it ``.txt``, ``.md``, ``.jsonl`` and ``.json`` files are
        taken, in the order of their names; hidden files and folders are not looked at.

    Returns:
      The files, and the others that lie beside them.

    Raises:
      ClaraError: there is no such file, or a folder holds none or cannot be read.
    """
    found: list[DocumentFile] = []
    others: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise ClaraError(f"{path}: no such file or folder")
            found.append(DocumentFile(path, path.name))
            continue
        count = len(found)
        for file in sorted(_walk(path), key=lambda file: Path(file.name).parts):
            if file.path.suffix.lower() in TEXT_SUFFIXES + JSON_SUFFIXES:
                found.append(file)
            else:
                others.append(file.path)
        if len(found) == count:
            kinds = ", ".join(TEXT_SUFFIXES + JSON_SUFFIXES)
            raise ClaraError(
                f"{path}: the folder holds no files of documents ({kinds})"
            )
    return found, others


def _walk(folder: Path) -> Iterator[DocumentFile]:
    """All files below a folder; links are followed, but not in a circle."""

    def refuse(error: OSError) -> None:
        raise ClaraError(f"{error.filename}: {error.strerror}") from error

    seen: set[str] = set()
    for place, names, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        names[:] = [
            name
            for name in sorted(names)
            if not name.startswith(".")
            and os.path.realpath(os.path.join(place, name)) not in seen
        ]
        for name in files:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                if not is_unicode(str(path)):
                    raise ClaraError(f"{str(path)!r}: the file's name is no UTF-8")
                yield DocumentFile(path, path.relative_to(folder).as_posix())


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Read files and folders of documents.

    Args:
      paths: ``.txt`` and ``.md`` files, each one document; other files hold JSON
        objects, one a line or in an array, with ``text`` (and ``title``, ``id``) for
        one document or ``docs`` for several; for folders see `find_files`.

    Returns:
      Documents in the order of files and lines.

    Raises:
      ClaraError: a file cannot be read or holds nothing, an object has neither field,
        or a document is blank.
    """
    files, _ = find_files(paths)
    found = [document for file in files for document in _read_file(file.path)]
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
    if path.suffix.lower() in TEXT_SUFFIXES:
        yield text_document(path)
        return
    file = JsonFile(path)
    for i in range(len(file)):
        values, source = file[i]
        yield from documents_of(values, source)


def text_document(path: Path) -> Document:
    """Read a file as one document, whose title is the file's name.

    Raises:
      ClaraError: it cannot be read, or is blank.
    """
    return _document(_read_text(path), str(path), title=path.name)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClaraError(f"{path}: is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise ClaraError(f"{path}: {error.strerror or error}") from error


def documents_of(values: Any, source: str) -> list[Document]:
    """Make the documents of one JSON value.

    Args:
      values: an object with ``text``, and perhaps ``title``, ``id`` (or ``_id``) and
        fields of its own; an object with ``docs``, a list of texts; or a text.
      source: where it stands, ``file:line``.

    Raises:
      ClaraError: it is none of these, a document is blank, or a field is no Unicode.
    """
    if isinstance(values, str):
        values = {"text": values}
    if not isinstance(values, dict) or not ("text" in values or "docs" in values):
        raise ClaraError(f"{source}: has neither 'text' nor 'docs'")
    if "text" not in values:
        texts = values["docs"]
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise ClaraError(f"{source}: 'docs' must be a list of strings")
        return [_document(text, source) for text in texts]
    title, text = values.get("title") or "", values["text"]
    if not isinstance(title, str) or not isinstance(text, str):
        raise ClaraError(f"{source}: 'text' and 'title' must be strings")
    name = values.get("id", values.get("_id"))
    if isinstance(name, bool | dict | list):
        raise ClaraError(f"{source}: 'id' must be a string or a number")
    if not text.strip():
        raise ClaraError(f"{source}: the document is empty or blank")
    known = ("text", "title", "id", "_id")
    metadata = {k: v for k, v in values.items() if k not in known}
    document = _document(
        passage(title, text), source, "" if name is None else str(name), title.strip()
    )
    return [dataclasses.replace(document, metadata=_checked(metadata, source))]


def _document(text: str, source: str, name: str = "", title: str = "") -> Document:
    if not is_unicode(text) or not is_unicode(name):
        raise ClaraError(f"{source}: holds half of a surrogate pair, which is no text")
    if not text.strip():
        raise ClaraError(f"{source}: the document is empty or blank")
    return Document(text, name, title, source)


def _checked(metadata: dict[str, Any], source: str) -> dict[str, Any]:
    if metadata and not is_unicode(json.dumps(metadata, ensure_ascii=False)):
        raise ClaraError(f"{source}: holds half of a surrogate pair, which is no text")
    return metadata

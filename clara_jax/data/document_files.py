"""Documents in text and JSON files, and in folders of them.

An entry is a text file, or one object of a JSON file, and makes one document or, with
``docs``, several.
"""

import array
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clara_jax.data.records import passage
from clara_jax.data.row_files import open_rows
from clara_jax.data.sources import locate
from clara_jax.documents import Document, is_unicode, kind_of, text_digest, widest
from clara_jax.errors import ClaraError
from clara_jax.files import checksum

TEXT_SUFFIXES = (".txt", ".md")
JSON_SUFFIXES = (".jsonl", ".json")

OPEN = 32
"""JSON files kept open with the places of their objects."""


class DocumentFile(NamedTuple):
    """A file of documents; its name is its path below the folder that was given."""

    path: Path
    name: str

    @property
    def is_text(self) -> bool:
        """Whether it is one document."""
        return self.path.suffix.lower() in TEXT_SUFFIXES


def find_files(paths: Sequence[str | Path]) -> tuple[list[DocumentFile], list[Path]]:
    """Find the files of documents in folders, and the others that lie beside them.

    Args:
      paths: files, which are taken whatever they are called, and folders. In a folder
        and the folders below it ``.txt``, ``.md``, ``.jsonl`` and ``.json`` files are
        taken, in the order of their names; hidden files and folders are not looked at.

    Raises:
      ClaraError: there is no such file, or a folder holds none or cannot be read.
    """
    found: list[DocumentFile] = []
    others: list[Path] = []
    kinds = TEXT_SUFFIXES + JSON_SUFFIXES
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise ClaraError(f"{path}: no such file or folder")
            found.append(DocumentFile(path, path.name))
            continue
        inside = sorted(_walk(path), key=lambda file: Path(file.name).parts)
        own = [file for file in inside if file.path.suffix.lower() in kinds]
        if not own:
            raise ClaraError(
                f"{path}: the folder holds no files of documents ({', '.join(kinds)})"
            )
        found += own
        others += [f.path for f in inside if f.path.suffix.lower() not in kinds]
    return found, others


def _walk(folder: Path) -> Iterator[DocumentFile]:
    """All files below a folder; links are followed, but not in a circle."""

    def refuse(error: OSError) -> None:
        raise ClaraError(f"{error.filename}: {error.strerror}") from error

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [n for n in shown if os.path.realpath(f"{place}/{n}") not in seen]
        for name in files:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                if not is_unicode(str(path)):
                    raise ClaraError(f"{str(path)!r}: the file's name is no UTF-8")
                yield DocumentFile(path, path.relative_to(folder).as_posix())


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Read files and folders of documents, in the order of files and lines.

    ``.txt`` and ``.md`` files are one document each; other files hold JSON objects, one
    a line or in an array, with ``text`` (and ``title``, ``id``) for one document or
    ``docs`` for several. For folders see `find_files`.

    Raises:
      ClaraError: a file cannot be read or holds nothing, an object has neither field,
        or a document is blank.
    """
    found: list[Document] = []
    for file in find_files(paths)[0]:
        if file.is_text:
            found.append(_text_document(file.path))
        else:
            for values, source in open_rows(file.path):
                found += _documents_of(values, source)
    if not found:
        raise ClaraError("there are no documents; give a file with --documents")
    return found


def read_questions(path: str | Path) -> list[tuple[str, str]]:
    """Read a file of questions, each with where it stands, ``file:line``.

    ``.txt`` and ``.md`` files hold one a line; other files JSON objects with
    ``question``, or texts, one a line or in an array.

    Raises:
      ClaraError: the file cannot be read, or holds none.
    """
    file = DocumentFile(Path(path), "")
    found: list[tuple[str, str]] = []
    if file.is_text:
        lines = enumerate(_read_text(file.path).splitlines(), 1)
        found = [(line.strip(), f"{path}:{i}") for i, line in lines if line.strip()]
    else:
        for values, source in open_rows(path):
            if isinstance(values, dict):
                values = values.get("question")
            if not isinstance(values, str):
                raise ClaraError(f"{source}: has no 'question' that is one text")
            found.append((values, source))
    if not found:
        raise ClaraError(f"{path}: holds no questions")
    return found


class Corpus:
    """Documents by entry, all of which are read once and checked before work begins.

    Memory is 40 bytes an entry and, while the check lasts, 8 bytes a document. Every
    document has an id: its own, or else one made of its file's name and line, such as
    ``notes.md``, ``passages.jsonl:17``, or ``passages.jsonl:17#2`` for the second of an
    object's ``docs``. Its source is the file's name with the line. Names are those
    below the folder that was given, so that neither depends on where it lies.

    `progress` wraps the loop that checks all entries, for a progress bar.

    Attributes:
      files: that entries come from.
      documents: how many documents the entries make.
      lengths: characters in the texts of each entry.
      size: bytes of all files.
      digest: checksum of the files' names, sizes and contents.
      fields: of the documents' metadata, with the kind that holds all values, see
        ``documents.kind_of``.

    Raises:
      ClaraError: a file cannot be read, an entry is not a document (names file and
        line), or two documents have one id.

    Example::

      corpus = Corpus(["papers/"])
      for i in range(len(corpus)):
          print(corpus[i][0].label)
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ):
        self.files = files = find_files(paths)[0]
        if not files:
            raise ClaraError("there are no documents; give files or folders of them")
        self._json = functools.lru_cache(OPEN)(lambda i: open_rows(files[i].path))
        digest = hashlib.blake2b(digest_size=16)
        self.size = 0
        counts = []
        for number, file in enumerate(files):
            size, content = checksum(file.path)
            digest.update(f"{file.name}\0{size}\0{content}\n".encode())
            self.size += size
            counts.append(1 if file.is_text else len(self._json(number)))
        self.digest = digest.hexdigest()
        self._ends = list(itertools.accumulate(counts))
        self.lengths = np.zeros(len(self), np.int64)
        self._numbers = np.zeros(len(self), np.int64)  # documents up to an entry's end
        hashes = array.array("Q")
        self.fields: dict[str, str] = {}
        for i in progress(range(len(self))):
            for document in self[i]:
                hashes.append(_hash(document.id))
                for name, value in document.metadata.items():
                    kinds = [self.fields.get(name, ""), kind_of(value)]
                    self.fields[name] = widest(kinds)
                self.lengths[i] += len(document.text)
            self._numbers[i] = len(hashes)
        self.documents = len(hashes)
        ordered = np.sort(np.frombuffer(hashes, np.uint64))
        twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        seen: dict[str, str] = {}
        # Hashes may agree by chance.
        for i in range(len(self)) if twice else ():
            for name in [document.id for document in self[i]]:
                if name in seen:
                    raise ClaraError(
                        f"{self.place(i)}: has the id '{name}', as has {seen[name]}; "
                        "every document needs an id of its own, and files without ids "
                        "different names below the folder that is given"
                    )
                if _hash(name) in twice:
                    seen[name] = self.place(i)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> list[Document]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, line = locate(self._ends, index)
        file = self.files[number]
        if file.is_text:
            document = _text_document(file.path)
            return [dataclasses.replace(document, id=file.name, source=file.name)]
        objects = self._json(number)
        values, place = objects[line]
        found = _documents_of(values, place)
        name = f"{file.name}:{objects.number(line)}"
        many = len(found) > 1
        return [
            dataclasses.replace(
                document,
                id=document.id or (f"{name}#{i}" if many else name),
                source=f"{file.name}{place.removeprefix(objects.path)}",
            )
            for i, document in enumerate(found, 1)
        ]

    def texts(self, begin: int, end: int) -> list[str]:
        """Return the texts of documents `begin` to `end`, counted over all entries."""
        entry, skip = locate(self._numbers, begin)
        entries = (self[i] for i in range(entry, len(self)))
        documents = itertools.chain.from_iterable(entries)
        return [d.text for d in itertools.islice(documents, skip, skip + end - begin)]

    def place(self, index: int) -> str:
        """Return where an entry stands, for messages."""
        number, line = locate(self._ends, index)
        file = self.files[number]
        return str(file.path) if file.is_text else self._json(number).place(line)


def _hash(name: str) -> int:
    return int.from_bytes(text_digest(name, 8), "little")


def _text_document(path: Path) -> Document:
    return _document(_read_text(path), str(path), title=path.name)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClaraError(f"{path}: is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise ClaraError(f"{path}: {error.strerror or error}") from error


def _documents_of(values: Any, source: str) -> list[Document]:
    """The documents of one JSON value: a text, or an object as of `read_documents`."""
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
    known = ("text", "title", "id", "_id")
    return [
        _document(
            passage(title, text) if text.strip() else "",
            source,
            id="" if name is None else str(name),
            title=title.strip(),
            metadata={k: v for k, v in values.items() if k not in known},
        )
    ]


def _document(text: str, source: str, **fields: Any) -> Document:
    every = json.dumps([text, fields], ensure_ascii=False)
    if not is_unicode(every):
        raise ClaraError(f"{source}: holds half of a surrogate pair, which is not text")
    if not text.strip():
        raise ClaraError(f"{source}: the document is empty or blank")
    return Document(text, source=source, **fields)

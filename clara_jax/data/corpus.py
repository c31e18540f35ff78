"""A body of documents in files, of any size, one entry at a time.

An entry is a text file, or one object of a JSON file, and makes one document or, with
``docs``, several. Everything is read once and checked before work begins; later an
entry is read again when it is asked for. Memory is 32 bytes an object and, while the
check lasts, 8 bytes a document.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.data.documents import (
    TEXT_SUFFIXES,
    Document,
    DocumentFile,
    documents_of,
    find_files,
    text_document,
)
from clara_jax.data.files import JsonFile
from clara_jax.errors import ClaraError
from clara_jax.files import checksum

OPEN = 32
"""JSON files kept open with the places of their objects."""

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps the loop over entries that checks them, for a progress bar."""


class Corpus:
    """Documents by entry.

    Every document has an id: its own, or else one made of its file's name and line,
    such as ``notes.md``, ``passages.jsonl:17``, or ``passages.jsonl:17#2`` for the
    second of an object's ``docs``. Its source is the file's name with the line. Names
    are those below the folder that was given, so that neither depends on where it lies.

    Args:
      paths: files and folders, see ``documents.find_files``.
      progress: wraps the loop that checks all entries.

    Attributes:
      files: that entries come from. others: files beside them that were not taken.
      documents: how many documents the entries make.
      lengths: characters in the texts of each entry.
      size: bytes of all files.
      digest: checksum of the files' names, sizes and contents.

    Raises:
      ClaraError: a file cannot be read, an entry is no document (names file and line),
        or two documents have one id.

    Example::

      corpus = Corpus(["papers/"])
      for i in range(len(corpus)):
          print(corpus[i][0].label)
    """

    def __init__(self, paths: Sequence[str | Path], progress: Progress = iter):
        self.files, self.others = find_files(paths)
        if not self.files:
            raise ClaraError("there are no documents; give files or folders of them")
        self._open: collections.OrderedDict[int, JsonFile] = collections.OrderedDict()
        digest = hashlib.blake2b(digest_size=16)
        self.size = 0
        counts = []
        for number, file in enumerate(self.files):
            size, content = checksum(file.path)
            digest.update(f"{file.name}\0{size}\0{content}\n".encode())
            self.size += size
            counts.append(1 if _is_text(file) else len(self._json(number)))
        self.digest = digest.hexdigest()
        self._ends = np.cumsum(np.asarray(counts, np.int64))
        self.documents = 0
        self.lengths = np.zeros(len(self), np.int64)
        self._check(progress)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> list[Document]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, "right"))
        file = self.files[number]
        if _is_text(file):
            document = text_document(file.path)
            return [dataclasses.replace(document, id=file.name, source=file.name)]
        objects = self._json(number)
        first = int(self._ends[number - 1]) if number else 0
        values, place = objects[index - first]
        found = documents_of(values, place)
        name = f"{file.name}:{objects.number(index - first)}"
        many = len(found) > 1
        return [
            dataclasses.replace(
                document,
                id=document.id or (f"{name}#{i}" if many else name),
                source=f"{file.name}{place.removeprefix(objects.path)}",
            )
            for i, document in enumerate(found, 1)
        ]

    def place(self, index: int) -> str:
        """Where an entry stands, for messages."""
        number = int(np.searchsorted(self._ends, index, "right"))
        file = self.files[number]
        if _is_text(file):
            return str(file.path)
        first = int(self._ends[number - 1]) if number else 0
        return self._json(number).place(index - first)

    def _json(self, number: int) -> JsonFile:
        """A JSON file; those asked for longest ago are closed when many are open."""
        found = self._open.pop(number, None) or JsonFile(self.files[number].path)
        self._open[number] = found
        if len(self._open) > OPEN:
            self._open.popitem(last=False)
        return found

    def _check(self, progress: Progress) -> None:
        hashes = array.array("Q")
        for i in progress(range(len(self))):
            for document in self[i]:
                hashes.append(_hash(document.id))
                self.lengths[i] += len(document.text)
        self.documents = len(hashes)
        ordered = np.sort(np.frombuffer(hashes, np.uint64))
        twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if twice:
            self._refuse_twice(twice)

    def _refuse_twice(self, hashes: set[int]) -> None:
        """Find the first id that two documents have; hashes may agree by chance."""
        seen: dict[str, str] = {}
        for place, document in self._with_places():
            if _hash(document.id) not in hashes:
                continue
            if document.id in seen:
                raise ClaraError(
                    f"{place}: has the id '{document.id}', as has {seen[document.id]}; "
                    "every document needs an id of its own, and files without ids "
                    "different names below the folder that is given"
                )
            seen[document.id] = place

    def _with_places(self) -> Iterator[tuple[str, Document]]:
        for i in range(len(self)):
            for document in self[i]:
                yield self.place(i), document


def _is_text(file: DocumentFile) -> bool:
    return file.path.suffix.lower() in TEXT_SUFFIXES


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")

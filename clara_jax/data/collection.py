"""A body of documents in files, of any size, one entry at a time.

An entry is a text file, or one object of a JSON file, and makes one document or, with
``docs``, several. Everything is read once and checked before work begins; later an
entry is read again when it is asked for. Memory is 40 bytes an object and, while the
check lasts, 8 bytes a document.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.data.document_files import (
    TEXT_SUFFIXES,
    documents_of,
    find_files,
    text_document,
)
from clara_jax.data.json_files import JsonFile
from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.files import checksum

OPEN = 32
"""JSON files kept open with the places of their objects."""


class Corpus:
    """Documents by entry.

    Every document has an id: its own, or else one made of its file's name and line,
    such as ``notes.md``, ``passages.jsonl:17``, or ``passages.jsonl:17#2`` for the
    second of an object's ``docs``. Its source is the file's name with the line. Names
    are those below the folder that was given, so that neither depends on where it lies.

    Args:
      paths: files and folders, see ``document_files.find_files``.
      progress: wraps the loop that checks all entries, for a progress bar.

    Attributes:
      files: that entries come from.
      documents: how many documents the entries make.
      lengths: characters in the texts of each entry.
      size: bytes of all files.
      digest: checksum of the files' names, sizes and contents.

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
        files, _ = find_files(paths)
        if not files:
            raise ClaraError("there are no documents; give files or folders of them")
        self.files = files
        self._json = functools.lru_cache(OPEN)(lambda i: JsonFile(files[i].path))
        digest = hashlib.blake2b(digest_size=16)
        self.size = 0
        counts = []
        for number, file in enumerate(files):
            size, content = checksum(file.path)
            digest.update(f"{file.name}\0{size}\0{content}\n".encode())
            self.size += size
            counts.append(1 if self._is_text(number) else len(self._json(number)))
        self.digest = digest.hexdigest()
        self._ends = np.cumsum(np.asarray(counts, np.int64))
        self.lengths = np.zeros(len(self), np.int64)
        self._numbers = np.zeros(len(self) + 1, np.int64)  # documents before an entry
        hashes = array.array("Q")
        for i in progress(range(len(self))):
            for document in self[i]:
                hashes.append(_hash(document.id))
                self.lengths[i] += len(document.text)
            self._numbers[i + 1] = len(hashes)
        self.documents = len(hashes)
        ordered = np.sort(np.frombuffer(hashes, np.uint64))
        twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if twice:
            self._refuse_twice(twice)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> list[Document]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, line = self._find(index)
        file = self.files[number]
        if self._is_text(number):
            document = text_document(file.path)
            return [dataclasses.replace(document, id=file.name, source=file.name)]
        objects = self._json(number)
        values, place = objects[line]
        found = documents_of(values, place)
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
        entry = int(np.searchsorted(self._numbers, begin, "right")) - 1
        skip = begin - int(self._numbers[entry])
        entries = (self[i] for i in range(entry, len(self)))
        documents = itertools.chain.from_iterable(entries)
        return [d.text for d in itertools.islice(documents, skip, skip + end - begin)]

    def place(self, index: int) -> str:
        """Return where an entry stands, for messages."""
        number, line = self._find(index)
        if self._is_text(number):
            return str(self.files[number].path)
        return self._json(number).place(line)

    def _find(self, index: int) -> tuple[int, int]:
        """The file that holds an entry, and the entry's place in it."""
        number = int(np.searchsorted(self._ends, index, "right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def _is_text(self, number: int) -> bool:
        return self.files[number].path.suffix.lower() in TEXT_SUFFIXES

    def _refuse_twice(self, hashes: set[int]) -> None:
        """Find the first id that two documents have; hashes may agree by chance."""
        seen: dict[str, str] = {}
        for i in range(len(self)):
            for name in [document.id for document in self[i]]:
                if name in seen:
                    raise ClaraError(
                        f"{self.place(i)}: has the id '{name}', as has {seen[name]}; "
                        "every document needs an id of its own, and files without ids "
                        "different names below the folder that is given"
                    )
                if _hash(name) in hashes:
                    seen[name] = self.place(i)


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")

"""A corpus of documents, read whole and checked before work on it begins."""

import array
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.data.document_fields import (
    blocks_of,
    has_text,
    read_object,
    read_pages,
    read_plain,
)
from clara_jax.data.document_files import DocumentFile, find_files
from clara_jax.data.encodings import read_text
from clara_jax.data.folders import locate
from clara_jax.data.office_files import convert_file, old_format
from clara_jax.data.reading import Reading
from clara_jax.data.row_files import NoRowsError, RowFile, open_rows
from clara_jax.documents import Document, fields_of, text_digest, widest
from clara_jax.errors import ClaraError, listed
from clara_jax.files import checksum
from clara_jax.shapes import Int

OPEN = 32
"""Files of objects kept open with the places of their objects."""

BLOCK = 1 << 20
"""Characters of an entry; longer ones are cut, see ``blocks_of``."""

FIRST = 100
"""Objects of a file of which one must hold a text."""

SHOWN = 10
"""Files that are named in a note."""

_CERTAIN = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
"""Encodings that are not guessed."""


class Corpus:
    """Documents by entry, all of which are read once and checked before work begins.

    An entry is a text file, or one object of another file, and makes one document or
    several; what is longer than a million characters makes several entries. Memory is
    40 bytes an entry and, while the check lasts, 8 bytes a document.

    Every document has an id: its own, or else one made of its file's name and line,
    such as ``notes.md``, ``passages.jsonl:17``, or ``passages.jsonl:17#2`` for the
    second of an object's ``docs``. Its source is the file's name with the line or page.
    Names are those below the folder that was given, so that neither depends on where it
    lies. Blank documents are left out.

    Args:
      paths: files and folders, see ``find_files``.
      progress: wraps the loops over all files and all entries, for progress bars.
      reading: how documents are read.

    Attributes:
      files: that entries come from.
      documents: how many documents the entries make.
      lengths: characters in the texts of each entry.
      size: bytes of all files.
      digest: checksum of the files' names, sizes and contents, and of `reading`.
      fields: of the documents' metadata, with the kind that holds all values, see
        ``documents.kind_of``.

    Raises:
      ClaraError: there are no documents. Or, unless `reading` skips them, files that
        cannot be read, entries that are not documents, and documents that have an id
        which another has: all of them, each with file and line.

    Example::

      corpus = Corpus(["papers/"])
      for i in range(len(corpus)):
          print(corpus[i][0].label)
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
        reading: Reading | None = None,
    ):
        self._reading = reading = reading or Reading()
        found = find_files(paths)
        self.files = files = found.files
        self._others, self._problems = found.others, found.problems
        self._blank: list[str] = []
        self._guessed: dict[str, str] = {}  # encodings, by file
        self._opened = functools.lru_cache(OPEN)(open_rows)
        self._last: tuple[tuple[int, int], list[list[Document]]] = (-1, -1), []
        self._states: list[tuple[int, int]] = []
        self._contents: list[str] = []
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr(dataclasses.replace(reading, skip=False)).encode())
        self.size = 0
        counts = []
        for number in progress(range(len(files))):
            file = files[number]
            counts.append(0)
            try:
                self._states.append(_state(file.path))
                size, content = checksum(file.path)
                self._contents.append(content)
                digest.update(f"{file.name}\0{size}\0{content}\n".encode())
                self.size += size
                counts[number] = self._count(number)
            except ClaraError as error:
                self._problems.append(str(error))
                self._states[number:] = [(0, 0)]
                self._contents[number:] = [""]
        self.digest = digest.hexdigest()
        self._ends = list(itertools.accumulate(counts))
        self._check(progress)
        if self._problems and not reading.skip:
            raise ClaraError(listed(self._problems, " (--on-error skip leaves {} out)"))
        if not self.documents:
            # What was left out says why.
            why = "; ".join(self.notes) or "give files or folders of them"
            raise ClaraError(f"there are no documents; {why}")

    def _count(self, number: int) -> int:
        """How many entries a file has, before they are read."""
        file = self.files[number]
        if fault := old_format(file.path):
            raise ClaraError(fault)
        if file.kind != "rows":
            return 1
        try:
            rows = self._rows(number)
        except NoRowsError:
            self._blank.append(file.name)
            return 0
        firsts = []
        for i in range(min(len(rows), FIRST)):
            # What is wrong with a row is said when all are read.
            with contextlib.suppress(ClaraError):
                firsts.append(self._values(rows, i))
        texts = [v for v, _ in firsts if has_text(v, self._reading)]
        # Settings and tables lie among documents.
        if not file.given and file.ending in (".json", ".csv", ".tsv"):
            names_only = file.ending == ".json" and all(
                isinstance(v, str) for v in texts
            )
            if not texts or names_only:
                self._others.append(file.name)
                return 0
        if firsts and not texts:
            values, place = firsts[0]
            read_object(values, place, self._reading)
        return len(rows)

    def _values(self, rows: RowFile, row: int) -> tuple[Any, str]:
        """Return an object, with fields for empty cells of a table, and its place."""
        values, place = rows[row]
        if rows.names and isinstance(values, dict):
            values = {**dict.fromkeys(rows.names), **values}
        return values, place

    def _check(self, progress: Callable[[Iterable[Any]], Iterable[Any]]) -> None:
        """Read all entries, and keep the places of those that are documents."""
        entries, sizes = array.array("q"), array.array("q")
        hashes, owners = array.array("q"), array.array("q")
        self.fields: dict[str, str] = {}
        for i in progress(range(self._ends[-1] if self._ends else 0)):
            number, row = locate(self._ends, i)
            try:
                documents = self._read(number, row, checks=True)
            except ClaraError as error:
                self._problems.append(str(error))
                continue
            for name in {document.id for document in documents}:
                hashes.append(_hash(name))
                owners.append(i)
            for name, kind in fields_of(documents).items():
                self.fields[name] = widest([self.fields.get(name, ""), kind])
            parts = _entries_of(documents)
            for block, part in enumerate(parts):
                entries.extend((number, row, block if len(parts) > 1 else -1, i))
                sizes.extend((len(part), sum(len(document.text) for document in part)))
        doubles = self._doubles(np.array(hashes, np.int64), np.array(owners, np.int64))
        table = np.array(entries, np.int64).reshape(-1, 4)
        kept = ~np.isin(table[:, 3], doubles)
        self._entries = table[kept, :3]
        counts, self.lengths = np.array(sizes, np.int64).reshape(-1, 2)[kept].T
        self._numbers = np.cumsum(counts)  # documents up to an entry's end
        self.documents = int(counts.sum())

    def _doubles(
        self, hashes: Int[np.ndarray, " n"], owners: Int[np.ndarray, " n"]
    ) -> list[int]:
        """Entries with an id that an earlier one has; each is a problem."""
        order = np.argsort(hashes, kind="stable")
        same = hashes[order][1:] == hashes[order][:-1]
        twice = np.unique([owners[order[1:]][same], owners[order[:-1]][same]])
        seen: dict[str, str] = {}
        found = []
        # Hashes may agree by chance.
        for i in twice.tolist():
            number, row = locate(self._ends, i)
            place = self._place(number, row)
            names = {document.id for document in self._read(number, row)}
            if known := sorted(names & seen.keys()):
                found.append(i)
                self._problems.append(
                    f"{place}: has the id '{known[0]}', as has {seen[known[0]]}; every "
                    "document needs an id of its own"
                )
            for name in names:
                seen.setdefault(name, place)
        return found

    @property
    def notes(self) -> list[str]:
        """Return what was left out or guessed, a line each, for the user."""
        found = []
        if self._others:
            names = _some(self._others, "files")
            found.append(f"left out, since not documents: {names}")
        if self._blank:
            names = _some(self._blank, "of them")
            found.append(f"left out, since blank: {names}")
        by_name: dict[str, list[str]] = {}
        for name, encoding in self._guessed.items():
            by_name.setdefault(encoding, []).append(name)
        for encoding, names in by_name.items():
            guess = f"read as {encoding}, since not UTF-8: {_some(names, 'files')}"
            found.append(f"{guess}; if this is wrong, name it with --encoding")
        if self._problems and self._reading.skip:
            found.append(f"left out: {listed(self._problems)}")
        return found

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> list[Document]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, row, block = map(int, self._entries[index])
        if block < 0:
            return self._read(number, row)
        key, parts = self._last
        if key != (number, row):
            parts = _entries_of(self._read(number, row))
            self._last = (number, row), parts
        return parts[block]

    def all(self) -> list[Document]:
        """Return all documents, in the order of files and lines."""
        return [document for i in range(len(self)) for document in self[i]]

    def texts(self, begin: int, end: int) -> list[str]:
        """Return the texts of documents `begin` to `end`, counted over all entries."""
        entry, skip = locate(self._numbers, begin)
        entries = (self[i] for i in range(entry, len(self)))
        documents = itertools.chain.from_iterable(entries)
        return [d.text for d in itertools.islice(documents, skip, skip + end - begin)]

    def place(self, index: int) -> str:
        """Return where an entry stands, for messages."""
        number, row, _ = map(int, self._entries[index])
        return self._place(number, row)

    def _place(self, number: int, row: int) -> str:
        file = self.files[number]
        if file.kind == "rows":
            return self._rows(number).place(row)
        return str(file.path)

    def _rows(self, number: int) -> RowFile:
        file = self.files[number]
        rows = self._opened(file.path, self._reading.encoding)
        self._guess(file, rows.encoding)
        return rows

    def _guess(self, file: DocumentFile, encoding: str) -> None:
        if encoding not in _CERTAIN and encoding != self._reading.encoding:
            self._guessed[file.name] = encoding

    def _read(self, number: int, row: int, checks: bool = False) -> list[Document]:
        """Read the documents of an entry that are not blank.

        What is blank is noted where it `checks`.
        """
        file = self.files[number]
        if _state(file.path) != self._states[number]:
            raise ClaraError(
                f"{file.path}: has changed since work on it began; start again"
            )
        if file.kind == "office":
            found = self._office(number)
        elif file.kind == "text":
            text, encoding = read_text(file.path, self._reading.encoding)
            self._guess(file, encoding)
            document = read_plain(text, str(file.path), file.path.name)
            found = [dataclasses.replace(document, id=file.name, source=file.name)]
        else:
            found = self._objects(number, row)
        if checks:
            self._blank += [d.source for d in found if not d.text.strip()]
        return [document for document in found if document.text.strip()]

    def _office(self, number: int) -> list[Document]:
        file = self.files[number]
        converted = convert_file(file.path, self._contents[number])
        title = converted.title or file.path.name
        pages = read_pages(converted.pages, converted.numbered, title, file.name)
        return [dataclasses.replace(page, id=file.name) for page in pages]

    def _objects(self, number: int, row: int) -> list[Document]:
        file, objects = self.files[number], self._rows(number)
        values, place = self._values(objects, row)
        found = read_object(values, place, self._reading)
        name = f"{file.name}:{objects.number(row)}"
        many = len(found) > 1
        return [
            dataclasses.replace(
                document,
                id=document.id or (f"{name}#{i}" if many else name),
                source=f"{file.name}{place.removeprefix(objects.path)}",
            )
            for i, document in enumerate(found, 1)
        ]


def _entries_of(documents: Sequence[Document]) -> list[list[Document]]:
    """Group documents, cut where they are long, into entries of a block at most."""
    found: list[list[Document]] = []
    size = BLOCK
    for part in itertools.chain.from_iterable(blocks_of(d, BLOCK) for d in documents):
        size += len(part.text)
        if size > BLOCK:
            found.append([])
            size = len(part.text)
        found[-1].append(part)
    return found


def _state(path: Path) -> tuple[int, int]:
    """Return what changes where a file is written."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise ClaraError(f"{path}: {error.strerror or error}") from error
    return state.st_size, state.st_mtime_ns


def _some(names: Sequence[str], unit: str) -> str:
    """Name the first of many."""
    more = f", ... ({len(names):,} {unit})" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _hash(name: str) -> int:
    return int.from_bytes(text_digest(name, 8), "little", signed=True)

"""Files of documents: which of those in a folder are taken, and what kind each is."""

import dataclasses
import functools
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from clara_jax.data.office_files import OFFICE_SUFFIXES, old_format
from clara_jax.data.plain_files import open_plain, plain_ending
from clara_jax.data.row_files import ROW_SUFFIXES
from clara_jax.documents import is_unicode

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".mdx", ".rst", ".adoc")
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES, *OFFICE_SUFFIXES)

_HIDDEN = (".", "~$")
"""Beginnings of names that are passed over; the second is of Office's own files."""

_PARTS = ("corpus", "collection", "queries", "qrels")
"""Parts of data sets for retrieval; the first two are documents."""

_OBJECTS = (b"{", b"[", b'"')
"""Beginnings of files of JSON, by which those without a known ending are recognised."""


@dataclasses.dataclass(frozen=True)
class DocumentFile:
    """A file of documents.

    Attributes:
      path: where it lies.
      name: its path below the folder that was given.
      given: whether it was given itself, and not a folder above it.
    """

    path: Path
    name: str
    given: bool = False

    @functools.cached_property
    def ending(self) -> str:
        """What the name ends with, in lower case, without that of a compressed file."""
        return plain_ending(self.path)

    @functools.cached_property
    def kind(self) -> Literal["text", "rows", "office"]:
        """How it is read: as one text, as objects, or by a converter.

        Raises:
          ClaraError: neither its ending says so, nor can it be looked at.
        """
        if self.ending in OFFICE_SUFFIXES:
            return "office"
        if self.ending in ROW_SUFFIXES:
            return "rows"
        if self.ending in TEXT_SUFFIXES:
            return "text"
        with open_plain(self.path) as file:
            head = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
        return "rows" if head.startswith(_OBJECTS) else "text"


@dataclasses.dataclass
class FoundFiles:
    """What was found.

    Attributes:
      files: of documents, in the order in which they were given, and of their names.
      others: names of files that lie beside them and are not taken.
      problems: what could not be looked at, a line each.
    """

    files: list[DocumentFile] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def find_files(paths: Sequence[str | Path]) -> FoundFiles:
    """Find the files of documents in folders, and the others that lie beside them.

    In a folder, and those below it, the files are taken that end as in `SUFFIXES`,
    compressed or not, in the order of their names. Hidden files and folders are not
    looked at. Of a BEIR data set (``corpus.jsonl`` beside ``queries.jsonl`` or
    ``qrels``) the corpus is taken.

    Where names agree, of files of several folders, they are those that were given; a
    file that is given twice is taken once.

    Args:
      paths: files, which are taken whatever they are called, and folders.
    """
    found = FoundFiles()
    for given in paths:
        path = Path(given)
        if not str(given):
            found.problems.append("the name of a file or folder of documents is empty")
        elif not os.path.isdir(path):
            if fault := fault_of(path):
                found.problems.append(f"{path}: {fault}")
            else:
                found.files.append(DocumentFile(path, path.name, True))
        else:
            _look_into(path, found)
    found.files = _named_apart(found.files)
    return found


def _look_into(folder: Path, found: FoundFiles) -> None:
    """Add what a folder holds."""
    problems = len(found.problems)
    inside = sorted(_walk(folder, found), key=lambda file: Path(file.name).parts)
    questions = _beir_questions(inside)
    own = [f for f in inside if f.ending in SUFFIXES and f.path not in questions]
    taken = {file.path for file in own}
    for file in inside:
        if file.path in taken:
            continue
        if fault := old_format(file.path):
            found.problems.append(fault)
        else:
            found.others.append(file.name)
    if not own and problems == len(found.problems):
        endings = ", ".join(SUFFIXES)
        found.problems.append(
            f"{folder}: the folder holds no files of documents ({endings})"
        )
    found.files += own


def fault_of(path: Path) -> str:
    """Say why a path cannot be read as a file; empty if it can."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such file or folder"
    except OSError as error:
        return error.strerror or str(error)
    return "" if stat.S_ISREG(mode) else "is not a plain file; save it to one"


def _walk(folder: Path, found: FoundFiles) -> Iterator[DocumentFile]:
    """All files below a folder; links are followed, but not in a circle."""

    def refuse(error: OSError) -> None:
        found.problems.append(f"{error.filename}: {error.strerror}")

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [n for n in shown if os.path.realpath(f"{place}/{n}") not in seen]
        for name in files:
            path = Path(place, name)
            if name.startswith(_HIDDEN):
                continue
            if not is_unicode(str(path)):
                found.problems.append(f"{str(path)!r}: the file's name is not UTF-8")
                continue
            file = DocumentFile(path, path.relative_to(folder).as_posix())
            fault = fault_of(path)
            if not fault:
                yield file
            elif file.ending not in SUFFIXES:
                found.others.append(file.name)
            elif path.is_symlink() and not os.path.lexists(os.path.realpath(path)):
                found.problems.append(f"{path}: is a link to a file that is not there")
            else:
                found.problems.append(f"{path}: {fault}")


def _beir_questions(files: Sequence[DocumentFile]) -> set[Path]:
    """The files of BEIR data sets, and MS MARCO's, that are not their corpus.

    A part of a data set is a file, such as ``queries.jsonl`` or ``queries.train.tsv``,
    or a folder of files.
    """

    def part(file: DocumentFile) -> tuple[str, str]:
        """The folder of a data set, and which part of it a file belongs to."""
        folder, _, name = file.name.rpartition("/")
        above, _, own = folder.rpartition("/")
        stem = name.lower().partition(".")[0]
        if stem not in _PARTS and own.lower() in _PARTS:
            return above, own.lower()
        return folder, stem

    parts = {file.path: part(file) for file in files}
    sets = {folder for folder, name in parts.values() if name in _PARTS[:2]}
    return {p for p, (folder, n) in parts.items() if folder in sets and n in _PARTS[2:]}


def _named_apart(files: Sequence[DocumentFile]) -> list[DocumentFile]:
    """Take each file once; give those of one name the paths that they were found by."""
    once = {os.path.abspath(file.path): file for file in reversed(files)}
    own = [file for file in files if once[os.path.abspath(file.path)] is file]
    names = Counter(file.name for file in own)
    return [
        f if names[f.name] == 1 else dataclasses.replace(f, name=f.path.as_posix())
        for f in own
    ]

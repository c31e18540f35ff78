"""Files of documents: which of those in a folder are taken, and what kind each is."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from clara_jax.data.office_files import OFFICE_SUFFIXES
from clara_jax.data.plain_files import open_plain, plain_ending
from clara_jax.data.row_files import ROW_SUFFIXES
from clara_jax.documents import is_unicode

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".mdx", ".rst", ".adoc")
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES, *OFFICE_SUFFIXES)

_OBJECTS = (b"{", b"[", b'"')
"""Beginnings of files of JSON, by which those without a known ending are told."""


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
      others: files that lie beside them and are not taken.
      problems: what could not be looked at, a line each.
    """

    files: list[DocumentFile] = dataclasses.field(default_factory=list)
    others: list[Path] = dataclasses.field(default_factory=list)
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
    for path in map(Path, paths):
        if not path.is_dir():
            if path.exists():
                found.files.append(DocumentFile(path, path.name, True))
            else:
                found.problems.append(f"{path}: no such file or folder")
            continue
        problems = len(found.problems)
        inside = sorted(_walk(path, found.problems), key=lambda f: Path(f.name).parts)
        questions = _beir_questions(inside)
        own = [f for f in inside if f.ending in SUFFIXES and f.path not in questions]
        if not own and problems == len(found.problems):
            endings = ", ".join(SUFFIXES)
            found.problems.append(
                f"{path}: the folder holds no files of documents ({endings})"
            )
        found.files += own
        taken = {file.path for file in own}
        found.others += [file.path for file in inside if file.path not in taken]
    found.files = _named_apart(found.files)
    return found


def _walk(folder: Path, problems: list[str]) -> Iterator[DocumentFile]:
    """All files below a folder; links are followed, but not in a circle."""

    def refuse(error: OSError) -> None:
        problems.append(f"{error.filename}: {error.strerror}")

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [n for n in shown if os.path.realpath(f"{place}/{n}") not in seen]
        for name in files:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if not is_unicode(str(path)):
                problems.append(f"{str(path)!r}: the file's name is no UTF-8")
            elif path.is_file():
                yield DocumentFile(path, path.relative_to(folder).as_posix())
            elif path.is_symlink():
                problems.append(f"{path}: is a link to a file that is not there")


def _beir_questions(files: Sequence[DocumentFile]) -> set[Path]:
    """The files of BEIR data sets that are not their corpus."""

    def stem(file: DocumentFile) -> str:
        return file.path.name.lower().partition(".")[0]

    corpora = {f.path.parent for f in files if stem(f) == "corpus"}
    return {
        file.path
        for file in files
        if (file.path.parent in corpora and stem(file) == "queries")
        or (file.path.parent.parent in corpora and file.path.parent.name == "qrels")
    }


def _named_apart(files: Sequence[DocumentFile]) -> list[DocumentFile]:
    """Give files of the same name the paths that they were found by."""
    same: dict[str, set[str]] = {}
    for file in files:
        same.setdefault(file.name, set()).add(os.path.realpath(file.path))
    found: dict[str, DocumentFile] = {}
    for file in files:
        alone = len(same[file.name]) == 1
        name = file.name if alone else file.path.as_posix()
        found.setdefault(name, dataclasses.replace(file, name=name))
    return list(found.values())

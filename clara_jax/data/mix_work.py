"""The work database of a mix: what is known so far, committed step by step.

A step is one transaction: killed within it, the database stands where the step began.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.files import first_line, write_error

NAME = "work.sqlite"

SINGLE, MULTI, PARAPHRASE, TEXT = range(4)
"""Kinds of records: questions about one passage, questions with several documents of
which some are marked, a passage in other words, a passage alone."""

TRAIN, HELD_OUT = 0, 1
"""Sides."""

# passages.draw decides the side; grp is the first of all passages that are on one side
# with this one, since each is nearly the same as another or overlaps it; same is an
# earlier passage that this one is dropped for, a near-duplicate. docs.gold is 2 for the
# first document that holds the answer, 1 for others. records.split is the place of the
# source's in recipe.SPLITS. tasks are the lines of the files that are written.
_TABLES = """
CREATE TABLE notes(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE counts(source INTEGER, name TEXT, value INTEGER,
  PRIMARY KEY(source, name)) WITHOUT ROWID;
CREATE TABLE passages(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, text TEXT,
  draw INTEGER, grp INTEGER, same INTEGER, side INTEGER);
CREATE INDEX passages_grp ON passages(grp);
CREATE TABLE bands(band INTEGER, passage INTEGER, PRIMARY KEY(band, passage))
  WITHOUT ROWID;
CREATE TABLE marks(mark INTEGER, passage INTEGER);
CREATE TABLE pieces(id INTEGER PRIMARY KEY, passage INTEGER, part INTEGER,
  start INTEGER, stop INTEGER, tokens INTEGER);
CREATE UNIQUE INDEX pieces_passage ON pieces(passage, part);
CREATE TABLE records(id INTEGER PRIMARY KEY, source INTEGER, place TEXT, kind INTEGER,
  split INTEGER, side INTEGER, dropped TEXT);
CREATE TABLE docs(record INTEGER, position INTEGER, passage INTEGER, part INTEGER,
  gold INTEGER, PRIMARY KEY(record, position)) WITHOUT ROWID;
CREATE INDEX docs_passage ON docs(passage);
CREATE TABLE questions(id INTEGER PRIMARY KEY, record INTEGER, piece INTEGER,
  key BLOB NOT NULL UNIQUE, question TEXT, target TEXT, gold TEXT);
CREATE INDEX questions_record ON questions(record);
CREATE INDEX questions_piece ON questions(piece);
"""


class Work:
    """An open database; used as a context, it is closed at the end.

    Args:
      folder: where it lies; made if absent.

    Raises:
      ClaraError: another process has it open, it is damaged, or the disk is full.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._raised: BaseException | None = None
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.path, timeout=1, isolation_level=None)
            # The one process that works here holds it to the end.
            self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = NORMAL")
            self._base.execute("PRAGMA cache_size = -262144")  # KiB
            self._base.execute("BEGIN EXCLUSIVE")
            (new,) = self.row("SELECT count(*) = 0 FROM sqlite_master")
            for line in _TABLES.split(";") if new else ():
                self._base.execute(line)
            self._base.execute("COMMIT")

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from error
        except OSError as error:
            raise write_error(self.path, error) from error

    def _error(self, error: sqlite3.Error) -> BaseException:
        if self._raised is not None:  # in a function, such as by a signal
            return self._raised
        name = getattr(error, "sqlite_errorname", "")
        if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
            return ClaraError(
                f"{self.path}: the disk is full; free space and try again"
            )
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return ClaraError(
                f"{self.path}: another process is making this mix; wait for its end"
            )
        return ClaraError(
            f"{self.path}: cannot be used ({first_line(error)}); delete "
            f"{self.path.parent} to start anew"
        )

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Commit what the block does, or nothing of it."""
        with self._told():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._base.execute("ROLLBACK")
                raise
            self.commit()

    def commit(self) -> None:
        """End a step."""
        self._base.execute("COMMIT")

    def do(self, query: str, values: Any = ()) -> sqlite3.Cursor:
        """Run one statement."""
        try:
            return self._base.execute(query, values)
        except sqlite3.Error as error:
            raise self._error(error) from error

    def do_many(self, query: str, rows: Any) -> None:
        """Run one statement for many rows."""
        try:
            self._base.executemany(query, rows)
        except sqlite3.Error as error:
            raise self._error(error) from error

    def row(self, query: str, values: Any = ()) -> Any:
        """Return the first row of a query, None if there is none."""
        return self.do(query, values).fetchone()

    def function(self, name: str, count: int, function: Callable[..., Any]) -> None:
        """Let queries call a function of `count` arguments."""

        def kept(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except BaseException as error:
                self._raised = error
                raise

        self._base.create_function(name, count, kept, deterministic=True)

    def note(self, name: str) -> Any:
        """Return what was noted, None if nothing was."""
        found = self.row("SELECT value FROM notes WHERE name = ?", (name,))
        return None if found is None else json.loads(found[0])

    def set_note(self, name: str, value: Any) -> None:
        """Note a JSON value."""
        text = json.dumps(value, ensure_ascii=False)
        self.do("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, text))

    def count(self, source: int, name: str, number: int = 1) -> None:
        """Add to a count of a source."""
        self.do(
            "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
            "value = value + excluded.value",
            (source, name, number),
        )

    def apart(self, one: int, other: int) -> bool:
        """Whether two passages are in different groups."""
        query = "SELECT count(DISTINCT grp) FROM passages WHERE id IN (?, ?)"
        return self.row(query, (one, other))[0] > 1

    def join(self, passages: Sequence[int]) -> None:
        """Make one group of the groups of passages."""
        marks = ", ".join("?" * len(passages))
        query = f"SELECT DISTINCT grp FROM passages WHERE id IN ({marks}) ORDER BY grp"
        first, *others = [group for (group,) in self.do(query, tuple(passages))]
        for group in others:
            self.do("UPDATE passages SET grp = ? WHERE grp = ?", (first, group))


def draw(*parts: Any) -> int:
    """Return 62 bits that follow from the arguments and look like chance."""
    text = "\0".join(map(str, parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def share(number: float) -> int:
    """Return the limit that a share `number` of all draws is below."""
    return int(number * (1 << 62))


def text_key(text: str) -> bytes:
    """Return what two texts have in common that differ in white space alone."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()

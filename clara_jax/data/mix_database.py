"""The work database of a mix: what is known so far, committed step by step.

A step is one transaction: killed within it, the database stands where the step began.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from clara_jax.data.resuming import Progress
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, writable_folder

SINGLE, MULTI, PARAPHRASE, TEXT = range(4)
"""Kinds of records: questions about one passage, questions with several documents of
which some are marked, a passage in other words, a passage alone."""

SPLITS = ("hash", "train", "held_out")
TRAIN, HELD_OUT = 0, 1
"""Sides."""

# The one process that works here holds the lock to the end. Cache: 256 MiB.
_SETTINGS = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA cache_size = -262144;
"""

# passages.draw decides the side; grp is the first of all passages that are on one side
# with this one, since each is nearly the same as another or overlaps it; same is an
# earlier passage that this one is dropped for, a near-duplicate. docs.gold is 2 for the
# first document that holds the answer, 1 for others. records.split is the place of the
# source's in SPLITS. tasks are the lines of the files that are written, done and size
# of files how much of each is written.
_TABLES = """
CREATE TABLE IF NOT EXISTS notes(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts(source INTEGER, name TEXT, value INTEGER,
  PRIMARY KEY(source, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS passages(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE,
  text TEXT, draw INTEGER, grp INTEGER, same INTEGER, side INTEGER);
CREATE INDEX IF NOT EXISTS passages_grp ON passages(grp);
CREATE TABLE IF NOT EXISTS bands(band INTEGER, passage INTEGER,
  PRIMARY KEY(band, passage)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks(mark INTEGER, passage INTEGER);
CREATE TABLE IF NOT EXISTS pieces(id INTEGER PRIMARY KEY, passage INTEGER, part INTEGER,
  start INTEGER, stop INTEGER, tokens INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS pieces_passage ON pieces(passage, part);
CREATE TABLE IF NOT EXISTS records(id INTEGER PRIMARY KEY, source INTEGER, place TEXT,
  kind INTEGER, split INTEGER, side INTEGER, dropped TEXT);
CREATE TABLE IF NOT EXISTS docs(record INTEGER, position INTEGER, passage INTEGER,
  part INTEGER, gold INTEGER, PRIMARY KEY(record, position)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS docs_passage ON docs(passage);
CREATE TABLE IF NOT EXISTS questions(id INTEGER PRIMARY KEY, record INTEGER,
  piece INTEGER, key BLOB NOT NULL UNIQUE, question TEXT, target TEXT, gold TEXT);
CREATE INDEX IF NOT EXISTS questions_record ON questions(record);
CREATE INDEX IF NOT EXISTS questions_piece ON questions(piece);
CREATE TABLE IF NOT EXISTS tasks(file INTEGER, place INTEGER, kind INTEGER, ref INTEGER,
  chunk INTEGER, copy INTEGER, source INTEGER);
CREATE TABLE IF NOT EXISTS pools(pool INTEGER, piece INTEGER, PRIMARY KEY(pool, piece))
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files(file INTEGER PRIMARY KEY, done INTEGER, size INTEGER);
"""

# Documents and questions of the records that are not dropped.
_VIEWS = """
CREATE TEMP VIEW kept AS SELECT record, source, place, kind, split, passage, gold, grp,
  same, records.side AS side, passages.side AS passage_side FROM records JOIN docs
  ON record = records.id JOIN passages ON passages.id = passage WHERE dropped IS NULL;
CREATE TEMP VIEW asked AS SELECT questions.*, source, kind, side FROM questions
  JOIN records ON records.id = record WHERE dropped IS NULL;
"""


class Work(sqlite3.Connection):
    """An open database; see `open_work`."""

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Commit what the block does, or nothing of it."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.rollback()
            raise
        self.commit()

    def in_steps(
        self,
        note: str,
        last: int,
        size: int,
        step: Callable[[int, int], None],
        progress: Progress,
    ) -> None:
        """Call `step` with the bounds of `size` rows until `last`, going on at `note`.

        Each call is a step; `progress` is called with `total` and `initial`.
        """
        done = self.note(note) or 0
        with progress(total=last, initial=done) as bar:
            while done < last:
                end = min(done + size, last)
                with self.step():
                    step(done, end)
                    self.set_note(note, end)
                bar.update(end - done)
                done = end

    def row(self, query: str, values: Iterable[Any] = ()) -> Any:
        """Return the first row of a query, None if there is none."""
        return self.execute(query, tuple(values)).fetchone()

    def note(self, name: str) -> Any:
        """Return what was noted, None if nothing was."""
        found = self.row("SELECT value FROM notes WHERE name = ?", (name,))
        return None if found is None else json.loads(found[0])

    def set_note(self, name: str, value: Any) -> None:
        """Note a JSON value."""
        text = json.dumps(value, ensure_ascii=False)
        self.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, text))

    def count(self, source: int, name: str, number: int = 1) -> None:
        """Add to a count of a source."""
        self.execute(
            "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
            "value = value + excluded.value",
            (source, name, number),
        )


@contextlib.contextmanager
def open_work(folder: Path) -> Iterator[Work]:
    """Open the database in a folder, which is made if absent.

    Raises:
      ClaraError: another process has it open, it is damaged, or the disk is full; at
        once, or in the block.
    """
    writable_folder(folder)
    path = folder / "work.sqlite"
    try:
        base = sqlite3.connect(path, timeout=1, isolation_level=None, factory=Work)
        with contextlib.closing(base) as work:
            work.executescript(f"{_SETTINGS}BEGIN EXCLUSIVE;{_TABLES}COMMIT;{_VIEWS}")
            yield work
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        text = f"cannot be used ({first_line(error)}); delete {folder} to start anew"
        if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
            text = "the disk is full; free space and try again"
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            text = "another process is making this mix; wait for its end"
        raise ClaraError(f"{path}: {text}") from error


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

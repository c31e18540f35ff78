"""Long work that goes on where it was killed.

Its settings and the checksums of its inputs; a database that is committed step by step;
and files that grow with the steps. A step is one transaction: killed within it, the
work stands where the step began.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clara_jax.data.folders import place_and_split
from clara_jax.data.hub_sets import HubRows, is_hub
from clara_jax.errors import ClaraError
from clara_jax.files import checksum, first_line, json_line, read_json, writable_folder

Progress = Callable[..., Any]
"""Makes a progress bar as tqdm does; `silent` makes one that shows nothing."""

silent = functools.partial(tqdm, disable=True)

INPUTS = "inputs.json"
"""Where a folder made of inputs keeps what is known of them."""

# The one process that works here holds the lock to the end. Cache: 256 MiB.
_SETTINGS = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA cache_size = -262144;
BEGIN EXCLUSIVE;
CREATE TABLE IF NOT EXISTS notes(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


def checksums(
    paths: Sequence[str | Path], progress: Progress, known: Sequence[Path] = ()
) -> tuple[list[str], dict[str, Any]]:
    """Return the checksums of files and folders, with ``#split`` or without.

    Those of names of the hub are of the files in its cache.

    What has its size and time of change from the `INPUTS` of a known folder is not read
    again.

    Returns:
      One checksum a path; size, time of change and checksum of each file, for `INPUTS`.
    """
    before: dict[str, Any] = {}
    for folder in known:
        if (folder / INPUTS).is_file():
            before |= read_json(folder / INPUTS)
    inside, roots = [], []
    for path in map(str, paths):
        root = Path(place_and_split(path)[0])
        if is_hub(path):
            inside.append(files := HubRows(path).files)
            root = Path(os.path.commonpath(files)).parent
        elif root.is_dir():
            inside.append(sorted(p for p in root.rglob("*") if p.is_file()))
        else:
            inside.append([root])
        roots.append(root)
    found: dict[str, Any] = {}
    for file in itertools.chain.from_iterable(inside):
        try:
            status = file.stat()
        except OSError as error:
            raise ClaraError(f"{file}: {error.strerror or error}") from error
        times, name = [status.st_size, status.st_mtime_ns], str(file)
        found[name] = before[name] if before.get(name, [])[:2] == times else times
    new = {name: times for name, times in found.items() if len(times) == 2}
    total = sum(size for size, _ in new.values())
    with progress(desc="check inputs", total=total, unit="B", unit_scale=True) as bar:
        for name, times in new.items():
            times.append(checksum(Path(name), bar.update)[1])

    def together(root: Path, files: Sequence[Path]) -> str:
        if files == [root]:
            return found[str(root)][2]
        digest = hashlib.blake2b(digest_size=16)
        for file in files:
            content = found[str(file)][2]
            digest.update(f"{file.relative_to(root)}\0{content}\n".encode())
        return digest.hexdigest()

    return list(map(together, roots, inside)), found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the names of what differs, at most three; empty if nothing does."""
    names = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class Work(sqlite3.Connection):
    """An open database; see `open_work`."""

    folder: Path
    progress: Progress

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Note the settings of new work; refuse others than it was begun with."""
        before = self.note("identity")
        if before is None:
            with self.step():
                self.set_note("identity", settings)
        elif different := differences(before, settings):
            raise ClaraError(
                f"{self.folder}: was begun with other settings or inputs "
                f"({different}); delete it to start anew"
            )

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
        name: str,
        last: int,
        size: int,
        step: Callable[[int, int], object],
        unit: str = "",
    ) -> None:
        """Do `last` things in steps of `size`, going on where it stopped.

        Args:
          name: of the bar, and of the note of how many are done.
          step: does those from, to; returns True where no more are needed.
          unit: of the bar; without one there is none.
        """
        done = self.note(name) or 0
        progress = self.progress if unit else silent
        with progress(desc=name, total=last, initial=done, unit=unit) as bar:
            while done < last:
                end = min(done + size, last)
                with self.step():
                    if step(done, end) is True:
                        end = last
                    self.set_note(name, end)
                bar.update(end - done)
                done = end

    def write_lines(
        self,
        path: Path,
        name: str,
        total: int,
        size: int,
        lines: Callable[[int, int], Iterable[Mapping[str, Any]]],
    ) -> None:
        """Write a file of `total` JSON lines as `in_steps` does.

        `lines` makes the objects of those from, to. Missing folders are made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            # What follows the size that was noted is half a step.
            file.truncate(self.note(f"size of {name}") or 0)

            def step(begin: int, end: int) -> None:
                for line in lines(begin, end):
                    file.write(f"{json_line(line)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
                self.set_note(f"size of {name}", file.tell())

            self.in_steps(name, total, size, step, "rec")

    def insert(self, query: str, values: Iterable[Any]) -> int:
        """Return the number of the row that a query inserts."""
        return self.execute(query, tuple(values)).lastrowid or 0

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


@contextlib.contextmanager
def open_work(
    folder: Path, schema: str = "", progress: Progress = silent
) -> Iterator[Work]:
    """Open the database in a folder, which is made if absent.

    Args:
      folder: where the work lies.
      schema: SQL that makes tables if absent, and temporary views.
      progress: makes the bars of the steps.

    Raises:
      ClaraError: another process has it open, it is damaged, or the disk is full; at
        once, or in the block.
    """
    writable_folder(folder)
    path = folder / "work.sqlite"
    try:
        base = sqlite3.connect(path, timeout=1, isolation_level=None, factory=Work)
        with contextlib.closing(base) as work:
            work.folder, work.progress = folder, progress
            work.executescript(f"{_SETTINGS}{schema}COMMIT;")
            yield work
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        text = f"cannot be used ({first_line(error)}); delete {folder} to start anew"
        if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
            text = "the disk is full; free space and try again"
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            text = "another process is at work here; wait for its end"
        raise ClaraError(f"{path}: {text}") from error

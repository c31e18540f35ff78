"""Locks on a store that end with the process that holds them.

Several processes may write one store together, each its own part of the shards; an edit
wants the store for itself. Where the file system has no locks, nobody is kept out.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from clara_jax.errors import ClaraError
from clara_jax.files import write_error

FOLDER = ".locks"

PATIENCE = 20.0
"""Seconds that a job waits for another's beginning or end, or for an edit."""


class Lock(contextlib.AbstractContextManager):
    """A file that this process holds until `release`, or until the block is left.

    It is then removed, so that a finished store holds none.

    Args:
      store: holds the file in a folder of its own.
      name: of the file.
      busy: what somebody else who holds it is doing; the end of the error's sentence.
      patience: seconds to wait; by default for a process that is just giving it back.
    """

    def __init__(self, store: Path, name: str, busy: str, patience: float = 0.5):
        self._path = store / FOLDER / name
        self._file: IO[bytes] | None = None
        end = time.monotonic() + patience
        while fcntl is not None and not self._take():
            if time.monotonic() > end:
                raise ClaraError(f"{store}: another process is {busy}")
            time.sleep(0.025)

    def _take(self) -> bool:
        assert fcntl is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("ab")
        except (FileNotFoundError, FileExistsError):  # the folder was just removed
            return False
        except OSError as error:
            raise write_error(self._path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed between opening and locking it.
            if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                self._file = file
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:  # a file system without locks
            self._file = file
            self.release()
            return True
        file.close()
        return False

    def release(self) -> None:
        """Let others in; may be called again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
                self._path.parent.rmdir()
            self._file.close()
            self._file = None

    def __exit__(self, *error: Any) -> None:
        self.release()


def hold_store(store: Path) -> Lock:
    """Hold a store alone: for an edit, or while a job begins or becomes a store."""
    busy = "editing this store or beginning to write to it; wait until it has ended"
    return Lock(store, "store", busy, PATIENCE)


def hold_part(store: Path, part: int, parts: int) -> Lock:
    """Hold one part of the shards, all holders counting as many parts."""
    mine = Lock(
        store,
        f"part-{part}-of-{parts}",
        f"writing part {part + 1} of {parts} of this store; wait until it has ended, "
        "or give another --part",
    )
    for path in (store / FOLDER).glob("part-*-of-*"):
        theirs = path.name.rpartition("-")[2]
        if theirs != str(parts) and _is_held(path):
            mine.release()
            raise ClaraError(
                f"{store}: another process shares this store out in {theirs} parts, "
                f"this one in {parts}; give all the same number with --part"
            )
    return mine


def sweep(store: Path) -> bool:
    """Remove what killed processes left; return whether somebody holds a part."""
    held = [_is_held(path) for path in (store / FOLDER).glob("part-*-of-*")]
    return any(held)


def _is_held(path: Path) -> bool:
    try:
        Lock(path.parent.parent, path.name, "", 0).release()
    except ClaraError:
        return True
    return False

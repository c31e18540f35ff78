"""Who may change a store at a time: locks that end with the process that holds them.

Several processes may write one store together, each its own part of the shards; an edit
wants the store for itself. Where the file system has no locks, nothing is kept out.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from clara_jax.errors import ClaraError
from clara_jax.files import write_error

FOLDER = ".locks"

_TRIES = 20
_PAUSE = 0.025
"""A lock that another process is just giving back is free within half a second."""


class Lock:
    """A file under ``.locks/`` that this process holds until `release`.

    Whoever is the last to let go removes the file, so that a finished store holds none.
    """

    def __init__(self, path: Path, descriptor: int | None):
        """Keep a descriptor that is locked; use `hold`."""
        self._release = weakref.finalize(self, _let_go, path, descriptor)

    def release(self) -> None:
        """Let others in; may be called again."""
        self._release()


def hold(path: Path, shared: bool, busy: str, tries: int = _TRIES) -> Lock:
    """Hold a lock file of any name.

    Args:
      path: made if absent.
      shared: others may hold it, too, if they also share.
      busy: the error if somebody else holds it.
      tries: how often to try, some milliseconds apart.

    Returns:
      The lock, held.

    Raises:
      ClaraError: somebody else holds it, or it cannot be written.
    """
    if fcntl is None:
        return Lock(path, None)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    for again in range(tries):
        if again:
            time.sleep(_PAUSE)
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            # The file may have been removed between opening and locking it.
            if _is_at(descriptor, path):
                return Lock(path, descriptor)
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
                path.parent.rmdir()
            return Lock(path, None)
        os.close(descriptor)
    raise ClaraError(busy)


def hold_store(store: Path, *, shared: bool) -> Lock:
    """Hold a whole store: shared by writers of parts, alone for an edit.

    Raises:
      ClaraError: another process is changing it, or its folder cannot be written.
    """
    return hold(
        store / FOLDER / "store",
        shared,
        f"{store}: another process is {'editing' if shared else 'writing to'} this "
        "store; wait until it has ended",
    )


def hold_begin(store: Path) -> Lock:
    """Hold the moment in which a job is begun, waiting for another's to pass."""
    return hold(
        store / FOLDER / "begin",
        False,
        f"{store}: another process is beginning to write here; start the command again",
        tries=40 * _TRIES,
    )


def hold_part(store: Path, part: int, parts: int) -> Lock:
    """Hold one part of the shards.

    Raises:
      ClaraError: another process writes it, or shares the shards into another number
        of parts.
    """
    name = f"part-{part}-of-{parts}"
    mine = hold(
        store / FOLDER / name,
        False,
        f"{store}: another process is writing part {part + 1} of {parts} of this "
        "store; wait until it has ended, or give another --part",
    )
    for path in (store / FOLDER).glob("part-*-of-*"):
        theirs = path.name.rpartition("-")[2]
        if theirs != str(parts) and not _is_free(path):
            mine.release()
            raise ClaraError(
                f"{store}: another process shares this store out in {theirs} parts, "
                f"this one in {parts}; give all the same number with --part"
            )
    return mine


def sweep(store: Path) -> None:
    """Remove what processes that were killed left of their locks."""
    for path in (store / FOLDER).glob("*"):
        _is_free(path)
    with contextlib.suppress(OSError):
        (store / FOLDER).rmdir()


def _is_free(path: Path) -> bool:
    """Whether nobody holds a lock; its file is then removed."""
    try:
        hold(path, False, "held", tries=1).release()
    except ClaraError:
        return False
    return True


def _let_go(path: Path, descriptor: int | None) -> None:
    if descriptor is None or fcntl is None:
        return
    # Only the last of several holders can have it alone.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        path.parent.rmdir()
    os.close(descriptor)


def _open(path: Path) -> int:
    for _ in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its folder was removed in between
            continue
        except OSError as error:
            raise write_error(path, error) from error
    raise ClaraError(f"{path}: cannot be made; start the command again")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

"""Libraries of other languages at work: what they raise and print, in one line."""

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from lance.commit import CommitConflictError

from clara_jax.errors import ClaraError
from clara_jax.files import first_line, is_remote, write_error

_ALONE = threading.RLock()

# ScaNN's log, and what Rust says about an error that is raised, too.
_CHATTER = re.compile(
    rb"^([IW]\d{4} |WARNING: All log messages before absl).*\n|"
    rb"\n?^thread '.* panicked at .*\n.*\n(note: run with .*\n)?",
    re.MULTILINE,
)


class Gone(ClaraError):
    """Rows that were deleted since, or files that a compaction removed."""


class Conflict(ClaraError):
    """Another process has changed a store meanwhile."""


@contextlib.contextmanager
def lance_at_work(place: str, doing: str = "read") -> Iterator[None]:
    """Turn what goes wrong in Lance into one line.

    Raises:
      Gone: something is not there.
      Conflict: another process was quicker.
      ClaraError: the disk is full, a file is damaged, or a service does not answer.
    """
    try:
        yield
    except (ClaraError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust are no Exception
        text = first_line(error).removeprefix("LanceError(IO): ").partition(", /")[0]
        known = isinstance(error, Exception) or "Panic" in type(error).__name__
        if not known:
            raise
        if isinstance(error, CommitConflictError):
            what = "another process has changed the store meanwhile; try again"
            raise Conflict(f"{place}: {what}") from error
        gone = ("not found", "no such file", "not a directory")
        if any(sign in text.lower() for sign in gone):
            raise Gone(f"{place}: is not whole, or not there ({text})") from error
        full = ("no space left", "quota exceeded")
        if isinstance(error, OSError) and any(s in str(error).lower() for s in full):
            raise write_error(place, error) from error
        remedy = "look at it with --check"
        if is_remote(place):
            remedy = "look at the address, and at the credentials in the environment"
        raise ClaraError(f"{place}: cannot be {doing} ({text}); {remedy}") from error


@contextlib.contextmanager
def scann_at_work(where: str | Path, doing: str) -> Iterator[None]:
    """Let ScaNN do something, and say so where it does not manage."""
    try:
        with quiet():
            yield
    except RuntimeError as error:
        reason = first_line(error)
        raise ClaraError(f"{where}: ScaNN could not {doing} ({reason})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep chatter off the standard error; all other lines are shown afterwards.

    Other threads wait, since there is one standard error.
    """
    with _ALONE, contextlib.ExitStack() as stack:
        sys.stderr.flush()
        try:
            shown = os.dup(2)
        except OSError:  # closed
            yield
            return
        caught = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            caught.seek(0)
            if said := _CHATTER.sub(b"", caught.read()):
                os.write(2, said)

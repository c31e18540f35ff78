"""Libraries of other languages at work: what they raise and print, in one line."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lance.commit import CommitConflictError

from clara_jax.errors import ClaraError
from clara_jax.files import first_line, write_error

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
        if isinstance(error, OSError) and "no space left" in str(error).lower():
            raise write_error(place, error) from error
        remedy = "look at it with --check"
        if "://" in place:
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
    """Keep chatter off the standard error; all other lines are shown afterwards."""
    sys.stderr.flush()
    try:
        shown = os.dup(2)
    except OSError:  # closed
        yield
        return
    with tempfile.TemporaryFile() as caught:
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

"""Files written whole, checksums, locks, and what to say when a disk fails."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from clara_jax.errors import ClaraError

T = TypeVar("T")

_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a pointer of Git LFS begins."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
      ClaraError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ClaraError(f"{path}: is not JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise ClaraError(f"{path}: must hold a JSON object")
    return value


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS puts in the place of a large file that is not fetched.

    Raises:
      ClaraError: the file is such a pointer.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ClaraError(
                f"{path}: is a pointer of Git LFS, not the file itself; run "
                "'git lfs pull' in its repository"
            )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as `replace_file` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


_LINE_BREAKS = {ord(x): f"\\u{ord(x):04x}" for x in "\x85\u2028\u2029"}


def json_line(value: Any) -> str:
    """Return JSON on one line, by every rule of what ends a line.

    JSON leaves three letters alone that end a line for ``str.splitlines``.
    """
    return json.dumps(value, ensure_ascii=False).translate(_LINE_BREAKS)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as text, the same for equal objects."""
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def digest_of(value: Mapping[str, Any]) -> str:
    """Return a checksum of a JSON object, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file as `replace_file` does."""
    replace_file(path, text.encode())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write, which takes the place of another once it is on the disk.

    Missing folders are made. Several processes may write the same file.

    Raises:
      ClaraError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def checksum(
    path: Path, advance: Callable[[int], object] | None = None
) -> tuple[int, str]:
    """Return the size of a file in bytes, and the checksum of its content.

    Args:
      path: the file.
      advance: called with the size of each part that has been read, for a bar.

    Raises:
      ClaraError: the file cannot be read.
    """
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
                size += len(part)
                if advance is not None:
                    advance(len(part))
    except OSError as error:
        raise ClaraError(f"{path}: {error.strerror or error}") from error
    return size, digest.hexdigest()


def read_ahead(read: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """Yield what `read` returns for each number, called in a thread, one ahead."""
    with ThreadPoolExecutor(1, "read") as thread:
        coming: list[Future[T]] = []
        for number in numbers:
            coming.append(thread.submit(read, number))
            if len(coming) > 1:
                yield coming.pop(0).result()
        for last in coming:
            yield last.result()


def writable_folder(path: Path) -> None:
    """Make a folder unless it is there; find out now whether it takes files.

    Call it before work that would be lost if they could not be written.

    Raises:
      ClaraError: it cannot be made, or nothing can be written into it.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def lock_file(path: Path, busy: str) -> IO[bytes] | None:
    """Lock a file, which is made if absent, until it is closed or the process ends.

    Args:
      path: the file.
      busy: the error if another process holds it.

    Returns:
      The open file; None where the system or the file system has no locks.

    Raises:
      ClaraError: another process holds it, or it cannot be written.
    """
    if fcntl is None:
        return None
    with writing(path):
        file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise ClaraError(busy) from None
        return None
    return file


def is_remote(place: str | os.PathLike) -> bool:
    """Return whether a place is in an object store."""
    return "://" in str(place)


def cache_folder() -> Path:
    """Return the user's folder for what this package can fetch or make again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "clara_jax"


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Raise the one-line error of `write_error` for whatever fails inside."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path | str, error: Exception) -> ClaraError:
    """Return the one-line error for a failed write to `path`."""
    text = str(error).lower()
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    # The last is numpy's, which says that it wrote too little, but not why.
    signs = ("no space left", "quota exceeded", "requested and")
    if full or any(sign in text for sign in signs):
        return ClaraError(f"{path}: the disk is full; free space and try again")
    return ClaraError(f"{path}: cannot be written ({first_line(error)})")


def told(error: ClaraError | OSError) -> str:
    """Return the line that a command prints about an error that ends it."""
    if isinstance(error, ClaraError):
        return f"error: {error}"
    place = error.filename or "the system"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"error: {write_error(place, error)}"
    return f"error: {place}: {error.strerror or first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut to a readable length."""
    # The text of a KeyError is the representation of its key.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    lines = text.strip().splitlines()
    return lines[0].strip()[:300] if lines else type(error).__name__

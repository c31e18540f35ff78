"""Files as they are before they were compressed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from clara_jax.errors import ClaraError
from clara_jax.files import first_line, writing

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Endings of compressed files, and the codecs that read them."""


def plain_ending(path: str | Path) -> str:
    """Return what a file's name ends with, in lower case, without `COMPRESSED`."""
    whole, ending = os.path.splitext(os.path.basename(path).lower())
    return os.path.splitext(whole)[1] if ending in COMPRESSED else ending


@contextlib.contextmanager
def open_plain(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; one that is compressed is unpacked before.

    Raises:
      ClaraError: it cannot be read, or is not what its ending says.
    """
    codec = COMPRESSED.get(Path(path).suffix.lower())
    try:
        with open(path, "rb") as file:
            if codec is None:
                yield file
                return
            with scratch() as plain:
                _unpack(str(path), file, codec, plain)
                yield plain
    except OSError as error:
        raise ClaraError(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def scratch() -> Iterator[IO[bytes]]:
    """Give a file without a name, which is gone when nobody has it open."""
    with writing(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
        yield file


def _unpack(path: str, file: IO[bytes], codec: str, plain: IO[bytes]) -> None:
    try:
        with pa.CompressedInputStream(file, codec) as stream:
            while block := stream.read(1 << 20):
                plain.write(block)
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) is not None:
            raise
        line = first_line(error)
        raise ClaraError(f"{path}: is not a whole {codec} file ({line})") from error
    plain.flush()
    plain.seek(0)

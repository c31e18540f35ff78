"""Small files beside the data of a store, on a disk or in an object store.

What a place is called, ``s3://bucket/store`` or a folder, decides; credentials come
from the environment, as those clouds' own tools take them.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lance.file import LanceFileSession

from clara_jax.files import is_remote, replacing, writing
from clara_jax.native import Gone, lance_at_work


class Folder:
    """A folder named by a path or a URL; names of files are relative to it."""

    def __init__(self, place: str | os.PathLike):
        self.place = str(place).rstrip("/") if is_remote(place) else str(place)
        self._path = None if is_remote(place) else Path(place)
        if self._path is None:
            with lance_at_work(self.place):
                self._session = LanceFileSession(self.place)

    def __str__(self) -> str:
        return self.place

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        if self._path is not None:
            return (self._path / name).is_file()
        with lance_at_work(f"{self.place}/{name}"):
            return self._session.contains(name)

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None: there is none."""
        try:
            with self.fetch(name) as file:
                return file.read_bytes()
        except (FileNotFoundError, NotADirectoryError, Gone):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, see `put`."""
        with self.put(name) as file:
            file.write_bytes(data)

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Give a file to read: the one of this name, or a copy on this machine."""
        if self._path is not None:
            yield self._path / name
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "file")
            with lance_at_work(f"{self.place}/{name}"):
                self._session.download_file(name, str(file))
            yield file

    @contextlib.contextmanager
    def put(self, name: str) -> Iterator[Path]:
        """Give a file to write, which then takes the place of the one of this name.

        Raises:
          ClaraError: the disk is full, or nothing can be written there.
        """
        if self._path is not None:
            with replacing(self._path / name) as file:
                yield file
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "file")
            with writing(file):
                yield file
            with lance_at_work(f"{self.place}/{name}", "written"):
                self._session.upload_file(str(file), name)

    def copy(self, other: "Folder", name: str) -> None:
        """Copy a file of another folder."""
        if not other.has(name):
            raise Gone(f"{other}/{name}: is missing")
        with other.fetch(name) as old, self.put(name) as new:
            shutil.copyfile(old, new)

    def names(self) -> list[str]:
        """Return the names of all files below the folder, sorted."""
        if self._path is not None:
            found = (p for p in self._path.rglob("*") if p.is_file())
            return sorted(p.relative_to(self._path).as_posix() for p in found)
        with lance_at_work(self.place):
            return sorted(self._session.list())

    def remove(self, name: str = "") -> None:
        """Remove a file, or without a name all of the folder."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                (self._path / name).unlink() if name else shutil.rmtree(self._path)
            return
        for each in [name] if name else self.names():
            # Another process may be removing it, too.
            with contextlib.suppress(Gone), lance_at_work(self.place):
                self._session.delete_file(each)

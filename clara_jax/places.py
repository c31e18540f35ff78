"""Small files beside the data of a store, on a disk or in an object store.

What a place is called, ``s3://bucket/store`` or a folder, decides; credentials come
from the environment, as those clouds' own tools take them.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from lance.file import LanceFileSession

from clara_jax.files import replace_file, writing
from clara_jax.native import lance_at_work


def is_remote(place: str | os.PathLike) -> bool:
    """Return whether a place is in an object store."""
    return "://" in str(place)


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

    def child(self, name: str) -> "Folder":
        """Return a folder below this one."""
        return Folder(f"{self.place}/{name}")

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None: there is none."""
        if self._path is not None:
            try:
                return (self._path / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        with (
            lance_at_work(f"{self.place}/{name}"),
            tempfile.TemporaryDirectory() as folder,
        ):
            if not self._session.contains(name):
                return None
            self._session.download_file(name, f"{folder}/file")
            return Path(folder, "file").read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all.

        Raises:
          ClaraError: the disk is full, or nothing can be written there.
        """
        if self._path is not None:
            replace_file(self._path / name, data)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "file").write_bytes(data)
            self.upload(Path(folder, "file"), name)

    def upload(self, file: Path, name: str) -> None:
        """Copy a file of this machine into the folder."""
        if self._path is not None:
            with writing(self._path / name):
                (self._path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, self._path / name)
            return
        with lance_at_work(f"{self.place}/{name}"):
            self._session.upload_file(str(file), name)

    def download(self, name: str, file: Path) -> None:
        """Copy a file to this machine."""
        file.parent.mkdir(parents=True, exist_ok=True)
        if self._path is not None:
            with writing(file):
                shutil.copyfile(self._path / name, file)
            return
        with lance_at_work(f"{self.place}/{name}"), writing(file):
            self._session.download_file(name, str(file))

    def copy(self, other: "Folder", name: str) -> None:
        """Copy a file of another folder."""
        with tempfile.TemporaryDirectory() as folder:
            other.download(name, Path(folder, "file"))
            self.upload(Path(folder, "file"), name)

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
        with lance_at_work(self.place):
            for each in [name] if name else self.names():
                self._session.delete_file(each)

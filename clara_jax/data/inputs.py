"""Checksums of what a command reads; a file that has not changed is not read again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_jax.data.progress import Progress
from clara_jax.errors import ClaraError
from clara_jax.files import checksum, read_json

INPUTS = "inputs.json"
"""Where a folder made of inputs keeps what is known of them."""


class Inputs:
    """Checksums of files, and of TFDS folders.

    Args:
      paths: files and folders, with ``#split`` or without.
      known: folders with an `INPUTS` of before: what has its size and time from there
        has its checksum, too.
      progress: makes the bar, of bytes.

    Attributes:
      checksums: one a path.
      files: size, time of change and checksum of each file, for `INPUTS`.

    Raises:
      ClaraError: a file cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        known: Sequence[Path],
        progress: Progress,
    ):
        before: dict[str, Any] = {}
        for folder in known:
            if (folder / INPUTS).is_file():
                before |= read_json(folder / INPUTS)
        roots = [Path(str(path).partition("#")[0]) for path in paths]
        found = [_files(root) for root in roots]
        times = {str(file): _times(file) for files in found for file in files}
        self.files: dict[str, Any] = {
            name: before[name]
            for name, own in times.items()
            if name in before and before[name][:2] == own
        }
        left = [name for name in times if name not in self.files]
        if left:
            total = sum(times[name][0] for name in left)
            with progress(
                desc="check inputs", total=total, unit="B", unit_scale=True
            ) as bar:
                for name in left:
                    _, content = checksum(Path(name), bar.update)
                    self.files[name] = [*times[name], content]
        self.checksums = [
            self._together(root, files)
            for root, files in zip(roots, found, strict=True)
        ]

    def _together(self, root: Path, files: Sequence[Path]) -> str:
        if not root.is_dir():
            return self.files[str(root)][2]
        digest = hashlib.blake2b(digest_size=16)
        for file in files:
            content = self.files[str(file)][2]
            digest.update(f"{file.relative_to(root)}\0{content}\n".encode())
        return digest.hexdigest()


def _files(root: Path) -> list[Path]:
    if root.is_dir():
        return sorted(path for path in root.rglob("*") if path.is_file())
    return [root]


def _times(file: Path) -> list[int]:
    """Size and time of change of a file."""
    try:
        found = file.stat()
    except OSError as error:
        raise ClaraError(f"{file}: {error.strerror or error}") from error
    return [found.st_size, found.st_mtime_ns]

"""What long work needs to go on where it was killed.

Checksums of its inputs, of which none is read twice; files that grow step by step; and
bars that show how much is done and left.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clara_jax.errors import ClaraError
from clara_jax.files import checksum, read_json

Progress = Callable[..., Any]
"""Makes a progress bar out of `desc`, `total`, `initial`, `unit` and `unit_scale`, as
tqdm does."""

silent = functools.partial(tqdm, disable=True)
"""A progress that shows nothing."""

INPUTS = "inputs.json"
"""Where a folder made of inputs keeps what is known of them."""


def checksums(
    paths: Sequence[str | Path], progress: Progress, known: Sequence[Path] = ()
) -> tuple[list[str], dict[str, Any]]:
    """Return the checksums of files and of TFDS folders.

    Args:
      paths: files and folders, with ``#split`` or without.
      progress: makes the bar, of bytes.
      known: folders with an `INPUTS`: what has its size and time of change from there
        has its checksum, too, and is not read.

    Returns:
      One checksum a path; size, time of change and checksum of each file, for `INPUTS`.
    """
    before: dict[str, Any] = {}
    for folder in known:
        if (folder / INPUTS).is_file():
            before |= read_json(folder / INPUTS)
    roots = [Path(str(path).partition("#")[0]) for path in paths]
    inside = [_files(root) for root in roots]
    times = {str(file): _times(file) for files in inside for file in files}
    found = {k: before[k] for k, v in times.items() if before.get(k, [])[:2] == v}
    left = [name for name in times if name not in found]
    if left:
        total = sum(times[name][0] for name in left)
        with progress(
            desc="check inputs", total=total, unit="B", unit_scale=True
        ) as bar:
            for name in left:
                found[name] = [*times[name], checksum(Path(name), bar.update)[1]]
    pairs = zip(roots, inside, strict=True)
    return [_together(root, files, found) for root, files in pairs], found


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


def _together(root: Path, files: Sequence[Path], found: Mapping[str, Any]) -> str:
    if files == [root]:
        return found[str(root)][2]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        content = found[str(file)][2]
        digest.update(f"{file.relative_to(root)}\0{content}\n".encode())
    return digest.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the names of what differs, at most three; empty if nothing does."""
    names = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_begun(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse to go on with work that was begun with other settings or inputs."""
    different = differences(before, now)
    if different:
        raise ClaraError(
            f"{folder}: was begun with other settings or inputs ({different}); delete "
            "it to start anew"
        )


def append_lines(
    path: Path,
    size: int,
    steps: Iterable[Sequence[Mapping[str, Any]]],
    note: Callable[[int, int], None],
    bar: Any,
) -> None:
    """Append JSON lines to a file step by step.

    Args:
      path: the file; missing folders are made.
      size: bytes of it that were noted; what follows them is half a step, and goes.
      steps: objects that are written together.
      note: called when a step is on the disk, with its lines and the file's size.
      bar: shows the lines.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(size)
        file.seek(size)
        for rows in steps:
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
            note(len(lines), file.tell())
            bar.update(len(lines))

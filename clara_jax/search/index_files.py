"""The folder of a search index, replaced whole or not at all.

index/KIND/meta.json    what is indexed, and checksums; names the folder in use
index/KIND/NUMBER/      the files

A new index is written beside the old one; replacing ``meta.json`` by rename is what
makes it the index. What a killed command left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_error
from clara_jax.search import locks
from clara_jax.search.manifest import digest_of, json_bytes, new_checksum, replace_file
from clara_jax.search.store import Store

FORMAT = 1
"""Of the folder; a program reads its own only."""

META = "meta.json"

KINDS = {"scann": ("ScaNN", ""), "bm25": ("BM25", " --bm25")}
"""Indexes: what users call them, and the option that builds them."""


def index_folder(store: Store, kind: str) -> Path:
    """Where an index of a store lies."""
    return store.path / "index" / kind


def remedy(store: Store, kind: str) -> str:
    """What to do about an index that does not serve."""
    option = KINDS[kind][1]
    return (
        f"build it with `python -m clara_jax.compress index --store {store.path}"
        f"{option}`, or search without it"
    )


def is_there(store: Store, kind: str) -> bool:
    """Whether a store has such an index, be it out of date."""
    return (index_folder(store, kind) / META).is_file()


def read_note(store: Store, kind: str) -> dict[str, Any]:
    """Read what an index holds.

    Returns:
      ``fingerprint`` and ``epoch`` of the store, its ``rows`` when it was indexed,
      ``folder`` and ``files`` in use, and what the kind of index adds.

    Raises:
      ClaraError: there is none, it is damaged, or of another format.
    """
    path = index_folder(store, kind) / META
    if not path.is_file():
        name = KINDS[kind][0]
        raise ClaraError(f"{store.path}: has no {name} index; {remedy(store, kind)}")
    values = read_json(path)
    if values.pop("format", None) != FORMAT:
        raise ClaraError(
            f"{path}: is not of format {FORMAT}, which this version of clara_jax "
            f"reads; {remedy(store, kind)}"
        )
    if values.pop("checksum", None) != digest_of(values):
        raise ClaraError(
            f"{path}: is damaged (its checksum is wrong); {remedy(store, kind)}"
        )
    return values


def write_note(store: Store, kind: str, note: Mapping[str, Any]) -> None:
    """Put a note in place of what is there; this is what makes an index the index."""
    values = {**note, "checksum": digest_of(note), "format": FORMAT}
    replace_file(index_folder(store, kind) / META, json_bytes(values))


def check_note(store: Store, kind: str, note: Mapping[str, Any]) -> None:
    """Refuse an index of other vectors or other row numbers.

    Raises:
      ClaraError: it is one.
    """
    where = index_folder(store, kind)
    if note["fingerprint"] != store.fingerprint:
        raise ClaraError(
            f"{where}: was built for vectors of another model (fingerprint "
            f"{note['fingerprint']}, the store's is {store.fingerprint}); "
            f"{remedy(store, kind)}"
        )
    if note["epoch"] != store.epoch or note["rows"] > store.rows:
        raise ClaraError(
            f"{where}: was built for epoch {note['epoch']} of the store, which is in "
            f"epoch {store.epoch} since it was compacted: its rows have other numbers; "
            f"{remedy(store, kind)}"
        )


def check_files(store: Store, kind: str, note: Mapping[str, Any]) -> Path:
    """Return the folder of an index after comparing all checksums.

    Raises:
      ClaraError: a file is missing, truncated or changed.
    """
    folder = index_folder(store, kind) / note["folder"]
    for name, expected in note["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            found = expected if size != expected["size"] else _summed(path)
        except OSError as error:
            raise ClaraError(
                f"{path}: cannot be read ({error.strerror}); {remedy(store, kind)}"
            ) from error
        if size != expected["size"]:
            what = "is truncated" if size < expected["size"] else "has grown"
            raise ClaraError(
                f"{path}: {what} ({size} bytes, not {expected['size']}); "
                f"{remedy(store, kind)}"
            )
        if found != expected:
            raise ClaraError(
                f"{path}: is damaged (its checksum is wrong); {remedy(store, kind)}"
            )
    return folder


@contextlib.contextmanager
def hold(store: Store, kind: str) -> Iterator[None]:
    """Let nobody else build an index of a store meanwhile.

    Raises:
      ClaraError: somebody does.
    """
    lock = locks.hold(
        store.path / locks.FOLDER / f"index-{kind}",
        False,
        f"{store.path}: another process is building its {KINDS[kind][0]} index; wait "
        "until it has ended",
    )
    try:
        yield
    finally:
        lock.release()


def write_index(
    store: Store,
    kind: str,
    write: Callable[[Path], None],
    note: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a new index beside the old one, and put it in its place.

    Call it inside `hold`.

    Args:
      store, kind: whose index it is, and which.
      write: writes the files into a folder.
      note: what the kind of index has to say.

    Returns:
      The note, complete.

    Raises:
      ClaraError: it cannot be written; the old index stays.
    """
    index = index_folder(store, kind)
    current = ""
    with contextlib.suppress(ClaraError):
        current = read_note(store, kind)["folder"]
    number = str(int(current or 0) + 1)
    folder = index / number
    try:
        index.mkdir(parents=True, exist_ok=True)
        _remove_all_but(index, {META, current})
        folder.mkdir()
        try:
            write(folder)
            files = {
                path.name: _summed(path, sync=True) for path in sorted(folder.iterdir())
            }
            whole = {
                **note,
                "fingerprint": store.fingerprint,
                "epoch": store.epoch,
                "rows": store.rows,
                "folder": number,
                "files": files,
            }
            write_note(store, kind, whole)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        _remove_all_but(index, {META, number})
    except OSError as error:
        if error.errno is None:  # numpy tells that it wrote too little, but not why
            error.errno = errno.ENOSPC
        raise write_error(index, error) from error
    return whole


def _remove_all_but(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _summed(path: Path, sync: bool = False) -> dict[str, Any]:
    checksum = new_checksum()
    with path.open("rb") as file:
        while data := file.read(1 << 22):
            checksum.update(data)
        if sync:
            os.fsync(file.fileno())
        size = file.tell()
    return {"size": size, "checksum": checksum.hexdigest()}

"""``store.json``: what a store of document vectors holds, and the step that changes it.

A change writes new files beside the old ones and then replaces ``store.json`` by
rename. Whenever a process is killed, the store is what it was before or after; what it
left behind is not named in the manifest, and the next change removes it.

Locks end with the process that holds them. Several processes may write one store
together, each its own part of the shards; an edit wants the store for itself. Where the
file system has no locks, nobody is kept out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import numpy as np
from jaxtyping import Int64

from clara_jax.config import MemoryConfig, parse
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_error
from clara_jax.search.codecs import check_codec

FORMAT = 1
"""Of the folder; a program reads its own only."""

MANIFEST = "store.json"
JOB = "job.json"
SHARDS = "shards"
LOCKS = ".locks"

PATIENCE = 20.0
"""Seconds that a job waits for another's beginning or end, or for an edit."""

_HASH = functools.partial(hashlib.blake2b, digest_size=16)


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """What all vectors of a store have in common.

    Attributes:
      fingerprint: of everything that document vectors depend on.
      model: a path relative to the store, an absolute one, or a hub name.
      base: the same for a backbone kept elsewhere; empty: none.
      memory: how a document became vectors.
      width: D.
      dtype: how vectors are kept, one of ``codecs.CODECS``.
      compute: type that the model computed in; for information.
      center: see ``codecs.center_of``.
    """

    fingerprint: str
    model: str
    base: str
    memory: MemoryConfig
    width: int
    dtype: str = "bfloat16"
    compute: str = ""
    center: str = ""

    def __post_init__(self) -> None:
        check_codec(self.dtype)


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard, as the manifest knows it.

    Attributes:
      name: its folder under ``shards/``.
      rows: documents in it.
      sizes: bytes of each of its files.
      digest: checksum of its ``shard.json``, which holds those of its other files.
    """

    name: str
    rows: int
    sizes: dict
    digest: str


@dataclasses.dataclass(frozen=True)
class DeletedInfo:
    """The file of deleted row numbers: sorted int64."""

    file: str
    count: int
    size: int
    checksum: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(StoreSettings):
    """A store at one moment.

    Attributes:
      epoch: raised by compaction, which gives documents other row numbers.
      generation: raised by every change.
      shards: in the order of their rows.
      deleted: rows that are no longer part of it; None: all are.
      job: digest of the job that made this generation; empty after an edit.
    """

    epoch: int = 0
    generation: int = 1
    shards: tuple[ShardInfo, ...] = ()
    deleted: DeletedInfo | None = None
    job: str = ""

    @property
    def rows(self) -> int:
        """Rows of all shards, deleted ones included."""
        return sum(shard.rows for shard in self.shards)


def read_manifest(store: Path) -> Manifest:
    """Read a manifest; refuse a store that is unfinished or damaged, or is none."""
    path = store / MANIFEST
    if not path.is_file():
        if (store / JOB).is_file():
            raise ClaraError(
                f"{store}: is not finished; go on with the same `python -m "
                "clara_jax.compress` command"
            )
        raise ClaraError(
            f"{store}: holds no {MANIFEST}, so it is not a store of document vectors; "
            "make one with `python -m clara_jax.compress`"
        )
    values = _read_signed(
        path,
        "use the version that wrote it, or compress the documents again",
        "bring back a copy of the file, or compress the documents again",
    )
    del values["format"]
    return parse(Manifest, values, str(path))


def replace_manifest(
    store: Path, manifest: Manifest, deleted: Int64[np.ndarray, "n"] | None = None
) -> None:
    """Make a manifest the store's, with some more rows deleted."""
    if deleted is not None and len(deleted):
        rows = np.union1d(read_deleted(store, manifest), deleted)
        data = array_bytes(rows.astype(np.int64))
        name = f"deleted-{manifest.generation:06d}.npy"
        replace_file(store / name, data)
        info = DeletedInfo(name, len(rows), len(data), checksum_of(data))
        manifest = dataclasses.replace(manifest, deleted=info)
    write_signed(store / MANIFEST, {"format": FORMAT, **dataclasses.asdict(manifest)})
    remove_strays(store, manifest)


def read_deleted(store: Path, manifest: Manifest) -> Int64[np.ndarray, "n"]:
    """Read the sorted numbers of the rows that are deleted."""
    info = manifest.deleted
    if info is None:
        return np.empty(0, np.int64)
    path = store / info.file
    if wrong := wrong_file(path, info.size, info.checksum):
        raise ClaraError(f"{path}: {wrong}; if the store was changed, open it again")
    return np.load(path, allow_pickle=False)


def read_job(store: Path, manifest: Manifest | None) -> dict[str, Any] | None:
    """Read the job that is under way in a store; None: there is none."""
    path = store / JOB
    if not path.is_file():
        return None
    values = _read_signed(
        path,
        "finish it with the version that began it",
        "remove it to give up what is being written",
    )
    # One that is in the manifest was killed in the last step of its commit.
    done = manifest is not None and values["generation"] <= manifest.generation
    return None if done else values


def find_strays(store: Path, manifest: Manifest | None) -> list[Path]:
    """List what killed processes left: named by no manifest and no job under way."""
    found = sorted(store.glob(".*.tmp"))
    kept = {shard.name for shard in manifest.shards} if manifest else set()
    shards = [path for path in store.glob(f"{SHARDS}/*") if path.name not in kept]
    with contextlib.suppress(ClaraError):
        if job := read_job(store, manifest):
            own = f"{job['generation']:06d}-"
            shards = [p for p in shards if not p.name.lstrip(".").startswith(own)]
        else:
            found += store.glob(JOB)
    deleted = manifest.deleted.file if manifest and manifest.deleted else ""
    found += [path for path in store.glob("deleted-*.npy") if path.name != deleted]
    return found + sorted(shards)


def remove_strays(store: Path, manifest: Manifest | None) -> None:
    """Remove what `find_strays` lists, as far as that can be done."""
    for stray in find_strays(store, manifest):
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                stray.unlink(missing_ok=True)


def shard_folder(store: Path, generation: int, k: int) -> Path:
    """Return the folder of shard `k` of a generation."""
    return store / SHARDS / f"{generation:06d}-{k:06d}"


def wrong_file(path: Path, size: int, checksum: str = "") -> str:
    """Return what is wrong with a file's size or checksum (if given), or nothing."""
    try:
        found = path.stat().st_size
        if found != size:
            what = "is truncated" if found < size else "has grown"
            return f"{what} ({found} bytes, not {size})"
        if checksum:
            with path.open("rb") as file:
                if hashlib.file_digest(file, _HASH).hexdigest() != checksum:
                    return "is damaged (its checksum is wrong)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def write_signed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, whole or not at all."""
    replace_file(path, json_bytes({**values, "checksum": digest_of(values)}))


def _read_signed(path: Path, other_format: str, damaged: str) -> dict[str, Any]:
    """Read what `write_signed` wrote; the two texts say what to do if that fails."""
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise ClaraError(
            f"{path}: is of format {values.get('format')!r}, but this version of "
            f"clara_jax reads format {FORMAT}; {other_format}"
        )
    if values.pop("checksum", None) != digest_of(values):
        raise ClaraError(f"{path}: is damaged (its checksum is wrong); {damaged}")
    return values


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Return a JSON object as text, the same for equal objects."""
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=True)
    return text.encode() + b"\n"


def array_bytes(array: Any) -> bytes:
    """Return an array as a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def digest_of(values: Mapping[str, Any]) -> str:
    """Return a checksum of a JSON object, whatever the order of its keys."""
    return checksum_of(json.dumps(values, sort_keys=True).encode())


def checksum_of(data: Any) -> str:
    """Return the checksum of bytes, as all files of a store have one."""
    return _HASH(data).hexdigest()


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; several processes may write the same one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(temporary, data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error


def write_bytes(path: Path, data: Any) -> None:
    """Write a file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class Lock(contextlib.AbstractContextManager):
    """A file in `LOCKS` that this process holds until `release`, which removes it.

    Args:
      store: the store's folder.
      name: of the file.
      busy: what another holder is doing; the end of the error's sentence.
      patience: seconds to wait; by default for a process that is just giving it back.
    """

    def __init__(self, store: Path, name: str, busy: str, patience: float = 0.5):
        self._path = store / LOCKS / name
        self._file: IO[bytes] | None = None
        end = time.monotonic() + patience
        while fcntl is not None and not self._take():
            if time.monotonic() > end:
                raise ClaraError(f"{store}: another process is {busy}")
            time.sleep(0.025)

    def _take(self) -> bool:
        assert fcntl is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("ab")
        except (FileNotFoundError, FileExistsError):  # the folder was just removed
            return False
        except OSError as error:
            raise write_error(self._path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed between opening and locking it.
            if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                self._file = file
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:  # a file system without locks
            self._file = file
            self.release()
            return True
        file.close()
        return False

    def release(self) -> None:
        """Let others in; may be called again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
                self._path.parent.rmdir()
            self._file.close()
            self._file = None

    def __exit__(self, *error: Any) -> None:
        self.release()


def hold_store(store: Path) -> Lock:
    """Hold a store alone: for an edit, or while a job begins or is committed."""
    busy = "editing this store or beginning to write to it; wait until it has ended"
    return Lock(store, "store", busy, PATIENCE)


def hold_part(store: Path, part: int, parts: int) -> Lock:
    """Hold one part of the shards; all holders must count as many parts."""
    mine = Lock(
        store,
        f"part-{part}-of-{parts}",
        f"writing part {part + 1} of {parts} of this store; wait until it has ended, "
        "or give another --part",
    )
    for path in (store / LOCKS).glob("part-*-of-*"):
        theirs = path.name.rpartition("-")[2]
        if theirs != str(parts) and _is_held(path):
            mine.release()
            raise ClaraError(
                f"{store}: another process shares this store out in {theirs} parts, "
                f"this one in {parts}; give all the same number with --part"
            )
    return mine


def sweep(store: Path) -> bool:
    """Remove locks that killed processes left; return whether a part is held."""
    held = [_is_held(path) for path in (store / LOCKS).glob("part-*-of-*")]
    return any(held)


def _is_held(path: Path) -> bool:
    try:
        Lock(path.parent.parent, path.name, "", 0).release()
    except ClaraError:
        return True
    return False

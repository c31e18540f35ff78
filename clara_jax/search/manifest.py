"""``store.json``: what a store of document vectors holds, and the step that changes it.

A change writes new files beside the old ones and then replaces ``store.json`` by
rename. What a killed process left is not named there, and the next change removes it.

Several processes may write one store together, each its own part of the shards; an edit
wants the store for itself. Locks end with their process; where the file system has
none, nobody is kept out.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
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
from clara_jax.files import read_json, replace_file, write_error
from clara_jax.search.codecs import code_type

FORMAT = 1  # of the folder; a program reads its own only
MANIFEST = "store.json"
JOB = "job.json"
SHARDS = "shards"
LOCKS = ".locks"

PATIENCE = 20.0  # seconds that a job waits for another to begin or end, or for an edit

_HASH = functools.partial(hashlib.blake2b, digest_size=16)


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """What all vectors of a store have in common."""

    fingerprint: str  # of everything that document vectors depend on
    model: str  # a path relative to the store, an absolute one, or a hub name
    base: str  # the same for a backbone kept elsewhere; empty: none
    memory: MemoryConfig  # how a document became vectors
    width: int  # D
    dtype: str = "bfloat16"  # how vectors are kept, one of `codecs.CODECS`
    compute: str = ""  # type that the model computed in; for information
    center: str = ""  # see `codecs.center_of`

    def __post_init__(self) -> None:
        code_type(self.dtype, self.width)  # refuses a codec that there is not


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard, as the manifest knows it."""

    name: str  # of its folder
    rows: int  # documents
    sizes: dict  # bytes of each file
    digest: str  # checksum of its shard.json, which holds those of the other files


@dataclasses.dataclass(frozen=True)
class DeletedInfo:
    """The file of deleted row numbers: sorted int64."""

    file: str
    count: int  # of rows
    size: int  # bytes
    checksum: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(StoreSettings):
    """A store at one moment."""

    epoch: int = 0  # raised by compaction, which gives documents other row numbers
    generation: int = 1  # raised by every change
    shards: tuple[ShardInfo, ...] = ()  # in the order of their rows
    deleted: DeletedInfo | None = None  # rows that are no longer part of it
    job: str = ""  # digest of the job that made this generation; empty after an edit

    def edited(self, **changes: Any) -> "Manifest":
        """Return the manifest of the next generation, made by an edit."""
        generation = self.generation + 1
        return dataclasses.replace(self, generation=generation, job="", **changes)


def read_manifest(store: Path) -> Manifest:
    """Read a manifest; refuse a store that is unfinished or damaged, or is none."""
    path, command = store / MANIFEST, "`python -m clara_jax.compress`"
    if not path.is_file():
        if (store / JOB).is_file():
            raise ClaraError(f"{store}: is not finished; go on with the same {command}")
        raise ClaraError(
            f"{store}: holds no {MANIFEST}, so it is not a store of document vectors; "
            f"make one with {command}"
        )
    values = _read_signed(
        path,
        "use the version that wrote it, or compress the documents again",
        "bring back a copy of the file, or compress the documents again",
    )
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
    write_signed(store / MANIFEST, dataclasses.asdict(manifest))
    remove(find_strays(store, manifest))


def read_deleted(store: Path, manifest: Manifest) -> Int64[np.ndarray, "n"]:
    """Read the sorted numbers of deleted rows; refuse a missing or damaged file."""
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


def shard_folder(store: Path, generation: int, k: int) -> Path:
    """Return the folder of shard `k` of a generation."""
    return store / SHARDS / f"{generation:06d}-{k:06d}"


def find_strays(store: Path, manifest: Manifest | None) -> list[Path]:
    """List what killed processes left: named by no manifest and no job under way."""
    found = sorted(store.glob(".*.tmp"))
    kept = {shard.name for shard in manifest.shards} if manifest else set()
    if manifest and manifest.deleted:
        kept.add(manifest.deleted.file)
    own = "no job"
    with contextlib.suppress(ClaraError):
        if job := read_job(store, manifest):
            own = f"{job['generation']:06d}-"
        else:
            found += store.glob(JOB)
    files = [*store.glob("deleted-*.npy"), *sorted(store.glob(f"{SHARDS}/*"))]
    unknown = [path for path in files if path.name not in kept]
    return found + [x for x in unknown if not x.name.lstrip(".").startswith(own)]


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders, as far as that can be done."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


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
    """Write a JSON object with format and checksum, whole or not at all."""
    values = {**values, "format": FORMAT}
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
    del values["format"]
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


class Lock(contextlib.AbstractContextManager):
    """A file in `LOCKS` that this process holds until `release`, which removes it.

    It waits `patience` seconds for another holder, then refuses with what that one is
    doing, `busy`.
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

    def __exit__(self, *_: Any) -> None:
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
    for theirs in held_parts(store, besides=str(parts)):
        mine.release()
        raise ClaraError(
            f"{store}: another process shares this store out in {theirs} parts, "
            f"this one in {parts}; give all the same number with --part"
        )
    return mine


def held_parts(store: Path, besides: str = "") -> list[str]:
    """Return the counts of parts of which one is held; let go of all others.

    Locks of `besides` parts are not touched: their holders may just be taking them.
    """
    held = []
    for path in (store / LOCKS).glob("part-*-of-*"):
        count = path.name.rpartition("-")[2]
        try:
            if count != besides:
                Lock(store, path.name, "", 0).release()
        except ClaraError:
            held.append(count)
    return held

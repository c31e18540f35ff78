"""Take documents out of a store, give their room back, and check every row."""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clara_jax.errors import ClaraError
from clara_jax.native import lance_at_work, quiet
from clara_jax.places import Folder, is_remote
from clara_jax.search.data_files import has_wrong_end
from clara_jax.search.rows import (
    checksums_of,
    checksums_of_vectors,
    document_columns,
    to_numpy,
)
from clara_jax.search.store import FIXED, JOBS, Store
from clara_jax.search.transactions import Change, change, exchange, keep_job

_ROWS = 4096  # read together by a check


def delete(place: str | os.PathLike, ids: Sequence[str]) -> int:
    """Take documents out of a store; return how many rows those were.

    The files stay as they are until `compact`.

    Raises:
      ClaraError: the store has no document of an id (then none is deleted), or the disk
        is full.
    """
    count = 0

    def make() -> Change | None:
        nonlocal count
        store = Store.open(place)
        rows = store.matching(ids)
        known = set(store.strings(rows, "id"))
        unknown = [f"'{id}'" for id in dict.fromkeys(ids) if not id or id not in known]
        if unknown:
            names = ", ".join(unknown[:5])
            names += f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            what = f"has no document with the id {names}; nothing was deleted"
            raise ClaraError(f"{place}: {what}")
        count = len(rows)
        return exchange(store, rows, ()) if count else None

    change(str(place), make, {})
    return count


def compact(place: str | os.PathLike, keep: datetime.timedelta | None = None) -> int:
    """Drop deleted rows for good and join small files; return the bytes given back.

    Row ids, and so indexes, stay as they are. Versions before are dropped, but those
    younger than `keep`; who has one of them open goes on at the newest.

    Raises:
      ClaraError: another process is changing the store, or the disk is full: new files
        need room beside the old ones.
    """
    store = Store.open(place)
    with lance_at_work(store.place, "written"):
        keep_job(store)
        store.dataset.optimize.compact_files(materialize_deletions_threshold=0.0)
        cleaned = store.newest().dataset.cleanup_old_versions(
            older_than=keep or datetime.timedelta(0), error_if_tagged_old_versions=False
        )
    return cleaned.bytes_removed


def versions(place: str | os.PathLike) -> list[tuple[int, datetime.datetime, int]]:
    """Return each version of a store that is kept: number, time (UTC) and rows."""
    store = Store.open(place)
    with lance_at_work(store.place):
        found: list[Any] = store.dataset.versions()
    # Lance gives local times that do not say so.
    return [
        (
            version["version"],
            version["timestamp"].astimezone(datetime.UTC),
            int(version["metadata"]["total_rows"]),
        )
        for version in found
    ]


def check(
    place: str | os.PathLike, progress: Callable[[int, int], None] = lambda *_: None
) -> list[str]:
    """Compare every row with its checksum; return a line for each thing that is wrong.

    After each file `progress` is called with the rows read, of how many. Search
    indexes, which can be built again, are not looked at.

    Raises:
      ClaraError: there is no store.
    """
    store = Store.open(place)
    findings, done = [], 0
    fragments = store.dataset.get_fragments()
    total = sum(fragment.physical_rows for fragment in fragments)
    for fragment in fragments:
        wrong = list(_wrong_sizes(store, fragment))
        with quiet():
            findings += wrong or _check_rows(store, fragment)
        done += fragment.physical_rows
        progress(done, total)
    for name in Folder(place).names():
        if name.startswith(f"{JOBS}/") and name.endswith("/job.json"):
            findings.append(
                f"{place}/{name}: documents are still being put in; finish that with "
                "the command that began it, or remove the folder to give it up"
            )
    return findings


def _wrong_sizes(store: Store, fragment) -> Iterator[str]:
    """Look at the sizes and ends of a fragment's files on this machine."""
    for file in [] if is_remote(store.place) else fragment.data_files():
        path = Path(store.place, "data", file.path)
        if not path.exists():
            yield f"{path}: is missing"
        elif file.file_size_bytes and path.stat().st_size != file.file_size_bytes:
            found = path.stat().st_size
            what = "is truncated" if found < file.file_size_bytes else "has grown"
            yield f"{path}: {what} ({found} bytes, not {file.file_size_bytes})"
        elif has_wrong_end(path):
            yield f"{path}: is damaged at its end"


def _check_rows(store: Store, fragment) -> list[str]:
    """Compare the rows of a fragment with their checksums."""
    names = [name for name in FIXED if name in store.schema.names]
    columns = document_columns(store.schema)
    mapped = not is_remote(store.place)  # as readers do
    files = ", ".join(file.path for file in fragment.data_files())
    findings = []
    try:
        with lance_at_work(store.place):
            for batch in fragment.to_batches(
                columns=columns if mapped else list({*names, *columns}),
                with_row_address=True,
                batch_size=_ROWS,
            ):
                table = pa.Table.from_batches([batch])
                if mapped:
                    places = to_numpy(table["_rowaddr"]) & np.uint64(0xFFFFFFFF)
                    found = store.columns(fragment.fragment_id)
                    arrays = {name: found[name][places] for name in names}
                else:
                    arrays = {name: to_numpy(table[name]) for name in names}
                sums = checksums_of_vectors(arrays) << np.uint64(32)
                sums |= checksums_of(table)
                for i in np.flatnonzero(sums != arrays["checksum"]):
                    id, part = table["id"][i].as_py(), table["part"][i].as_py()
                    findings.append(
                        f"{store.place}/data/{files}: part {part} of document {id!r} "
                        "is damaged (its checksum is wrong); put it in again with "
                        "--replace"
                    )
    except ClaraError as error:
        findings.append(f"{store.place}/data/{files}: {error}")
    return findings

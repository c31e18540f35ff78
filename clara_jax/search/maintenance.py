"""What is done to a store that is there: each change is one transaction of Lance.

Where another process changed the store meanwhile, the transaction is made anew.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from lance import FragmentMetadata, LanceDataset, LanceOperation, Transaction
from tqdm import tqdm

from clara_jax.errors import ClaraError
from clara_jax.files import is_remote
from clara_jax.lance_files import to_numpy, wrong_files
from clara_jax.native import Conflict, Gone, lance_at_work, quiet
from clara_jax.places import Folder
from clara_jax.search.rows import (
    checksums_of,
    checksums_of_vectors,
    damaged,
    document_columns,
)
from clara_jax.search.store import JOBS, NoStore, Store

Change = tuple[int, LanceOperation.BaseOperation]
"""What is done, and the version of the store that it was made for, 0 for none."""

JOB = "clara_job"  # property of a transaction: the digest of its job

_TRIES = 20  # commits that others may come before
_CHANGING = ("Append", "Delete", "Overwrite", "Update", "Restore")
_ROWS = 4096  # read together by a check


def store_of(place: str) -> Store | None:
    """Open a store; None where there is none yet."""
    try:
        return Store.open(place)
    except NoStore:
        return None


def changes(store: Store) -> Iterator[tuple[int, str]]:
    """Yield each change of a store's documents, the last first: its version and job.

    The job is empty for what is no job's. Of versions that a compaction removed there
    is one change, with version 0; see `keep_job`.
    """
    count = min(store.version, 10_000)
    with contextlib.suppress(ClaraError), lance_at_work(store.place):
        for number, made in enumerate(store.dataset.get_transactions(count)):
            if made is not None:
                job = (made.transaction_properties or {}).get(JOB, "")
                if job or type(made.operation).__name__ in _CHANGING:
                    yield store.version - number, job
    yield 0, store.dataset.config().get(JOB, "")


def keep_job(store: Store) -> None:
    """Keep the job of the last change beyond the versions that a compaction removes."""
    _, job = next(changes(store))
    if job != store.dataset.config().get(JOB, ""):
        store.dataset.update_config({JOB: job})


def change(
    place: str, make: Callable[[], Change | None], properties: Mapping[str, str]
) -> None:
    """Commit what `make` returns, made anew for each try; None: there is nothing to do.

    Raises:
      ClaraError: it cannot be written, or others keep coming first.
    """
    last: ClaraError | None = None
    for _ in range(_TRIES):
        try:
            made = make()
            if made is None:
                return
            version, operation = made
            with lance_at_work(place, "written"):
                LanceDataset.commit(
                    place,
                    Transaction(
                        version, operation, transaction_properties=dict(properties)
                    ),
                    read_version=version,
                    max_retries=min(version, 1),  # 0: do not overwrite a store
                    enable_stable_row_ids=True,
                )
            return
        except (Conflict, Gone) as error:  # or compacted meanwhile
            last = error
    if isinstance(last, Gone):
        raise last
    raise ClaraError(
        f"{place}: other processes keep changing the store; start the command again"
    )


def exchange(
    store: Store, old: Sequence[int] | np.ndarray, new: Sequence[FragmentMetadata]
) -> Change:
    """Return what takes some rows out of a store and puts fragments in."""
    fragments = store.fragments
    removed, updated = [], {}
    with lance_at_work(store.place, "written"):
        numbers, places = store.locate(np.asarray(old, np.int64))
        for number in np.unique(numbers).tolist():
            left = fragments[number].delete_rows(places[numbers == number].tolist())
            if left is None:
                removed.append(number)
            else:
                updated[number] = left
    # Always the first, too, so that of two at once the second is refused and made anew.
    first = next((n for n in fragments if n not in removed), None)
    if first is not None:
        updated.setdefault(first, fragments[first].metadata)
    return store.version, LanceOperation.Update(
        removed_fragment_ids=removed,
        updated_fragments=list(updated.values()),
        new_fragments=list(new),
    )


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
      ClaraError: the store is damaged, another process is changing it, or the disk is
        full: new files need room beside the old ones.
    """
    store = Store.open(place)
    if found := damage(store):
        raise ClaraError(f"{found[0]}; nothing is dropped from a store that is damaged")
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
    utc = datetime.UTC  # Lance gives local times that do not say so
    return [
        (v["version"], v["timestamp"].astimezone(utc), int(v["metadata"]["total_rows"]))
        for v in found
    ]


def check(place: str | os.PathLike) -> list[str]:
    """Return a line for each thing that is wrong, or was not finished; see `damage`.

    Raises:
      ClaraError: there is no store.
    """
    store = Store.open(place)
    findings = damage(store)
    if findings and store.newest().version != store.version:
        return check(place)  # a compaction may have taken away what was read
    for name in Folder(f"{place}/{JOBS}").names():
        job, _, file = name.partition("/")
        if file == "job.json":
            findings.append(
                f"{place}/{JOBS}/{name}: documents are still being put in; finish that "
                f"with the command that began it, or remove {JOBS}/{job} to give it up"
            )
    return findings


def damage(store: Store) -> list[str]:
    """Compare every row with its checksum; return a line for each that is wrong.

    Search indexes, which can be built again, are not looked at. Shows a bar if slow.
    """
    findings, fragments = [], store.fragments.values()
    total = sum(fragment.physical_rows for fragment in fragments)
    with tqdm(total=total, desc="check", unit="piece", delay=2) as bar:
        for fragment in fragments:
            wrong = [
                f"{path}: {what}" for path, what in wrong_files(store.place, fragment)
            ]
            with quiet():
                findings += wrong or _check_rows(store, fragment)
            bar.update(fragment.physical_rows)
    return findings


def _check_rows(store: Store, fragment) -> list[str]:
    """Compare the rows of a fragment with their checksums."""
    # On this machine vectors are mapped, as readers do.
    names, mapped = store.kinds, not is_remote(store.place)
    columns = {*document_columns(store.schema), *(() if mapped else names)}
    files = f"{store.place}/data/" + ", ".join(f.path for f in fragment.data_files())
    findings = []
    try:
        with lance_at_work(store.place):
            for batch in fragment.to_batches(
                columns=list(columns),
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
                wrong = np.flatnonzero(sums != arrays["checksum"])
                findings += [str(damaged(files, table.slice(i, 1))) for i in wrong]
    except ClaraError as error:
        findings.append(f"{files}: {str(error).partition('; look at')[0]}")
    return findings

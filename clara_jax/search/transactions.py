"""What changes a store: one transaction, made anew where others came first."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from lance import FragmentMetadata, LanceDataset, LanceOperation, Transaction

from clara_jax.errors import ClaraError
from clara_jax.native import Conflict, Gone, lance_at_work
from clara_jax.search.store import NoStore, Store

Change = tuple[int, LanceOperation.BaseOperation]
"""What is done, and the version of the store that it was made for, 0 for none."""

JOB = "clara_job"  # property of a transaction: the digest of its job

_TRIES = 20  # commits that others may come before
_CHANGING = ("Append", "Delete", "Overwrite", "Update", "Restore")


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
        except (Conflict, Gone):  # or compacted meanwhile
            continue
    raise ClaraError(
        f"{place}: other processes keep changing the store; start the command again"
    )


def exchange(
    store: Store, old: Sequence[int] | np.ndarray, new: Sequence[FragmentMetadata]
) -> Change:
    """Return what takes some rows out of a store and puts fragments in."""
    fragments = {f.fragment_id: f for f in store.dataset.get_fragments()}
    removed, updated = [], {}
    with lance_at_work(store.place, "written"):
        for number, places in store.places(old).items():
            left = fragments[number].delete_rows(places.tolist())
            if left is None:
                removed.append(number)
            else:
                updated[number] = left
    # One at least, so that of two commits of one job the second is refused.
    first = next((n for n in fragments if n not in removed), None)
    if not removed and not updated and first is not None:
        updated[first] = fragments[first].metadata
    return store.version, LanceOperation.Update(
        removed_fragment_ids=removed,
        updated_fragments=list(updated.values()),
        new_fragments=list(new),
    )

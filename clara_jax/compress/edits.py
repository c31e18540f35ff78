"""What is done to a store that is there: delete, compact, check."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from clara_jax.search import Store, check, compact, delete


def delete_documents(store: Path, ids: Sequence[str]) -> int:
    """Take documents out of a store; the result is an exit status."""
    pieces = delete(store, ids)
    count = len(dict.fromkeys(ids))
    print(
        f"deleted {count} document{'s' * (count > 1)} in {pieces} "
        f"piece{'s' * (pieces > 1)}; {len(Store.open(store)):,} pieces are left. "
        "Their room is given back by --compact"
    )
    return 0


def compact_store(store: Path) -> int:
    """Give back the room of deleted documents; the result is an exit status."""
    before = size_of(Store.open(store))
    with _bar("compact", "piece") as progress:
        dropped = compact(store, progress)
    opened = Store.open(store)
    print(
        f"dropped {dropped:,} deleted pieces; {len(opened):,} pieces are left in "
        f"{megabytes(size_of(opened))}, before {megabytes(before)}"
    )
    return 0


def check_store(store: Path) -> int:
    """Look a store over; the result is an exit status, 1 if something is wrong."""
    with _bar("check", "B") as progress:
        findings = check(store, progress)
    for finding in findings:
        print(finding)
    if not findings:
        opened = Store.open(store)
        print(
            f"{store}: whole: {len(opened):,} pieces, {opened.dtype}, "
            f"{megabytes(size_of(opened))}"
        )
    return 1 if findings else 0


def size_of(store: Store) -> int:
    """Bytes of all files of a store, its indexes not counted."""
    return sum(sum(shard.sizes.values()) for shard in store.manifest.shards)


def megabytes(size: int | float) -> str:
    """Write a size in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextlib.contextmanager
def _bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, told how much is done of how much; shown if it takes long."""
    with tqdm(desc=name, unit=unit, unit_scale=unit == "B", delay=2) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress

"""Every document of a data set once, for vectors that are computed beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import overload

import numpy as np

from clara_jax.data.records import RecordSource


class UniqueDocuments:
    """The distinct documents of some records, numbered by first appearance.

    Holds places and digests, not texts; texts are read again from the records.

    Args:
      records: read once, in order.
    """

    def __init__(self, records: RecordSource):
        self._records = records
        numbers: dict[bytes, int] = {}
        places: list[tuple[int, int]] = []
        used: list[np.ndarray] = []
        for i in range(len(records)):
            row = []
            for j, text in enumerate(records[i].documents):
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                number = numbers.setdefault(digest, len(numbers))
                if number == len(places):
                    places.append((i, j))
                row.append(number)
            used.append(np.asarray(row, np.int32))
        self._places = places
        self._used = used
        self._last: tuple[int, tuple[str, ...]] = (-1, ())

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        i, j = self._places[index]
        record, documents = self._last
        if record != i:
            documents = self._records[i].documents
            self._last = (i, documents)
        return documents[j]

    def candidates(self, record: int) -> np.ndarray:
        """Numbers of the documents of record `record`, in its order."""
        return self._used[record]

    @property
    def most_candidates(self) -> int:
        """The largest number of documents that a record has."""
        return max((len(row) for row in self._used), default=0)


def unique_documents(records: RecordSource) -> UniqueDocuments:
    """Number the distinct documents of `records`; see `UniqueDocuments`."""
    return UniqueDocuments(records)

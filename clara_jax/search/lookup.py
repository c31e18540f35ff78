"""Find rows by a text that they hold, through hashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from clara_jax.search.pieces import text_hashes

_AT_ONCE = 4096
"""Texts looked up together; bounds what is read of the store at a time."""


class Lookup:
    """Rows in the order of a hash of theirs; 12 to 16 bytes of memory a row."""

    def __init__(
        self,
        hashes: UInt64[np.ndarray, "n"],
        rows: Int64[np.ndarray, "n"],
        read: Callable[[Int64[np.ndarray, "k"]], list[str]],
    ):
        """Sort the hashes.

        Args:
          hashes: of each row's text.
          rows: ascending row numbers.
          read: gives the texts of some rows, since hashes may agree by chance.
        """
        order = np.argsort(hashes, kind="stable")
        small = not len(rows) or rows[-1] < 1 << 32
        self.hashes = hashes[order]
        self.rows = rows[order].astype(np.uint32 if small else np.int64)
        self._read = read

    def first(self, texts: Sequence[str]) -> Int64[np.ndarray, "n"]:
        """Return the lowest row of each text, -1 where there is none."""
        distinct = list(dict.fromkeys(texts))
        found: dict[str, int] = {}
        for start in range(0, len(distinct), _AT_ONCE):
            self._first(distinct[start : start + _AT_ONCE], found)
        return np.array([found.get(text, -1) for text in texts], np.int64)

    def every(self, text: str) -> Int64[np.ndarray, "k"]:
        """Return all rows of one text, ascending."""
        value = text_hashes([text])[0]
        start, stop = (
            np.searchsorted(self.hashes, value, side) for side in ("left", "right")
        )
        rows = self.rows[start:stop].astype(np.int64)
        return rows[[other == text for other in self._read(rows)]]

    def _first(self, texts: list[str], found: dict[str, int]) -> None:
        values = text_hashes(texts)
        place = np.searchsorted(self.hashes, values, "left")
        end = np.searchsorted(self.hashes, values, "right")
        open_ = np.flatnonzero(place < end)
        # One round in almost all cases: further ones are for hashes that agree.
        while len(open_):
            rows = self.rows[place[open_]].astype(np.int64)
            for i, row, other in zip(open_, rows, self._read(rows), strict=True):
                if texts[i] == other:
                    found[other] = int(row)
                    end[i] = 0
            place[open_] += 1
            open_ = open_[place[open_] < end[open_]]

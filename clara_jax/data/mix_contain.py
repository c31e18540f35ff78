"""Passages that are in one another, in part at least, are joined into one group.

Windows of one article that overlap, and a paragraph beside the article that it is
from, are no near-duplicates; still one of them must not be asked about while another is
trained on. They are found by their `marks`, which lie in the work database, and then
compared run by run. A mark that many passages have is boilerplate, and joins none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from clara_jax.data.mix_work import Work
from clara_jax.data.near_duplicates import marks, runs
from clara_jax.data.progress import Progress

CHUNK = 256
"""Passages, or pairs of them, of a step."""

COMMON = 50
"""Passages that have a mark at most; it joins none if more have it."""


def join_contained(threshold: float, work: Work, progress: Progress) -> None:
    """Join the groups of passages that overlap, going on where it stopped.

    Two passages do where a piece of one shares with the other, whole, at least
    `threshold` of its runs of eight words; or of the other's, if that has fewer.

    Args:
      threshold: above 0, at most 1.
      work: the database, in which all passages are.
      progress: makes bars.
    """
    _mark(work, progress)
    if work.note("paired") is None:
        with work.step(), progress(desc="overlaps", total=2, unit="step") as bar:
            _pair(work, bar)
            work.set_note("paired", 0)
    _compare(threshold, work, progress)


def _mark(work: Work, progress: Progress) -> None:
    """Store the marks of all passages."""
    done = work.note("marked") or 0
    (last,) = work.row("SELECT coalesce(max(id), 0) FROM passages")
    with progress(
        desc="overlaps: read", total=last, initial=done, unit="passage"
    ) as bar:
        while done < last:
            rows = work.do(
                "SELECT id, text FROM passages WHERE id > ? AND id <= ? ORDER BY id",
                (done, done + CHUNK),
            ).fetchall()
            found = [(mark, i) for i, text in rows for mark in marks(text).tolist()]
            with work.step():
                work.do_many("INSERT INTO marks VALUES (?, ?)", found)
                work.set_note("marked", rows[-1][0])
            bar.update(len(rows))
            done = rows[-1][0]


def _pair(work: Work, bar: Any) -> None:
    """List the passages that have a mark in common, the later one first."""
    work.do("CREATE INDEX marks_mark ON marks(mark, passage)")
    bar.update(1)
    work.do(
        "CREATE TABLE pairs AS SELECT DISTINCT a.passage AS passage, b.passage AS "
        "other FROM (SELECT mark FROM marks GROUP BY mark HAVING count(*) BETWEEN 2 "
        f"AND {COMMON}) JOIN marks a USING (mark) JOIN marks b USING (mark) "
        "WHERE b.passage < a.passage ORDER BY 1, 2"
    )
    bar.update(1)


def _compare(threshold: float, work: Work, progress: Progress) -> None:
    done = work.note("paired")
    (last,) = work.row("SELECT coalesce(max(rowid), 0) FROM pairs")
    parts = functools.lru_cache(CHUNK)(functools.partial(_parts, work))
    with progress(
        desc="overlaps: compare", total=last, initial=done, unit="pair"
    ) as bar:
        while done < last:
            rows = work.do(
                "SELECT passage, other FROM pairs WHERE rowid > ? AND rowid <= ? "
                "ORDER BY rowid",
                (done, done + CHUNK),
            ).fetchall()
            with work.step():
                for pair in rows:
                    if work.apart(*pair):
                        one, other = map(parts, pair)
                        found = max(one.share_in(other), other.share_in(one))
                        if found >= threshold:
                            work.join(pair)
                done += len(rows)
                work.set_note("paired", done)
            bar.update(len(rows))


class _Parts:
    """The runs of a passage, and those of its pieces one after the other."""

    def __init__(self, text: str, spans: Sequence[tuple[int, int]]):
        self.whole: UInt64[np.ndarray, " n"] = runs(text)
        pieces = [self.whole]
        if len(spans) > 1:
            pieces = [runs(text[start:stop]) for start, stop in spans]
        self.pieces: UInt64[np.ndarray, " m"] = np.concatenate(pieces)
        self.sizes: Int64[np.ndarray, " p"] = np.array([len(piece) for piece in pieces])
        self.starts = np.cumsum(self.sizes) - self.sizes

    def share_in(self, other: _Parts) -> float:
        """Return how much of a piece is in another passage, at most."""
        places = np.searchsorted(other.whole, self.pieces)
        common = other.whole[np.minimum(places, len(other.whole) - 1)] == self.pieces
        counts = np.add.reduceat(common, self.starts, dtype=np.int64)
        return float(np.max(counts / np.minimum(self.sizes, len(other.whole))))


def _parts(work: Work, passage: int) -> _Parts:
    (text,) = work.row("SELECT text FROM passages WHERE id = ?", (passage,))
    spans = work.do(
        "SELECT start, stop FROM pieces WHERE passage = ? ORDER BY part", (passage,)
    ).fetchall()
    return _Parts(text, spans)

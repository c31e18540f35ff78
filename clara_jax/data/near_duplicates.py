"""Texts that are nearly the same, and texts that are in others.

Near-duplicates share a band of their MinHash signatures over word triples (Broder 1997;
Leskovec et al., Mining of Massive Datasets, chapter 3). Texts with a common stretch
share a mark: half of all runs of eight words are marks, chosen by hash, so that 99% of
stretches of 14 words have at least one (Manber 1994, Finding Similar Files).
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

BANDS = 20

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_WORD = re.compile(r"\w+")
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class NearDuplicates:
    """Signatures of texts: those as alike as the threshold (Jaccard) share a band."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.rows = 1
        # As many as leave 99% of the pairs at the threshold in at least one band.
        while self.rows < 8 and 1 - (1 - threshold ** (self.rows + 1)) ** BANDS >= 0.99:
            self.rows += 1
        draw = np.random.Generator(np.random.PCG64(1997))
        size = BANDS * self.rows
        self._factors = draw.integers(1 << 62, size=size, dtype=np.uint64) * 2 + 1
        self._terms = draw.integers(1 << 62, size=size, dtype=np.uint64)

    def bands(self, texts: Sequence[str]) -> Int64[np.ndarray, "n bands"]:
        """Return one number a band of each text; equal numbers mean equal bands."""
        if not texts:
            return np.zeros((0, BANDS), np.int64)
        parts = [shingles(text) for text in texts]
        starts = np.cumsum([0, *map(len, parts[:-1])])
        numbers = np.concatenate(parts)
        found = np.zeros((len(texts), BANDS), np.uint64)
        for i in range(len(self._factors)):
            hashes = numbers * self._factors[i] + self._terms[i]
            least = np.minimum.reduceat(hashes, starts)
            band = i // self.rows
            found[:, band] = _mixed(found[:, band] ^ least)
        # No band of one number equals another band.
        numbered = found + np.arange(BANDS, dtype=np.uint64)
        return _mixed(numbered).view(np.int64)


def likeness(one: UInt64[np.ndarray, " n"], other: UInt64[np.ndarray, " m"]) -> float:
    """Return the Jaccard coefficient of two sets of `shingles`."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def shingles(text: str) -> UInt64[np.ndarray, " n"]:
    """Return the distinct word triples of a text as numbers; at least one.

    Capitals and punctuation do not count. A shorter text is one shingle.
    """
    return _sequences(text, 3)


def runs(text: str) -> UInt64[np.ndarray, " n"]:
    """Return the distinct runs of eight words as numbers, as `shingles` does."""
    return _sequences(text, 8)


def marks(text: str) -> Int64[np.ndarray, " n"]:
    """Return half of a text's `runs`, the same in every text; at least one."""
    found = runs(text)
    chosen = found[found % np.uint64(2) == 0]
    return (chosen if len(chosen) else found[:1]).view(np.int64)


def piece_runs(text: str, spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return the `runs` of a text, then those of each of its pieces."""
    pieces = [text[start:stop] for start, stop in spans]
    return [runs(piece) for piece in (text, *pieces)]


def contained(pieces: Sequence[np.ndarray], whole: np.ndarray) -> float:
    """Return how much of a piece is in another text, at most.

    It counts `runs`, as a share of the piece's, or of the whole's if that has fewer.
    """

    def share(piece: np.ndarray) -> float:
        places = np.searchsorted(whole, piece).clip(max=len(whole) - 1)
        return np.count_nonzero(whole[places] == piece) / min(len(piece), len(whole))

    return max(map(share, pieces))


def _sequences(text: str, length: int) -> UInt64[np.ndarray, " n"]:
    """The distinct sequences of so many words of a text, as numbers."""
    words = _WORD.findall(text.lower()) or [text.strip()]
    numbers = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)
    numbers = _mixed(numbers + np.uint64(1))
    count = max(len(numbers) - length + 1, 1)
    found = np.zeros(count, np.uint64)
    for i in range(min(length, len(numbers))):
        found = found * _FACTOR + numbers[i : i + count]
    return np.unique(_mixed(found))


def _mixed(numbers: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Scramble 64 bits (the finalizer of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX[0]
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _MIX[1]
    return numbers ^ (numbers >> np.uint64(31))

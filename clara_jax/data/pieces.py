"""Long documents in pieces that the model can read whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clara_jax.data.documents import Document
from clara_jax.data.sentences import sentence_ends
from clara_jax.text import ClaraTokenizer

OVERLAP = 8
"""One in so many tokens of a piece is in the piece before it, too, or more."""

_SPACES = np.asarray([i for i in range(0x3001) if chr(i).isspace()], np.uint32)


class Span(NamedTuple):
    """A piece of a text: where it starts and stops, in characters."""

    start: int
    stop: int


def split_documents(
    documents: Sequence[Document], tokenizer: ClaraTokenizer, limit: int
) -> list[Document]:
    """Cut documents that are longer than `limit` tokens.

    A piece has its document's id, title and source, knows which part it is and where
    it stands, and its text is what stands there and nothing else. For how it is cut
    see `split_text`.

    Args:
      documents: of any length.
      tokenizer: counts tokens.
      limit: longest piece.

    Returns:
      Documents in their order, long ones as several.
    """
    lengths = tokenizer.document_lengths([document.text for document in documents])
    found: list[Document] = []
    for document, length in zip(documents, lengths, strict=True):
        if length <= limit:
            found.append(document)
            continue
        spans = split_text(document.text, tokenizer, limit)
        for part, (start, stop) in enumerate(spans, 1):
            found.append(
                dataclasses.replace(
                    document,
                    text=document.text[start:stop],
                    title=document.label,
                    start=document.start + start,
                    stop=document.start + stop,
                    part=part,
                    parts=len(spans),
                )
            )
    return found


def split_text(text: str, tokenizer: ClaraTokenizer, limit: int) -> list[Span]:
    """Cut one text into pieces of at most `limit` tokens.

    A piece ends where a sentence does, if one ends in its later half, else at the end
    of a line or a word, and in text without any of them between two tokens. The next
    one starts with the last sentence that repeats an eighth of the piece or more, but
    not half of it; else with a word.

    Args:
      text: of any length; the time that it takes grows in proportion.
      tokenizer: counts tokens.
      limit: longest piece, at least 1.

    Returns:
      Where the pieces stand: none is blank, begins or ends in white space, and every
      word of the text is in at least one.
    """
    cuts = _Cuts(text, tokenizer)
    found: list[Span] = []
    start = cuts.first
    while start < cuts.count:
        stop = min(start + limit, cuts.count)
        while True:
            end = stop if stop == cuts.count else cuts.end(start, stop)
            span = cuts.span(start, end)
            # Cut alone, a piece may count some tokens more than within the text.
            excess = tokenizer.document_length(text[span.start : span.stop]) - limit
            if excess <= 0 or end <= start + 1:
                break
            stop = max(end - excess, start + 1)
        found.append(span)
        if end == cuts.count:
            break
        start = cuts.start(start, end)
    return found or [Span(0, len(text))]


class _Cuts:
    """Where a text may be cut, counted in tokens: cut i stands before token i.

    Attributes:
      first, count: tokens before and after these are white space and nothing else.
    """

    def __init__(self, text: str, tokenizer: ClaraTokenizer):
        found = tokenizer.base(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        spans = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        places = np.flatnonzero(~np.isin(codes, _SPACES))  # of solid characters
        solid = np.zeros(len(text) + 1, np.int64)  # how many stand before a place
        solid[places + 1] = 1
        solid = np.cumsum(solid)
        self._text, self._spans = text, spans
        self._filled = solid[spans[:, 1]] > solid[spans[:, 0]]
        filled = np.flatnonzero(self._filled)
        self.first = int(filled[0]) if len(filled) else 0
        self.count = int(filled[-1]) + 1 if len(filled) else 0
        # A cut lies somewhere between two solid characters: white space there may be
        # a token's own or nobody's.
        stops = np.append(0, spans[:, 1])[: self.count + 1]
        starts = np.append(spans[:, 0], len(text))[: self.count + 1]
        number = solid[stops]
        before = np.append(0, places + 1)[number]
        after = np.append(places, len(text))[number]
        lines = np.append(0, np.cumsum(codes == ord("\n")))
        # Tokens that are parts of one character share its place.
        between = starts >= stops
        self._kinds = (
            between & np.isin(number, solid[sentence_ends(text)]),
            between & (lines[after] > lines[before]),
            between & (after > before),
        )

    def span(self, start: int, end: int) -> Span:
        """Characters of tokens `start` to `end`, white space around them left out."""
        first, last = int(self._spans[start, 0]), int(self._spans[end - 1, 1])
        part = self._text[first:last]
        first += len(part) - len(part.lstrip())
        return Span(first, first + len(part.strip()))

    def end(self, start: int, stop: int) -> int:
        """The best cut in the later half of tokens `start` to `stop`."""
        return self._last(start + (stop - start) // 2, stop)

    def start(self, start: int, end: int) -> int:
        """Where the piece after tokens `start` to `end` begins."""
        high = end - (end - start) // OVERLAP
        begin = self._last(start + (end - start) // 2, high)
        while not self._filled[begin]:
            begin += 1
        return begin

    def _last(self, low: int, high: int) -> int:
        """The last cut above `low`, up to `high`, of the best kind that is there.

        The end of a sentence is better than that of a line or, last, that of a word.
        """
        for kind in self._kinds:
            found = np.flatnonzero(kind[low + 1 : high + 1])
            if len(found):
                return low + 1 + int(found[-1])
        return high

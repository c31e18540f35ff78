"""Long documents in pieces that the model can read whole, cut between sentences.

Sentences end by rules that hold for most languages and cost one pass. Where two
readings are possible, such as at a stop behind an abbreviation, no end is found: that
costs less than a wrong one.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from clara_jax.documents import Document
from clara_jax.shapes import Int
from clara_jax.text import ClaraTokenizer

OVERLAP = 8
"""At least one in so many tokens of a piece is in the piece before it, too."""

_SPACES = np.asarray([i for i in range(0x3001) if chr(i).isspace()], np.uint32)
_MARKS = ".!?…؟۔।॥።։"
_CLOSING = r"""["'”’»›)\]}*_]*+"""
_ENDS = re.compile(
    # Marks that need white space behind them; each run of them is looked at once.
    rf"(?<![{_MARKS}])(?P<mark>[{_MARKS}]++){_CLOSING}(?:\[\w{{1,4}}\])*+(?=\s|\Z)"
    # Marks of scripts without white space.
    r"|[。！？｡]++[」』”’）】》〉\]]*+"
    # The last character before a blank line; before a heading, a list item, a table.
    r"|(?<=\S)(?=[^\S\n]*+\n\s*\n)"
    r"|(?<=\S)(?=[^\S\n]*+\n[^\S\n]*+(?:#{1,6}\s|[-*+•]\s|\||\d{1,3}[.)]\s))"
    # A heading.
    r"|(?m:^#{1,6}[^\S\n].*$)"
)
_SPACE = re.compile(r"\s*+")
_WORD = re.compile(r"[\w.&'’-]++\Z")
_LONGEST = 24
"""Characters before a stop that are looked at; abbreviations are shorter."""

_INITIALS = re.compile(r"(?:\w[.-]{1,2})*\w")
_BEFORE_NAMES = frozenset(
    "mr mrs ms mx dr prof st ste sr jr fr br rev hon messrs mme mlle hr dra sra gen "
    "col lt sgt capt cpt maj cmdr adm pres gov sen rep supt insp mt ft ca cf vs viz "
    "approx resp ibid al bzw usw ggf".split()
)
_BEFORE_NUMBERS = frozenset(
    "no nos nr vol vols fig figs eq eqs sec secs ch chap pp par art ed ver jan feb mar "
    "apr jun jul aug sep sept oct nov dec str est c".split()
)


Span = tuple[int, int]
"""Where a piece of a text starts and stops, in characters."""


def split_documents(
    documents: Sequence[Document], tokenizer: ClaraTokenizer, limit: int
) -> list[Document]:
    """Cut documents that are longer than `limit` tokens, as `split_text` does.

    A piece has its document's id, title and source, knows which part it is and where it
    stands, and its text is what stands there.
    """
    lengths = tokenizer.document_lengths([document.text for document in documents])
    found: list[Document] = []
    for document, length in zip(documents, lengths, strict=True):
        if length <= limit:
            found.append(document)
            continue
        spans = split_text(document.text, tokenizer, limit)
        found += [
            dataclasses.replace(
                document,
                text=document.text[start:stop],
                title=document.label,
                start=document.start + start,
                stop=document.start + stop,
                part=part,
                parts=len(spans),
            )
            for part, (start, stop) in enumerate(spans, 1)
        ]
    return found


def split_text(text: str, tokenizer: ClaraTokenizer, limit: int) -> list[Span]:
    """Cut one text into pieces of at most `limit` tokens, in linear time.

    A piece ends where a sentence does, if one ends in its later half, else at the end
    of a line or a word, and in text without any of them between two tokens. The next
    one starts with the last sentence that repeats an eighth of the piece or more, but
    not half of it; else with a word.

    No piece is blank, begins or ends in white space; every word is in at least one.
    """
    cuts = _Cuts(text, tokenizer)
    found: list[Span] = []
    start = cuts.first
    while start < cuts.count:
        stop = min(start + limit, cuts.count)
        while True:
            # The best cut in the later half.
            end = stop
            if stop < cuts.count:
                end = cuts.last(start + (stop - start) // 2, stop)
            span = cuts.span(start, end)
            # Cut alone, a piece may count some tokens more than within the text.
            excess = tokenizer.document_length(text[slice(*span)]) - limit
            if excess <= 0 or end <= start + 1:
                break
            stop = max(end - excess, start + 1)
        found.append(span)
        if end == cuts.count:
            break
        size = end - start
        start = cuts.filled_from(cuts.last(start + size // 2, end - size // OVERLAP))
    return found or [(0, len(text))]


class _Cuts:
    """Where a text may be cut, counted in tokens: cut i stands before token i.

    Tokens before `first` and from `count` on are white space.
    """

    def __init__(self, text: str, tokenizer: ClaraTokenizer):
        spans = np.asarray(tokenizer.spans(text), np.int64).reshape(-1, 2)
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
        # The best kind first: ends of sentences, of lines, of words.
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
        return first, first + len(part.strip())

    def last(self, low: int, high: int) -> int:
        """The last cut above `low`, up to `high`, of the best kind that is there."""
        for kind in self._kinds:
            found = np.flatnonzero(kind[low + 1 : high + 1])
            if len(found):
                return low + 1 + int(found[-1])
        return high

    def filled_from(self, start: int) -> int:
        """The first token from `start` on that is more than white space."""
        return start + int(np.argmax(self._filled[start:]))


def sentence_ends(text: str) -> Int[np.ndarray, " n"]:
    """Return where the sentences of a text end: offsets in characters, rising.

    The end of the text is among them only where it ends a sentence.

    Example::

      sentence_ends("Dr. Bell left. Why?")  # [14, 19]
    """
    found = [
        match.end()
        for match in _ENDS.finditer(text)
        if match["mark"] is None or _is_end(text, match)
    ]
    return np.unique(np.asarray(found, np.int64))


def _is_end(text: str, match: re.Match[str]) -> bool:
    """Return whether the punctuation that `match` found ends a sentence."""
    gap = _SPACE.match(text, match.end(), match.end() + _LONGEST)
    space = gap.group() if gap else ""
    start = match.end() + len(space)
    after = "" if "\n\n" in space else text[start : start + 1].strip()
    if after.islower():
        return False
    if match["mark"] != "." or not after:
        return True
    before = text[max(match.start() - _LONGEST, 0) : match.start()]
    word = _WORD.search(before)
    if word is None:
        return True
    name = word.group().strip("'’-")
    if name.lower() in _BEFORE_NAMES:
        return False
    if name.lower() in _BEFORE_NUMBERS:
        return not after.isdigit()
    if name.isdigit():
        # "1. First item": the number stands alone at the start of its line.
        return bool(before[: word.start()].rpartition("\n")[2].strip())
    return not (_INITIALS.fullmatch(name) and name[-1].isalpha())

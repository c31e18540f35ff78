"""Where sentences end, by rules that hold for most languages and cost one pass.

A sentence ends at a full stop, question or exclamation mark, with the quotes and
brackets that close behind it, before white space and anything but a small letter; in
Chinese and Japanese at their own marks, without white space; and at a blank line, a
heading or a list item. Stops of abbreviations, initials and numbered lines end none.
Where both readings are possible no end is found, which costs less than a wrong one.
"""

from __future__ import annotations

import re

import numpy as np

from clara_jax.shapes import Int

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


def sentence_ends(text: str) -> Int[np.ndarray, " n"]:
    """Find where the sentences of a text end.

    Args:
      text: in any language, of any length.

    Returns:
      Offsets in characters, rising; a sentence's last character stands before each. The
      end of the text is among them only where it ends a sentence.

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
    """Whether the marks that `match` found end a sentence."""
    after = _next_character(text, match.end())
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


def _next_character(text: str, start: int) -> str:
    """The next character that is no white space; none at a blank line or the end."""
    gap = _SPACE.match(text, start, start + _LONGEST)
    stop = start if gap is None else gap.end()
    return "" if "\n\n" in text[start:stop] else text[stop : stop + 1].strip()

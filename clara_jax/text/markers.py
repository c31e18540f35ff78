"""Special tokens that no document can spell.

The original spells its special tokens ``<MEM0>``, ``<AE>``, ``<ENC>``, ``<SEP>`` and
tokenises prompts as strings, so a document or question holding the letters ``<MEM0>``
would make a memory slot of its own. Here the same token ids are reached through
spellings between two Unicode noncharacters (U+FDD0, U+FDD1), which text for interchange
never contains and which `plain` removes from whatever users write. Tokenizers cut text
at special tokens before anything else, so prompts get the original's token ids exactly;
only the letters ``<MEM0>`` in a user's text stay what they are: letters.
"""

import re

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
_FORBIDDEN = str.maketrans("", "", _OPEN + _CLOSE)


def mark(name: str) -> str:
    """Spell the special token `name` (``MEM0``, ``SEP``) so that it is one token."""
    return f"{_OPEN}{name}{_CLOSE}"


def plain(text: str) -> str:
    """Remove the two noncharacters, so that `text` can spell no special token."""
    return text.translate(_FORBIDDEN)


def readable(text: str) -> str:
    """Spell special tokens the way the original does: ``<MEM0>``, ``<SEP>``."""
    return _MARK.sub(r"<\1>", text)


def marker_names(num_memory: int) -> tuple[str, ...]:
    """Names of all special tokens in the order of their ids."""
    return (*(f"MEM{i}" for i in range(num_memory)), "AE", "ENC", "SEP")

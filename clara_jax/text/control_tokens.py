"""Users' words that spell control tokens, turned into ordinary tokens.

Control tokens are the special tokens of a base tokenizer (``</s>``, ``<|im_end|>``),
which it finds in any text. Those that a template writes must act; those in users' words
may be kept from it. `escape` marks the latter with a noncharacter. Only strings with
such a mark take another way than before, so the ids of all others stay as they are.
"""

import collections
import functools
import json
import re
from typing import Any

import tokenizers

from clara_jax.text.prompts import ESCAPE, mark


class ControlTokens:
    """The control tokens of a tokenizer, and the same tokenizer without them.

    A token of one character cannot be kept apart, and stays as it is; so does white
    space.

    Args:
      backend: which is not changed.
      count: ids from here on are none of them, but CLaRa's own special tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, count: int):
        added = backend.get_added_tokens_decoder().items()
        names = {i: t.content for i, t in added if t.special and i < count}
        self._names = {i: name for i, name in names.items() if len(name.strip()) > 1}
        self._backend = backend
        # Finds the first character of each, so that spellings may overlap.
        ends = collections.defaultdict(list)
        for name in self._names.values():
            ends[re.escape(name[0])].append(re.escape(name[1:]))
        begins = [f"{first}(?={'|'.join(rest)})" for first, rest in ends.items()]
        self._begins = re.compile("|".join(begins) or "(?!)")

    def spelled(self, text: str) -> bool:
        """Return whether a text spells a control token."""
        return self._begins.search(text) is not None

    def escape(self, text: str) -> str:
        """Mark control tokens that users' words spell as no more than words."""
        return self._begins.sub(rf"\g<0>{ESCAPE}", text.replace(ESCAPE, ""))

    def encode(self, text: str, found: tokenizers.Encoding) -> list[int]:
        """Return the ids of a string, what is marked as ordinary text.

        Args:
          text: with `escape` applied to the users' part of it.
          found: what the tokenizer makes of it; it tells which control tokens act.
        """
        parts, end = [], 0
        for i, (start, stop) in zip(found.ids, found.offsets, strict=True):
            name = self._names.get(i)
            # Unknown words have the id of <unk>, but are none; white space may belong
            # to a token.
            if name is not None and text[start:stop].strip() == name.strip():
                start = text.index(name, start)
                parts += [text[end:start], _spelling(name)]
                end = start + len(name)
        whole = "".join([*parts, text[end:]]).replace(ESCAPE, "")
        return self._apart.encode(whole, add_special_tokens=False).ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where the tokens of users' words stand, in characters."""
        return self._apart.encode(text, add_special_tokens=False).offsets

    @functools.cached_property
    def _apart(self) -> tokenizers.Tokenizer:
        """The tokenizer, with spellings of control tokens that users cannot write.

        Only these are replaced in its file, wherever they stand; ids stay.
        """
        names = set(self._names.values())

        def spelling(name: str) -> str:
            return _spelling(name) if name in names else name

        values: dict[str, Any] = json.loads(self._backend.to_str())
        for token in values["added_tokens"]:
            token["content"] = spelling(token["content"])
        model, vocabulary = values["model"], values["model"]["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {spelling(name): i for name, i in vocabulary.items()}
        else:  # of a Unigram model: with scores
            model["vocab"] = [[spelling(name), score] for name, score in vocabulary]
        if model.get("unk_token"):
            model["unk_token"] = spelling(model["unk_token"])
        if model.get("merges"):
            model["merges"] = [
                (left, right)
                for left, right in model["merges"]
                if names.isdisjoint((left, right, left + right))
            ]
        return tokenizers.Tokenizer.from_str(json.dumps(values))


def _spelling(name: str) -> str:
    return mark(f"control:{name}")

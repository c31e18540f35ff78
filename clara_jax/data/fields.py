"""The fields of one record, each checked as it is taken, in the forms they come in."""

import ast
import difflib
import io
import itertools
import json
import math
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from clara_jax.errors import ClaraError, RecordError

_LISTS = (list, tuple)
_STRINGS = "a string or a list of strings"
_PASSAGES = (
    "a text, a list of texts, of [title, [sentences]] pairs or of objects with title "
    "and text, or one object of such lists"
)
_TEXTS = (
    "text paragraph_text passage_text contents content passage context wiki_context "
    "search_context body sentences"
).split()
"""What the text of a passage is called."""
_ANSWERS = ("value", "text", "answer", "aliases")
"""What the fields of an answer are called that is an object."""
GROUND_TRUTHS = ("ground_truth", "ground_truths", "reference")
"""Where right answers are, beside which ``answer`` is what a model said: RAGAS."""
_MARKS = ("is_supporting", "is_selected")
"""What says of a passage that it holds the answer: true, or above 0."""
_TRUTHS = {"true": True, "false": False}
"""Truth values as tables of text spell them, in any case."""
_TEXT_LIST = r"""\s*(\[\s*["'\]]|\{\s*["'])"""
"""How a list or an object of texts begins, which an answer like ``[1]`` is not."""
_ALIKE = 0.75
"""Likeness from which on a name counts as another one misspelt."""


class Passages(NamedTuple):
    """Documents of a record with their titles, and which of them are marked as right.

    Blank ones are still there.
    """

    texts: list[str]
    titles: list[str]
    marked: list[int]


def passage(title: str, text: str) -> str:
    """Join title and text of a passage to one document: title, newline, text."""
    title, text = title.strip(), text.strip()
    return f"{title}\n{text}" if title and text else title or text


class Fields:
    """The fields of one record, each checked as it is taken.

    Null, and what is not a number (NaN), count as absent; numbers count as texts.
    Fields that nobody asks for are ignored.

    Args:
      values: the record; must be an object.
      source: where it stands.

    Raises:
      ClaraError: in all methods, a field that is missing or of the wrong kind.
    """

    def __init__(self, values: Any, source: str):
        if not isinstance(values, Mapping):
            raise RecordError(source, f"is {_described(values)}, but must be an object")
        self.values, self.source = values, source

    def refuse_misspelt(self, names: Sequence[str], known: Sequence[str]) -> None:
        """Refuse an unknown field that is called nearly as one of the names.

        That is so only for those of the names that are absent.
        """
        there = {name for name in names if name in self}
        if there & {"answer", "answers"}:
            there |= {"answer", "answers"}
        absent = [name for name in names if name not in there]
        for name in self.values if absent else ():
            near = difflib.get_close_matches(str(name), absent, 1, _ALIKE)
            if near and name not in known and name in self:
                raise RecordError(
                    self.source, f"unknown field '{name}'; did you mean '{near[0]}'?"
                )

    def __contains__(self, name: str) -> bool:
        value = self.values.get(name)
        return value is not None and not _is_nan(value)

    def first(self, names: Sequence[str]) -> str:
        """Return the first of the names that is there; the very first if none is."""
        return next((name for name in names if name in self), names[0])

    def get(self, name: str, kind: Any, wanted: str, default: Any = None) -> Any:
        """Return a value of a kind, or the default where there is none."""
        value = self.values[name] if name in self else default
        if value is None:
            raise RecordError(self.source, f"field '{name}' is missing")
        if not isinstance(value, kind):
            raise self.wrong(name, wanted)
        return value

    def wrong(self, name: str, wanted: str) -> ClaraError:
        """Return the error of a field that is of the wrong kind."""
        got = _described(self.values[name])
        return RecordError(self.source, f"field '{name}' is {got}, not {wanted}")

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; a number is spelled."""
        text = _spelled(self.get(name, object, "", default))
        if text is None:
            raise self.wrong(name, "a string")
        return text

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Return a truth value, which may be spelled 0 or 1, or as a text."""
        value = _truth(self.get(name, object, "", default))
        if isinstance(value, str) or value not in (0, 1):
            raise self.wrong(name, "true or false")
        return bool(value)

    def number(self, name: str, default: int) -> int:
        """Return a whole number."""
        return self._whole(name, self.get(name, object, "", default), "a number")

    def places(self, name: str) -> tuple[int, ...]:
        """Return whole numbers, of which each counts once; none if it is absent."""
        value = opened(self.get(name, object, "", ()))
        items = value if isinstance(value, _LISTS) else (value,)
        numbers = [self._whole(name, item, "a list of integers") for item in items]
        return tuple(dict.fromkeys(numbers))

    def _whole(self, name: str, value: Any, wanted: str) -> int:
        # Columns with empty cells hold 1 as 1.0.
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, wanted)
        return value

    def several(self, name: str, default: Any = None) -> tuple[str, ...]:
        """Return one text, or a list of them, or lists of lists."""
        return self._texts(name, self.get(name, object, "", default), truths=False)

    def _texts(self, name: str, value: Any, truths: bool) -> tuple[str, ...]:
        try:
            return tuple(_flat(opened(value, _TEXT_LIST), truths))
        except TypeError:
            raise self.wrong(name, _STRINGS) from None

    def answers(self, *names: str, truths: bool = True) -> tuple[str, ...]:
        """Return the texts of all these fields, each once; blank ones are none.

        Where `truths` are answers, they are ``yes`` and ``no``.
        """
        given = ((name, self.get(name, object, "", ())) for name in names)
        found = [text for pair in given for text in self._texts(*pair, truths)]
        return tuple(dict.fromkeys(text for text in found if text.strip()))

    def answers_each(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Return the answers to each of several questions: a text each, or a list each.

        Of a test set there are none at all.
        """
        items = opened(self.get(name, object, "", ()))
        if isinstance(items, _LISTS) and len(items) == 1:
            items = opened(items[0])
        if not isinstance(items, _LISTS):
            items = self._texts(name, items, truths=True)
        found = [self._texts(name, item, truths=True) for item in items]
        if any(found) and not all(found):
            raise RecordError(
                self.source,
                f"field '{name}' has no answer to question {found.index(()) + 1} of "
                f"{len(found)}; give one, or leave that out",
            )
        distinct = (dict.fromkeys(t for t in row if t.strip()) for row in found)
        rows = zip(distinct, found, strict=True)
        return tuple(tuple(texts) or row[:1] for texts, row in rows if row)

    def name(self, *fields: str) -> str:
        """Return the record's name, in the first of the fields that is there."""
        for field in fields:
            if field in self:
                value = self.get(field, (str, int, float), "a string or a number")
                return _spelled(value) or str(value)
        return ""

    def passages(self, name: str, wanted: str = _PASSAGES) -> Passages:
        """Return documents in any of the usual forms; none if they are absent."""
        found = Passages([], [], [])
        value = opened(self.values[name]) if name in self else []
        try:
            for i, (title, text, mark) in enumerate(_passages(value)):
                found.titles.append(title)
                found.texts.append(passage(title, text) if title.strip() else text)
                found.marked.extend([i] * mark)
        except (TypeError, ValueError):
            raise self.wrong(name, wanted) from None
        return found


def opened(value: Any, begins: str = r"\s*[\[{]") -> Any:
    """Return what a list or an object as JSON text stands for; others as they are.

    Tables have them, whose cells are texts. `begins` is a pattern of how one begins. A
    list or an object may be as Python writes it, and a list of texts as NumPy, as in
    tables of pandas.
    """
    if isinstance(value, str) and re.match(begins, value):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return _python_value(value) or value
    return value


def _python_value(text: str) -> Any:
    """A list or an object as Python writes it, or ``['a' 'b']`` of NumPy, or None."""
    text = text.strip()
    if not re.fullmatch(r"\[.*\]|\{.*\}", text, re.DOTALL):
        return None
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        texts = [t.string for t in tokens if t.type == tokenize.STRING]
        found = [ast.literal_eval(item) for item in texts]
        signs = [t.string for t in tokens if t.string.strip() and t.string not in texts]
        if not set(signs) - set("[],") and signs.count("[") == 1:
            return json.loads(json.dumps(found))
        pairs = itertools.pairwise(t.type for t in tokens if t.type != tokenize.NL)
        if (tokenize.STRING, tokenize.STRING) in pairs:  # Python would join them
            return None
        return json.loads(json.dumps(ast.literal_eval(text)))
    except (tokenize.TokenError, SyntaxError, ValueError, TypeError, RecursionError):
        return None


def has_field(values: Any, path: str) -> bool:
    """Return whether a record has a field, named as of `rename`."""
    return _value_at(values, path) is not None


def rename(values: Any, names: Mapping[str, str]) -> Any:
    """Return a record with the fields called as in our format, if they are there.

    Args:
      values: the record.
      names: our name to that in the file, with dots between those of nested objects.
        Of lists, every item's value is taken.
    """
    if not isinstance(values, Mapping):
        return values
    every = {ours: _value_at(values, theirs) for ours, theirs in names.items()}
    found = {ours: value for ours, value in every.items() if value is not None}
    answers = {"answer", "answers", *GROUND_TRUTHS}
    hidden = {names[ours] for ours in found}
    hidden |= answers if answers & found.keys() else set()
    kept = {name: value for name, value in values.items() if name not in hidden}
    return kept | found


def _value_at(value: Any, path: str) -> Any:
    if isinstance(value, list | tuple):
        found = [_value_at(item, path) for item in value]
        return found if any(item is not None for item in found) else None
    if not isinstance(value, Mapping):
        return None
    if path in value:
        return value[path]
    first, dot, rest = path.partition(".")
    return _value_at(opened(value.get(first)), rest) if dot else None


def _described(value: Any) -> str:
    """Return what a value is, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), f"{type(value).__name__} {value!r:.40}")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _truth(value: Any) -> Any:
    """A truth value for its text; others as they are."""
    return _TRUTHS.get(value.lower(), value) if isinstance(value, str) else value


def _is_marked(value: Any) -> bool:
    value = _truth(value)
    return isinstance(value, int | float) and value > 0


def _spelled(value: Any) -> str | None:
    """A text, or the text of a number, a whole one without point; None for others."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else None


def _flat(value: Any, truths: bool) -> Iterator[str]:
    """Texts at any depth of lists, and of the objects that answers are given as."""
    if value is None or _is_nan(value):
        return
    if isinstance(value, _LISTS):
        for item in value:
            yield from _flat(item, truths)
    elif isinstance(value, Mapping):
        if value and not any(name in value for name in _ANSWERS):
            raise TypeError
        for name in _ANSWERS:
            yield from _flat(value.get(name), truths)
    elif isinstance(value, bool) and truths:
        yield "yes" if value else "no"
    elif (text := _spelled(value)) is not None:
        yield text
    else:
        raise TypeError


def _passages(value: Any) -> Iterator[tuple[str, str, bool]]:
    """Title, text and mark of each passage; raise TypeError or ValueError if not."""
    if isinstance(value, Mapping):
        name = next((n for n in _TEXTS if value.get(n) is not None), "")
        title = value.get("title")
        if not name and not any(value.values()):
            return
        if not isinstance(value.get(name), _LISTS) or isinstance(title, str):
            yield _passage(value)
            return
        # Columns: a list of titles, a list of texts.
        texts = value[name]
        marks = next((value[n] for n in _MARKS if value.get(n) is not None), None)
        columns = (title or [""] * len(texts), texts, marks or [False] * len(texts))
        for title, text, mark in zip(*columns, strict=True):
            yield _spell(title), _spell(text), _is_marked(mark)
        return
    for item in value if isinstance(value, _LISTS) else [value]:
        yield _passage(item)


def _passage(item: Any) -> tuple[str, str, bool]:
    if isinstance(item, Mapping):
        name = next((n for n in _TEXTS if item.get(n) is not None), "")
        if not name and not item.get("title"):
            raise TypeError
        mark = any(_is_marked(item.get(n)) for n in _MARKS)
        return _spell(item.get("title")), _spell(item.get(name)), mark
    if isinstance(item, _LISTS):
        title, text = item
        if isinstance(title, _LISTS) or not isinstance(text, (str, *_LISTS)):
            raise TypeError
        return _spell(title), _spell(text), False
    return "", _spell(item), False


def _spell(value: Any) -> str:
    """A text, a number or nothing as it is; sentences joined."""
    if isinstance(value, _LISTS):
        return " ".join(_spell(item).strip() for item in value)
    text = "" if value is None or _is_nan(value) else _spelled(value)
    if text is None:
        raise TypeError
    return text

"""The records of files whose objects are not one record each."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clara_jax.data.fields import opened
from clara_jax.data.folders import Rows
from clara_jax.data.row_files import NoRowsError, RowFile
from clara_jax.errors import ClaraError

_LISTED = "data questions records examples instances items rows Data".split()
"""Fields of an object that is a whole file and has its records in a list."""


def unfold(rows: Rows) -> Rows:
    """Return the records of a file whose objects hold several of them.

    These are one object with the list of all records, or with columns by number of row
    as pandas writes them and MS MARCO is published, and objects with questions about
    one passage, ``qas``, as in SQuAD and MRQA. A table without a header whose two
    columns are a question and a list of answers, as DPR's, gets one. Others are
    returned as they are.

    Raises:
      NoRowsError: the list of all records is empty.
    """
    first, _ = rows[0]
    if isinstance(first, Mapping) and _is_asked([*first]):
        return RowFile.of(rows.path, _with_header(rows), ":")
    listed = _listed(first) if len(rows) == 1 else None
    items = (value for value, _ in (rows[i] for i in range(len(rows))))
    if listed == []:
        raise NoRowsError(f"{rows.path}: holds no records")
    if listed is not None:
        first, items = listed[0], iter(listed)
    elif isinstance(first, Mapping) and set(first) == {"header"} and len(rows) > 1:
        first, _ = rows[1]
    if _passages_with_questions(first) is not None:
        return RowFile.of(rows.path, _each_question(items, rows.path))
    if listed is None:
        return rows
    return RowFile.of(rows.path, ((i, v, "") for i, v in enumerate(items, 1)))


def _is_asked(cells: Sequence[str]) -> bool:
    """Whether the first line of a table is a question with its list of answers."""
    return len(cells) == 2 and isinstance(opened(cells[1]), list)


def _with_header(rows: Rows) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield the rows of a table whose header is a row too."""
    question, answers = rows[0][0]
    yield 1, {"question": question, "answers": answers}, ""
    for i in range(len(rows)):
        value, place = rows[i]
        row = {"question": value.get(question), "answers": value.get(answers)}
        yield int(place.rpartition(":")[2]), row, ""


def _listed(value: Any) -> Sequence[Any] | None:
    """The records that an object has in a list or in columns, if it is such."""
    if not isinstance(value, Mapping) or not value:
        return None
    if all(map(_is_column, value.values())):
        numbers = dict.fromkeys(itertools.chain.from_iterable(value.values()))
        return [{name: value[name].get(n) for name in value} for n in numbers]
    if set(value) & {"docs", "question", "text"}:
        return None
    lists = {name: value[name] for name in _LISTED if name in value}
    for items in lists.values():
        match items:
            case [{}, *_]:
                return items
    # A record may hold an empty list beside a question of other names.
    alone = len(lists) == 1 and not set(value) & {"query", "input"}
    return [] if alone and [] in lists.values() else None


def _is_column(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(map(str.isdecimal, value))


def _passages_with_questions(value: Any) -> list[Any] | None:
    match value:
        case {"qas": [*_]}:
            return [value]
        case {"paragraphs": [{"qas": [*_]}, *_]}:
            return value["paragraphs"]
    return None


def _each_question(
    items: Iterator[Any], path: str
) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield every question as `read_squad` reads it, with its number from 1 on."""
    number = 0
    for i, item in enumerate(items, 1):
        if isinstance(item, Mapping) and set(item) == {"header"}:
            continue
        passages = _passages_with_questions(item)
        if passages is None:
            raise ClaraError(f"{path}: object {i} has no questions (qas or paragraphs)")
        for part in passages:
            match part:
                case {"context": context, "qas": [*questions]}:
                    pass
                case _:
                    raise ClaraError(f"{path}: object {i} lacks 'context' or 'qas'")
            for question in questions:
                number += 1
                if not isinstance(question, Mapping):
                    yield number, question, "is not a question"
                    continue
                yield number, {**question, "context": context}, ""

"""What makes a document: the fields of an object, the head of a text file, a page."""

import dataclasses
import datetime
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from clara_jax.data.reading import Reading
from clara_jax.data.records import passage
from clara_jax.documents import Document, is_unicode
from clara_jax.errors import ClaraError

TEXTS = (
    *("text", "contents", "content", "passage", "body", "document", "passage_text"),
    *("page_content", "abstract", "paragraphs", "description"),
)
"""What data sets call a document's text, the first that is filled being taken."""

TITLES = ("title", "wikipedia_title", "headline")
IDS = ("id", "_id", "docid", "doc_id", "pid", "passage_id", "wikipedia_id")

_QUOTED = re.compile(r'"([^"\n]+)"\n')
"""The title before a passage in the field ``contents``, as in FlashRAG's corpora."""

_HEAD = re.compile(r"(---|\+\+\+)[ \t]*\n(.*?)^(?:\1|\.\.\.)[ \t]*$\n?", re.S | re.M)
"""Front matter: YAML between lines of dashes, or TOML between lines of pluses."""

_TITLE = re.compile(r"^title[ \t]*[:=][ \t]*(\S.*)$", re.M)
_HEADING = re.compile(r"\s*#[ \t]+(.*)")
_WORDS = 12
"""Words above which a field of an object looks like a text."""

_BINARY = 0.02
"""Share of NUL bytes above which a file is no text."""


def has_text(values: Any, reading: Reading) -> bool:
    """Return whether a value of JSON may hold documents.

    A title is enough where no other field looks like a text.
    """
    if not isinstance(values, Mapping):
        return isinstance(values, str)
    if reading.text:
        return reading.text in values
    names = _by_lower(values)
    docs = values.get("docs", {})
    if isinstance(docs, list) and docs:
        docs = docs[0]  # objects are settings, or pages of an index for a search
    if not isinstance(docs, dict) or not names.keys().isdisjoint(TEXTS):
        return True
    rest = [v for n, v in values.items() if n not in (names.get("title"), "id")]
    return "title" in names and not any(map(_is_long, rest))


def _is_long(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_long, value))
    return isinstance(value, str) and len(value.split()) > _WORDS


def _by_lower(values: Mapping[str, Any]) -> dict[str, str]:
    """Names of fields by their lower case; the first is taken, of several."""
    return {name.lower(): name for name in reversed(list(values))}


def read_object(values: Any, place: str, reading: Reading) -> list[Document]:
    """Return the documents of one value of JSON; they may be blank.

    It is a text, or an object with a text (a string, or a list of paragraphs), and with
    title, id and fields of its own, or one with several texts in ``docs``. A title
    without a text is a document. Names of fields may be in capitals.

    Raises:
      ClaraError: it is neither; a field is of a wrong type; names `place`.
    """
    if isinstance(values, str):
        values = {reading.text or "text": values}
    if not has_text(values, reading):
        raise ClaraError(f"{place}: {_seen(values, reading.text)}")
    several = not reading.text and "docs" in values and "text" not in values
    text_name = "docs" if several else _first(values, TEXTS, reading.text)
    title_name = _first(values, TITLES, reading.title)
    id_name = _first(values, IDS, reading.id)
    title = " ".join(_text(values, title_name, place).split())
    name = values.get(id_name)
    if isinstance(name, bool | dict | list):
        raise ClaraError(f"{place}: '{id_name}' must be a string or a number")
    own = "" if name is None else str(name)
    known = (text_name, title_name, id_name)
    more = {k: v for k, v in values.items() if k not in known and _is_set(v)}
    if several:
        texts = values["docs"]
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise ClaraError(f"{place}: 'docs' must be a list of strings")
        return [
            _document(
                text,
                place,
                id=f"{own}#{i}" if own and len(texts) > 1 else own,
                title=title,
                metadata=more,
            )
            for i, text in enumerate(texts, 1)
        ]
    text = _text(values, text_name, place)
    quoted = text_name == "contents" and not title and _QUOTED.match(text)
    if quoted:
        title, text = quoted[1], text[quoted.end() :]
    if title and isinstance(values.get(text_name), list):
        # Of KILT, the first paragraph is the title.
        text = text.removeprefix(f"{title}\n")
    return [_document(passage(title, text), place, id=own, title=title, metadata=more)]


def _is_set(value: Any) -> bool:
    """Whether a field has a value; NaN is what pandas writes for none."""
    return value is not None and value != {} and value == value


def _seen(values: Any, wanted: str) -> str:
    """Say what an object without a text has."""
    if not isinstance(values, Mapping):
        return "is neither a text nor an object with one"
    fields = ", ".join(map(str, values))[:200] or "none"
    lacks = f"has no field '{wanted}'" if wanted else "has no 'text'"
    return f"{lacks} (fields: {fields}); name the text's field with --text-field"


def _first(values: Mapping[str, Any], known: tuple[str, ...], own: str) -> str:
    """Return the name of a field: `own`, or the first of `known` that is filled."""
    if own:
        return own
    names = _by_lower(values)
    there = [names[name] for name in known if name in names]
    filled = (name for name in there if values[name] not in (None, "", []))
    return next(filled, there[0] if there else known[0])


def _text(values: Mapping[str, Any], name: str, place: str) -> str:
    value = values.get(name)
    if isinstance(value, list) and all(isinstance(v, str | None) for v in value):
        return "\n".join(item.strip() for item in value if item)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "" if value != value else str(value)
    if not isinstance(value, str | None):
        raise ClaraError(f"{place}: '{name}' must be a string")
    return value or ""


def read_plain(text: str, place: str, name: str) -> Document:
    """Return the document of a text file, which may be blank.

    Front matter gives the title, and fields as of an object; else the title is the
    file's `name`. NUL characters are read as spaces.

    Raises:
      ClaraError: so many characters are NUL that it is no text.
    """
    if text.count("\0") > _BINARY * len(text):
        raise ClaraError(f"{place}: holds NUL bytes, and is not text; leave it out")
    fields, body = _front_matter(text.replace("\0", " "))
    title = ""
    if isinstance(fields.get("title"), str | int | float):
        title = " ".join(str(fields.pop("title")).split())
    heading = _HEADING.match(body)
    if not title or (heading and heading[1].strip() == title):
        return _document(body, place, title=title or name, metadata=fields)
    return _document(passage(title, body), place, title=title, metadata=fields)


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return the fields at the head of a text, if any, and the rest of it."""
    found = _HEAD.match(text)
    if not found:
        return {}, text
    try:
        read = tomllib.loads if found[1] == "+++" else yaml.safe_load
        values = read(found[2])
    except (yaml.YAMLError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        # Such as `title: Leave: who may take it`. What is not understood stays there.
        title = _TITLE.search(found[2])
        return ({"title": title[1].strip("'\" \t")} if title else {}), text
    fields = {str(k): _json(v) for k, v in values.items() if v is not None}
    return fields, text[found.end() :]


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_json(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value if isinstance(value, str | int | float | None) else str(value)


def read_pages(
    pages: list[str], numbered: bool, title: str, place: str
) -> Iterator[Document]:
    """Yield the documents of a converted file, one a page; they may be blank.

    Their metadata holds the number of the page.
    """
    start = 0
    for number, text in enumerate(pages, 1):
        where, more = place, {}
        if numbered:
            where, more = f"{place}, page {number}", {"page": number}
        yield _document(text, where, title=title, start=start, metadata=more)
        start += len(text)


def blocks_of(document: Document, size: int) -> list[Document]:
    """Cut a document that is too long to be worked on as a whole.

    Blocks have at most `size` characters, and end where a paragraph, a line or a word
    does in their last quarter, if one does. They have the document's id.
    """
    text, start, found = document.text, 0, []
    while start < len(text):
        stop = min(start + size, len(text))
        if stop < len(text):
            low = stop - size // 4
            ends = (text.rfind(sign, low, stop) for sign in ("\n\n", "\n", " "))
            stop = next((end + 1 for end in ends if end >= 0), stop)
        found.append((start, stop))
        start = stop
    if len(found) < 2:
        return [document]
    name = document.label
    return [
        dataclasses.replace(
            document,
            text=text[start:stop],
            title=f"{name}, characters {start + 1:,} to {stop:,}",
            start=document.start + start,
            stop=document.start + stop,
        )
        for start, stop in found
    ]


def _document(text: str, place: str, **fields: Any) -> Document:
    every = json.dumps([text, fields], ensure_ascii=False)
    if not is_unicode(every):
        raise ClaraError(f"{place}: holds half of a surrogate pair, which is not text")
    return Document(text, source=place, **fields)

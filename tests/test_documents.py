"""Documents and their parts: labels, places, and what is text."""

import pytest

import clara_jax
from clara_jax.documents import Document, is_unicode


def test_labels():
    assert Document("a\u2028b", "i", "t").label == "t"
    assert Document("text", "i", part=2, parts=3).label == "i (part 2 of 3)"
    assert Document(" first line\u2028second").label == "first line"
    assert Document(" \n", source="a.jsonl:3").label == "a.jsonl:3"
    assert len(Document("long " * 30).label) == 60


def test_a_document_stops_where_its_text_does():
    assert (Document("text").start, Document("text").stop) == (0, 4)
    assert Document("text", start=7).stop == 11
    assert Document("text", start=7, stop=9).stop == 9


def test_documents_with_metadata_can_be_told_apart_in_sets():
    one, other = Document("a", metadata={"x": [1]}), Document("a", metadata={"x": [2]})
    assert one != other and len({one, other, Document("a")}) == 3


@pytest.mark.parametrize(
    ("text", "expected"), [("", True), ("𝔘 👩‍👩‍👧", True), ("half \ud800", False)]
)
def test_text_is_unicode(text, expected):
    assert is_unicode(text) is expected


def test_documents_are_public():
    from clara_jax.data import Document as of_data

    assert clara_jax.Document is of_data is Document

"""Fields that are called otherwise, and named in ``data.fields``."""

import json

import pytest

from clara_jax.data import open_records
from clara_jax.errors import ClaraError

ASKED = {"question": "q?", "answer": "x"}
ODD = {"query": "q?", "meta": {"golden": [{"name": "x"}, {"name": "y"}]}, "ps": ["p"]}
ODD["reference"] = "other"


@pytest.mark.parametrize(
    ("fields", "documents", "gold"),
    [
        (["answers=meta.golden.name", "documents=ps"], ("p",), ("x", "y")),
        (["question=query", "docs=ps"], ("p",), ()),
        (["answer=meta.golden.name"], (), ("x", "y")),
        (["gold=ps", "answer=query", "documents=ps"], ("p",), ("p",)),
    ],
)
def test_fields_by_other_names(tmp_path, fields, documents, gold):
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"other": 1, "query": "r?", "ps": ["o"]}) + "\n")
    with path.open("a") as file:
        file.write(json.dumps(ODD))
    record = open_records(path, fields=["question=query", *fields])[1]
    assert (record.questions, record.documents, record.gold) == (
        ("q?",),
        documents,
        gold,
    )


@pytest.mark.parametrize(
    "values",
    [
        {"query": "q?", "answer": "x"},
        {"question": "q?", "golden_answers": ["x"]},
        {"query": "q?", "golden_answers": ["x"]},
        {"question": "q?", "answers": ["x"]},
    ],
)
def test_naming_one_field_leaves_the_other_names(tmp_path, values):
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({**values, "ps": ["p", "r"], "right": [1], "lost": 2}))
    fields = ["documents=ps", "positives=right", "missing=lost"]
    record = open_records(path, fields=fields)[0]
    assert record.pair() == ("q?", "x", ("x",)) and record.documents == ("p", "r")
    assert (record.positives, record.missing) == ((1,), 2)


def test_files_with_and_without_own_names(tmp_path):
    odd, own = tmp_path / "odd.jsonl", tmp_path / "own.jsonl"
    odd.write_text(json.dumps(ODD))
    own.write_text(json.dumps({"docs": ["d"], **ASKED}))
    fields = ["question=query", "documents=ps"]
    records = open_records([own, odd], fields=fields)
    assert [r.documents for r in records] == [("d",), ("p",)]
    with pytest.raises(ClaraError, match="own.jsonl: no record has the field 'ps'"):
        open_records(own, fields=fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ["question"],
            "data.fields holds 'question'; write for example question=query",
        ),
        (
            ["qustion=query"],
            "names 'qustion', but must name one of documents, questions",
        ),
        (
            ["answers=golden"],
            r"no record has the field 'golden', .*; there are query, me",
        ),
        (["answers=meta.golden.nme"], "no record has the field 'meta.golden.nme'"),
        ([], r"odd.jsonl:1: is of no known format \(fields: .*--fields question=NAME"),
    ],
)
def test_fields_that_are_not_there(tmp_path, fields, message):
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({**ODD, "query": None, "q": 1}))
    with pytest.raises(ClaraError, match=message):
        open_records(path, fields=fields)

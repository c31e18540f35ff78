"""Files whose objects hold several records, or whose records explain each other."""

import json

import pytest

from clara_jax.data import open_records

ASKED = {"question": "q?", "answer": "x"}
TRIVIA = {"QuestionId": "tc_33", "Question": "q?", "Answer": {"Value": "x"}}
QAS = [
    {"id": "1", "question": "p?", "answers": [{"text": "x", "answer_start": 0}] * 2},
    {"id": "2", "question": "q?", "answers": [], "is_impossible": True},
]
SQUAD = {
    "version": "v2.0",
    "data": [{"title": "T", "paragraphs": [{"context": "c", "qas": QAS}]}] * 2,
}
MRQA = [
    {"header": {"dataset": "x"}},
    {"context": "c", "qas": [{"qid": "1", "question": "p?", "answers": ["x"]}]},
]


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("squad.json", json.dumps(SQUAD), 4),
        ("squad.json", json.dumps(SQUAD, indent=1), 4),
        ("mrqa.jsonl", "\n".join(map(json.dumps, MRQA)), 1),
        ("data.json", json.dumps({"n": 2, "data": [{**ASKED, "context": "c"}] * 2}), 2),
        ("unfiltered.json", json.dumps({"Data": [TRIVIA] * 2, "Domain": "Web"}), 2),
        ("asked.json", json.dumps({"questions": [ASKED] * 3}), 3),
        ("articles.jsonl", json.dumps(SQUAD["data"][0]), 2),
    ],
)
def test_files_that_hold_lists(tmp_path, name, text, count):
    path = tmp_path / name
    path.write_text(text)
    records = open_records(path)
    assert len(records) == len(list(records)) == count
    assert records[0].pair()[1] == "x"
    assert records[count - 1].source == f"{path}: record {count}"
    if "squad" in name:
        assert records.formats == ("squad",)
        assert records[0].documents == ("c",) and records[0].id == "1"
        assert records[1].pair() == ("q?", "noanswer", ("noanswer", ""))


HIDDEN = {"context": "c", "question": "q?"}


@pytest.mark.parametrize("empty", [{"text": [], "answer_start": []}, [], ""])
def test_no_answer_means_one_thing_in_a_test_set_and_another_beside_answers(
    tmp_path, empty
):
    rows = [{**HIDDEN, "answers": empty}] * 2 + [{**HIDDEN, "answers": ["x"]}]
    for name, count in (("hidden", 2), ("known", 3)):
        lines = map(json.dumps, rows[:count])
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    hidden, known = (open_records(tmp_path / f"{n}.jsonl") for n in ("hidden", "known"))
    assert [record.gold for record in hidden] == [(), ()]
    assert [r.answerable for r in hidden] == [True, True]
    assert [record.answerable for record in known] == [False, False, True]


def test_questions_of_dpr_have_no_header(tmp_path):
    path = tmp_path / "nq-test.csv"
    path.write_text("p?\t['x']\nq?\t['x', 'y']\nr?\t['1 z']\n")
    records = open_records(path)
    assert [(r.questions, r.gold, r.source) for r in records] == [
        (("p?",), ("x",), f"{path}:1"),
        (("q?",), ("x", "y"), f"{path}:2"),
        (("r?",), ("1 z",), f"{path}:3"),
    ]

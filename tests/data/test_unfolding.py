"""Files whose objects are not one record each, or whose records explain each other."""

import json

import pytest

from clara_jax.data import open_records
from clara_jax.errors import ClaraError

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


PASSAGES = [[{"is_selected": i, "passage_text": "c"}] for i in range(2)]
MARCO = {
    "answers": {"12": ["x"], "7": ["No Answer Present."]},
    "passages": {"12": PASSAGES[1], "7": PASSAGES[0]},
    "query": {"12": "q?", "7": "r?"},
    "wellFormedAnswers": {"12": ["x"], "7": "[]"},
}


def test_columns_by_number_of_row(tmp_path):
    path = tmp_path / "dev_v2.1.json"
    path.write_text(json.dumps(MARCO))
    records = open_records(path)
    assert records.formats == ("msmarco",)
    assert [(r.pair(), r.positives) for r in records] == [
        (("q?", "x", ("x",)), (0,)),
        (("r?", "noanswer", ("noanswer", "")), ()),
    ]
    test = {name: MARCO[name] for name in ("query", "passages")}
    path.write_text(json.dumps(test, indent=1))
    assert [r.gold for r in open_records(path)] == [(), ()]


@pytest.mark.parametrize("values", [{"data": []}, {"version": "1.1", "data": []}])
def test_an_empty_list_holds_no_records(tmp_path, values):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ClaraError, match=r"a.json: holds no records$"):
        open_records(path)


def test_a_record_may_hold_an_empty_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"query": "q?", "answer": "x", "items": []}))
    assert open_records(path)[0].pair() == ("q?", "x", ("x",))

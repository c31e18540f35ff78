import csv
import json

import pytest

from clara_jax.data import open_records
from clara_jax.data.formats import FORMATS, detect_format
from clara_jax.errors import ClaraError

PAIRS = [["A", ["One.", " Two."]], ["B", ["Three."]]]
COLUMNS = {"title": ["A", "B"], "sentences": [["One.", " Two."], ["Three."]]}
FACTS = {"title": ["B", "Z"], "sent_id": [0, 1]}
ASKED = {"question": "q?", "answer": "x"}
AB = ("A\nOne. Two.", "B\nThree.")
MARCO = {
    "query": "q?",
    "passages": [
        {"is_selected": mark, "passage_text": text}
        for mark, text in ((0, "a"), (1.0, "b"))
    ],
}
PASSAGE = {"title": "T", "text": "t", "score": 1.5, "passage_id": 3}
TRIVIA = {
    "Answer": {"Aliases": ["x", "y"], "NormalizedAliases": ["z"], "Value": "x"},
    "EntityPages": [{"DocSource": "TagMe", "Filename": "A.txt", "Title": "A"}],
    "Question": "q?",
    "QuestionId": "tc_33",
    "SearchResults": [{"Description": "B ...", "Filename": "33/33_1.txt"}],
}
"""TriviaQA as it is published: texts are in other files."""


def case(format, values, documents, positives=(), gold=("x",), **fields):
    given = {"question": "q?", "id": "", "missing": 0, "kind": "qa", "left_out": 0}
    expected = {**given, "documents": documents, "positives": positives, "gold": gold}
    return pytest.param(format, values, expected | fields)


CASES = [
    # HotpotQA and 2WikiMultihopQA: columns, JSON text, and other names of sentences.
    case(
        "hotpotqa",
        {**ASKED, "id": "5a", "context": COLUMNS, "supporting_facts": FACTS},
        AB,
        (1,),
        id="5a",
        missing=1,
    ),
    case(
        "hotpotqa",
        {
            **ASKED,
            "context": {"title": ["A", "B"], "content": [["One.", "Two."], ["Three."]]},
            "supporting_facts": {"title": [], "sent_id": []},
        },
        AB,
    ),
    case(
        "2wikimultihopqa",
        {
            **ASKED,
            "context": json.dumps(PAIRS),
            "supporting_facts": json.dumps([["A", 0]]),
            "evidences": "[]",
        },
        AB,
        (0,),
    ),
    # An empty paragraph has its title; one without a title is left out.
    case(
        "hotpotqa",
        {
            **ASKED,
            "context": [["", []], ["A", []], ["B", ["Three."]]],
            "supporting_facts": [["B", 0], ["A", 0]],
        },
        ("A", "B\nThree."),
        (0, 1),
        left_out=1,
    ),
    # SQuAD: answers in all forms; is_impossible is unanswerable.
    case(
        "squad",
        {
            "id": "7",
            "title": "T",
            "context": "c",
            "question": "q?",
            "answers": {"text": ["x", "y", "x"], "answer_start": [0, 1, 0]},
        },
        ("c",),
        (0,),
        ("x", "y"),
        id="7",
    ),
    case(
        "squad",
        {"context": "c", "question": "q?", "answers": {"text": [], "answer_start": []}},
        ("c",),
        gold=(),
    ),
    case(
        "squad",
        {"context": "c", **ASKED, "is_impossible": True},
        ("c",),
        gold=("noanswer", ""),
    ),
    case("squad", {"context": "c", "question": "q?"}, ("c",), gold=()),
    # RAGAS, where `answer` is what a model said.
    *(
        case(
            name,
            {"question": "q?", "answer": "z", **fields},
            ("c",),
            (0,) if name == "squad" else (),
        )
        for name, fields in (
            ("questions", {"contexts": ["c"], "ground_truth": "x"}),
            ("questions", {"contexts": ["c"], "ground_truths": ["x"]}),
            ("questions", {"retrieved_contexts": ["c"], "reference": "x"}),
            ("questions", {"docs": ["c"], "ground_truth": "x"}),
            ("questions", {"contexts": ["c"], "reference": "x"}),
            ("squad", {"context": "c", "ground_truth": "x"}),
        )
    ),
    case("questions", {"user_input": "q?", "reference": "x", "response": "z"}, ()),
    # Answers as of BoolQ.
    *(
        case(name, {field: "c", "question": "q?", "answer": yes}, ("c",), gold=(said,))
        for name, field in (("questions", "passage"), ("clara", "docs"))
        for yes, said in ((True, "yes"), (False, "no"))
    ),
    # Truth values as texts and as whole numbers with a point.
    *(
        case(
            "squad",
            {"context": "c", **ASKED, "is_impossible": impossible},
            ("c",),
            (0,) if known else (),
            ("x",) if known else ("noanswer", ""),
        )
        for impossible, known in (("True", 0), ("false", 1), (1.0, 0), (0.0, 1))
    ),
    case(
        "squad",
        {"context": "c", "question": "q?", "answer": 1984.5},
        ("c",),
        (0,),
        ("1984.5",),
    ),
    case(
        "squad",
        {"context": "c", "question": "q?", "answer": 1999.0},
        ("c",),
        (0,),
        ("1999",),
    ),
    # TriviaQA with and without documents.
    case(
        "triviaqa",
        {
            "question": "q?",
            "question_id": "tc_1",
            "answer": {"value": "x", "aliases": ["x", "y"], "normalized_value": "n"},
            "entity_pages": {"title": ["A"], "wiki_context": ["One. Two."]},
            "search_results": {"title": ["B"], "search_context": ["Three."]},
        },
        AB,
        gold=("x", "y"),
        id="tc_1",
    ),
    case(
        "triviaqa",
        {
            "question": "q?",
            "answer": {"value": "x", "aliases": []},
            "entity_pages": {"title": [], "wiki_context": [], "doc_source": []},
            "search_results": {"title": [], "search_context": []},
        },
        (),
    ),
    case("triviaqa", TRIVIA, (), gold=("x", "y"), id="tc_33"),
    case("triviaqa", {**TRIVIA, "Answer": None}, (), gold=(), id="tc_33"),
    case(
        "triviaqa",
        {
            "question": "q?",
            "answer": {"value": "<unk>", "aliases": [], "normalized_value": "<unk>"},
            "search_results": {"title": ["A"], "search_context": ["a"]},
        },
        ("A\na",),
        gold=(),
    ),
    # Questions without documents.
    case("questions", {"question": "q?", "answer": ["x", "y"]}, (), gold=("x", "y")),
    case(
        "questions",
        {"id": "test_0", "question": "q?", "golden_answers": ["x"], "metadata": {}},
        (),
        id="test_0",
    ),
    case(
        "kilt",
        {
            "id": "k",
            "input": "q?",
            "meta": {},
            "output": [
                {"answer": "x", "meta": {"score": 1}, "provenance": []},
                {"answer": "", "provenance": [{"title": "A", "start_character": 3}]},
                {"answer": "y"},
                {"provenance": [{"title": "A", "start_character": 3}]},
                {"answer": "x"},
            ],
        },
        (),
        gold=("x", "y"),
        id="k",
    ),
    # Documents by usual names, in the usual forms.
    *(
        case("questions", {**ASKED, name: value}, documents)
        for name, value, documents in (
            ("contexts", ["c", "d"], ("c", "d")),
            ("context", ["c", "d"], ("c", "d")),
            ("context", COLUMNS, AB),
            ("passages", [PASSAGE, {"title": "U", "contents": "u"}], ("T\nt", "U\nu")),
            ("documents", {"title": ["A", None], "text": ["a", "b"]}, ("A\na", "b")),
            ("passages", "only", ("only",)),
            ("ctxs", [{"id": "3", **PASSAGE, "has_answer": True}], ("T\nt",)),
            ("documents", '[{"title": "A", "text": "a"}]', ("A\na",)),
        )
    ),
    case(
        "questions",
        {"query": "q?", "answer": "y", "golden_answers": ["x", "y"], "contexts": ["c"]},
        ("c",),
        gold=("y", "x"),
    ),
    case(
        "questions",
        {**ASKED, "contexts": ["", "c", " ", "d"], "pos_index": [0, 3]},
        ("c", "d"),
        (1,),
        missing=1,
        left_out=2,
    ),
    case("questions", {**ASKED, "answer": [[], None, ["x"], " "]}, ()),
    case(
        "questions",
        {"question": 1984, "answers": float("nan")},
        (),
        gold=(),
        question="1984",
    ),
    # MS MARCO, DPR, paraphrases, the release's own.
    case(
        "msmarco",
        {
            "query": "q?",
            "query_id": 19.0,
            "answers": ["x"],
            "passages": {
                "is_selected": [0, 1],
                "passage_text": ["a", "b"],
                "url": ["", ""],
            },
            "wellFormedAnswers": [],
        },
        ("a", "b"),
        (1,),
        id="19",
    ),
    case(
        "msmarco",
        {
            "query": "q?",
            "answers": ["No Answer Present."],
            "passages": {"is_selected": [0], "passage_text": ["a"]},
        },
        ("a",),
        gold=("noanswer", ""),
    ),
    case(
        "msmarco",
        {
            "query": "q?",
            "passages": {"is_selected": [-1, -1], "passage_text": ["a", "b"]},
        },
        ("a", "b"),
        gold=(),
    ),
    case("msmarco", {**MARCO, "answers": ["x"]}, ("a", "b"), (1,)),
    case(
        "msmarco",
        {**MARCO, "answers": ["No Answer Present."]},
        ("a", "b"),
        (1,),
        ("noanswer", ""),
    ),
    case(
        "dpr",
        {
            "question": "q?",
            "answers": ["x"],
            "positive_ctxs": [PASSAGE],
            "negative_ctxs": [{"title": "", "text": "n"}],
            "hard_negative_ctxs": [{"title": "H", "text": "h"}],
        },
        ("T\nt", "H\nh", "n"),
        (0,),
    ),
    case(
        "paraphrase",
        {"doc": "d", "paraphrase": "x"},
        ("d",),
        kind="paraphrase",
        question="",
    ),
    case(
        "paraphrase",
        {"doc": "d", "question": "", "answers": ["x"]},
        ("d",),
        kind="paraphrase",
        question="",
    ),
    case("paraphrase", {"doc": "d", **ASKED}, ("d",), (0,)),
    case(
        "clara",
        {
            "docs": "d",
            "question": ["q?"],
            "answers": "x",
            "data_type": "qa",
            "pos_index": [0.0],
            "gold_answer": None,
            "__index_level_0__": 3,
            "level": "easy",
            "source": "s",
            "dataset": "n",
            "type": "t",
        },
        ("d",),
        (0,),
    ),
    case(
        "clara",
        {"docs": [1984, "d"], **ASKED, "pos_index": "[0, 0, 1]"},
        ("1984", "d"),
        (0, 1),
    ),
    case(
        "clara",
        {"docs": [PASSAGE], "question": "q?", "answers": '["x", "y"]'},
        ("T\nt",),
        gold=("x", "y"),
    ),
    case("clara", {"docs": None, **ASKED, "data_type": "qa"}, ()),
]


@pytest.mark.parametrize(("name", "values", "expected"), CASES)
def test_a_record_of_each_form(name, values, expected):
    assert detect_format(values, "f:1") == name
    record = FORMATS[name](values, "f:1")
    found = {**record.__dict__, "question": record.pair()[0], "gold": record.gold}
    assert {key: found[key] for key in expected} == expected
    assert record.pair()[1] == next(iter(expected["gold"]), "")


@pytest.mark.parametrize(
    ("format", "values", "message"),
    [
        (
            "squad",
            {"context": "c", "question": True, "answer": "x"},
            "'question' is bool",
        ),
        (
            "squad",
            {"context": "c", "question": " ", "answer": "x"},
            "question is empty",
        ),
        ("questions", {"answer": "x"}, "field 'question' is missing"),
        (
            "questions",
            {**ASKED, "passages": [{"url": "u"}]},
            "'passages' is a list, not",
        ),
        (
            "questions",
            {**ASKED, "passages": {"title": ["a"], "text": []}},
            "is an object",
        ),
        ("questions", {**ASKED, "contexts": [["a", "b", "c"]]}, "'contexts' is a list"),
        ("questions", {**ASKED, "contexts": ["", " "]}, "document 0 is empty or blank"),
        ("paraphrase", {"doc": "d"}, "field 'paraphrase' is missing"),
        (
            "clara",
            {"docs": ["d"], **ASKED, "pos_indx": [0]},
            "did you mean 'pos_index'",
        ),
        ("clara", {"docs": ["d"], "question": "q?", "anwser": "x"}, "mean 'answer'"),
        ("clara", {"docs": ["d"], **ASKED, "gold_answers": "x"}, "mean 'gold_answer'"),
    ],
)
def test_what_is_wrong_is_named(format, values, message):
    with pytest.raises(ClaraError) as caught:
        FORMATS[format](values, "f:3")
    assert str(caught.value).startswith("f:3: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_objects_as_pandas_writes_them():
    values = {
        "question": "q?",
        "answers": "{'text': ['x'], 'answer_start': [3]}",
        "ctxs": "[{'title': 'A', 'text': 'One.'}, {'title': None, 'text': \"it's\"}]",
    }
    record = FORMATS["questions"](values, "f:1")
    assert (record.gold, record.documents) == (("x",), ("A\nOne.", "it's"))
    joined = {**values, "ctxs": "[['A', ['One.' 'Two.']]]"}  # NumPy's, in Python's
    assert FORMATS["questions"](joined, "f:1").documents == (joined["ctxs"],)


def test_instructions_are_not_questions_of_kilt():
    values = {"instruction": "Sum up.", "input": "One. Two.", "output": "x"}
    with pytest.raises(ClaraError, match=r"of no known format .*--fields question="):
        detect_format(values, "f:1")


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        ("['x', \"y's\"]", ("x", "y's")),
        ("['x' 'y']", ("x", "y")),  # an array of NumPy
        ("['x'\n 'y\\'s \\xe9']", ("x", "y's \xe9")),
        ("['x'", ("['x'",)),
        ("['x' is 'y']", ("['x' is 'y']",)),
        ("['x', b'y']", ("['x', b'y']",)),
    ],
)
def test_lists_as_pandas_writes_them(tmp_path, cell, gold):
    path = tmp_path / "asked.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answers"], ["q?", cell], ["r?", "z"]])
    assert open_records(path)[0].gold == gold
    values = {"question": "q?", "contexts": cell, "answer": "x"}
    assert FORMATS["questions"](values, "f:1").documents == gold


def test_a_mark_of_paraphrases_is_no_text():
    with pytest.raises(ClaraError, match="f:1: field 'paraphrase' is bool True, not a"):
        FORMATS["paraphrase"]({"doc": "d", "paraphrase": True, "answer": "x"}, "f:1")


@pytest.mark.parametrize("values", [{"docs": None, "question": None}, {}])
def test_a_first_record_without_values(values):
    with pytest.raises(ClaraError, match="f:1: all its fields are null; leave"):
        detect_format(values, "f:1")

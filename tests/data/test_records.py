import pytest

from clara_jax.data.formats import (
    FORMATS,
    detect_format,
    read_hotpotqa,
    read_musique,
)
from clara_jax.data.records import (
    Record,
    clara_fields,
    passage,
    read_clara,
    read_text,
)
from clara_jax.errors import ClaraError

QA = {"docs": ["a", "b"], "question": "q?", "answer": "x", "pos_index": [1]}
HOTPOT = {
    "_id": "5a8b",
    "question": "q?",
    "answer": "yes",
    "context": [["A", ["One.", " Two."]], ["B", []], ["C", ["Three."]]],
    "supporting_facts": [["C", 0], ["A", 1], ["Z", 0]],
    "level": "easy",
}
MUSIQUE = {
    "question": "q?",
    "answer": "x",
    "id": "2hop__1",
    "answer_aliases": ["y"],
    "paragraphs": [
        {"title": "A", "paragraph_text": "One.", "is_supporting": False},
        {"title": "B", "paragraph_text": "Two.", "is_supporting": True},
    ],
    "answerable": True,
}


def test_stage_format():
    record = read_clara({**QA, "gold_answer": ["x", "y"], "id": "7"}, "f:3")
    same = Record(("a", "b"), ("q?",), ("x",), "qa", (1,), ("x", "y"), "f:3", id="7")
    assert record == same
    assert record.pair() == ("q?", "x", ("x", "y"))


def test_many_questions():
    values = {"docs": ["a"], "question": ["p?", "q?"], "answers": ["x", "y"]}
    record = read_clara({**values, "data_type": "qa"}, "f:1")
    assert record.pair(1) == ("q?", "y", ("y",))
    assert record.positives == ()


@pytest.mark.parametrize(
    ("read", "docs"), [(read_clara, "docs"), (FORMATS["questions"], "contexts")]
)
@pytest.mark.parametrize("name", ["answer", "answers"])
def test_several_answers_to_each_of_several_questions(read, docs, name):
    values = {docs: ["a"], "question": ["p?", "q?"]}
    for nested in ([["x", "y", "x"], ["z"]], '[["x", "y"], ["z"]]', [["x", "y"], "z"]):
        record = read({**values, name: nested}, "f:1")
        assert record.answers == ("x", "z")
        assert record.pair(0) == ("p?", "x", ("x", "y"))
        assert record.pair(1) == ("q?", "z", ("z",))
    assert read({**values, name: [["x"], ["z"]]}, "f:1").accepted == ()
    assert read({**values, name: [[], []]}, "f:1").answers == ()
    with pytest.raises(ClaraError, match="f:1: .* has no answer to question 2 of 2; g"):
        read({**values, name: [["x", "y"], []]}, "f:1")
    with pytest.raises(ClaraError, match="has 2 questions, but 3 answers"):
        read({**values, name: [["x"], ["y"], ["z"]]}, "f:1")


def test_accepted_answers_may_be_the_target():
    record = read_clara({"docs": "a", "question": "q?", "gold_answer": ["x", "y"]}, "f")
    assert record.documents == ("a",)
    assert record.pair() == ("q?", "x", ("x", "y"))


def test_paraphrase_needs_no_question():
    values = {"docs": ["a"], "question": "", "answer": ["a"], "data_type": "paraphrase"}
    assert read_clara(values, "f").kind == "paraphrase"
    assert read_clara(values, "f").questions == ()


def test_hotpotqa():
    record = read_hotpotqa(HOTPOT, "f: record 1")
    assert record.documents == ("A\nOne. Two.", "B", "C\nThree.")
    assert record.positives == (0, 2) and record.missing == 1
    assert record.id == "5a8b"
    assert record.pair() == ("q?", "yes", ("yes",))


def test_musique():
    record = read_musique(MUSIQUE, "f:1")
    assert record.documents == ("A\nOne.", "B\nTwo.")
    assert record.positives == (1,) and record.id == "2hop__1"
    assert record.pair() == ("q?", "x", ("x", "y"))


def test_questions_of_test_sets_have_no_answers():
    hotpot = {n: HOTPOT[n] for n in ("_id", "question", "context")}
    first = {"title": "A", "paragraph_text": "One."}
    musique = {"id": "2", "question": "q?", "paragraphs": [first]}
    for read, values in (
        (read_hotpotqa, hotpot),
        (read_hotpotqa, {**hotpot, "answer": "", "supporting_facts": []}),
        (read_musique, musique),
        (read_clara, {"docs": ["a"], "question": "q?"}),
        (read_clara, {"docs": ["a"], "question": "q?", "answers": []}),
        (read_clara, {"docs": ["a"], "question": ["p?", "q?"]}),
    ):
        record = read(values, "f:1")
        assert record.answers == record.gold == record.positives == ()
        assert record.pair() == (record.questions[0], "", ())
        assert record.answerable and not record.missing
    with pytest.raises(ClaraError, match="f:1: paragraph 0: field 'is_supporting' is"):
        read_musique({**musique, "answer": "x"}, "f:1")


def test_unanswerable_questions_have_an_answer_of_their_own():
    musique = read_musique({**MUSIQUE, "answerable": False}, "f:1")
    own = read_clara({**QA, "answerable": False}, "f:1")
    bare = read_clara({"docs": "a", "question": "q?", "answerable": False}, "f:1")
    for record in (musique, own, bare):
        assert not record.answerable
        assert record.pair() == ("q?", "noanswer", ("noanswer", ""))
    several = {"docs": "a", "question": ["p?", "q?"], "answerable": False}
    assert read_clara(several, "f").pair(1) == ("q?", "noanswer", ("noanswer", ""))


def test_a_question_is_written_as_it_is_read():
    for values in (
        {**QA, "id": "7", "missing": 2},
        {**QA, "answerable": False},
        {"docs": ["a", "b"], "question": "q?"},
        {**QA, "gold_answer": ["y", "z"]},
    ):
        record = read_clara(values, "f")
        told = record.documents, *record.pair(), record.positives
        assert read_clara(clara_fields(*told, record.missing, record.id), "f") == record


def test_several_questions_share_an_id():
    values = {"docs": ["a"], "question": ["p?", "q?"], "answers": ["x", "y"], "id": 3}
    assert read_clara(values, "f").question_id(1) == "3_1"
    assert read_clara({**QA, "id": "3"}, "f").question_id(0) == "3"
    assert read_clara(QA, "f").question_id(0) == ""


def test_text():
    assert read_text({"text": "t", "title": "T", "id": "0"}, "f").documents == ("T\nt",)
    assert read_text({"text": " t "}, "f").documents == (" t ",)
    assert passage("T", "") == "T"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (QA, "clara"),
        (HOTPOT, "hotpotqa"),
        ({**HOTPOT, "evidences": []}, "2wikimultihopqa"),
        (MUSIQUE, "musique"),
        ({"text": ""}, "text"),
    ],
)
def test_formats_are_told_apart(values, name):
    assert detect_format(values, "f") == name
    assert name in FORMATS


@pytest.mark.parametrize("values", [{"dox": 1}, [1], "text", None])
def test_unknown_format(values):
    with pytest.raises(ClaraError, match="f:1: is of no known format"):
        detect_format(values, "f:1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"docs": None, "dcos": 1}, "unknown field 'dcos'; did you mean 'docs'"),
        ({"answer": None, "anwser": 1}, "unknown field 'anwser'; did you mean 'answer"),
        ({"gold_answers": "x"}, "'gold_answers'; did you mean 'gold_answer'?"),
        ({"question": None}, "f:9: field 'question' is missing"),
        ({"data_type": "paraphrase", "answer": None}, "field 'answer' is missing"),
        ({"answers": "x"}, "both 'answer' and 'answers'"),
        ({"docs": [], "pos_index": [], "data_type": "text"}, "f:9: has no documents"),
        ({"docs": ["", " \n"]}, "f:9: document 0 is empty or blank"),
        ({"docs": [True]}, "field 'docs' is a list, not a text, a list of texts, of ["),
        ({"docs": {"a": 1}}, "field 'docs' is an object"),
        ({"question": " "}, "f:9: a question is empty or blank"),
        ({"question": []}, "f:9: a question is empty or blank"),
        ({"question": ["a", "b"]}, "has 2 questions, but 1 answers"),
        ({"data_type": "paraphrase", "answer": []}, "'answer' is missing or empty"),
        ({"answerable": "no"}, "field 'answerable' is a string, not true or false"),
        ({"missing": -1}, "has -1 missing documents"),
        ({"id": [1]}, "field 'id' is a list, not a string or a number"),
        ({"pos_index": [2]}, "positive document 2, but there are only 2"),
        ({"pos_index": [-1]}, "positive document -1"),
        ({"pos_index": "1"}, "field 'pos_index' is a string, not a list of integers"),
        ({"pos_index": [True]}, "not a list of integers"),
        ({"question": "a\ud800"}, "f:9: holds half of a surrogate pair"),
        ({"id": "\udc00"}, "f:9: holds half of a surrogate pair"),
        ({"data_type": "poem"}, "data_type is 'poem', but must be one of qa"),
    ],
)
def test_bad_stage_records_are_named(changes, message):
    with pytest.raises(ClaraError) as caught:
        read_clara({**QA, **changes}, "f:9")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("read", "values", "message"),
    [
        (read_hotpotqa, {"context": [["A"]]}, "list of [title, [sentences]] pairs"),
        (read_hotpotqa, {"context": "A"}, "field 'context' is a string, not a list"),
        (read_hotpotqa, {"supporting_facts": [3]}, "[title, sentence index]"),
        (read_hotpotqa, {"supporting_facts": None}, "'supporting_facts' is missing"),
        (read_hotpotqa, {"context": None}, "field 'context' is missing"),
        (read_musique, {"paragraphs": [{"title": "A"}]}, "paragraph 0: field 'parag"),
        (read_musique, {"paragraphs": [3]}, "paragraph 0: is int 3, but must be"),
    ],
)
def test_bad_published_records_are_named(read, values, message):
    good = HOTPOT if read is read_hotpotqa else MUSIQUE
    with pytest.raises(ClaraError) as caught:
        read({**good, **values}, "f:9")
    assert str(caught.value).startswith("f:9: ")
    assert message in str(caught.value)


def test_a_record_is_an_object():
    with pytest.raises(ClaraError, match="f:9: is a list, but must be an object"):
        read_clara([1], "f:9")

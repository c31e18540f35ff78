"""The files of leaderboards, read back as the data sets' scripts do."""

import json
from dataclasses import replace

import pytest

from clara_jax.data.formats import read_musique
from clara_jax.evaluate.evaluators import questions_of
from clara_jax.evaluate.leaderboard import write_leaderboard
from clara_jax.evaluate.predictions import Prediction, PredictionFile


def said(index, answer, id="", chosen=(3, 1, 0)):
    answers = {"model": answer, "none": "other"}
    return Prediction(index, "q", (), (2,), answers, {"model": list(chosen)}, id)


FOUND = [said(0, "Åre", "5a"), said(1, "noanswer", "5b")]


def written(folder, found, *formats):
    told = write_leaderboard(folder, found, formats, top_k=2)
    return json.loads((folder / "leaderboard.json").read_text("utf-8")), told


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("clara", {"5a": "Åre", "5b": "noanswer"}),
        ("squad", {"5a": "Åre", "5b": ""}),
        (
            "hotpotqa",
            {
                "answer": {"5a": "Åre", "5b": "noanswer"},
                "sp": {"5a": [], "5b": []},
            },
        ),
        (
            "2wikimultihopqa",
            {
                "answer": {"5a": "Åre", "5b": "noanswer"},
                "sp": {"5a": [], "5b": []},
                "evidence": {"5a": [], "5b": []},
            },
        ),
    ],
)
def test_json_layouts(tmp_path, kind, expected):
    assert written(tmp_path, FOUND, kind, kind) == (expected, [])


def test_musique_has_a_line_for_each_question(tmp_path):
    assert write_leaderboard(tmp_path, FOUND, ["musique"], top_k=2) == []
    lines = (tmp_path / "leaderboard.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "id": "5a",
            "predicted_answer": "Åre",
            "predicted_support_idxs": [1, 3],
            "predicted_answerable": True,
        },
        {
            "id": "5b",
            "predicted_answer": "noanswer",
            "predicted_support_idxs": [1, 3],
            "predicted_answerable": False,
        },
    ]
    # Without a choice, as the gold documents were given, they are what was read.
    given = Prediction(0, "q", (), (2,), {"model": "x"}, {}, "5a")
    write_leaderboard(tmp_path, [given], ["musique"], top_k=1)
    line = json.loads((tmp_path / "leaderboard.jsonl").read_text("utf-8"))
    assert line["predicted_support_idxs"] == [2]


def test_support_is_numbered_as_in_the_file(tmp_path):
    texts = [("", ""), ("A", "a"), ("B", "b"), ("C", "c")]
    paragraphs = [
        {"idx": 10 + i, "title": t, "paragraph_text": p, "is_supporting": i == 3}
        for i, (t, p) in enumerate(texts)
    ]
    values = {"id": "5a", "question": "q?", "answer": "x", "paragraphs": paragraphs}
    (question,) = questions_of([read_musique(values, "f:1")])
    assert question.places == (11, 12, 13)
    prediction = replace(said(0, "x", "5a", (2, 0)), places=question.places)
    file = PredictionFile(tmp_path / "p.jsonl", {})
    file.add([prediction])
    found = PredictionFile(file.path, {}).done
    assert found == [prediction]
    write_leaderboard(tmp_path, found, ["musique"], top_k=2)
    line = json.loads((tmp_path / "leaderboard.jsonl").read_text("utf-8"))
    assert line["predicted_support_idxs"] == [11, 13]


def test_questions_without_ids_are_numbered(tmp_path):
    found, (told,) = written(tmp_path, [said(0, "a", "x"), said(1, "b")], "clara")
    assert found == {"x": "a", "1": "b"} and told.startswith("1 of 2 questions have no")


def test_a_number_that_is_an_id_is_not_taken(tmp_path):
    given = [said(0, "a", "1"), said(1, "b"), said(2, "c", "_1"), said(3, "d")]
    found, (told,) = written(tmp_path, given, "clara")
    assert found == {"1": "a", "__1": "b", "_1": "c", "3": "d"}
    assert told.startswith("2 of 4 questions have no id")


def test_repeated_ids_lose_no_answer(tmp_path):
    found, (told,) = written(tmp_path, [said(0, "a", "x"), said(1, "b", "x")], "clara")
    assert found == {"0": "a", "1": "b"} and "ids are repeated" in told


def test_several_formats_have_no_layout(tmp_path):
    found, (told,) = written(tmp_path, FOUND, "musique", "hotpotqa")
    assert found == {"5a": "Åre", "5b": "noanswer"}
    assert "several formats (hotpotqa, musique)" in told

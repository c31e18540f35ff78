"""Conditions, rankings, and predictions that survive a kill."""

import dataclasses
import json

import numpy as np
import pytest
from toy_folder import write_toy

import clara_jax
from clara_jax.errors import ClaraError
from clara_jax.evaluate.evaluators import Question, choose
from clara_jax.evaluate.examine import (
    Exam,
    Reader,
    conditions_of,
    examine,
    other_documents,
)
from clara_jax.evaluate.predictions import Prediction, PredictionFile
from clara_jax.text.bm25 import Bm25

DOCUMENTS = (
    "Ada Bell was born in Corin",
    "Edo Falk studied in Gemma",
    "Hana Iver was born in Jory",
)
QUESTIONS = [
    Question("Where was Ada Bell born", ("Corin",), DOCUMENTS, (0,)),
    Question("Where did Edo Falk study", ("Gemma",), DOCUMENTS, (1,)),
    Question("Where was Hana Iver born", ("Jory",), DOCUMENTS[1:], (1,)),
]


@pytest.fixture(scope="module")
def clara(tmp_path_factory):
    folder = write_toy(tmp_path_factory.mktemp("examine") / "run")
    return clara_jax.load(folder, clara_jax.AnswerConfig(max_new_tokens=4))


def _all(clara, setting, baselines=("bm25", "text", "closed_book"), top_k=1, start=0):
    conditions = conditions_of(clara, setting, baselines)
    exam = Exam(setting, top_k, conditions)
    parts = examine(clara, QUESTIONS, exam, start)
    return [prediction for part in parts for prediction in part]


def test_every_condition_answers_from_what_it_says(clara):
    found = _all(clara, "normal")
    texts = [q.question for q in QUESTIONS]
    rows = {
        "gold": [[DOCUMENTS[0]], [DOCUMENTS[1]], [DOCUMENTS[2]]],
        "shuffled": [[DOCUMENTS[1]], [DOCUMENTS[2]], [DOCUMENTS[0]]],
    }
    chosen = clara.select_and_answer(texts, [q.documents for q in QUESTIONS], top_k=1)
    assert [p.chosen["model"] for p in found] == chosen.indices.tolist()
    assert [p.answers["model"] for p in found] == chosen.answers
    for name, documents in rows.items():
        assert [p.answers[name] for p in found] == clara.answer(texts, documents)
    nothing = np.zeros((3, 0, 2, 16), np.float32)
    expected = clara.answer_from_vectors(texts, nothing)
    assert [p.answers["none"] for p in found] == expected
    read = [
        [q.documents[i] for i in p.chosen["model"]]
        for q, p in zip(QUESTIONS, found, strict=True)
    ]
    assert [p.answers["text"] for p in found] == clara.answer_from_text(texts, read)
    closed = clara.answer_from_text(texts, [[], [], []])
    assert [p.answers["closed_book"] for p in found] == closed
    assert [p.chosen["bm25"] for p in found] == [[0], [1], [1]]


def test_a_question_with_few_candidates_is_answered_from_all(clara):
    found = _all(clara, "normal", ("bm25",), top_k=3)
    assert [len(p.chosen["model"]) for p in found] == [3, 3, 2]
    best = [DOCUMENTS[1:][i] for i in found[2].chosen["model"]]
    assert clara.answer([found[2].question], [best]) == [found[2].answers["model"]]


def test_the_oracle_is_given_the_gold_documents(clara):
    found = _all(clara, "oracle", ())
    assert list(found[0].answers) == ["model", "none", "shuffled"]
    assert found[0].chosen == {}
    expected = clara.answer([q.question for q in QUESTIONS], [d[:1] for d in _gold()])
    assert [p.answers["model"] for p in found] == expected


def _gold():
    return [q.gold_documents for q in QUESTIONS]


def test_conditions_that_cannot_be_had(clara, tmp_path):
    with pytest.raises(ClaraError, match="baseline 'dense' is unknown"):
        conditions_of(clara, "normal", ["dense"])
    roles = ("compressor", "generator")
    unfinished = clara_jax.load(write_toy(tmp_path / "run", roles=roles))
    with pytest.raises(ClaraError, match="no reasoner .* --setting oracle"):
        conditions_of(unfinished, "normal", [])
    assert conditions_of(unfinished, "oracle", [])[0] == "model"


def bm25_ranking(question, documents):
    return Bm25(documents).ranking(question).tolist()


def test_bm25_of_odd_texts():
    assert bm25_ranking("where did Edo study", DOCUMENTS)[0] == 1
    assert bm25_ranking("?", DOCUMENTS) == [0, 1, 2]
    assert bm25_ranking("a word that is nowhere", DOCUMENTS) == [0, 1, 2]
    assert bm25_ranking("Edo", ["the", "of"]) == [0, 1]


def test_predictions_go_on_after_a_kill(clara, tmp_path):
    path = tmp_path / "out" / "predictions.jsonl"
    settings = {"model": "m"}
    whole = _all(clara, "normal", ())
    file = PredictionFile(path, settings)
    file.add(whole[:2])
    with path.open("a") as torn:
        torn.write('{"index": 2, "quest')
    again = PredictionFile(path, settings)
    assert again.done == whole[:2]
    rest = _all(clara, "normal", (), start=len(again.done))
    again.add(rest)
    assert PredictionFile(path, settings).done == whole
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4
    before = path.read_bytes()
    with pytest.raises(ClaraError, match="made otherwise .model changed."):
        PredictionFile(path, {"model": "other"})
    assert path.read_bytes() == before


def test_shuffled_documents_are_shared_with_no_other_question():
    rows = [("a", "b"), ("b",), ("a",), ("c",)]
    found = [other_documents(rows, i) for i in range(4)]
    assert found == [("c",), ("a",), ("c",), ("a", "b")]
    assert other_documents([("a",)], 0) == other_documents([("a",), ("a",)], 0) == ()


def test_other_line_breaks_lose_nothing(tmp_path):
    path = tmp_path / "predictions.jsonl"
    texts = ["one\u2028two", "next\u0085line", "page\x0cbreak", "plain\nbreak"]
    said = [
        Prediction(i, text, (text,), (0,), {"model": text}, {"model": [0]})
        for i, text in enumerate(texts)
    ]
    PredictionFile(path, {"model": "a\u2028b"}).add(said)
    written = path.read_bytes()
    assert PredictionFile(path, {"model": "a\u2028b"}).done == said
    assert path.read_bytes() == written
    lines = written.decode().split("\n", 1)[1]
    assert len(lines.splitlines()) == len(said)
    with pytest.raises(ClaraError, match=r"otherwise \(model changed\)"):
        PredictionFile(path, {"model": "c"})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ClaraError, match="not a file of predictions"):
        PredictionFile(path, {})


def test_other_readers_and_rankings_stand_beside(clara):
    own = dataclasses.replace(clara)
    before = clara.with_adapters({"reasoner": clara.network.adapters["compressor"]})
    compressed = []

    def compress(texts):
        compressed.extend(texts)
        return clara.compress(texts)

    readers = {
        "own": Reader(own, "generator", "gold"),
        "words": Reader(own, "generator", "bm25"),
    }
    exam = Exam(
        "normal",
        1,
        ["model", "own", "words"],
        readers,
        {"before": before},
        ranked=2,
        compress=compress,
    )
    parts = examine(clara, QUESTIONS, exam)
    found = [prediction for part in parts for prediction in part]
    texts = [q.question for q in QUESTIONS]
    gold = clara.answer_from_text(
        texts, [q.gold_documents for q in QUESTIONS], "generator"
    )
    assert [p.answers["own"] for p in found] == gold
    best = [[q.documents[bm25_ranking(q.question, q.documents)[0]]] for q in QUESTIONS]
    words = clara.answer_from_text(texts, best, "generator")
    assert [p.answers["words"] for p in found] == words
    # Answers come from the best one, rankings are kept to the second.
    plain = _all(clara, "normal")
    assert [p.answers["model"] for p in found] == [p.answers["model"] for p in plain]
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.chosen["model"][:1] == theirs.chosen["model"]
        assert set(ours.chosen) == {"model", "before", "bm25"}
        assert all(len(row) == 2 for row in ours.chosen.values())
    vectors, mask = before.gather([q.documents for q in QUESTIONS])
    ranked, _ = choose(before, texts, vectors, mask, 1)
    assert [p.chosen["before"][0] for p in found] == ranked[:, 0].tolist()
    assert set(compressed) == set(DOCUMENTS)

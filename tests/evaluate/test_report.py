import dataclasses

import numpy as np
import pytest

from clara_jax.evaluate.metrics import bootstrap, recall_of
from clara_jax.evaluate.predictions import Prediction
from clara_jax.evaluate.scores import markdown, remarks, scores_of


def _prediction(index, answers, positives=(0,), chosen=None):
    return Prediction(
        index, "q", ("Corin", "in Corin"), positives, answers, chosen or {}
    )


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        sample = [float(x) for x in rng.random(60) < 0.3]
        found = bootstrap(sample, trial, draws=300)
        inside += found["low"] <= 0.3 <= found["high"]
    assert 88 <= inside <= 100
    assert bootstrap([1.0] * 5) == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_scores_and_table():
    right, wrong = "Corin", "Gemma"
    predictions = [
        _prediction(
            i,
            {"model": right if i else wrong, "gold": right, "none": wrong}
            | {"shuffled": wrong, "bm25": right},
            chosen={"model": [1 if i == 0 else 0, 2], "bm25": [0, 1]},
        )
        for i in range(4)
    ]
    scores = scores_of(predictions, top_k=2)
    assert scores["answers"]["model"]["exact_match"]["mean"] == 0.75
    assert scores["memory"]["exact_match over none"] == 1.0
    assert scores["retrieval"]["model"]["recall@1"] == 0.75
    assert set(scores["retrieval"]["bm25"]) == {
        "recall@1",
        "precision@1",
        "recall@2",
        "precision@2",
    }
    text = markdown(scores, "m on d")
    assert (
        "| the model | 0.750 (" in text and "| gold documents' vectors | 1.000" in text
    )
    assert "| gold vectors over: no documents | +1.000 | +1.000 | +1.000 |" in text
    assert "| BM25 chooses | 1.000 | 1.000 | 1.000 | 0.500 |" in text
    assert text.count("\n\n") >= 4


def test_without_known_positives_there_is_no_retrieval():
    answers = {"model": "x", "none": "x", "shuffled": "x"}
    scores = scores_of([_prediction(0, answers, ())], top_k=1)
    assert scores["retrieval"] == {}
    assert "ranking" not in markdown(scores, "t")
    assert scores["memory"]["f1 over none"] == pytest.approx(0.0)


def test_recall_has_an_interval_and_counts_known_positives_only():
    positives = [(0,), (1, 2), (), (3,)]
    chosen = [[0, 1], [5, 2], [0, 1], [9, 3]]
    found = recall_of(positives, chosen, (1, 2))
    assert found["recall@1"]["mean"] == pytest.approx(1 / 3)
    assert found["recall@2"]["mean"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["recall@2"]["low"] < found["recall@2"]["mean"]
    assert recall_of([()], [[0]], (1,)) == {}


def test_what_scores_are_of_is_told():
    said = {"model": "Corin", "none": "x", "shuffled": "x"}
    chosen = {"model": [0]}
    found = [
        _prediction(0, said, (0,), chosen),
        _prediction(1, said, (), chosen),
        _prediction(2, said, (0, 1), chosen),
    ]
    found[0] = dataclasses.replace(found[0], missing=1, documents=2)
    found[1] = dataclasses.replace(found[1], gold=(), documents=3)
    found[2] = dataclasses.replace(found[2], gold=("The The", "Corin"), documents=2)
    scores = scores_of(found, top_k=1)
    assert scores["answers"]["model"]["exact_match"]["mean"] == 1.0  # of two
    assert scores["retrieval"]["model"]["recall@1"] == 0.5
    assert scores["missing_documents"] == {"documents": 1, "questions": 1}
    assert scores["unknown_documents"] == scores["without_answers"] == 1
    assert scores["empty_answers"] == ["The The"]
    told = remarks(scores)
    for part in (
        "1 of 3 questions have no known answer, as in a test set: scores are over the "
        "other 2",
        "1 gold answers are empty after normalisation ('The The')",
        "gold documents that are not among their question's documents: 1, of 1 of 3",
        "for 1 of 3 questions no document is known to hold the answer",
    ):
        assert sum(remark.startswith(part) for remark in told) == 1
    text = markdown(scores, "t")
    assert all(f"\nNote: {remark}.\n" in text for remark in told)
    other = scores_of(found, top_k=1, rules="squad2")
    assert other["answers"]["none"]["cover_em"]["mean"] == 0.0
    assert scores["answers"]["none"]["cover_em"]["mean"] == 0.5
    assert "; rules of squad2." in markdown(other, "t")


def test_nothing_is_told_of_a_plain_data_set():
    said = {"model": "Corin", "none": "x", "shuffled": "x"}
    assert remarks(scores_of([_prediction(0, said)], top_k=1)) == []
    alone = dataclasses.replace(_prediction(0, said, ()), documents=1)
    assert remarks(scores_of([alone], top_k=1)) == []


def test_unanswerable_questions_are_counted():
    said = {"model": "Corin", "none": "", "shuffled": "x"}
    one = dataclasses.replace(_prediction(0, said), gold=("noanswer", ""))
    scores = scores_of([one, _prediction(1, said)], top_k=1)
    assert scores["unanswerable"] == 1
    assert any(r.startswith("1 of 2 questions are unanswer") for r in remarks(scores))
    every = remarks(scores_of([one, one], top_k=1))
    assert any(r.startswith("ALL 2 questions are read as unanswer") for r in every)


def test_a_test_set_has_predictions_and_no_scores():
    said = {"model": "x y", "none": "x", "shuffled": "x"}
    unknown = dataclasses.replace(_prediction(0, said, ()), gold=(), documents=1)
    scores = scores_of([unknown], top_k=1)
    assert scores["answers"]["model"] == {"output_length": {"mean": 2.0}}
    assert scores["memory"] == {}
    (told,) = remarks(scores)
    assert told.endswith("there are predictions, but no scores of answers")
    assert "|" not in markdown(scores, "t") and told in markdown(scores, "t")

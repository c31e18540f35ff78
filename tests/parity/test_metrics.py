"""Scores equal to the original's on its own cases (``metrics.json``)."""

import json

import pytest

from clara_jax.evaluate import metrics


@pytest.fixture(scope="module")
def cases(oracle):
    path = oracle / "metrics.json"
    assert path.is_file(), f"missing: {path}"
    return json.loads(path.read_text())


def test_pairs(cases):
    for case in cases["pairs"]:
        pair = case["prediction"], case["answer"]
        normalized = tuple(map(metrics.normalize_answer, pair))
        assert normalized == (case["normalized_prediction"], case["normalized_answer"])
        assert metrics.exact_match(*pair) == case["em"], pair
        assert metrics.cover_exact_match(*pair) == case["cover_em"], pair
        assert metrics.f1(*pair) == pytest.approx(case["f1"], abs=1e-12), pair


def test_aggregate(cases):
    expected = cases["evaluate_script_aggregate_over_pairs"]
    predictions, answers = zip(
        *((case["prediction"], case["answer"]) for case in cases["pairs"]), strict=True
    )
    scores = metrics.score_answers(predictions, answers)
    assert scores == pytest.approx(
        {
            "exact_match": expected["em"],
            "f1": expected["f1"],
            "cover_em": expected["acc"],
            "output_length": expected["avg_output_length"],
        },
        abs=1e-12,
    )


def test_retrieval(cases):
    for case in cases["retrieval"]:
        gold, chosen = case["pos_index"], case["topk_idx"]
        trainer = metrics.score_retrieval(gold, chosen)
        script = metrics.score_retrieval(gold, chosen, rows_without_gold="zero")
        assert sum(map(bool, gold)) == case["trainer_valid_samples"]
        for k in (1, 3, 5):
            for name in ("recall", "precision"):
                assert trainer[f"{name}@{k}"] == pytest.approx(
                    case["trainer"][f"{name}_{k}"], abs=1e-12
                )
                assert script[f"{name}@{k}"] == pytest.approx(
                    case["evaluate_script"][f"{name}@{k}"], abs=1e-12
                )

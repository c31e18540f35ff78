"""Scores on cases small enough to check by hand."""

import inspect

import pytest

from clara_jax.evaluate import metrics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("True", "yes"),
        ("true", "true"),
        ("an apple a day", "apple day"),
        ("rock'n'roll", "rocknroll"),
        ("“quoted” – dash", "“quoted” – dash"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normalize(text, expected):
    assert metrics.normalize_answer(text) == expected


def test_f1_counts_repeats_and_refuses_half_verdicts():
    assert metrics.f1("a b b", "b b c") == pytest.approx(1.0 * 4 / 5)
    assert metrics.f1("yes it is", "yes") == 0.0
    assert metrics.f1("", "") == 0.0
    assert metrics.exact_match("", "") == 1.0
    assert metrics.cover_exact_match("anything", "") == 1.0


def test_cover_ignores_order_and_multiplicity():
    assert metrics.cover_exact_match("Paris in the spring", "spring, spring Paris") == 1
    assert metrics.cover_exact_match("Paris", "Paris France") == 0


def test_best_gold_answer_counts():
    scores = metrics.score_answers(["NYC"], [["New York", "nyc"]])
    assert scores["exact_match"] == scores["f1"] == 1.0
    assert scores["output_length"] == 1.0
    assert metrics.score_answers([], []) == {}


@pytest.mark.parametrize(
    ("predictions", "answers", "message"),
    [
        (["a"], [], "rows differ in number: predictions 1, answers 0"),
        (["x"], [["x"], ["y"]], "rows differ in number: predictions 1, answers 2"),
        (["x"], [5], r"answers\[0\] must be strings in a list, but has 5"),
        (["x"], [[None]], r"answers\[0\] must be strings in a list, but has None"),
        ([5], ["x"], "predictions must be strings in a list, but has 5"),
        ("x", ["x"], "predictions must be strings in a list, but has 'x'"),
    ],
)
def test_what_cannot_be_scored_is_named(predictions, answers, message):
    unchecked = inspect.unwrap(metrics.best_scores)  # as in use, without tests' types
    with pytest.raises(ValueError, match=message):
        unchecked("f1", predictions, answers)


def test_rankings_that_cannot_be_scored_are_named():
    with pytest.raises(ValueError, match=r"ks must be 1 or more, but are \[1, 0\]"):
        metrics.score_retrieval([[0]], [[0]], [1, 0])
    with pytest.raises(ValueError, match="gold 1, chosen 2, missing 1"):
        metrics.score_retrieval([[0]], [[0], [1]])


def test_retrieval_variants_differ_on_rows_without_gold():
    gold, chosen = [[2, 2], []], [[9, 2], [1, 0]]
    skip = metrics.score_retrieval(gold, chosen, (1, 3))
    zero = metrics.score_retrieval(gold, chosen, (1, 3), rows_without_gold="zero")
    assert skip == pytest.approx(
        {"recall@1": 0, "precision@1": 0, "recall@3": 1, "precision@3": 1 / 3}
    )
    assert zero["recall@3"] == 0.5
    assert set(metrics.score_retrieval([[]], [[1]]).values()) == {0.0}


def test_right_documents_that_are_not_there_count_in_recall():
    gold, chosen = [[1], [], []], [[1, 0], [0, 1], [0, 1]]
    found = metrics.score_retrieval(gold, chosen, (1, 2), missing=[1, 2, 0])
    # The second row can have nothing right, the third is not known.
    assert found == pytest.approx(
        {"recall@1": 0.25, "precision@1": 0.5, "recall@2": 0.25, "precision@2": 0.25}
    )
    with_intervals = metrics.recall_of(gold, chosen, (1,), missing=[1, 2, 0])
    assert with_intervals["recall@1"]["mean"] == 0.25
    assert metrics.score_retrieval(gold, chosen, (1,))["recall@1"] == 1.0

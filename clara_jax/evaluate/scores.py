"""Scores of predictions with confidence intervals, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clara_jax.evaluate.examine import Prediction
from clara_jax.evaluate.metrics import ANSWER_METRICS, score_answers, score_retrieval

LABELS = {
    "model": "the model",
    "gold": "gold documents' vectors",
    "none": "no documents",
    "shuffled": "another question's vectors",
    "bm25": "BM25 chooses",
    "text": "frozen backbone, full text",
    "closed_book": "frozen backbone, closed book",
}
SHOWN = {"exact_match": "EM", "f1": "F1", "cover_em": "cover-EM"}


def bootstrap(
    values: Sequence[float], seed: int = 0, draws: int = 1000, share: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a mean over resampled questions (Efron, 1979).

    Args:
      values: one score per question.
      seed: of the draws.
      draws: resamples.
      share: of the means that lie inside.

    Returns:
      Its lower and upper end.
    """
    array = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [
        array[rng.integers(0, len(array), len(array))].mean() for _ in range(draws)
    ]
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def recall_of(
    positives: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    ks: Sequence[int],
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Recall of rankings with its interval, over the questions with known positives.

    Args:
      positives: right documents of each question.
      chosen: documents as ranked, best first.
      ks: cut-offs.
      seed: of the bootstrap.

    Returns:
      ``recall@k`` to ``mean``, ``low``, ``high``; empty where no question counts.
    """
    rows = [(set(g), list(c)) for g, c in zip(positives, chosen, strict=True) if g]
    found = {}
    for k in ks if rows else ():
        each = [len(right & set(taken[:k])) / len(right) for right, taken in rows]
        low, high = bootstrap(each, seed)
        mean = sum(each) / len(each)
        found[f"recall@{k}"] = {"mean": mean, "low": low, "high": high}
    return found


def scores_of(
    predictions: Sequence[Prediction], top_k: int, seed: int = 0
) -> dict[str, Any]:
    """Every condition's scores, and every ranking's.

    Args:
      predictions: of all questions.
      top_k: J; rankings are cut at 1, 3, 5 and J, those that J allows.
      seed: of the bootstrap.

    Returns:
      ``answers``: condition to metric to ``mean``, ``low``, ``high``; ``retrieval``:
      ranking to ``recall@k`` and ``precision@k`` of the questions with known positives;
      ``memory``: what gold vectors add to none and to shuffled ones.
    """
    answers: dict[str, Any] = {}
    for condition in predictions[0].answers:
        said = [p.answers[condition] for p in predictions]
        means = score_answers(said, [p.gold for p in predictions])
        answers[condition] = {"output_length": {"mean": means["output_length"]}}
        for name, metric in ANSWER_METRICS.items():
            each = [
                max((metric(text, gold) for gold in p.gold), default=0.0)
                for text, p in zip(said, predictions, strict=True)
            ]
            low, high = bootstrap(each, seed)
            answers[condition][name] = {"mean": means[name], "low": low, "high": high}
    positives = [p.positives for p in predictions]
    ks = sorted({k for k in (1, 3, 5, top_k) if k <= top_k})
    retrieval = {
        name: score_retrieval(positives, [p.chosen[name] for p in predictions], ks)
        for name in (predictions[0].chosen if any(positives) else ())
    }
    gold = answers.get("gold", answers["model"])
    memory = {
        f"{name} over {other}": gold[name]["mean"] - answers[other][name]["mean"]
        for other in ("none", "shuffled")
        for name in SHOWN
    }
    return {
        "questions": len(predictions),
        "answers": answers,
        "retrieval": retrieval,
        "memory": memory,
    }


def markdown(scores: Mapping[str, Any], title: str) -> str:
    """The scores as Markdown.

    Args:
      scores: of `scores_of`.
      title: what was measured.

    Returns:
      Tables, means with their 95% intervals.
    """
    lines = [f"# {title}", "", f"{scores['questions']} questions; 95% intervals by"]
    lines[-1] += " bootstrap over questions."
    answers = [
        [LABELS[condition], *(values[name] for name in SHOWN)]
        for condition, values in scores["answers"].items()
    ]
    lines += ["", *markdown_table(["answers", *SHOWN.values()], answers)]
    added = [
        [
            f"gold vectors over: {LABELS[other]}",
            *(f"{scores['memory'][f'{name} over {other}']:+.3f}" for name in SHOWN),
        ]
        for other in ("none", "shuffled")
    ]
    lines += ["", *markdown_table(["what the memory adds", *SHOWN.values()], added)]
    if scores["retrieval"]:
        columns = list(next(iter(scores["retrieval"].values())))
        ranked = [
            [LABELS[ranking], *(f"{values[c]:.3f}" for c in columns)]
            for ranking, values in scores["retrieval"].items()
        ]
        lines += ["", *markdown_table(["ranking", *columns], ranked)]
    return "\n".join(lines) + "\n"


def markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[str | Mapping[str, float]]]
) -> list[str]:
    """Lines of a table; a cell with ``mean``, ``low`` and ``high`` shows all three."""
    lines = [list(columns), ["---"] * len(columns), *(map(_cell, row) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: str | Mapping[str, float]) -> str:
    if isinstance(value, str):
        return value
    return f"{value['mean']:.3f} ({value['low']:.3f}-{value['high']:.3f})"

"""Answer and retrieval scores, string by string as the original computes them.

The normalisation is SQuAD's with one addition: the exact strings ``True`` and ``False``
count as ``yes`` and ``no``.
"""

import collections
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_BOOLEANS = {"True": "yes", "False": "no"}
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_VERDICTS = ("yes", "no", "noanswer")


def normalize_answer(text: str) -> str:
    """Bring an answer into the form in which answers are compared.

    In this order: ``True``/``False`` become ``yes``/``no``; lower case; ASCII
    punctuation is deleted, not replaced by spaces; the words a, an, the go; white space
    collapses.
    """
    text = _BOOLEANS.get(text, text).lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if both strings normalise to the same string, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of token precision and recall; repeated tokens count.

    Where either side is yes, no or noanswer and they differ, the score is 0: half a
    verdict is no verdict. Two empty strings score 0 as well.
    """
    found, gold = normalize_answer(prediction), normalize_answer(answer)
    if found != gold and (found in _VERDICTS or gold in _VERDICTS):
        return 0.0
    found_tokens, gold_tokens = found.split(), gold.split()
    common = collections.Counter(found_tokens) & collections.Counter(gold_tokens)
    same = sum(common.values())
    if same == 0:
        return 0.0
    precision, recall = same / len(found_tokens), same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def cover_exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if the prediction holds every token of the answer, else 0.0.

    Neither order nor multiplicity counts, and an empty answer is always covered.
    """
    found = set(normalize_answer(prediction).split())
    return float(found.issuperset(normalize_answer(answer).split()))


ANSWER_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "cover_em": cover_exact_match,
}


def best_scores(
    metric: str, predictions: Sequence[str], answers: Sequence[str | Sequence[str]]
) -> list[float]:
    """Return one of `ANSWER_METRICS` for each row; see `score_answers`."""
    score = ANSWER_METRICS[metric]
    rows = [[gold] if isinstance(gold, str) else gold for gold in answers]
    return [
        max((score(prediction, answer) for answer in gold), default=0.0)
        for prediction, gold in zip(predictions, rows, strict=True)
    ]


def score_answers(
    predictions: Sequence[str], answers: Sequence[str | Sequence[str]]
) -> dict[str, float]:
    """Return the mean of every answer metric, each row by its best gold answer.

    Args:
      predictions: one string per row.
      answers: per row one gold answer, or several that are equally good; without any a
        row scores 0.

    Returns:
      ``exact_match``, ``f1``, ``cover_em`` and ``output_length``, the mean number of
      words in a prediction. Empty input gives an empty dict.

    Raises:
      ValueError: the two sequences differ in length.
    """
    each = {name: best_scores(name, predictions, answers) for name in ANSWER_METRICS}
    each["output_length"] = [float(len(text.split())) for text in predictions]
    return {name: sum(row) / len(row) for name, row in each.items() if row}


def score_retrieval(
    gold: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    ks: Sequence[int] = (1, 3, 5),
    *,
    rows_without_gold: Literal["skip", "zero"] = "skip",
) -> dict[str, float]:
    """Return recall and precision of the first k chosen documents.

    Recall divides by the number of distinct gold documents, precision by k even where
    fewer than k were chosen.

    Args:
      gold: indices of the relevant candidates per row; repeats count once.
      chosen: chosen candidates per row, best first.
      ks: cut-offs.
      rows_without_gold: ``skip`` leaves such rows out of the mean, as the original's
        trainer does; ``zero`` counts them as 0, as its evaluation script does.

    Returns:
      ``recall@k`` and ``precision@k`` for each k; all 0 where no row counts.

    Raises:
      ValueError: the two sequences differ in length.
    """
    rows = [(set(g), list(c)) for g, c in zip(gold, chosen, strict=True)]
    if rows_without_gold == "skip":
        rows = [row for row in rows if row[0]]
    count = max(len(rows), 1)
    scores = {}
    for k in ks:
        hits = [(len(g.intersection(c[:k])), len(g)) for g, c in rows]
        scores[f"recall@{k}"] = sum(h / max(of, 1) for h, of in hits) / count
        scores[f"precision@{k}"] = sum(h / k for h, _ in hits) / count
    return scores


def bootstrap(
    values: Sequence[float], seed: int = 0, draws: int = 1000
) -> dict[str, float]:
    """Return the ``mean`` of rows' scores and its 95% interval, ``low`` to ``high``.

    The ends are percentiles of means over rows drawn anew `draws` times (Efron, 1979).
    """
    array = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    size = len(array)
    means = [array[rng.integers(0, size, size)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return {"mean": sum(values) / size, "low": float(low), "high": float(high)}


def recall_of(
    positives: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    ks: Sequence[int],
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return `score_retrieval`'s ``recall@k`` with intervals as of `bootstrap`."""
    rows = [(set(g), list(c)) for g, c in zip(positives, chosen, strict=True) if g]
    return {
        f"recall@{k}": bootstrap([len(g & set(c[:k])) / len(g) for g, c in rows], seed)
        for k in (ks if rows else ())
    }

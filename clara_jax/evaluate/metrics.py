"""Scores of answers and of retrieval, as the original or a data set's script has them.

All normalise answers as SQuAD does, and differ in what they do with answers of which
nothing is left by that, with verdicts and with ``True`` (`Rules`).
"""

import collections
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from clara_jax.data.records import NO_ANSWER, UNANSWERABLE

Rules = Literal["original", "squad", "squad2", "hotpotqa", "musique"]
"""Whose script is followed: the original's, or that of SQuAD 1.1, 2.0, HotpotQA or
MuSiQue (answers)."""

RULES: tuple[str, ...] = get_args(Rules)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_BOOLEANS = {"True": "yes", "False": "no"}
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_VERDICTS = ("yes", "no", NO_ANSWER)
# Han with its marks, kana, bopomofo, Hangul.
_CHARACTER = re.compile(
    "([\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff])"
)
_SIGNS = "\u2212\u2044"
"""Minus and fraction slash, which Unicode does not count as punctuation."""


def normalize_answer(
    text: str, *, rules: Rules = "original", unicode: bool = False
) -> str:
    """Bring an answer into the form in which answers are compared.

    In this order: lower case; ASCII punctuation is deleted, not replaced by spaces; the
    words a, an, the go; white space collapses. Of the original, ``True`` and ``False``
    become ``yes`` and ``no`` first.

    Args:
      text: an answer.
      rules: whose.
      unicode: delete all of Unicode's punctuation, dashes and invisible characters; do
        not tell forms of a character apart that NFKC joins (composed or not, full or
        half width); make each Chinese, Japanese or Korean character a word of its own.
    """
    if rules == "original":
        text = _BOOLEANS.get(text, text)
    if unicode:
        # Before NFKC, as it joins an accent that stands alone to the letter in front;
        # after it, as it makes brackets.
        text = _without_marks(unicodedata.normalize("NFC", text))
        text = _without_marks(unicodedata.normalize("NFKC", text))
    text = _ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION))
    return " ".join((_CHARACTER.sub(r" \1 ", text) if unicode else text).split())


def _without_marks(text: str) -> str:
    """Delete punctuation, accents that stand alone, and what is invisible."""

    def stays(character: str) -> bool:
        kind = unicodedata.category(character)
        return kind[0] != "P" and kind not in ("Sk", "Cf") and character not in _SIGNS

    return "".join(filter(stays, text))


def exact_match(
    prediction: str, answer: str, *, rules: Rules = "original", unicode: bool = False
) -> float:
    """Return 1.0 if both strings normalise to the same string, else 0.0."""
    found, gold = _both(prediction, answer, rules, unicode)
    return float(found == gold)


def f1(
    prediction: str, answer: str, *, rules: Rules = "original", unicode: bool = False
) -> float:
    """Return the harmonic mean of token precision and recall; repeated tokens count.

    By the rules of the original and of HotpotQA it is 0 where either side is yes, no or
    noanswer and they differ: half a verdict is no verdict. Where nothing is left of a
    side, it is 0; by those of SQuAD 2.0 and MuSiQue, 1 if nothing is left of both.
    """
    found, gold = _both(prediction, answer, rules, unicode)
    verdicts = _VERDICTS if rules in ("original", "hotpotqa") else ()
    if found != gold and (found in verdicts or gold in verdicts):
        return 0.0
    found_tokens, gold_tokens = found.split(), gold.split()
    if rules in ("squad2", "musique") and not (found_tokens and gold_tokens):
        return float(found_tokens == gold_tokens)
    common = collections.Counter(found_tokens) & collections.Counter(gold_tokens)
    same = sum(common.values())
    if same == 0:
        return 0.0
    precision, recall = same / len(found_tokens), same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def cover_exact_match(
    prediction: str, answer: str, *, rules: Rules = "original", unicode: bool = False
) -> float:
    """Return 1.0 if the prediction holds every token of the answer, else 0.0.

    Neither order nor multiplicity counts. An answer of which nothing is left is covered
    by a prediction of which nothing is left; by the original's rules, by any.
    """
    found, gold = (set(s.split()) for s in _both(prediction, answer, rules, unicode))
    if not gold and rules != "original":
        return float(not found)
    return float(found >= gold)


def _both(prediction: str, answer: str, rules: Rules, unicode: bool) -> tuple[str, str]:
    found = normalize_answer(prediction, rules=rules, unicode=unicode)
    return found, normalize_answer(answer, rules=rules, unicode=unicode)


ANSWER_METRICS: Mapping[str, Callable[..., float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "cover_em": cover_exact_match,
}


def best_scores(
    metric: str,
    predictions: Sequence[str],
    answers: Sequence[str | Sequence[str]],
    *,
    rules: Rules = "original",
    unicode: bool = False,
) -> list[float]:
    """Return one of `ANSWER_METRICS` for each row; see `score_answers`."""
    if rules not in RULES:
        raise ValueError(f"rules '{rules}' are unknown; there are {', '.join(RULES)}")
    how: Any = {"rules": rules, "unicode": unicode}

    def best(prediction: str, gold: Sequence[str]) -> float:
        if tuple(gold) == UNANSWERABLE:
            return _refusal(metric, normalize_answer(prediction, **how))
        if rules == "squad2":
            gold = [text for text in gold if normalize_answer(text, **how)] or [""]
        scores = (ANSWER_METRICS[metric](prediction, text, **how) for text in gold)
        return max(scores, default=0.0)

    _require_texts("predictions", predictions)
    rows = [[gold] if isinstance(gold, str) else gold for gold in answers]
    for i, gold in enumerate(rows):
        _require_texts(f"answers[{i}]", gold)
    _require_rows(predictions=predictions, answers=rows)
    return [best(*row) for row in zip(predictions, rows, strict=True)]


def _require_texts(name: str, values: Any) -> None:
    """Refuse what is not several strings."""
    several = isinstance(values, Iterable) and not isinstance(values, str)
    for value in values if several else (values,):
        if not several or not isinstance(value, str):
            raise ValueError(f"{name} must be strings in a list, but has {value!r:.40}")


def _require_rows(**columns: Sequence[Any]) -> None:
    """Refuse columns of different lengths."""
    if len({len(values) for values in columns.values()}) > 1:
        told = ", ".join(f"{name} {len(rows)}" for name, rows in columns.items())
        raise ValueError(f"rows differ in number: {told}; give one each")


def _refusal(metric: str, found: str) -> float:
    """Score an answer to a question that has none: right if it says so, or nothing."""
    words = found.split()
    covers = metric == "cover_em" and NO_ANSWER in words
    return float(covers or words in ([], [NO_ANSWER]))


def empty_answers(
    answers: Sequence[Sequence[str]],
    *,
    rules: Rules = "original",
    unicode: bool = False,
) -> list[str]:
    """Return the gold answers of which nothing is left when they are normalised.

    That to say nothing is right of a question without an answer does not count.
    """
    return [
        answer
        for gold in answers
        for answer in (() if tuple(gold) == UNANSWERABLE else gold)
        if not normalize_answer(answer, rules=rules, unicode=unicode)
    ]


def score_answers(
    predictions: Sequence[str],
    answers: Sequence[str | Sequence[str]],
    *,
    rules: Rules = "original",
    unicode: bool = False,
) -> dict[str, float]:
    """Return the mean of every answer metric, each row by its best gold answer.

    Args:
      predictions: one string per row.
      answers: per row one gold answer, or several that are equally good; without any a
        row scores 0. By SQuAD 2.0's rules, answers of which nothing is left are not
        counted beside others, and a row without any wants an empty prediction. To
        ``("noanswer", "")``, of a question that has no answer, either of the two is
        right by all rules, and has an F1 of 1.
      rules: whose metrics: the original's, or those of a data set's own script.
      unicode: compare texts of any script; see ``normalize_answer``.

    Returns:
      ``exact_match``, ``f1``, ``cover_em`` and ``output_length``, the mean number of
      words in a prediction. Empty input gives an empty dict.

    Raises:
      ValueError: the two sequences differ in length, hold something else than strings,
        or the rules are unknown.
    """
    each = {
        name: best_scores(name, predictions, answers, rules=rules, unicode=unicode)
        for name in ANSWER_METRICS
    }
    each["output_length"] = [float(len(text.split())) for text in predictions]
    return {name: sum(row) / len(row) for name, row in each.items() if row}


def score_retrieval(
    gold: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    ks: Sequence[int] = (1, 3, 5),
    *,
    rows_without_gold: Literal["skip", "zero"] = "skip",
    missing: Sequence[int] | None = None,
) -> dict[str, float]:
    """Return recall and precision of the first k chosen documents.

    Recall divides by the number of distinct gold documents, `missing` ones included,
    precision by k even where fewer than k were chosen.

    Args:
      gold: indices of the relevant candidates per row; repeats count once.
      chosen: chosen candidates per row, best first.
      ks: cut-offs.
      rows_without_gold: ``skip`` leaves such rows out of the mean, as the original's
        trainer does; ``zero`` counts them as 0, as its evaluation script does.
      missing: number of relevant documents per row that are not among the candidates,
        and so cannot be chosen; by default none.

    Returns:
      ``recall@k`` and ``precision@k`` for each k; all 0 where no row counts.

    Raises:
      ValueError: the sequences differ in length, or a cut-off is below 1.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be 1 or more, but are {list(ks)}")
    rows = _found(gold, chosen, missing)
    if rows_without_gold == "skip":
        rows = [row for row in rows if row[2]]
    count = max(len(rows), 1)
    scores = {}
    for k in ks:
        hits = [(len(g.intersection(c[:k])), of) for g, c, of in rows]
        scores[f"recall@{k}"] = sum(h / max(of, 1) for h, of in hits) / count
        scores[f"precision@{k}"] = sum(h / k for h, _ in hits) / count
    return scores


def _found(
    gold: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    missing: Sequence[int] | None,
) -> list[tuple[set[int], list[int], int]]:
    """Return each row's gold and chosen documents, and the number to be found."""
    lost = [0] * len(gold) if missing is None else missing
    _require_rows(gold=gold, chosen=chosen, missing=lost)
    rows = zip(gold, chosen, lost, strict=True)
    return [(set(g), list(c), len(set(g)) + m) for g, c, m in rows]


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
    missing: Sequence[int] | None = None,
) -> dict[str, dict[str, float]]:
    """Return `score_retrieval`'s ``recall@k`` with intervals as of `bootstrap`."""
    rows = [row for row in _found(positives, chosen, missing) if row[2]]
    return {
        f"recall@{k}": bootstrap([len(g & set(c[:k])) / of for g, c, of in rows], seed)
        for k in (ks if rows else ())
    }

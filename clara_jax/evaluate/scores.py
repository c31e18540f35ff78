"""The scores of predictions under every condition, and their tables."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from clara_jax.data.records import NO_ANSWER, UNANSWERABLE
from clara_jax.evaluate.metrics import (
    ANSWER_METRICS,
    Rules,
    best_scores,
    bootstrap,
    empty_answers,
    score_retrieval,
)
from clara_jax.evaluate.predictions import Prediction

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


def scores_of(
    predictions: Sequence[Prediction],
    top_k: int,
    seed: int = 0,
    *,
    rules: Rules = "original",
    unicode: bool = False,
) -> dict[str, Any]:
    """Score every condition, and every ranking, cut at J and those of 1, 3, 5 below.

    Args:
      predictions: at least one.
      top_k: J.
      seed: of the bootstrap.
      rules, unicode: of the answers' metrics; see `clara_jax.score_answers`.

    Returns:
      ``answers``: condition to metric to ``mean``, ``low``, ``high``, over questions
      with known answers; ``retrieval``: ranking to ``recall@k`` and ``precision@k`` of
      the questions with known gold documents; ``memory``: what gold vectors add to none
      and to shuffled ones. And what the scores are of: see `remarks`.
    """
    known = [p for p in predictions if p.gold]
    how: Any = {"rules": rules, "unicode": unicode}
    answers: dict[str, Any] = {}
    golds = [p.gold for p in known]
    for condition in predictions[0].answers:
        lengths = [len(p.answers[condition].split()) for p in predictions]
        answers[condition] = {"output_length": {"mean": fmean(lengths)}}
        said = [p.answers[condition] for p in known]
        for name in ANSWER_METRICS if known else ():
            each = best_scores(name, said, golds, **how)
            answers[condition][name] = bootstrap(each, seed)
    positives = [p.positives for p in predictions]
    missing = [p.missing for p in predictions]
    ks = sorted({k for k in (1, 3, 5, top_k) if k <= top_k})
    retrieval = {
        name: score_retrieval(
            positives, [p.chosen[name] for p in predictions], ks, missing=missing
        )
        for name in (predictions[0].chosen if any(positives) or any(missing) else ())
    }
    gold = answers.get("gold", answers["model"])
    memory = {
        f"{name} over {other}": gold[name]["mean"] - answers[other][name]["mean"]
        for other in (("none", "shuffled") if known else ())
        for name in SHOWN
    }
    return {
        "questions": len(predictions),
        "without_answers": len(predictions) - len(known),
        "unanswerable": sum(tuple(p.gold) == UNANSWERABLE for p in predictions),
        **how,
        "empty_answers": empty_answers(golds, **how),
        "missing_documents": {
            "documents": sum(missing),
            "questions": sum(map(bool, missing)),
        },
        "unknown_documents": sum(p.gold_unknown for p in predictions),
        "answers": answers,
        "retrieval": retrieval,
        "memory": memory,
    }


def remarks(scores: Mapping[str, Any]) -> list[str]:
    """Return what is to be known of the scores of `scores_of`, a sentence each."""
    found, questions = [], scores["questions"]
    if without := scores["without_answers"]:
        rest = f"scores are over the other {questions - without}"
        if without == questions:
            rest = "there are predictions, but no scores of answers"
        found.append(
            f"{without} of {questions} questions have no known answer, as in a test "
            f"set: {rest}"
        )
    if refused := scores["unanswerable"]:
        remark = (
            f"{refused} of {questions} questions are unanswerable: right is "
            f"'{NO_ANSWER}' or to say nothing"
        )
        if refused == questions:
            remark = (
                f"ALL {questions} questions are read as unanswerable, so that a model "
                "that says nothing is right; if this is a test set, whose answers are "
                "hidden, these scores mean nothing: leave out the fields that say so"
            )
        found.append(remark)
    if empty := scores["empty_answers"]:
        several = list(dict.fromkeys(map(repr, empty)))
        shown = ", ".join([*several[:3], *["..."] * (len(several) > 3)])
        right = "only an empty answer matches them"
        if scores["rules"] not in ("squad2", "musique"):
            right += ", and has an F1 of 0"
        if scores["rules"] == "original":
            right += "; every answer covers them"
        if scores["rules"] == "squad2":
            right += ", and beside others they do not count"
        found.append(
            f"{len(empty)} gold answers are empty after normalisation ({shown}): "
            f"{right}"
        )
    lost = scores["missing_documents"]
    if lost["questions"]:
        found.append(
            "gold documents that are not among their question's documents: "
            f"{lost['documents']}, of {lost['questions']} of {questions} questions; "
            "they count as not found"
        )
    if unknown := scores["unknown_documents"]:
        found.append(
            f"for {unknown} of {questions} questions no document is known to hold the "
            "answer: they are given all their documents where gold ones are asked for"
        )
    return found


def markdown(scores: Mapping[str, Any], title: str) -> str:
    """Return what `scores_of` gives as Markdown, means with their 95% intervals."""
    how = "" if scores["rules"] == "original" else f"; rules of {scores['rules']}"
    how += "; all of Unicode" * scores["unicode"]
    lines = [
        f"# {title}",
        "",
        f"{scores['questions']} questions; 95% intervals by bootstrap over questions"
        f"{how}.",
    ]
    for remark in remarks(scores):
        lines += ["", f"Note: {remark}."]
    if scores["memory"]:
        added = [
            [f"gold vectors over: {LABELS[other]}"]
            + [f"{scores['memory'][f'{name} over {other}']:+.3f}" for name in SHOWN]
            for other in ("none", "shuffled")
        ]
        lines += answers_table("answers", scores, LABELS)
        lines += markdown_table(["what the memory adds", *SHOWN.values()], added)
    if scores["retrieval"]:
        columns = list(next(iter(scores["retrieval"].values())))
        ranked = [
            [LABELS[ranking], *(f"{values[c]:.3f}" for c in columns)]
            for ranking, values in scores["retrieval"].items()
        ]
        lines += markdown_table(["ranking", *columns], ranked)
    return "\n".join(lines) + "\n"


def answers_table(
    title: str,
    scores: Mapping[str, Any],
    labels: Mapping[str, str],
    shown: Mapping[str, str] = SHOWN,
) -> list[str]:
    """Return the table of a score's ``answers``: conditions down, metrics across."""
    rows = [
        [labels[condition], *(values[name] for name in shown)]
        for condition, values in scores["answers"].items()
    ]
    return markdown_table([title, *shown.values()], rows)


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Mapping[str, float]]]
) -> list[str]:
    """Return the lines of a table, an empty one first; values of `bootstrap` whole."""

    def cell(value: str | Mapping[str, float]) -> str:
        whole = "{mean:.3f} ({low:.3f}-{high:.3f})"
        return value if isinstance(value, str) else whole.format(**value)

    lines = [columns, ["---"] * len(columns), *(map(cell, row) for row in rows)]
    return ["", *(f"| {' | '.join(line)} |" for line in lines)]

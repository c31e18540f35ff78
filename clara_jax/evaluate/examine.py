"""The same questions under several conditions, and the table of their scores.

The generator answers from vectors: of the documents that were chosen (``model``; an
oracle: the right ones), of the right ones (``gold``), of none (``none``), of those of
the next question that shares none (``shuffled``), and of what BM25 ranks first
(``bm25``). The frozen backbone reads the documents of ``model`` as ``text``, or none
(``closed_book``). What ``gold`` has above ``none`` and ``shuffled`` is the memory's.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.evaluate.evaluators import Question, choose
from clara_jax.evaluate.metrics import (
    ANSWER_METRICS,
    best_scores,
    bootstrap,
    score_retrieval,
)
from clara_jax.files import write_text, writing
from clara_jax.generate import Clara
from clara_jax.generate.batched import number_texts
from clara_jax.shapes import Bool, Float
from clara_jax.text.bm25 import Bm25


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was said to one `Question`, by its number.

    Attributes:
      answers: condition to answer.
      chosen: ranking (``model``, ``bm25``) to the candidates taken, best first.
    """

    index: int
    question: str
    gold: tuple[str, ...]
    positives: tuple[int, ...]
    answers: dict[str, str]
    chosen: dict[str, list[int]]


class PredictionFile:
    """Predictions as JSONL, written as they come, so that a killed run goes on.

    Args:
      path: made if absent; a torn last line is dropped.
      settings: of the evaluation; a file made with others is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.done: list[Prediction] = []
        head = json.dumps({"settings": settings}, ensure_ascii=False, sort_keys=True)
        try:
            with writing(path):
                before = path.read_text(encoding="utf-8") if path.exists() else ""
        except UnicodeDecodeError as error:
            raise ClaraError(
                f"{path}: is not a file of predictions; give another --out"
            ) from error
        # Not splitlines: texts may hold other line breaks, which JSON leaves alone.
        first, *lines = before.split("\n")
        if before and first != head:
            try:
                old, now = (json.loads(line)["settings"] for line in (first, head))
                changed = sorted(n for n in {**old, **now} if old.get(n) != now.get(n))
            except (ValueError, KeyError, TypeError):
                changed = []
            names = ", ".join(changed) or "everything"
            raise ClaraError(
                f"{path}: holds predictions made otherwise ({names} changed); give "
                "another --out"
            )
        kept = [head]
        for line in lines:
            try:
                values = json.loads(line)
                values |= {name: tuple(values[name]) for name in ("gold", "positives")}
                self.done.append(Prediction(**values))
            except (ValueError, KeyError, TypeError):
                break
            kept.append(line)
        whole = "\n".join(kept) + "\n"
        if whole != before:
            write_text(path, whole)

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Append predictions and flush them."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            for prediction in predictions:
                values = dataclasses.asdict(prediction)
                file.write(json.dumps(values, ensure_ascii=False) + "\n")
        self.done.extend(predictions)


DIAGNOSTICS = ("gold", "none", "shuffled")
BASELINES = ("bm25", "text", "closed_book")
CHUNK = 8
"""Questions between two writes of predictions; a batch where that is more."""

Setting = Literal["normal", "oracle"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Who answers from full text.

    Attributes:
      clara: the model.
      role: whose adapter reads; None for the frozen backbone.
      reads: the condition whose documents: ``model``, ``gold``, ``bm25`` or ``none``.
    """

    clara: Clara
    role: str | None = None
    reads: str = "model"


@dataclasses.dataclass(frozen=True)
class Exam:
    """How questions are put.

    Attributes:
      setting: ``normal`` chooses among the candidates, ``oracle`` is given the gold.
      top_k: J, documents chosen; all of a question that has fewer.
      conditions: of `conditions_of`, and those of `readers`.
      readers: further conditions.
      rankers: models whose reasoners rank the candidates too, by the ranking's name.
      ranked: candidates of a ranking that are kept, if more than top_k.
      compress: gives documents' vectors; by default the model does.
      groups: of each question; ``shuffled`` exchanges documents within a group only.
    """

    setting: Setting
    top_k: int
    conditions: Sequence[str]
    readers: Mapping[str, Reader] = dataclasses.field(default_factory=dict)
    rankers: Mapping[str, Clara] = dataclasses.field(default_factory=dict)
    ranked: int = 0
    compress: Callable[[Sequence[str]], Float[np.ndarray, "n M D"]] | None = None
    groups: Sequence[str] = ()


def conditions_of(
    clara: Clara, setting: Setting, baselines: Sequence[str]
) -> list[str]:
    """Return the conditions that apply: an oracle's ``gold`` is ``model`` itself.

    Raises:
      ClaraError: an unknown baseline, or documents to choose without a reasoner.
    """
    for name in baselines:
        if name not in BASELINES:
            raise ClaraError(
                f"baseline '{name}' is unknown; there are {', '.join(BASELINES)}"
            )
    if setting == "normal" and "reasoner" not in clara.network.adapters:
        raise ClaraError(
            "this model has no reasoner to choose documents, which stage end_to_end "
            "trains; take --setting oracle"
        )
    diagnostics = [d for d in DIAGNOSTICS if setting == "normal" or d != "gold"]
    return ["model", *diagnostics, *baselines]


def examine(
    clara: Clara, questions: Sequence[Question], exam: Exam, start: int = 0
) -> Iterator[list[Prediction]]:
    """Answer questions from `start` on under every condition, some at a time."""
    gold = [question.gold_documents for question in questions]
    for numbers in chunks(clara, len(questions), start):
        chunk = [questions[i] for i in numbers]
        others = [other_documents(gold, i, exam.groups) for i in numbers]
        answers, chosen = _chunk(clara, chunk, others, exam)
        yield [
            Prediction(
                index=i,
                question=question.question,
                gold=question.gold,
                positives=question.positives,
                answers={name: answers[name][row] for name in exam.conditions},
                chosen={name: rows[row] for name, rows in chosen.items()},
            )
            for row, (i, question) in enumerate(zip(numbers, chunk, strict=True))
        ]


def chunks(clara: Clara, count: int, start: int) -> Iterator[range]:
    """Yield the numbers from `start` on, those answered at a time together."""
    step = max(CHUNK, clara.config.batch_size)
    for begin in range(start, count, step):
        yield range(begin, min(begin + step, count))


def other_documents(
    rows: Sequence[Sequence[str]], index: int, groups: Sequence[str] = ()
) -> Sequence[str]:
    """Return the next row of documents, in a ring, that shares none with this one.

    It is of the same group, if there are groups. Where the next thousand rows all share
    some, there are no documents.
    """
    own = set(rows[index])
    for step in range(1, min(len(rows), 1000)):
        other = (index + step) % len(rows)
        alike = not groups or groups[other] == groups[index]
        if alike and own.isdisjoint(rows[other]):
            return rows[other]
    return ()


def _chunk(
    clara: Clara, chunk: Sequence[Question], other: Sequence[Sequence[str]], exam: Exam
) -> tuple[dict[str, list[str]], dict[str, list[list[int]]]]:
    """Return answers by condition, and choices by ranking.

    `other` is what the condition ``shuffled`` reads: other questions' gold documents.
    """
    asked = [question.question for question in chunk]
    candidates = [question.documents for question in chunk]
    gold = [question.gold_documents for question in chunk]
    none = [()] * len(chunk)
    read: dict[str, Sequence[Sequence[str]]]
    read = {"gold": gold, "model": gold, "none": none, "shuffled": other}
    chosen: dict[str, list[list[int]]] = {}
    most = max(exam.top_k, exam.ranked)

    def rank(name: str, rows: list[list[int]]) -> None:
        """Keep a ranking of the candidates, and let its first documents be read."""
        chosen[name] = rows
        pairs = zip(candidates, rows, strict=True)
        read[name] = [[texts[i] for i in row[: exam.top_k]] for texts, row in pairs]

    if "bm25" in {*exam.conditions, *(r.reads for r in exam.readers.values())}:
        rankings = [Bm25(q.documents).ranking(q.question)[:most] for q in chunk]
        rank("bm25", [ranking.tolist() for ranking in rankings])
    offered = candidates if exam.setting == "normal" else read.get("bm25", ())
    texts = list(dict.fromkeys(itertools.chain(*offered, *gold, *other)))
    compress = exam.compress or clara.compress
    known = dict(zip(texts, compress(texts), strict=True))
    if exam.setting == "normal":
        stacked = _stacked(candidates, known)
        for name, ranker in {"model": clara, **exam.rankers}.items():
            ranked, exist = choose(ranker, asked, *stacked, most)
            pairs = zip(ranked.tolist(), exist.sum(axis=1), strict=True)
            rank(name, [row[:count] for row, count in pairs])
    answers: dict[str, list[str]] = {}
    frozen = {"text": Reader(clara), "closed_book": Reader(clara, reads="none")}
    readers = {**frozen, **exam.readers}
    for name in exam.conditions:
        if reader := readers.get(name):
            texts = read[reader.reads]
            answers[name] = reader.clara.answer_from_text(asked, texts, reader.role)
        else:
            vectors = _stacked(read[name], known)
            answers[name] = clara.answer_from_vectors(asked, *vectors)
    return answers, chosen


def _stacked(
    rows: Sequence[Sequence[str]], known: Mapping[str, Float[np.ndarray, "M D"]]
) -> tuple[Float[np.ndarray, "B C M D"], Bool[np.ndarray, "B C"]]:
    """Stack the vectors of ragged rows of documents; also which places hold one."""
    distinct, places, mask = number_texts(rows)
    example = next(iter(known.values()))
    if not distinct:
        return np.zeros((len(rows), 0, *example.shape), example.dtype), mask
    return np.stack([known[text] for text in distinct])[places], mask


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
    predictions: Sequence[Prediction], top_k: int, seed: int = 0
) -> dict[str, Any]:
    """Score every condition, and every ranking, cut at J and those of 1, 3, 5 below.

    Returns:
      ``answers``: condition to metric to ``mean``, ``low``, ``high``; ``retrieval``:
      ranking to ``recall@k`` and ``precision@k`` of the questions with known positives;
      ``memory``: what gold vectors add to none and to shuffled ones.
    """
    answers: dict[str, Any] = {}
    golds = [p.gold for p in predictions]
    for condition in predictions[0].answers:
        said = [p.answers[condition] for p in predictions]
        length = fmean(len(text.split()) for text in said)
        each = {name: best_scores(name, said, golds) for name in ANSWER_METRICS}
        own = {name: bootstrap(scores, seed) for name, scores in each.items()}
        answers[condition] = {"output_length": {"mean": length}, **own}
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
    found = {"answers": answers, "retrieval": retrieval, "memory": memory}
    return {"questions": len(predictions), **found}


def markdown(scores: Mapping[str, Any], title: str) -> str:
    """Return what `scores_of` gives as Markdown, means with their 95% intervals."""
    added = [
        [f"gold vectors over: {LABELS[other]}"]
        + [f"{scores['memory'][f'{name} over {other}']:+.3f}" for name in SHOWN]
        for other in ("none", "shuffled")
    ]
    lines = [
        f"# {title}",
        "",
        f"{scores['questions']} questions; 95% intervals by bootstrap over questions.",
        *answers_table("answers", scores, LABELS),
        *markdown_table(["what the memory adds", *SHOWN.values()], added),
    ]
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

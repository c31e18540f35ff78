"""The same questions under several conditions.

The generator answers from vectors: of the documents that were chosen (``model``; an
oracle: the right ones), of the right ones (``gold``), of none (``none``), of those of
the next question that shares none (``shuffled``), and of what BM25 ranks first
(``bm25``). The frozen backbone reads the documents of ``model`` as ``text``, or none
(``closed_book``). What ``gold`` has above ``none`` and ``shuffled`` is the memory's.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.evaluate.evaluators import Question, choose
from clara_jax.evaluate.predictions import Prediction
from clara_jax.generate import Clara
from clara_jax.generate.batched import number_texts
from clara_jax.shapes import Bool, Float
from clara_jax.text.bm25 import Bm25

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
                id=question.id,
                documents=len(question.documents),
                missing=question.missing,
                places=question.places,
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

"""The same questions under several conditions, so that a score can be trusted.

| condition | who answers | from what |
|---|---|---|
| model | generator | vectors of the chosen documents (oracle: of the gold ones) |
| gold | generator | vectors of the gold documents |
| none | generator | no documents |
| shuffled | generator | gold vectors of the next question that shares none |
| bm25 | generator | vectors of the documents that BM25 ranks first |
| text | frozen backbone | full text of the documents that ``model`` reads |
| closed_book | frozen backbone | no documents |

What ``gold`` has above ``none`` and ``shuffled`` comes from the memory; what they have
themselves comes from the weights, or from guessing.
"""

from __future__ import annotations

import importlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.evaluate.evaluators import Question, choose
from clara_jax.evaluate.predictions import Prediction
from clara_jax.generate import Clara
from clara_jax.generate.batching import number_texts
from clara_jax.shapes import Bool, Float

DIAGNOSTICS = ("gold", "none", "shuffled")
BASELINES = ("bm25", "text", "closed_book")
CHUNK = 8
"""Questions between two writes of predictions; a batch where that is more."""

Setting = Literal["normal", "oracle"]


def conditions_of(
    clara: Clara, setting: Setting, baselines: Sequence[str]
) -> list[str]:
    """Conditions that apply: ``gold`` is ``model`` itself in the oracle setting.

    Raises:
      ClaraError: an unknown baseline, or documents to choose without a reasoner.
    """
    for name in baselines:
        if name not in BASELINES:
            raise ClaraError(
                f"baseline '{name}' is unknown; there are {', '.join(BASELINES)}"
            )
    if setting == "normal" and "reasoner" not in clara.adapters:
        raise ClaraError(
            "this model has no reasoner to choose documents, which stage end_to_end "
            "trains; take --setting oracle"
        )
    diagnostics = [d for d in DIAGNOSTICS if setting == "normal" or d != "gold"]
    return ["model", *diagnostics, *baselines]


def examine(
    clara: Clara,
    questions: Sequence[Question],
    *,
    setting: Setting,
    top_k: int,
    conditions: Sequence[str],
    start: int = 0,
) -> Iterator[list[Prediction]]:
    """Answer every question under every condition.

    Args:
      clara: the model.
      questions: with candidates, and their positives where known.
      setting: ``normal`` chooses among the candidates, ``oracle`` is given the gold.
      top_k: J, documents chosen; all of a question that has fewer.
      conditions: of `conditions_of`.
      start: questions done before.

    Yields:
      Predictions, some questions at a time.

    Raises:
      ClaraError: a question cannot be read.
    """
    step = max(CHUNK, clara.config.batch_size)
    gold = [question.gold_documents for question in questions]
    for begin in range(start, len(questions), step):
        numbers = range(begin, min(begin + step, len(questions)))
        chunk = [questions[i] for i in numbers]
        others = [other_documents(gold, i) for i in numbers]
        answers, chosen = _chunk(clara, chunk, others, setting, top_k, conditions)
        yield [
            Prediction(
                index=i,
                question=question.question,
                gold=question.gold,
                positives=question.positives,
                answers={name: answers[name][row] for name in conditions},
                chosen={name: chosen[name][row] for name in chosen},
            )
            for row, (i, question) in enumerate(zip(numbers, chunk, strict=True))
        ]


def other_documents(rows: Sequence[Sequence[str]], index: int) -> Sequence[str]:
    """The documents of the next row, round the end, that shares none with this one.

    Args:
      rows: documents of every question.
      index: of this one.

    Returns:
      Another row; no documents where the next thousand all share some.
    """
    own = set(rows[index])
    for step in range(1, min(len(rows), 1000)):
        found = rows[(index + step) % len(rows)]
        if own.isdisjoint(found):
            return found
    return ()


def _chunk(
    clara: Clara,
    chunk: Sequence[Question],
    other: Sequence[Sequence[str]],
    setting: Setting,
    top_k: int,
    conditions: Sequence[str],
) -> tuple[dict[str, list[str]], dict[str, list[list[int]]]]:
    asked = [question.question for question in chunk]
    candidates = [question.documents for question in chunk]
    gold = [question.gold_documents for question in chunk]
    chosen: dict[str, list[list[int]]] = {}
    if "bm25" in conditions:
        chosen["bm25"] = [
            bm25_ranking(question.question, question.documents)[:top_k]
            for question in chunk
        ]
    read: dict[str, Sequence[Sequence[str]]] = {
        "gold": gold,
        "model": gold,
        "none": [()] * len(chunk),
        "shuffled": other,
    }

    if "bm25" in chosen:
        read["bm25"] = _picked(candidates, chosen["bm25"])
    offered = candidates if setting == "normal" else read.get("bm25", ())
    texts = list(dict.fromkeys(itertools.chain(*offered, *gold, *other)))
    known = dict(zip(texts, clara.compress(texts), strict=True))
    if setting == "normal":
        vectors, mask = _stacked(candidates, known)
        ranked, best = choose(clara, asked, vectors, mask, top_k)
        chosen["model"] = [
            row[:count].tolist()
            for row, count in zip(ranked, best.sum(axis=1), strict=True)
        ]
        read["model"] = _picked(candidates, chosen["model"])
    answers: dict[str, list[str]] = {}
    for name in conditions:
        if name == "text":
            answers[name] = clara.answer_from_text(asked, read["model"])
        elif name == "closed_book":
            answers[name] = clara.answer_from_text(asked, read["none"])
        else:
            vectors, mask = _stacked(read[name], known)
            answers[name] = clara.answer_from_vectors(asked, vectors, mask)
    return answers, chosen


def _picked(
    candidates: Sequence[Sequence[str]], chosen: Sequence[Sequence[int]]
) -> list[list[str]]:
    """The chosen documents of each question, best first."""
    return [
        [documents[i] for i in row]
        for documents, row in zip(candidates, chosen, strict=True)
    ]


def _stacked(
    rows: Sequence[Sequence[str]], known: Mapping[str, Float[np.ndarray, "M D"]]
) -> tuple[Float[np.ndarray, "B C M D"], Bool[np.ndarray, "B C"]]:
    """Vectors of ragged rows of documents, and which places hold one."""
    distinct, places, mask = number_texts(rows)
    example = next(iter(known.values()))
    if not distinct:
        return np.zeros((len(rows), 0, *example.shape), example.dtype), mask
    return np.stack([known[text] for text in distinct])[places], mask


def bm25_ranking(question: str, documents: Sequence[str]) -> list[int]:
    """Candidates by BM25 (library bm25s, English stop words left out), best first."""
    bm25s = need("bm25s")
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    corpus = bm25s.tokenize(
        list(documents), stopwords="en", return_ids=False, show_progress=False
    )
    query = bm25s.tokenize(
        [question], stopwords="en", return_ids=False, show_progress=False
    )[0]
    if not any(corpus) or not query:
        return list(range(len(documents)))
    ranker = bm25s.BM25()
    ranker.index(corpus, show_progress=False)
    scores = ranker.get_scores(query)
    return np.argsort(-scores, kind="stable").tolist()


def need(module: str, package: str = "") -> Any:
    """Import a library of the extra ``eval``; `package`: its name where it differs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ClaraError(
            f"this needs the package {package or module}: pip install 'clara_jax[eval]'"
        ) from error

"""Retrieval from a whole corpus: what counts, and answers from what is found."""

import dataclasses

import numpy as np
import pytest
from toy_store import write_store

from clara_jax.clara import vector_fingerprint
from clara_jax.documents import Document
from clara_jax.evaluate import CorpusRetrieval, questions_of, score_answers
from clara_jax.search import StoreSettings
from tests.evaluate.test_evaluators import DOCUMENTS, RECORDS, complete, split

OTHERS = ("Ada sells boats", "Edo sells cats", DOCUMENTS[0])
"""The last one is there twice."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    clara, state = split("reasoner", "generator")
    texts = [*OTHERS, *DOCUMENTS]
    made = vector_fingerprint(clara.network)
    width = clara.network.model.config.width
    settings = StoreSettings(made, "model", "", clara.memory, width)
    pieces = [Document(text=text, id=f"d{i}") for i, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("corpus") / "store"
    return clara, state, write_store(path, settings, clara.compress(texts), pieces)


def found_in_order(*rows):
    """A search whose answer is known, and which notes what it was asked."""
    asked = []

    def search(queries, k, texts=None, where=None):
        asked.append((queries.shape, queries.dtype.name, k))
        order = np.asarray(rows)[: len(queries), :k]
        return np.zeros(order.shape, np.float32), order

    return search, asked


def test_recall_counts_right_texts_wherever_they_stand(corpus):
    clara, state, store = corpus
    questions = questions_of(RECORDS)
    # Ada's town is in rows 2 and 3, Edo's in row 4.
    search, asked = found_in_order([3, 0, 1, 4, 5, 2], [0, 1, 4, 2, 3, 5])
    evaluator = CorpusRetrieval(
        clara, questions, store, search, ks=(5, 1, 3, 100), decode=False
    )
    assert dict(evaluator.run(state)) == {
        "corpus/recall@1": 0.5,
        "corpus/recall@3": 1.0,
        "corpus/recall@5": 1.0,
        "corpus/left_out": 0.0,
    }
    assert asked == [((2, 2 * clara.network.model.config.width), "float32", 5)]


def test_questions_without_known_documents_do_not_count(corpus):
    clara, state, store = corpus
    first, second = questions_of(RECORDS)
    unknown = dataclasses.replace(second, positives=())
    elsewhere = dataclasses.replace(
        second, documents=(DOCUMENTS[1], "nowhere"), positives=(0, 1)
    )
    search, _ = found_in_order([1, 2], [1, 2], [1, 2])
    some = CorpusRetrieval(
        clara, [first, unknown, elsewhere], store, search, (1, 2), False
    )
    assert dict(some.run(state)) == {
        "corpus/recall@1": 0.0,
        "corpus/recall@2": 1.0,
        "corpus/left_out": 2.0,
    }
    lost = dataclasses.replace(second, missing=1)
    some = CorpusRetrieval(clara, [first, lost], store, search, (2,), False)
    assert dict(some.run(state)) == {"corpus/recall@2": 1.0, "corpus/left_out": 1.0}
    none = CorpusRetrieval(clara, [unknown], store, search, (1,), False)
    assert dict(none.run(state)) == {"corpus/left_out": 1.0}


def test_answers_come_from_the_best_documents(corpus, monkeypatch):
    clara, state, store = corpus
    monkeypatch.setattr("clara_jax.evaluate.evaluators._AT_ONCE", 1)
    asked = []

    def search(queries, k, texts=None, where=None):
        assert k == clara.selection.top_k == 2
        asked.append(queries)
        rows = [[5, 4], [4, 3]][len(asked) - 1]
        return np.zeros((1, 2), np.float32), np.array([rows])

    questions = questions_of(RECORDS)
    model = complete(clara, state)
    answers = [
        model.answer_from_vectors([q.question], store.vectors(rows)[None])[0]
        for q, rows in zip(questions, ([5, 4], [4, 3]), strict=True)
    ]
    questions[0] = dataclasses.replace(questions[0], gold=(answers[0],))
    results = dict(CorpusRetrieval(clara, questions, store, search, (1,)).run(state))
    expected = score_answers(answers, [q.gold for q in questions])
    scores = {f"corpus/{name}": value for name, value in expected.items()}
    assert scores["corpus/exact_match"] >= 0.5 and len(asked) == 2
    # Edo's document is the best of the second question.
    recall = {"corpus/recall@1": 0.5, "corpus/left_out": 0.0}
    assert results == {**recall, **scores}

"""A ScaNN index is measured against the exact search."""

import dataclasses

import numpy as np
import pytest
from toy_index import grouped_store, questions

from clara_jax.errors import ClaraError
from clara_jax.evaluate.index_report import IndexReport, compare, made_up_queries
from clara_jax.search import delete
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.scann_index import build_index

N = 1000


@pytest.fixture
def store(tmp_path):
    return grouped_store(tmp_path / "s", N)


def test_recall_of_made_up_and_of_given_questions(store):
    pytest.importorskip("scann", reason="wheels for Linux x86-64 only")
    note = build_index(store, dims=20)
    assert len(note["held_out"]) == N // 10
    found = compare(store)
    assert found.recall > 0.97 and found.queries == N // 10 and found.documents == N
    assert "a document that keys were not learnt from" in found.source
    given = compare(store, questions(6), k=3)
    assert (given.queries, given.k, given.source) == (6, 3, "given")
    with pytest.raises(ClaraError, match="too few documents to make questions of"):
        compare(store, questions(0))
    some = note["held_out"][: N // 20]
    delete(store.place, [f"d{i}" for i in some])
    assert compare(store.newest()).queries == N // 10 - len(some)


def test_few_documents(tmp_path):
    pytest.importorskip("scann", reason="wheels for Linux x86-64 only")
    store = grouped_store(tmp_path / "few", 3)
    build_index(store)
    with pytest.raises(ClaraError, match="too few documents to make questions of"):
        compare(store)
    found = compare(store, questions(2), k=5)
    assert (found.k, found.recall) == (3, 1.0)


def test_made_up_questions_are_near_their_documents_but_not_the_same(store):
    rows = np.arange(30)
    made = made_up_queries(store, rows)
    np.testing.assert_array_equal(made, made_up_queries(store, rows))
    scores, found = ExactSearcher(store)(made, 3)
    assert np.mean((found == rows[:, None]).any(1)) > 0.5
    assert scores.max() < 0.999


def test_low_recall_is_a_warning():
    found = IndexReport(
        recall=0.949,
        k=5,
        queries=20,
        source="given",
        documents=1000,
        exact_seconds=0.02,
        scann_seconds=0.001,
        streamed=False,
    )
    assert found.crossover == pytest.approx(50)
    lines = found.lines()
    assert lines[0].startswith("recall@5 of scann: 0.949")
    assert "20.0 times as fast" in lines[1] and "about 50 documents" in lines[1]
    assert lines[2].startswith("warning: recall@5 is below 0.95")
    assert len(dataclasses.replace(found, recall=0.95).lines()) == 2

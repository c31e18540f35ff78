"""Conditions on documents: what ScaNN finds among those that meet one."""

import numpy as np
import pytest
from toy_index import (
    WIDTH,
    add_documents,
    brute_force,
    grouped,
    grouped_store,
    questions,
)
from toy_store import toy_pieces, toy_settings, write_store

from clara_jax.errors import ClaraError
from clara_jax.search import compact, delete
from clara_jax.search import exact as exact_module
from clara_jax.search.scann_index import METHODS, ScannSearcher, build_index

pytest.importorskip("scann", reason="wheels for Linux x86-64 only")

N = 3000


def recall(found, truth):
    assert found[1].shape == truth[1].shape
    return np.mean(found[0] >= truth[0][:, -1:] - 1e-6)


@pytest.fixture
def few(monkeypatch):
    """A function that sets up to how many rows are compared one by one."""

    def set_few(count):
        monkeypatch.setattr(exact_module, "_FEW_BYTES", 0)
        monkeypatch.setattr(exact_module, "_FEW", count)

    set_few(0)
    return set_few


@pytest.mark.parametrize("method", METHODS)
def test_recall_of_selective_conditions(tmp_path, method, few):
    """All of them by ScaNN, however few documents are left."""
    store, queries = grouped_store(tmp_path / "s", N), questions(40)
    build_index(store, method=method, dims=20, candidates=100)
    search = ScannSearcher(store)
    for share in (2, 10, 100, 1000):
        truth = brute_force(store, queries, 5, lambda n, s=share: n % s == 1)
        assert truth[1].shape == (40, min(5, N // share))
        found = search(queries, 5, where=f"number % {share} = 1")
        assert recall(found, truth) >= 0.97
        assert (found[1] % share == 1).all()
        assert (np.diff(found[0]) <= 0).all()


@pytest.mark.parametrize(("method", "candidates"), [("brute_force", 20), ("tree", 400)])
def test_the_documents_furthest_from_the_question(tmp_path, method, candidates, few):
    """The worst for an index: nothing among its first candidates counts."""
    vectors, query = grouped(N), questions(1)
    flat = vectors.reshape(N, -1)
    far = np.argsort(-flat @ query[0] / np.linalg.norm(flat, axis=1))
    settings = toy_settings(width=WIDTH)
    store = write_store(tmp_path / "s", settings, vectors[far], toy_pieces(N))
    build_index(store, method=method, dims=20, candidates=candidates)
    search = ScannSearcher(store)
    for first in (1500, 2700, 2970, 2997):
        truth = brute_force(store, query, 5, lambda n, first=first: n >= first)
        found = search(query, 5, where=f"number >= {first}")
        assert recall(found, truth) >= 0.8
        assert (found[1] >= first).all()
        if method == "brute_force" or first == 2970:
            np.testing.assert_array_equal(found[1], truth[1])


CONDITIONS = {
    "number % 2 = 0": lambda n: n % 2 == 0,
    "number % 50 = 7": lambda n: n % 50 == 7,
    "number >= 5000": lambda n: n >= 5000,
    "number in (5, 6, 5001)": lambda n: n in (5, 6, 5001),
    "number = 5003": lambda n: n == 5003,
    "number = 9": lambda n: n == 9,
}


@pytest.mark.parametrize("one_by_one", [0, 100])
def test_younger_and_deleted_documents(tmp_path, one_by_one, few):
    few(one_by_one)
    store = grouped_store(tmp_path / "s", 600)
    build_index(store, method="tree", dims=20, candidates=600)
    later = toy_pieces(5040, name="e")[5000:]  # with these numbers
    add_documents(store.place, grouped(40, 1), later)
    queries = np.concatenate([questions(5), grouped(3, 1).reshape(3, -1)])
    search = ScannSearcher(store.newest())
    gone = {6, 9, 107, 5003, *range(0, 60, 2)}
    for deleted in (set(), gone):
        if deleted:
            names = [f"{'de'[i >= 5000]}{i}" for i in deleted]
            delete(store.place, names)
            compact(store.place)
            search.renew()
        for condition, meets in CONDITIONS.items():
            if set(filter(meets, [*range(600), *range(5000, 5040)])) <= deleted:
                with pytest.raises(ClaraError, match="no document meets"):
                    search(queries, 1, where=condition)
                continue
            for k in (1, 5, 550):
                truth = brute_force(search.store, queries, k, meets)
                assert truth[1].size and not deleted & set(truth[1].ravel())
                found = search(queries, k, where=condition)
                np.testing.assert_array_equal(found[1], truth[1])
                np.testing.assert_allclose(found[0], truth[0], atol=1e-6)


def test_no_document_or_fewer_than_asked_for(tmp_path, few):
    store, queries = grouped_store(tmp_path / "s", 300), questions(2)
    build_index(store, dims=20)
    search = ScannSearcher(store)
    for count in (0, 100):
        few(count)
        with pytest.raises(ClaraError, match="no document meets the condition 'number"):
            search(queries, 3, where="number > 300")
        scores, ids = search(queries, 10, where="number in (4, 8, 300)")
        assert scores.shape == (2, 2)
        assert [sorted(row) for row in ids.tolist()] == 2 * [[4, 8]]
        none = search(queries[:0], 10, where="number in (4, 8)")
        assert [part.shape for part in none] == [(0, 2), (0, 2)]
        with pytest.raises(ClaraError, match="holds 300 documents, but 301 per"):
            search(queries, 301, where="number > 3")
        with pytest.raises(ClaraError, match=r"^where 'year = 3'.*the fields are id"):
            search(queries, 3, where="year = 3")

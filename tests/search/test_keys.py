"""Keys: principal components without the large matrix, by seed, from live rows."""

import tracemalloc

import lance
import numpy as np
import pytest
from toy_index import add, grouped_store
from toy_store import (
    make_toy,
    toy_pieces,
    toy_settings,
    write_store,
)

from clara_jax.search import Store, check, compact, delete
from clara_jax.search import keys as keys_module
from clara_jax.search.exact import unit
from clara_jax.search.keys import Keys, keep_keys, learn_keys


def low_rank(n, rank=6, width=24, noise=0.02, seed=0):
    """Vectors ``[n, 2, width]`` near a subspace, off the origin."""
    rng = np.random.default_rng(seed)
    plane = rng.standard_normal((rank, 2 * width))
    found = rng.standard_normal((n, rank)) @ plane + 3 * rng.standard_normal(2 * width)
    found += noise * rng.standard_normal(found.shape)
    return found.astype(np.float32).reshape(n, 2, width)


def make_store(path, vectors):
    settings = toy_settings(width=vectors.shape[2])
    return write_store(path, settings, vectors, toy_pieces(len(vectors)), 64)


def units(store, rows=None):
    rows = store.ids if rows is None else rows
    return unit(store.vectors(rows).reshape(len(rows), -1))


def test_the_directions_are_those_of_the_whole_matrix(tmp_path):
    store = make_store(tmp_path / "s", low_rank(300))
    keys = learn_keys(store, dims=5)
    known = units(store)
    mean = known.mean(0)
    np.testing.assert_allclose(keys.mean, mean, atol=1e-6)
    np.testing.assert_allclose(keys.basis.T @ keys.basis, np.eye(6), atol=1e-5)
    first = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(keys.basis[:, 0], first, atol=1e-5)
    rest = known - mean
    rest -= np.outer(rest @ first, first)
    best = np.linalg.svd(rest, full_matrices=False)[2][:5]
    agreement = np.linalg.svd(best @ keys.basis[:, 1:])[1]
    assert agreement.min() > 0.9999


def test_products_of_keys_rank_as_cosines_do(tmp_path):
    store = make_store(tmp_path / "s", low_rank(300))
    known, queries = units(store), low_rank(7, seed=1).reshape(7, -1)
    exact = unit(queries) @ known.T
    for dims, close in ((47, 1e-5), (6, 0.02)):
        keys = learn_keys(store, dims=dims)
        assert keys.dims == dims + 1
        guess = keys.of_queries(queries) @ keys.of_documents(known).T
        offset = unit(queries) @ keys.mean
        np.testing.assert_allclose(guess + offset[:, None], exact, atol=close)


def test_keys_are_balanced_and_turned(tmp_path):
    # A narrow cone: documents vary little along the mean, questions lie along it.
    vectors = low_rank(300) + 40
    store = make_store(tmp_path / "s", vectors)
    keys = learn_keys(store, dims=8)
    np.testing.assert_allclose(keys.documents @ keys.questions.T, np.eye(9), atol=1e-5)
    plain = (units(store) - keys.mean) @ keys.basis
    assert plain[:, 0].std() < plain[:, 1].std() / 5
    balanced = keys.of_documents(units(store))
    assert balanced.std(0).max() < 4 * balanced.std(0).min()
    stretch = np.linalg.norm(keys.documents, axis=1)
    np.testing.assert_allclose(
        stretch[0] * plain[:, 0].std(), plain[:, 1].std(), rtol=0.01
    )
    np.testing.assert_allclose(stretch[1:], 1, atol=1e-5)


def test_the_same_seed_gives_the_same_keys(tmp_path):
    store = make_store(tmp_path / "s", low_rank(300))
    one, two, other = (learn_keys(store, dims=3, sample=50, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.basis, two.basis)
    np.testing.assert_array_equal(one.documents, two.documents)
    assert np.abs(one.mean - other.mean).max() > 1e-4


def test_deleted_and_held_out_rows_teach_nothing(tmp_path):
    vectors = low_rank(120)
    vectors[[3, 70]] = 100 * low_rank(2, rank=1, seed=9)
    make_store(tmp_path / "s", vectors)
    delete(tmp_path / "s", ["d3"])
    store = Store.open(tmp_path / "s")
    keys = learn_keys(store, dims=4, leave_out=np.array([70]))
    rest = [i for i in range(120) if i not in (3, 70)]
    np.testing.assert_allclose(keys.mean, units(store, rest).mean(0), atol=1e-6)


def test_what_is_read_at_a_time_changes_nothing(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s", low_rank(100))
    whole = learn_keys(store, dims=6)
    monkeypatch.setattr(keys_module, "_AT_ONCE", 48 * 7)
    parts = learn_keys(store, dims=6)
    np.testing.assert_allclose(whole.mean, parts.mean, atol=1e-6)
    known = units(store)
    np.testing.assert_allclose(
        whole.of_documents(known) @ whole.of_documents(known).T,
        parts.of_documents(known) @ parts.of_documents(known).T,
        atol=1e-4,
    )


def test_no_matrix_of_width_by_width_is_made(tmp_path):
    store = make_store(tmp_path / "s", low_rank(40, width=4096))
    tracemalloc.start()
    keys = learn_keys(store, dims=8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keys.basis.shape == (8192, 9)
    assert peak < 8192 * 8192 * 4 / 16


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_documents_have_few_directions(tmp_path, count):
    keys = learn_keys(make_toy(tmp_path / "s", count))
    assert keys.dims == count
    assert np.isfinite(keys.basis).all()


def test_keys_are_kept(tmp_path):
    keys = learn_keys(make_toy(tmp_path / "s", 9), dims=3)
    keys.save(tmp_path / "keys.npz")
    again = Keys.load(tmp_path / "keys.npz")
    for name in ("mean", "basis", "documents", "questions"):
        np.testing.assert_array_equal(getattr(keys, name), getattr(again, name))


def kept(place):
    """The key that a row holds, by id; None: it has none."""
    table = lance.dataset(place).to_table(columns=["id", "key"])
    return dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))


def test_rows_hold_their_keys_for_other_engines(tmp_path):
    store = grouped_store(tmp_path / "s", 40)
    before, indexed = store.vectors(store.ids), store.ids
    short = learn_keys(store, dims=5).of_documents(units(store))
    # What others do while keys are made is no hindrance.
    add(store.place, 3)
    delete(store.place, ["d3", "a1"])
    for _ in range(2):
        keep_keys(store, indexed, short)
        found = kept(store.place)
        assert len(found) == len(store) == 41
        for i in [i for i in range(40) if i != 3]:
            expected = short[i].astype(np.float16)
            np.testing.assert_array_equal(np.float16(found[f"d{i}"]), expected)
        assert found["a0"] is None and found["a2"] is None
        assert check(store.place) == []
        short = short[:, :4]
    add(store.place, 2, "b", seed=2)
    compact(store.place)
    found = kept(store.place)
    assert found["b1"] is None and len(found["d5"]) == 4
    rows = [i for i in range(40) if i != 3]
    np.testing.assert_array_equal(Store.open(store.place).vectors(rows), before[rows])

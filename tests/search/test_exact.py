"""Exact search: all codecs, devices and ways of reading agree with numpy."""

import concurrent.futures

import jax
import numpy as np
import pytest
from toy_index import brute_force
from toy_store import (
    make_toy,
    toy_pieces,
    toy_settings,
    toy_vectors,
    write_store,
)

from clara_jax.errors import ClaraError
from clara_jax.search import CODECS, Store, compact, delete
from clara_jax.search import exact as exact_module
from clara_jax.search.exact import ExactSearcher, _scan, free_memory


def agrees(found, expected):
    scores, rows = found
    assert scores.dtype == np.float32 and rows.dtype == np.int64
    np.testing.assert_allclose(scores, expected[0], atol=1e-6)
    np.testing.assert_array_equal(rows, expected[1])


@pytest.fixture
def rows_of_a_tile(monkeypatch):
    """A function that sets how many of the toy stores' rows are decoded together."""

    def set_rows(rows):
        monkeypatch.setattr(exact_module, "_CPU_TILE", 4 * 12 * rows)

    return set_rows


@pytest.fixture
def queries():
    return toy_vectors(5, seed=1).reshape(5, -1)


@pytest.mark.parametrize("dtype", CODECS)
@pytest.mark.parametrize(("devices", "tile"), [(1, 100), (1, 2), (8, 2)])
def test_agrees_with_numpy(tmp_path, queries, dtype, devices, tile, rows_of_a_tile):
    rows_of_a_tile(tile)
    store = make_toy(tmp_path / "s", 53, dtype)
    search = ExactSearcher(store, devices=jax.devices()[:devices])
    assert not search.streamed
    for k in (1, 3, 53):
        agrees(search(queries, k), brute_force(store, queries, k))


@pytest.mark.parametrize("dtype", CODECS)
@pytest.mark.parametrize("limit", [0, 300])
def test_streamed_blocks_give_the_same(
    tmp_path, queries, dtype, limit, monkeypatch, rows_of_a_tile
):
    rows_of_a_tile(2)
    store = make_toy(tmp_path / "s", 53, dtype)
    search = ExactSearcher(store, devices=jax.devices()[:3], memory_limit=limit)
    read = []
    real = ExactSearcher._read
    monkeypatch.setattr(
        ExactSearcher, "_read", lambda self, i: read.append(i) or real(self, i)
    )
    assert search.streamed
    agrees(search(queries, 4), brute_force(store, queries, 4))
    assert len(read) > 1 and read == list(range(len(read)))
    agrees(search(queries, 4), brute_force(store, queries, 4))


def test_deleted_rows_are_never_found(tmp_path, queries):
    make_toy(tmp_path / "s", 20)
    before = Store.open(tmp_path / "s")
    best = brute_force(before, queries[:1], 3)[1][0]
    delete(tmp_path / "s", [f"d{i}" for i in best])
    store = Store.open(tmp_path / "s")
    found = ExactSearcher(store)(queries, 17)
    assert not set(found[1].ravel()) & set(best)
    agrees(found, brute_force(store, queries, 17))
    with pytest.raises(ClaraError, match="holds 17 documents, but 18 per question"):
        ExactSearcher(store)(queries, 18)


def test_of_equal_scores_the_lower_row_comes_first(tmp_path, rows_of_a_tile):
    rows_of_a_tile(2)
    vectors = np.tile(toy_vectors(1), (41, 1, 1))
    vectors[::3] = toy_vectors(1, seed=3)
    store = write_store(tmp_path / "s", toy_settings(), vectors, toy_pieces(41), 5)
    search = ExactSearcher(store)
    _, rows = search(vectors[:2].reshape(2, -1), 14)
    assert rows[0].tolist() == list(range(0, 41, 3))
    assert rows[1].tolist() == [i for i in range(41) if i % 3][:14]


def test_vectors_of_zeros_have_cosine_zero(tmp_path):
    vectors = toy_vectors(3)
    vectors[1] = 0
    vectors[2] = -vectors[0]
    store = write_store(tmp_path / "s", toy_settings(), vectors, toy_pieces(3), 3)
    queries = np.stack([vectors[0].ravel(), np.zeros(12, np.float32)])
    scores, rows = ExactSearcher(store)(queries, 3)
    assert rows.tolist() == [[0, 1, 2], [0, 1, 2]]
    np.testing.assert_allclose(scores, [[1, 0, -1], [0, 0, 0]], atol=1e-6)


def test_rows_from_an_id_on(tmp_path, queries, rows_of_a_tile):
    rows_of_a_tile(1)
    store = make_toy(tmp_path / "s", 20)
    search = ExactSearcher(store, among=np.arange(13, 20))
    scores, rows = search(queries, 7)
    assert all(sorted(row) == list(range(13, 20)) for row in rows.tolist())
    assert (np.diff(scores) <= 0).all()


def test_many_questions_and_few_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_module, "LARGEST_BATCH", 4)
    store = make_toy(tmp_path / "s", 17, width=10)
    search = ExactSearcher(store)
    many = toy_vectors(11, seed=2, width=10).reshape(11, -1)
    _scan.clear_cache()
    agrees(search(many, 3), brute_force(store, many, 3))
    agrees(search(many[:3], 4), brute_force(store, many[:3], 4))
    assert _scan._cache_size() == 1
    assert [part.shape for part in search(many[:0], 3)] == [(0, 3), (0, 3)]


def test_from_a_thread_and_inside_another_mesh(tmp_path, queries):
    store = make_toy(tmp_path / "s", 31)
    search = ExactSearcher(store, devices=jax.devices()[2:4])
    expected = brute_force(store, queries, 3)
    mesh = jax.make_mesh(
        (4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        agrees(search(queries, 3), expected)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        for found in threads.map(lambda _: search(queries, 3), range(6)):
            agrees(found, expected)


def test_the_sort_of_tpus_finds_the_same_here(tmp_path, queries, rows_of_a_tile):
    rows_of_a_tile(4)
    # Elsewhere approx_max_k is exact, so this runs the same program.
    store = make_toy(tmp_path / "s", 53)
    search = ExactSearcher(store)
    assert search._scan.recall is None
    search._scan = search._scan._replace(recall=0.9)
    agrees(search(queries, 3), brute_force(store, queries, 3))


@pytest.fixture
def few(monkeypatch):
    """A function that sets up to how many rows are compared one by one."""

    def set_few(count):
        monkeypatch.setattr(exact_module, "_FEW_BYTES", 0)
        monkeypatch.setattr(exact_module, "_FEW", count)

    return set_few


CONDITIONS = {
    "number % 2 = 1": lambda number: number % 2 == 1,
    "number >= 20 and id != 'd33'": lambda number: number >= 20 and number != 33,
    "number in (0, 52) or title = 'Title 17'": lambda number: number in (0, 17, 52),
    "number = 52": lambda number: number == 52,
}


@pytest.mark.parametrize("way", ["one by one", "masked", "streamed"])
def test_only_what_meets_a_condition(tmp_path, queries, way, few, rows_of_a_tile):
    rows_of_a_tile(2)
    few(100 if way == "one by one" else 0)
    store = make_toy(tmp_path / "s", 53, "int8")
    limit = {"memory_limit": 0} if way == "streamed" else {}
    search = ExactSearcher(store, devices=jax.devices()[:3], **limit)
    assert search.streamed == (way == "streamed")
    for condition, meets in CONDITIONS.items():
        count = sum(map(meets, range(53)))
        for k in (1, 4, 53):
            expected = brute_force(store, queries, k, meets)
            assert expected[1].shape == (5, min(k, count))
            agrees(search(queries, k, where=condition), expected)
    agrees(search(queries, 4), brute_force(store, queries, 4))


@pytest.mark.parametrize("count", [0, 100])
def test_conditions_that_nothing_meets_or_that_are_none(tmp_path, queries, count, few):
    few(count)
    search = ExactSearcher(make_toy(tmp_path / "s"))
    with pytest.raises(ClaraError, match="no document meets the condition 'number > 7"):
        search(queries, 3, where="number > 77")
    for condition in ("year > 3", "number >", ""):
        with pytest.raises(
            ClaraError, match=r"^where .*; the fields are id, title"
        ) as e:
            search(queries, 3, where=condition)
        assert "\n" not in str(e.value)
    with pytest.raises(ClaraError, match="holds 7 documents, but 8 per question"):
        search(queries, 8, where="number > 3")


def test_conditions_on_rows_from_an_id_on(tmp_path, queries, few):
    few(0)
    store = make_toy(tmp_path / "s", 20)
    search = ExactSearcher(store, among=np.arange(13, 20))
    expected = brute_force(store, queries, 7, lambda n: n >= 13 and n % 2 == 0)
    agrees(search(queries, 7, where="number % 2 = 0"), expected)


@pytest.mark.parametrize("limit", [None, 0])
def test_a_searcher_outlives_changes_of_its_store(tmp_path, queries, limit, few):
    few(0)
    make_toy(tmp_path / "s", 20)
    search = ExactSearcher(Store.open(tmp_path / "s"), memory_limit=limit)
    first = search.store.version
    delete(tmp_path / "s", ["d3", "d8"])
    before = brute_force(Store.open(tmp_path / "s", at=first), queries, 20)
    agrees(search(queries, 20), before)
    search.renew()
    assert search.store.version > first
    expected = brute_force(Store.open(tmp_path / "s"), queries, 18)
    agrees(search(queries, 18), expected)
    compact(tmp_path / "s")
    agrees(search(queries, 18), expected)
    odd = brute_force(search.store, queries, 5, lambda n: n % 2 == 1)
    agrees(search(queries, 5, where="number % 2 = 1"), odd)


def test_all_but_one_deleted_and_then_all(tmp_path, queries):
    make_toy(tmp_path / "s", 20)
    delete(tmp_path / "s", [f"d{i}" for i in range(20) if i != 13])
    search = ExactSearcher(Store.open(tmp_path / "s"))
    assert search(queries, 1)[1].tolist() == 5 * [[13]]
    with pytest.raises(ClaraError, match="holds 1 documents, but 2 per question"):
        search(queries, 2)
    delete(tmp_path / "s", ["d13"])
    compact(tmp_path / "s")
    search.renew()
    with pytest.raises(ClaraError, match="holds 0 documents, but 1 per question"):
        search(queries, 1)


def test_questions_that_do_not_fit(tmp_path, queries):
    search = ExactSearcher(make_toy(tmp_path / "s"))
    with pytest.raises(ClaraError, match="2 x 6 = 12 numbers, but .* have 11"):
        search(queries[:, 1:], 3)
    with pytest.raises(ClaraError, match="holds 7 documents, but 0 per question"):
        search(queries, 0)
    queries[3, 2] = np.nan
    with pytest.raises(ClaraError, match="question vector 3 holds numbers"):
        search(queries, 3)


def test_free_memory_is_asked_of_devices_first():
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    full = Device({"bytes_limit": 1000, "bytes_in_use": 900})
    assert free_memory([full, Device({"bytes_limit": 1000, "bytes_in_use": 0})]) == 160
    assert free_memory([full, Device(None)]) > 1 << 20

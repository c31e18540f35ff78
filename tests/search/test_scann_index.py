"""The ScaNN index: what it finds, how it keeps up with its store, what can go wrong."""

import concurrent.futures
import json
import resource
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from toy_index import (
    add,
    brute_force,
    grouped,
    grouped_store,
    killed,
    questions,
)
from toy_store import tree

from clara_jax.errors import ClaraError
from clara_jax.search import Store, check, compact, delete
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.scann_index import (
    METHODS,
    ScannSearcher,
    build_index,
    choose,
    has_index,
    open_searcher,
    read_index,
)

pytest.importorskip("scann", reason="wheels for Linux x86-64 only")

N = 1500


@pytest.fixture
def store(tmp_path):
    return grouped_store(tmp_path / "s", N)


def recall(found, truth):
    return np.mean(found[0] >= truth[0][:, -1:] - 1e-6)


def index_of(store):
    return Path(store.place, "index.zip")


@pytest.mark.parametrize(
    ("documents", "method", "leaves", "to_search"),
    [
        (19_999, "brute_force", 0, 0),
        (20_000, "hashing", 0, 0),
        (99_999, "hashing", 0, 0),
        (100_000, "tree", 316, 64),
        (1_000_000, "tree", 1000, 200),
    ],
)
def test_settings_by_the_number_of_documents(documents, method, leaves, to_search):
    found = choose(documents)
    assert (found.method, found.leaves, found.leaves_to_search) == (
        method,
        leaves,
        to_search,
    )
    assert found.soar == (method == "tree")
    assert choose(documents, leaves=30, soar=False).method == "tree"
    assert not choose(documents, leaves=30, soar=False).soar


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "graph"}, "no index is called 'graph'"),
        ({"dims": 0}, "dims 0: give 1 or more"),
        ({"candidates": 0}, "candidates 0"),
        ({"sample": -1}, "sample -1"),
        ({"seed": -1}, "seed -1"),
        ({"leaves": 101}, "101 leaves: give 1 to 100"),
        ({"leaves": 10, "leaves_to_search": 11}, "11 leaves to search: give 1 to 10"),
    ],
)
def test_settings_that_make_no_sense(given, says):
    with pytest.raises(ClaraError, match=says):
        choose(100, **given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"method": "hashing"},
        {"method": "tree"},
        {"leaves": 20, "leaves_to_search": 15, "soar": False},
    ],
)
def test_finds_what_the_exact_search_finds(store, given):
    note = build_index(store, dims=20, candidates=100, **given)
    assert note == read_index(store).note
    assert note["documents"] == N
    search, queries = ScannSearcher(store), questions(40)
    truth = ExactSearcher(store)(queries, 5)
    found = search(queries, 5)
    assert recall(found, truth) > 0.95
    assert (np.diff(found[0]) <= 0).all()
    vectors = store.vectors(found[1].ravel()).reshape(40, 5, -1)
    cosines = np.einsum("bkw,bw->bk", vectors, queries)
    cosines /= np.linalg.norm(vectors, axis=2)
    cosines /= np.linalg.norm(queries, axis=1, keepdims=True)
    np.testing.assert_allclose(found[0], cosines, atol=1e-6)
    assert found[0].dtype == np.float32 and found[1].dtype == np.int64
    one = search(queries[:1], 5)
    np.testing.assert_array_equal(one[1], found[1][:1])
    assert [part.shape for part in search(queries[:0], 5)] == [(0, 5), (0, 5)]


def test_all_documents_can_be_asked_for(store):
    build_index(store, leaves=30, leaves_to_search=1, dims=4, candidates=1)
    _, rows = ScannSearcher(store)(questions(2), N)
    assert [sorted(row) for row in rows.tolist()] == 2 * [list(range(N))]
    with pytest.raises(ClaraError, match=f"holds {N} documents, but {N + 1}"):
        ScannSearcher(store)(questions(2), N + 1)


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("n", [1, 2, 3, 30])
def test_few_documents(tmp_path, n, method):
    store = grouped_store(tmp_path / "s", n)
    build_index(store, method=method)
    search, queries, k = ScannSearcher(store), questions(3), min(n, 5)
    expected = brute_force(store, queries, n)
    scores, ids = search(queries, k)
    np.testing.assert_array_equal(ids, expected[1][:, :k])
    np.testing.assert_allclose(scores, expected[0][:, :k], atol=1e-6)
    np.testing.assert_array_equal(search(queries, n)[1], expected[1])
    with pytest.raises(ClaraError, match=f"holds {n} documents, but {n + 1} per"):
        search(queries, n + 1)


@pytest.mark.parametrize(
    "given",
    [
        {"dims": 10**6},
        {"candidates": 10**6},
        {"sample": 10**9},
        {"sample": 1},
        {"leaves": 30},
        {"leaves": 30, "leaves_to_search": 30, "soar": False},
        {"leaves": 1, "dims": 500, "candidates": 1, "sample": 2},
        {"method": "hashing", "leaves": 5, "dims": 1},
    ],
)
def test_settings_beyond_what_there_is(tmp_path, given):
    store, queries = grouped_store(tmp_path / "s", 30), questions(3)
    build_index(store, **given)
    expected = brute_force(store, queries, 30)
    np.testing.assert_array_equal(ScannSearcher(store)(queries, 30)[1], expected[1])


@pytest.mark.parametrize("method", METHODS)
def test_all_but_one_deleted_and_then_all(tmp_path, method):
    store, queries = grouped_store(tmp_path / "s", 30), questions(3)
    build_index(store, method=method)
    search = ScannSearcher(store)
    delete(store.place, [f"d{i}" for i in range(30) if i != 17])
    search.renew()
    assert search(queries, 1)[1].tolist() == 3 * [[17]]
    assert search(queries, 1, where="number < 20")[1].tolist() == 3 * [[17]]
    with pytest.raises(ClaraError, match="no document meets the condition"):
        search(queries, 1, where="number = 18")
    compact(store.place)
    search.renew()
    assert search(queries, 1)[1].tolist() == 3 * [[17]]
    build_index(search.store, method=method)
    assert ScannSearcher(search.store)(queries, 1)[1].tolist() == 3 * [[17]]
    delete(store.place, ["d17"])
    search.renew()
    with pytest.raises(ClaraError, match="holds 0 documents, but 1 per question"):
        search(queries, 1)
    with pytest.raises(ClaraError, match="holds no documents to index"):
        build_index(search.store, method=method)


def test_an_index_outlives_all_changes(store):
    """Additions, deletions, compaction and more of each; it is never built anew."""
    note = build_index(store, method="tree", dims=20, candidates=100)
    search = ScannSearcher(store)
    add(store.place, 60)
    queries = grouped(60, 1).reshape(60, -1)
    search.renew()
    younger = search.store.ids[N:]
    np.testing.assert_array_equal(search(queries, 3)[1][:, 0], younger)
    gone = [f"a{i}" for i in range(0, 60, 2)] + [f"d{i}" for i in range(0, N, 3)]
    delete(store.place, gone)
    compact(store.place)
    search.renew()
    assert len(search.store) == N + 60 - len(gone)
    left = search.store.ids
    np.testing.assert_array_equal(left[-30:], younger[1::2])
    add(store.place, 5, "b", seed=2)
    compact(store.place)
    search.renew()
    assert check(store.place) == []
    newest = search.store.ids
    np.testing.assert_array_equal(newest[:-5], left)
    queries = np.concatenate([questions(20), queries, grouped(5, 2).reshape(5, -1)])
    found, truth = search(queries, 5), brute_force(search.store, queries, 5)
    assert set(found[1].ravel()) <= set(newest)
    assert recall(found, truth) > 0.97
    np.testing.assert_array_equal(found[1][-5:, 0], newest[-5:])
    assert search.note == note == read_index(search.store).note


def test_a_searcher_stays_at_its_version_until_renewed(store):
    build_index(store, dims=20)
    search, queries = ScannSearcher(store), questions(5)
    before = search(queries, 4)
    best = set(before[1][:, 0].tolist())
    delete(store.place, [f"d{i}" for i in best])
    add(store.place, 10)
    np.testing.assert_array_equal(search(queries, 4)[1], before[1])
    search.renew()
    found = search(queries, 4)
    assert not set(found[1].ravel()) & best
    agrees = brute_force(Store.open(store.place), queries, 4)
    np.testing.assert_array_equal(found[1], agrees[1])


def test_deleted_documents_are_not_found(store):
    build_index(store, dims=20, candidates=5, leaves=20, leaves_to_search=1)
    query = questions(1)
    best = ExactSearcher(store)(query, 30)[1][0]
    delete(store.place, [f"d{i}" for i in best])
    after = store.newest()
    _, rows = ScannSearcher(after)(query, 5)
    assert not set(rows[0]) & set(best)
    truth = ExactSearcher(after)(query, len(after))
    found = ScannSearcher(after)(query, len(after))
    np.testing.assert_array_equal(found[1][:, :30], truth[1][:, :30])


def test_an_index_of_other_vectors_is_refused(store):
    build_index(store, dims=5)
    store.fingerprint = "f2"
    with pytest.raises(ClaraError, match=r"another model \(fingerprint f1, .* f2\)"):
        ScannSearcher(store)


def test_an_earlier_version_has_documents_that_the_index_lacks(store):
    version, queries = store.version, questions(12)
    best = ExactSearcher(store)(queries, 2)[1].ravel()
    delete(store.place, [f"d{i}" for i in set(best.tolist())])
    build_index(Store.open(store.place), dims=20, candidates=100)
    earlier = Store.open(store.place, at=version)
    truth = ExactSearcher(earlier)(queries, 2)
    np.testing.assert_array_equal(ScannSearcher(earlier)(queries, 2)[1], truth[1])


def test_kinds_of_search(store):
    assert isinstance(open_searcher(store), ExactSearcher)
    with pytest.raises(ClaraError, match=r"has no ScaNN index; build it with"):
        open_searcher(store, "scann")
    with pytest.raises(ClaraError, match="no search 'fast'; give one of auto, exact"):
        open_searcher(store, "fast")
    build_index(store, dims=5)
    assert isinstance(open_searcher(store), ScannSearcher)
    assert isinstance(open_searcher(store, "exact"), ExactSearcher)


def test_any_damage_is_one_clear_line(store):
    build_index(store, method="tree", dims=5)
    path = index_of(store)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert {"note.json", "keys.npz", "ids.npy"} < set(archive.namelist())
        middles = [
            each.header_offset + 60 + each.file_size // 2 for each in archive.filelist
        ]
        ends = [archive.start_dir + at for at in range(0, len(whole), 5)]
    flips = []
    for place in (*middles, *(end for end in ends if end < len(whole))):
        flips.append(bytearray(whole))
        flips[-1][place] ^= 1
    for data in (b"", whole[:-1], whole[: len(whole) // 2], *map(bytes, flips)):
        path.write_bytes(data)
        try:
            found = ScannSearcher(store)
        except ClaraError as error:
            said = str(error)
            assert said.startswith(f"{path}: cannot be read (") and "\n" not in said
            assert "compress index --store" in said
        else:  # a date, say
            assert data in map(bytes, flips[len(middles) :])
            truth = ExactSearcher(store)(questions(9), 3)
            assert recall(found(questions(9), 3), truth) > 0.9
    build_index(store)
    ScannSearcher(store)


def test_an_index_of_another_format(store):
    build_index(store, dims=5)
    path = index_of(store)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    note = json.loads(parts["note.json"])
    for changed, says in (
        ({**note, "format": 9}, "cannot be read .it is not of format 3"),
        ([], "cannot"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (parts | {"note.json": json.dumps(changed)}).items():
                archive.writestr(name, data)
        with pytest.raises(ClaraError, match=rf"index.zip: {says}.* index --store"):
            open_searcher(store)


def test_without_its_file_there_is_no_index(store):
    build_index(store, dims=5)
    index_of(store).unlink()
    assert not has_index(store)
    assert isinstance(open_searcher(store), ExactSearcher)


def test_two_builders_at_once(store):
    """Both end, or one says why not; there is a whole index."""
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        both = [threads.submit(build_index, Store.open(store.place)) for _ in range(2)]
    said = [each.exception() for each in both]
    assert None in said and all(isinstance(e, ClaraError) for e in said if e)
    assert ScannSearcher(store.newest()).note["documents"] == N


def test_a_full_disk_leaves_the_old_index(store):
    note = build_index(store, dims=5)
    before = tree(Path(store.place))
    for limit in (100, 20_000):  # while keys are written, and ScaNN's own files
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ClaraError, match="disk.*full|cannot be written"):
                build_index(store, dims=20)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert tree(Path(store.place)) == before
    assert ScannSearcher(store).note == note


@pytest.mark.slow
def test_killed_at_any_step_an_index_stays_whole(tmp_path):
    grouped_store(tmp_path / "s", 200)
    build_index(Store.open(tmp_path / "s"), method="hashing", dims=5)
    store, step, ended = add(tmp_path / "s", 9), 0, False
    queries = questions(4)
    truth = brute_force(store, queries, 3)
    while not ended:
        ended = not killed("build", store.place, step)
        assert recall(ScannSearcher(store.newest())(queries, 3), truth) == 1
        assert check(store.place) == []
        step += 1
    assert step > 10
    build_index(store.newest(), method="hashing")
    left = {path.name for path in index_of(store).parent.glob("*index*")}
    assert left == {"index.zip"}


def test_nothing_is_said_on_the_standard_error(store, capfd):
    build_index(store, method="tree", dims=5)
    ScannSearcher(store)(questions(3), 2)
    assert capfd.readouterr() == ("", "")


def test_from_several_threads(store):
    build_index(store, method="tree", dims=20)
    search, queries = ScannSearcher(store), questions(12)
    alone = search(queries, 4)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: search(queries, 4), range(12)):
            np.testing.assert_array_equal(found[1], alone[1])


def test_without_scann(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py.scann_ops_pybind", None)
    with pytest.raises(ClaraError, match="needs the package scann"):
        build_index(store)
    assert isinstance(open_searcher(store), ExactSearcher)

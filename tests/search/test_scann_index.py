"""The ScaNN index: what it finds, how it keeps up with its store, what can go wrong."""

import concurrent.futures
import dataclasses
import json
import os
import resource
import sys

import numpy as np
import pytest
from toy_index import add, grouped, grouped_store, killed, questions

from clara_jax.errors import ClaraError
from clara_jax.search import Store, compact, delete, scann_index
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.index_files import IndexFolder, has_index, quiet
from clara_jax.search.scann_index import (
    Report,
    ScannSearcher,
    build_index,
    choose,
    made_up_queries,
    open_searcher,
    report,
    update_index,
)

pytest.importorskip("scann", reason="wheels for Linux x86-64 only")

N = 1500


@pytest.fixture
def store(tmp_path):
    return grouped_store(tmp_path / "s", N)


def recall(found, truth):
    return np.mean(found[0] >= truth[0][:, -1:] - 1e-6)


def reopen(store):
    return Store.open(store.path)


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
    assert note == IndexFolder(store, "scann").read()
    assert note["documents"] == N and note["rows"] == N
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


def test_added_documents_are_found_before_and_after_an_update(store):
    note = build_index(store, method="tree", dims=20, candidates=100)
    after = add(store.path, 60)
    queries = grouped(60, 1).reshape(60, -1)
    for least in (1, 0.95):
        found = ScannSearcher(after)(queries, 3)
        assert np.mean(found[1][:, 0] == N + np.arange(60)) >= least
        assert recall(found, ExactSearcher(after)(queries, 3)) > 0.97
        updated = update_index(after)
    assert updated["rows"] == updated["documents"] == N + 60
    assert updated["trained"] == N and updated["folder"] != note["folder"]
    assert update_index(after) == updated
    folders = sorted(path.name for path in IndexFolder(after, "scann").path.iterdir())
    assert folders == [updated["folder"], "meta.json"]


def test_deleted_documents_are_not_found(store):
    build_index(store, dims=20, candidates=5, leaves=20, leaves_to_search=1)
    query = questions(1)
    best = ExactSearcher(store)(query, 30)[1][0]
    delete(store.path, [f"d{i}" for i in best])
    after = reopen(store)
    _, rows = ScannSearcher(after)(query, 5)
    assert not set(rows[0]) & set(best)
    truth = ExactSearcher(after)(query, len(after))
    found = ScannSearcher(after)(query, len(after))
    np.testing.assert_array_equal(found[1][:, :30], truth[1][:, :30])


def test_an_update_builds_anew_when_much_has_changed(store, monkeypatch):
    told = []
    build_index(store, dims=7)
    after = add(store.path, N // 4)
    note = update_index(after, progress=told.append)
    assert told[0] == "much has changed: building anew"
    assert note["trained"] == N + N // 4 and note["settings"]["dims"] == 7
    delete(store.path, [f"d{i}" for i in range(N // 3)])
    after = reopen(store)
    assert update_index(after)["documents"] == len(after)
    assert update_index(after, progress=told.append)["documents"] == len(after)
    monkeypatch.setattr(scann_index, "BRUTE_FORCE_BELOW", 100)
    told.clear()
    settings = update_index(after, progress=told.append)["settings"]
    assert settings["method"] == "hashing"
    assert "are better indexed by hashing" in told[0]


def test_an_index_of_other_rows_or_vectors_is_refused(store):
    build_index(store, dims=5)
    delete(store.path, ["d3"])
    compact(store.path)
    after = reopen(store)
    assert has_index(after)
    for kind in ("scann", "auto"):
        with pytest.raises(ClaraError, match=r"epoch 0 .*compress index --store"):
            open_searcher(after, kind)
    update_index(after)
    assert ScannSearcher(after)(questions(1), 1)[1].shape == (1, 1)
    after.fingerprint = "f2"
    with pytest.raises(ClaraError, match=r"another model \(fingerprint f1, .* f2\)"):
        ScannSearcher(after)


def test_kinds_of_search(store):
    assert isinstance(open_searcher(store), ExactSearcher)
    with pytest.raises(ClaraError, match=r"has no ScaNN index; build it with"):
        open_searcher(store, "scann")
    with pytest.raises(ClaraError, match=r"has no ScaNN index"):
        update_index(store)
    with pytest.raises(ClaraError, match="no search 'fast'; give one of auto, exact"):
        open_searcher(store, "fast")
    build_index(store, dims=5)
    assert isinstance(open_searcher(store), ScannSearcher)
    assert isinstance(open_searcher(store, "exact"), ExactSearcher)


def test_any_damage_is_one_clear_line(store):
    note = build_index(store, method="tree", dims=5)
    folder = IndexFolder(store, "scann").path / note["folder"]
    known = {"mean.npy", "basis.npy", "rows.npy", "scann_config.pb"}
    assert known <= set(note["files"])
    for path in folder.iterdir():
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for data, says in (
            (whole[:-1], "is truncated"),
            (whole + b"x", "has grown"),
            (bytes(flipped), "is damaged"),
            (None, "is missing"),
        ):
            path.unlink() if data is None else path.write_bytes(data)
            with pytest.raises(ClaraError) as error:
                ScannSearcher(store)
            told = str(error.value)
            assert told.startswith(f"{path}: {says}") and "\n" not in told
            assert "compress index --store" in told
            path.write_bytes(whole)
    path.write_bytes(whole[:-1])
    told = []
    again = update_index(store, progress=told.append)
    assert told[0] == "the index is damaged: building anew"
    assert again["settings"] == note["settings"]
    ScannSearcher(store)


def test_a_damaged_note_is_told_and_built_over(store):
    build_index(store, dims=5)
    path = IndexFolder(store, "scann").path / "meta.json"
    note = json.loads(path.read_text())
    for change, says in (
        ({"format": 9}, "is not of format 1"),
        ({"rows": 3}, "checksum is wrong"),
    ):
        path.write_text(json.dumps({**note, **change}))
        with pytest.raises(ClaraError, match=says):
            ScannSearcher(store)
    path.write_text("{")
    with pytest.raises(ClaraError, match="is not JSON"):
        ScannSearcher(store)
    update_index(store)
    ScannSearcher(store)


def test_two_builders_at_once(store):
    with IndexFolder(store, "scann").hold():
        for act in (build_index, update_index):
            with pytest.raises(ClaraError, match="another process is building its"):
                act(store)
    build_index(store, dims=5)


def test_a_full_disk_leaves_the_old_index(store):
    note = build_index(store, dims=5)
    before = sorted(IndexFolder(store, "scann").path.iterdir())
    for limit in (100, 20_000):  # while keys are written, and ScaNN's own files
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ClaraError, match="disk.*full|cannot be written"):
                build_index(store, dims=20)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert sorted(IndexFolder(store, "scann").path.iterdir()) == before
    assert ScannSearcher(store).note == note


@pytest.mark.slow
@pytest.mark.parametrize("action", ["build", "update"])
def test_killed_at_any_step_an_index_stays_whole(tmp_path, action):
    grouped_store(tmp_path / "s", 200)
    build_index(Store.open(tmp_path / "s"), method="hashing", dims=5)
    store, step, ended = add(tmp_path / "s", 9), 0, False
    queries = questions(4)
    truth = ExactSearcher(store)(queries, 3)
    while not ended:
        ended = not killed(action, store.path, step)
        assert recall(ScannSearcher(store)(queries, 3), truth) == 1
        step += 1
    assert step > 10
    note = build_index(store, method="hashing")
    left = {path.name for path in IndexFolder(store, "scann").path.iterdir()}
    assert left == {"meta.json", note["folder"]}
    assert not (store.path / ".locks").exists()


def test_nothing_is_said_on_the_standard_error(store, capfd):
    build_index(store, method="tree", dims=5)
    ScannSearcher(store)(questions(3), 2)
    assert capfd.readouterr() == ("", "")
    with quiet():
        os.write(2, b"I0000 00:00:1.0 1 a.cc:1] chatter\nE0000 an error\nother\n")
    assert capfd.readouterr().err == "E0000 an error\nother\n"


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


def test_a_report_measures_against_the_exact_search(store):
    note = build_index(store, dims=20)
    assert len(note["held_out"]) == N // 10 and note["measured"] == {}
    found = report(store)
    assert found.recall > 0.97 and found.queries == N // 10 and found.documents == N
    assert "a document that keys were not learnt from" in found.source
    noted = IndexFolder(store, "scann").read()
    assert noted == {**note, "measured": dataclasses.asdict(found)}
    given = report(store, questions(6), k=3)
    assert (given.queries, given.k, given.source) == (6, 3, "given")
    with pytest.raises(ClaraError, match="too few documents to make questions of"):
        report(store, questions(0))


def test_made_up_questions_are_near_their_documents_but_not_the_same(store):
    rows = np.arange(30)
    made = made_up_queries(store, rows)
    np.testing.assert_array_equal(made, made_up_queries(store, rows))
    scores, found = ExactSearcher(store)(made, 3)
    assert np.mean((found == rows[:, None]).any(1)) > 0.5
    assert scores.max() < 0.999


def test_a_report_warns_of_low_recall():
    found = Report(
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

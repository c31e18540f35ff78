"""BM25 and latent search fused by rank."""

import json
import sys

import numpy as np
import pytest
from toy_index import add, grouped, killed, questions
from toy_store import (
    toy_settings,
    write_store,
)

from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.search import Store, delete, hybrid
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.hybrid import HybridSearcher, build_bm25
from clara_jax.search.index_files import IndexFolder, has_index
from clara_jax.search.scann_index import open_searcher

pytest.importorskip("bm25s", reason="the extra eval")

N = 60
WORDS = ("harbour", "violin", "glacier")


def worded_store(path, texts=None, titled=True):
    """Document i speaks of one of `WORDS`, i + 1 times in the first thirty."""
    if texts is None:
        texts = [
            " ".join([WORDS[i % 3]] * (1 + i // 3) + [f"number{i}"]) for i in range(N)
        ]
    pieces = [
        Document(text, id=f"d{i}", title=f"Ti{i}" if titled else "")
        for i, text in enumerate(texts)
    ]
    settings = toy_settings(width=16)
    return write_store(path, settings, grouped(len(texts)), pieces, 25)


@pytest.fixture
def store(tmp_path):
    store = worded_store(tmp_path / "s")
    build_bm25(store)
    return store


def test_words_alone(store):
    search = HybridSearcher(store, open_searcher(store))
    rows = search.by_words("A VIOLIN!", 7)
    assert len(rows) == 7 and all(row % 3 == 1 for row in rows)
    assert search.by_words("number31 violin", 3)[0] == 31
    assert search.by_words("Ti7", 3).tolist() == [7]
    assert search.by_words("the unheard", 3).tolist() == []
    assert len(search.by_words("violin", 100)) == N // 3


def test_ranks_are_fused(store, monkeypatch):
    monkeypatch.setattr(hybrid, "DEPTH", 30)
    exact, queries = ExactSearcher(store), questions(2)
    texts = ["violin number31", "glacier"]
    search = HybridSearcher(store, exact)
    scores, rows = search(queries, 5, texts)
    assert scores.dtype == np.float32 and rows.dtype == np.int64
    near = exact(queries, 30)[1]
    cosines = exact(queries, N)
    for i, text in enumerate(texts):
        fused = np.zeros(N)
        fused[near[i]] += 1 / (61 + np.arange(30))
        words = search.by_words(text, 30)
        fused[words] += 1 / (61 + np.arange(len(words)))
        expected = np.argsort(-fused, kind="stable")[:5]
        np.testing.assert_array_equal(rows[i], expected)
        known = dict(zip(cosines[1][i].tolist(), cosines[0][i], strict=True))
        expected = [known[row] for row in rows[i].tolist()]
        np.testing.assert_allclose(scores[i], expected, atol=1e-6)


def test_without_words_in_common_the_latent_order_stays(store):
    exact, queries = ExactSearcher(store), questions(3)
    found = HybridSearcher(store, exact)(queries, 4, ["?", "", "unheard"])
    np.testing.assert_array_equal(found[1], exact(queries, 4)[1])
    np.testing.assert_allclose(found[0], exact(queries, 4)[0], atol=1e-6)
    none = HybridSearcher(store, exact)(queries[:0], 4, [])
    assert [part.shape for part in none] == [(0, 4), (0, 4)]


def test_deleted_documents_are_not_found(store):
    delete(store.path, ["d31", "d34"])
    after = Store.open(store.path)
    search = HybridSearcher(after, ExactSearcher(after))
    assert 31 not in search.by_words("number31 violin", N)
    _, rows = search(questions(1), len(after), ["number31 number34 violin"])
    assert sorted(rows[0]) == [i for i in range(N) if i not in (31, 34)]


def test_added_documents_ask_for_a_new_index(store):
    after = add(store.path, 4)
    with pytest.raises(ClaraError, match=r"lacks 4 documents .* --store \S+ --bm25"):
        HybridSearcher(after, ExactSearcher(after))
    note = build_bm25(after)
    assert note["documents"] == N + 4
    rows = HybridSearcher(after, ExactSearcher(after)).by_words("text 2 of a", N)
    assert N <= rows[0] < N + 4


def test_damage_and_absence_are_one_line(store, tmp_path):
    assert has_index(store, "bm25")
    note = json.loads((IndexFolder(store, "bm25").path / "meta.json").read_text())
    assert len(note["files"]) >= 5
    for name in note["files"]:
        path = IndexFolder(store, "bm25").path / note["folder"] / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ClaraError, match=f"{name}: is damaged .* --bm25"):
            HybridSearcher(store, ExactSearcher(store))
        path.write_bytes(whole)
    other = worded_store(tmp_path / "o")
    assert not has_index(other, "bm25")
    with pytest.raises(ClaraError, match="has no BM25 index; build it with"):
        HybridSearcher(other, ExactSearcher(other))


def test_mistakes_are_one_line(store, tmp_path, monkeypatch):
    search = HybridSearcher(store, ExactSearcher(store))
    with pytest.raises(ClaraError, match="2 question vectors, but 1 texts"):
        search(questions(2), 3, ["one"])
    with pytest.raises(ClaraError, match="holds 60 documents, but 61"):
        search(questions(1), 61, ["one"])
    empty = worded_store(tmp_path / "e", ["", "the"], titled=False)
    with pytest.raises(ClaraError, match="hold no words to index"):
        build_bm25(empty)
    with (
        IndexFolder(store, "bm25").hold(),
        pytest.raises(ClaraError, match="building its BM25"),
    ):
        build_bm25(store)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    for act in (
        lambda: build_bm25(store),
        lambda: HybridSearcher(store, ExactSearcher(store)),
    ):
        with pytest.raises(ClaraError, match=r"pip install bm25s"):
            act()


@pytest.mark.slow
def test_killed_at_any_step_the_index_stays_whole(tmp_path):
    store, step, ended = worded_store(tmp_path / "s"), 0, False
    build_bm25(store)
    while not ended:
        ended = not killed("words", store.path, step)
        search = HybridSearcher(store, ExactSearcher(store))
        assert search.by_words("number31 violin", 3)[0] == 31
        step += 1
    assert step > 10
    note = build_bm25(store)
    left = {path.name for path in IndexFolder(store, "bm25").path.iterdir()}
    assert left == {"meta.json", note["folder"]}

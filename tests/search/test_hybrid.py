"""Full text and latent search fused by rank."""

from pathlib import Path

import numpy as np
import pytest
from toy_index import (
    WIDTH,
    add,
    add_documents,
    grouped,
    grouped_store,
    killed,
    questions,
)
from toy_store import toy_settings, write_store

from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.search import Store, check, compact, delete, hybrid
from clara_jax.search.exact import ExactSearcher
from clara_jax.search.hybrid import HybridSearcher, has_words, index_words
from clara_jax.search.scann_index import build_index, open_searcher
from clara_jax.text import bm25

N = 60
WORDS = ("harbour", "violin", "glacier")


def worded_store(path, texts=None, titles=None):
    """Document i speaks of one of `WORDS`, i // 3 + 1 times."""
    if texts is None:
        texts = [
            " ".join([WORDS[i % 3]] * (1 + i // 3) + [f"number{i}"]) for i in range(N)
        ]
    titles = titles or [f"Ti{i}" for i in range(len(texts))]
    pieces = [
        Document(text, id=f"d{i}", title=titles[i], metadata={"number": i})
        for i, text in enumerate(texts)
    ]
    return write_store(path, toy_settings(width=WIDTH), grouped(len(texts)), pieces, 25)


def searcher(place):
    store = Store.open(place)
    return HybridSearcher(store, open_searcher(store))


@pytest.fixture
def store(tmp_path):
    store = worded_store(tmp_path / "s")
    index_words(store)
    return store


def test_words_alone(store):
    search = HybridSearcher(store, open_searcher(store))
    ids = search.by_words("A VIOLIN!", 7)
    assert len(ids) == 7 and all(id % 3 == 1 for id in ids)
    assert search.by_words("number31 violin", 3)[0] == 31
    assert search.by_words("Ti7", 3).tolist() == [7]
    assert search.by_words("the unheard", 3).tolist() == []
    assert len(search.by_words("violin", 100)) == N // 3


def test_ranks_are_fused(store, monkeypatch):
    monkeypatch.setattr(hybrid, "DEPTH", 30)
    exact, queries = ExactSearcher(store), questions(2)
    texts = ["violin number31", "glacier"]
    search = HybridSearcher(store, exact)
    scores, ids = search(queries, 5, texts)
    assert scores.dtype == np.float32 and ids.dtype == np.int64
    near = exact(queries, 30)[1]
    cosines = exact(queries, N)
    for i, text in enumerate(texts):
        fused = np.zeros(N)
        fused[near[i]] += 1 / (61 + np.arange(30))
        words = search.by_words(text, 30)
        fused[words] += 1 / (61 + np.arange(len(words)))
        expected = np.argsort(-fused, kind="stable")[:5]
        np.testing.assert_array_equal(ids[i], expected)
        known = dict(zip(cosines[1][i].tolist(), cosines[0][i], strict=True))
        expected = [known[id] for id in ids[i].tolist()]
        np.testing.assert_allclose(scores[i], expected, atol=1e-6)


def test_without_words_in_common_the_latent_order_stays(store):
    exact, queries = ExactSearcher(store), questions(3)
    found = HybridSearcher(store, exact)(queries, 4, ["?", "", "unheard"])
    np.testing.assert_array_equal(found[1], exact(queries, 4)[1])
    np.testing.assert_allclose(found[0], exact(queries, 4)[0], atol=1e-6)
    none = HybridSearcher(store, exact)(queries[:0], 4, [])
    assert [part.shape for part in none] == [(0, 4), (0, 4)]


@pytest.mark.parametrize("depth", [4, 100])
def test_conditions_come_before_both_rankings(store, monkeypatch, depth):
    monkeypatch.setattr(hybrid, "DEPTH", depth)
    search = HybridSearcher(store, ExactSearcher(store))
    # The documents with the most violins are not among those that count.
    where, meets = "number < 30 and number % 2 = 1", set(range(1, 30, 2))
    words = search.by_words("violin number31", 3, where)
    assert len(words) == 3
    assert set(words.tolist()) <= {i for i in meets if i % 3 == 1}
    for k in (2, 15, N):
        _, ids = search(questions(2), k, ["violin number31", "Ti7"], where)
        assert ids.shape == (2, min(k, 15))
        assert all(set(row) <= meets for row in ids.tolist())
        assert ids[1, 0] == 7 and ids[0, 0] % 3 == 1
    assert sorted(ids[0].tolist()) == sorted(meets)
    with pytest.raises(ClaraError, match="no document meets the condition"):
        search(questions(1), 3, ["violin"], "number > 99")
    with pytest.raises(ClaraError, match="the fields are id, title, text"):
        search(questions(1), 3, ["violin"], "year = 3")


SENTENCES = [
    "昨日は東京駅の近くで古い時計台を見学しました。",
    "私は毎朝コーヒーを飲みながら新聞を読みます。",
    "科学家在南极洲发现了一种新的微生物。",
    "北京大学的图书馆收藏了许多古代手稿。",
    "Das Café liegt am Fluss, nicht am Hafen.",
    "Москва стоит на реке.",
]
HEADLINES = ["", "朝の習慣", "", "", "Kaffee", ""]


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("時計台はどこにありますか", 0),
        ("コーヒー", 1),
        ("習慣", 1),
        ("谁发现了微生物?", 2),
        ("南极洲", 2),
        ("图书馆里有什么", 3),
        ("手稿", 3),
        ("CAFE", 4),
        ("kaffee", 4),
        ("МОСКВА", 5),
    ],
)
def test_words_inside_sentences_of_many_languages(tmp_path, question, first):
    store = worded_store(tmp_path / "s", SENTENCES, HEADLINES)
    index_words(store)
    assert HybridSearcher(store, ExactSearcher(store)).by_words(question, 1) == [first]


def test_the_index_cuts_words_as_evaluations_do(tmp_path):
    texts = [*SENTENCES, "It's a well-known naïve U.S. proof: 3.14 don't; the end"]
    store = worded_store(tmp_path / "s", texts, len(texts) * [""])
    index_words(store)
    search = HybridSearcher(store, ExactSearcher(store))
    ranker = bm25.Bm25(texts)
    for i, words in enumerate(bm25.tokenize(texts)):
        for word in words:
            found = search.by_words(word, len(texts)).tolist()
            scores, places = ranker.best([word], len(texts))
            assert sorted(found) == sorted(places[scores > 0].tolist())
            assert i in found


def test_words_that_were_added_later_are_found(store):
    later = Document(
        "長崎の灯台は美しい", id="n", title="案内", metadata={"number": 99}
    )
    add_documents(store.place, grouped(1, 3), [later])
    search = searcher(store.place)
    new = int(search.store.ids[-1])
    for word in ("灯台", "長崎", "案内"):
        assert search.by_words(word, 5).tolist() == [new]
        assert search.by_words(word, 5, "number > 50").tolist() == [new]
        assert search.by_words(word, 5, "number < 50").tolist() == []
    assert search.by_words("number31 violin", 3)[0] == 31
    query = grouped(1, 3).reshape(1, -1)
    assert search(query, 3, ["灯台"])[1][0, 0] == new
    index_words(search.store)
    compact(store.place)
    assert searcher(store.place).by_words("灯台", 5).tolist() == [new]


@pytest.mark.parametrize("latent", ["exact", "scann"])
def test_deleted_documents_are_not_found(store, latent):
    if latent == "scann":
        pytest.importorskip("scann", reason="wheels for Linux x86-64 only")
        build_index(store, dims=8)
    gone = [1, 31, 34]
    # Lance's index keeps what a compaction has dropped.
    for change in (
        lambda: delete(store.place, [f"d{i}" for i in gone]),
        lambda: compact(store.place),
        lambda: index_words(Store.open(store.place)),
    ):
        change()
        search = searcher(store.place)
        left = [i for i in range(N) if i not in gone]
        words = search.by_words("number31 violin", N).tolist()
        assert sorted(words) == [i for i in left if i % 3 == 1]
        best = search.by_words("number31 violin", 2)
        assert best.tolist() == words[:2]
        texts = ["number31 number34 violin"]
        _, ids = search(questions(1), len(left), texts)
        assert sorted(ids[0]) == left
        _, ids = search(questions(1), len(left), texts, "number > 0")
        assert sorted(ids[0]) == left[1:]


def test_a_searcher_is_renewed(store):
    search = HybridSearcher(store, ExactSearcher(store))
    delete(store.place, ["d31"])
    add(store.place, 4)
    assert search.by_words("number31 violin", 3)[0] == 31
    assert search.by_words("text", 9).tolist() == []
    search.renew()
    assert 31 not in search.by_words("number31 violin", N)
    assert search.by_words("text", 9).tolist() == search.store.ids[-4:].tolist()
    ids = search(questions(1), N + 3, ["violin"])[1]
    assert sorted(ids[0]) == search.store.ids.tolist()


def test_an_index_is_built_in_place_of_another(store):
    before = store.dataset.describe_indices()
    index_words(store)
    assert len(store.dataset.describe_indices()) == len(before)
    search = HybridSearcher(store, ExactSearcher(store))
    assert len(search.by_words("violin", N)) == N // 3


def test_mistakes_are_one_line(store, tmp_path):
    search = HybridSearcher(store, ExactSearcher(store))
    for texts, count in ((["one"], 1), (None, 0)):
        says = f"2 question vectors, but {count} texts"
        with pytest.raises(ClaraError, match=says):
            search(questions(2), 3, texts)
    with pytest.raises(ClaraError, match="holds 60 documents, but 61"):
        search(questions(1), 61, ["one"])
    other = grouped_store(tmp_path / "o", 5)
    assert has_words(store) and not has_words(other)
    with pytest.raises(ClaraError, match=r"no full-text index; build .* --words"):
        HybridSearcher(other, ExactSearcher(other))
    delete(other.place, [f"d{i}" for i in range(5)])
    with pytest.raises(ClaraError, match="holds no documents to index"):
        index_words(other.newest())


def test_texts_without_words(tmp_path):
    store = worded_store(tmp_path / "s", ["", "the", "?"], 3 * [""])
    index_words(store)
    search = HybridSearcher(store, ExactSearcher(store))
    assert search.by_words("the ? word", 3).tolist() == []
    assert sorted(search(questions(1), 3, ["the"])[1][0]) == [0, 1, 2]


def test_missing_files_of_the_index_are_one_line(store):
    for path in Path(store.place, "_indices").rglob("*.lance"):
        path.unlink()
    search = searcher(store.place)
    with pytest.raises(ClaraError, match="not there|cannot be read") as error:
        search.by_words("violin", 3)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_killed_at_any_step_the_index_stays_whole(tmp_path):
    store, step, ended = worded_store(tmp_path / "s"), 0, False
    index_words(store)
    add(store.place, 4)
    while not ended:
        ended = not killed("words", store.place, step)
        search = searcher(store.place)
        assert search.by_words("number31 violin", 3)[0] == 31
        assert len(search.by_words("text", N)) == 4
        assert check(store.place) == []
        step += 1
    assert step > 2


@pytest.mark.slow
def test_killed_at_any_step_the_first_index_is_made_again(tmp_path):
    step, ended = 0, False
    while not ended:
        store = worded_store(tmp_path / f"s{step}")
        ended = not killed("words", store.place, step)
        assert check(store.place) == []
        index_words(store.newest())
        search = searcher(store.place)
        assert search.by_words("number31 violin", 3)[0] == 31
        assert search.by_words("Ti7", 3).tolist() == [7]
        step += 1
    assert step == 5  # before and after each of two columns, and not at all

"""BM25: the words and scores of Lance's index, in blocks too."""

import random

import lance
import numpy as np
import pyarrow as pa
import pytest

from clara_jax.text import bm25
from clara_jax.text.bm25 import TOKENIZER, Bm25, Statistics, best_of, tokenize

TEXTS = [
    "The harbour of Corin lies in the north, and the harbour is old.",
    "Edo Falk studied music in Gemma.",
    "A glacier moves; the glacier of Jory moves fast.",
    "Edo Falk played the violin at the harbour.",
    "the of and",
    "Music, music and music again: a violin, a harbour, Corin and Jory.",
]
QUESTIONS = ["Where is the harbour?", "What music did Edo Falk play", "glacier", "?"]

WORDS = [
    *"harbour Harbour, music glacier the of naïve naive a Straße Müller Über".split(),
    *"3.14 U.S.A. don't 東京へ行きました 我们在北京大学学习 日本語".split(),
    *("音楽、", "한국어", "ภาษาไทย", "e\u0301cole", "x" * 41),
]


def mixed(n):
    """Texts of no words to hundreds; the first words of `WORDS` are frequent."""
    rng = random.Random(0)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    texts = ["", "the of", "".join(rng.choices(WORDS, weights, k=20))]
    sizes = rng.choices([1, 2, 3, 9, 20, 50, 300], k=n - len(texts))
    return texts + [" ".join(rng.choices(WORDS, weights, k=size)) for size in sizes]


def one_by_one(texts):
    return [[token.text for token in lance.tokenize(t, **TOKENIZER)] for t in texts]


def test_words():
    assert tokenize(["The Harbour, and A violin!"]) == [["harbour", "violin"]]
    assert tokenize(["Müller, Straße"]) == [["muller", "strasse"]]
    assert tokenize(["東京大学で音楽を学ぶ"]) == [
        ["東京", "大学", "で", "音楽", "を", "学ぶ"]
    ]
    assert tokenize(["The son of mine"]) == [["son", "mine"]]
    assert tokenize([]) == []
    assert tokenize([""]) == [[]]


@pytest.mark.parametrize("size", [0, 500, 1 << 20])
def test_words_of_many_are_those_of_each(monkeypatch, size):
    monkeypatch.setattr(bm25, "_CHARACTERS", size)
    ends = ["東", "京\r", "\u200d", "🇩", "🇪", "\u0301", "a\n", "ไท", "ย", ".", "'"]
    mark = bm25._MARK
    for texts in (
        mixed(60),
        ["", "", ""],
        [a + b for a in ends for b in ends],
        ["harbour", f"a {mark.upper()}.", "", mark, f"{mark} {mark}", "glacier"],
    ):
        assert tokenize(iter(texts)) == one_by_one(texts)


def test_scores_are_those_of_lances_index(tmp_path):
    texts = mixed(80)
    table = pa.table({"place": range(len(texts)), "text": texts})
    found = lance.write_dataset(table, tmp_path / "a.lance", max_rows_per_file=30)
    found.create_scalar_index("text", "INVERTED", **TOKENIZER, with_position=False)
    own = Bm25(texts)
    questions = [
        *("harbour", "Where is the MUSIC of the glacier?", "strasse MÜLLER naive"),
        *("harbour harbour music", "北京大学的音乐", "日本語と東京", "ภาษาไทย 3.14"),
        *("the", "a word that is nowhere", "don't"),
    ]
    for question, words in zip(questions, tokenize(questions), strict=True):
        rows = found.to_table(full_text_query=question, limit=len(texts))
        scores = np.zeros(len(texts), np.float32)
        scores[rows["place"].to_numpy()] = rows["_score"].to_numpy()
        np.testing.assert_allclose(own.scores(words), scores, rtol=2e-6)
        best = found.to_table(full_text_query=question, limit=5)["_score"].to_numpy()
        ours = own.best([question], 5)[0][0]
        np.testing.assert_allclose(ours[: len(best)], best, rtol=2e-6)
        assert not ours[len(best) :].any()


def test_best_first_and_of_equals_the_lower():
    ranker = Bm25([*TEXTS, TEXTS[3]])
    scores, places = ranker.best(QUESTIONS, 3)
    assert scores.dtype == np.float32 and places.dtype == np.int64
    assert places[1, :2].tolist() == [1, 3] or places[1, 0] in (1, 3)
    row = ranker.best(["violin of Edo"], 3)[1][0].tolist()
    assert row[:2] == [3, 6]
    assert places[2].tolist() == [2, -1, -1]
    assert scores[2, 1:].tolist() == [0, 0]
    assert places[3].tolist() == [-1, -1, -1]
    assert (np.diff(scores, axis=1) <= 0).all()


def test_all_are_ranked():
    assert Bm25(TEXTS).ranking("glacier").tolist() == [2, 0, 1, 3, 4, 5]
    assert Bm25(["the", "of"]).ranking("Edo").tolist() == [0, 1]
    assert Bm25([]).ranking("Edo").tolist() == []


def test_best_of():
    scores = np.array([1, 3, 0, 3, 2], np.float32)
    assert best_of(scores, 2).tolist() == [1, 3]
    assert best_of(scores, 9).tolist() == [1, 3, 4, 0]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_blocks_with_the_numbers_of_the_whole(size):
    asked = tokenize(QUESTIONS)
    words = {w: i for i, w in enumerate(sorted({w for q in asked for w in q}))}
    statistics = Statistics(words)
    blocks = [TEXTS[i : i + size] for i in range(0, len(TEXTS), size)]
    for block in blocks:
        statistics.add(block)
    assert statistics.documents == len(TEXTS) - 1  # one has no words
    for question in asked:
        parts = [Bm25(block, statistics).scores(question) for block in blocks]
        np.testing.assert_array_equal(
            np.concatenate(parts), Bm25(TEXTS).scores(question)
        )

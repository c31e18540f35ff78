"""BM25: the library's scores, in blocks too."""

import sys

import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.text.bm25 import Bm25, Statistics, best_of, library, tokenize

pytest.importorskip("bm25s")

TEXTS = [
    "The harbour of Corin lies in the north, and the harbour is old.",
    "Edo Falk studied music in Gemma.",
    "A glacier moves; the glacier of Jory moves fast.",
    "Edo Falk played the violin at the harbour.",
    "the of and",
    "Music, music and music again: a violin, a harbour, Corin and Jory.",
]
QUESTIONS = ["Where is the harbour?", "What music did Edo Falk play", "glacier", "?"]


def test_words():
    assert tokenize(["The Harbour, and A violin!"]) == [["harbour", "violin"]]
    assert tokenize([]) == []


def test_scores_are_the_librarys():
    module = library()
    ranker = module.BM25()
    ranker.index(tokenize(TEXTS), show_progress=False)
    own = Bm25(TEXTS)
    for words in tokenize(QUESTIONS)[:3]:
        np.testing.assert_array_equal(own.scores(words), ranker.get_scores(words))


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
    among = np.array([True, False, True, True, True])
    assert best_of(scores, 2, among).tolist() == [3, 4]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_blocks_with_the_numbers_of_the_whole(size):
    asked = tokenize(QUESTIONS)
    words = {w: i for i, w in enumerate(sorted({w for q in asked for w in q}))}
    statistics = Statistics(words)
    blocks = [TEXTS[i : i + size] for i in range(0, len(TEXTS), size)]
    for block in blocks:
        statistics.add(block)
    assert statistics.documents == len(TEXTS)
    for question in asked:
        parts = [Bm25(block, statistics).scores(question) for block in blocks]
        np.testing.assert_array_equal(
            np.concatenate(parts), Bm25(TEXTS).scores(question)
        )


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ClaraError, match="needs the package bm25s"):
        tokenize(["a"])

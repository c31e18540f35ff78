"""Exact cosines of chosen rows, whatever is read at a time."""

import numpy as np
import pytest
from toy_store import (
    make_toy,
    toy_pieces,
    toy_settings,
    toy_vectors,
    write_store,
)

from clara_jax.search import CODECS, codecs
from clara_jax.search.exact import rescore, unit


@pytest.mark.parametrize("dtype", CODECS)
@pytest.mark.parametrize("at_once", [1 << 18, 25, 1])
def test_rows_of_each_question_in_their_order(tmp_path, dtype, at_once, monkeypatch):
    monkeypatch.setattr(codecs, "_DECODED", at_once)
    store = make_toy(tmp_path / "s", 20, dtype)
    queries = unit(toy_vectors(3, seed=1).reshape(3, -1))
    rows = [np.array([19, 2, 2, 7, 0, 11, 5]), np.array([], int), np.array([4])]
    found = rescore(store, queries, rows)
    for query, chosen, scores in zip(queries, rows, found, strict=True):
        vectors = store.vectors(chosen).reshape(len(chosen), 12)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, unit(vectors) @ query, atol=1e-6)


def test_a_vector_of_zeros_has_cosine_zero(tmp_path):
    vectors = toy_vectors(2)
    vectors[0] = 0
    store = write_store(tmp_path / "s", toy_settings(), vectors, toy_pieces(2), 2)
    (scores,) = rescore(store, unit(vectors.reshape(2, -1))[1:], [np.array([0, 1])])
    np.testing.assert_allclose(scores, [0, 1], atol=1e-4)

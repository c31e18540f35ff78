import numpy as np
import pytest

from clara_jax.data import Record, UniqueDocuments


def records(*documents):
    return [Record(tuple(texts), ("q?",), ("a",)) for texts in documents]


def test_documents_are_numbered_by_first_appearance():
    unique = UniqueDocuments(records("abc", "ca", "dd"))
    assert len(unique) == 4
    assert list(unique) == ["a", "b", "c", "d"]
    assert unique[1:3] == ["b", "c"]
    assert unique[-1] == "d"
    used = [unique.candidates(i).tolist() for i in range(3)]
    assert used == [[0, 1, 2], [2, 0], [3, 3]]
    assert unique.candidates(0).dtype == np.int32
    with pytest.raises(IndexError):
        unique[4]

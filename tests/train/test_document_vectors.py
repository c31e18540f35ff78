"""Document vectors made once, in parts, and made again when anything changes."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from clara_jax.clara import Tokens
from clara_jax.commands import Interrupted
from clara_jax.config import MemoryConfig
from clara_jax.errors import ClaraError
from clara_jax.generate import Clara
from clara_jax.search import Store, check
from clara_jax.testing import toy_network
from clara_jax.text import ClaraTokenizer, load_tokenizer
from clara_jax.train import document_vectors as module
from clara_jax.train.document_vectors import store_vectors

TINY = Path(__file__).parent / "tiny"
MEMORY = MemoryConfig(doc_max_length=8, compression_rate=4)
DOCUMENTS = [
    "Ada lives in Arden .",
    "Ben sells cats",
    "Max lives in Dover and sells boats",
]


@pytest.fixture(scope="module")
def clara():
    tokenizer = ClaraTokenizer(load_tokenizer(TINY / "tokenizer"), 2)
    toy = toy_network(text_vocab=tokenizer.text_vocab)
    return Clara(toy, tokenizer, MEMORY)


@pytest.mark.slow
def test_vectors_are_those_of_the_compressor(tmp_path, clara):
    store = store_vectors(tmp_path, clara, DOCUMENTS)
    assert store.strings(store.ids, "text") == DOCUMENTS
    found = store.vectors(store.ids)
    assert found.shape == (3, 2, 16) and store.dtype == "float32"
    for row, text in zip(found, DOCUMENTS, strict=True):
        ids = np.asarray(clara.tokenizer.encode_documents([text], 8))
        tokens = Tokens(jax.numpy.asarray(ids), jax.numpy.ones(ids.shape, bool))
        alone = clara.network.compress(tokens)
        np.testing.assert_allclose(row, alone.memory[0], rtol=1e-4, atol=1e-5)


@pytest.fixture
def seen(monkeypatch):
    """How many documents are compressed together, one at most."""
    monkeypatch.setattr(module, "CHUNK", 1)
    found, real = [], Clara.compress

    def counted(*args, **kwargs):
        found.append(len(args[1]))
        return real(*args, **kwargs)

    monkeypatch.setattr(Clara, "compress", counted)
    return found


def test_an_interrupted_store_is_gone_on_with(tmp_path, clara, seen):
    def stop():
        raise Interrupted("SIGINT", "")

    with pytest.raises(Interrupted):
        store_vectors(tmp_path, clara, DOCUMENTS, check=stop)
    assert seen == [1]
    found = store_vectors(tmp_path, clara, DOCUMENTS)
    assert seen == [1, 1, 1] and found.ids.tolist() == [0, 1, 2]
    assert found.strings(found.ids, "text") == DOCUMENTS and check(found.place) == []
    again = store_vectors(tmp_path, clara, DOCUMENTS)
    assert seen == [1, 1, 1] and again.version == found.version
    kept = again.vectors(again.ids)
    # Another compressor, or other documents: all anew, and the old ones go.
    toy = clara.network
    toy = toy.with_adapters({"compressor": toy.adapters["generator"]})
    changed = store_vectors(
        tmp_path, dataclasses.replace(clara, network=toy), DOCUMENTS
    )
    assert len(seen) == 6
    assert not np.array_equal(changed.vectors(changed.ids), kept)
    fewer = store_vectors(tmp_path, clara, DOCUMENTS[:2])
    assert len(seen) == 8 and len(fewer) == 2
    assert [str(path) for path in tmp_path.iterdir()] == [fewer.place]


def test_it_makes_do_with_what_there_is_time_for(tmp_path, clara, seen):
    asked = []

    def late(done):
        asked.append(done)
        return done == 2

    some = store_vectors(tmp_path, clara, DOCUMENTS, late=late)
    assert asked == [1, 2] and seen == [1, 1]
    assert some.strings(some.ids, "text") == DOCUMENTS[:2]
    same = store_vectors(tmp_path, clara, DOCUMENTS, late=late)
    assert (asked, seen, len(same)) == ([1, 2], [1, 1], 2)
    whole = store_vectors(tmp_path, clara, DOCUMENTS)
    assert len(whole) == 3 and len(Store.open(whole.place)) == 3


def test_bfloat16_vectors_stay_bfloat16(tmp_path, clara):
    model = clara.network.model
    shape = dataclasses.replace(model.config, dtype="bfloat16")
    toy = clara.network.replace(model=model.clone(config=shape))
    half = dataclasses.replace(clara, network=toy)
    store = store_vectors(tmp_path, half, DOCUMENTS)
    assert store.dtype == "bfloat16" and store.row_bytes == 2 * 16 * 2
    expected = np.asarray(half.compress(DOCUMENTS))
    assert expected.dtype.name == "bfloat16"
    np.testing.assert_array_equal(store.vectors(store.ids), expected.astype(np.float32))


def test_a_full_disk_is_one_line(tmp_path, clara, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ClaraError, match="disk is full"):
            store_vectors(tmp_path, clara, DOCUMENTS)
    assert len(store_vectors(tmp_path, clara, DOCUMENTS)) == 3

"""Document vectors made once, in pieces, and made again when anything changes."""

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
from clara_jax.testing import toy_network
from clara_jax.text import ClaraTokenizer, load_tokenizer
from clara_jax.train import vectors as module
from clara_jax.train.vectors import cached_vectors

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
    found = cached_vectors(tmp_path, clara, DOCUMENTS)
    assert found is not None and found.shape == (3, 2, 16)
    for row, text in zip(found, DOCUMENTS, strict=True):
        ids = np.asarray(clara.tokenizer.encode_documents([text], 8))
        tokens = Tokens(jax.numpy.asarray(ids), jax.numpy.ones(ids.shape, bool))
        alone = clara.network.compress(tokens)
        np.testing.assert_allclose(row, alone.memory[0], rtol=1e-4, atol=1e-5)


def test_an_interrupted_file_is_continued(tmp_path, clara, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    seen = []
    real = Clara.compress

    def counted(*args, **kwargs):
        seen.append(len(args[1]))
        return real(*args, **kwargs)

    monkeypatch.setattr(Clara, "compress", counted)

    def stop():
        raise Interrupted("SIGINT", "")

    with pytest.raises(Interrupted):
        cached_vectors(tmp_path, clara, DOCUMENTS, check=stop)
    assert seen == [1]
    found = cached_vectors(tmp_path, clara, DOCUMENTS)
    assert seen == [1, 1, 1]
    again = np.array(cached_vectors(tmp_path, clara, DOCUMENTS))
    assert seen == [1, 1, 1]
    np.testing.assert_array_equal(found, again)
    # Another compressor, or other documents: all anew.
    toy = clara.network
    toy = toy.with_adapters({"compressor": toy.adapters["generator"]})
    other = dataclasses.replace(clara, network=toy)
    changed = cached_vectors(tmp_path, other, DOCUMENTS)
    assert len(seen) == 6 and not np.array_equal(changed, again)
    cached_vectors(tmp_path, clara, DOCUMENTS[:2])
    assert len(seen) == 8


def test_bfloat16_vectors_stay_bfloat16(tmp_path, clara):
    model = clara.network.model
    shape = dataclasses.replace(model.config, dtype="bfloat16")
    toy = clara.network.replace(model=model.clone(config=shape))
    half = dataclasses.replace(clara, network=toy)
    found = cached_vectors(tmp_path, half, DOCUMENTS)
    assert found is not None and found.dtype.name == "bfloat16"
    assert (tmp_path / "vectors.bin").stat().st_size == 3 * 2 * 16 * 2


def test_a_full_disk_is_one_line(tmp_path, clara, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ClaraError, match="disk is full"):
        cached_vectors(tmp_path, clara, DOCUMENTS)

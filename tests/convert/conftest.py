"""Small files of every form, made on the spot."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from clara_jax.convert.hf_config import model_config_from_hf
from clara_jax.convert.names import hf_tensors
from clara_jax.testing import toy_tokenizer

SIZES = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
FAMILIES = {
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 7},
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.5},
}


@pytest.fixture(params=FAMILIES)
def hf_values(request):
    """A ``config.json`` of each family."""
    return {**SIZES, **FAMILIES[request.param]}


def random_tensors(config, seed=0):
    """Tensors as Hugging Face names and stores them, every number different."""
    rng = np.random.default_rng(seed)
    return {
        tensor.name: rng.normal(size=tensor.shape).astype(np.float32)
        for tensor in hf_tensors(config)
    }


def write_hf(folder, values, tensors=None, shards=1, eos=2):
    """Write a Hugging Face folder; returns its tensors."""
    folder.mkdir(exist_ok=True, parents=True)
    if tensors is None:
        tensors = random_tensors(model_config_from_hf(values, "config.json"))
    (folder / "config.json").write_text(json.dumps({**values, "eos_token_id": eos}))
    toy_tokenizer().save_pretrained(folder)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    places = {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[index::shards])
        save_file(part, folder / name)
        places.update(dict.fromkeys(part, name))
    text = json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text)
    return tensors


@pytest.fixture
def llama_values():
    """The plainest config."""
    return {**SIZES, "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def hf_writer():
    """`write_hf`, for tests in this folder."""
    return write_hf


@pytest.fixture
def tensor_maker():
    """`random_tensors`, for tests in this folder."""
    return random_tensors

"""Small files of every form, made on the spot."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from clara_jax.clara import ROLES
from clara_jax.config import LoraConfig, MemoryConfig, SelectionConfig
from clara_jax.convert import ClaraSettings, load_model
from clara_jax.convert.hf_config import model_config_from_hf
from clara_jax.convert.names import hf_tensors, lora_tensors
from clara_jax.convert.tensors import build_tree
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
    "smollm3": {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layer_interval": 2},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 8,
        "sliding_window_pattern": 2,
        "sliding_window": 7,
    },
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


def with_adapters(base, **settings):
    """The base as a CLaRa model in which every number is random."""
    rng = np.random.default_rng(1)
    defaults = {
        "memory": MemoryConfig(doc_max_length=9, compression_rate=4),
        "lora": LoraConfig(rank=3, alpha=6.0),
        "selection": SelectionConfig(top_k=2),
        "text_vocab": len(base.tokenizer),
        "stage": "end_to_end",
    }
    clara = ClaraSettings(**{**defaults, **settings})

    def draw(*shape):
        return (0.3 * rng.normal(size=shape)).astype(np.float32)

    adapters = {}
    for role in ROLES:
        tensors = lora_tensors(base.config, clara.lora)
        adapters[role] = build_tree(tensors, lambda t: draw(*t.shape), np.float32)
    width, num_memory = base.config.width, clara.memory.num_memory
    adapters["memory"] = draw(num_memory, width)
    rows = {"marks": draw(3, width)}
    if not base.config.tied:
        rows["head"] = draw(num_memory + 3, width)
    return dataclasses.replace(base, clara=clara, adapters=adapters, rows=rows)


@pytest.fixture
def clara_maker(tmp_path):
    """`with_adapters` on a base of these ``config.json`` values, which it writes."""

    def make(values, tensors=None, **settings):
        wide = {**values, "vocab_size": max(300, values["vocab_size"])}
        write_hf(tmp_path / "base", wide, tensors)
        return with_adapters(load_model(tmp_path / "base"), **settings)

    return make


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

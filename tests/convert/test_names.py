import gguf
import jax
import numpy as np
import pytest

from clara_jax.config import LoraConfig
from clara_jax.convert.hf_config import model_config_from_hf
from clara_jax.convert.names import gguf_tensors, hf_tensors, lora_tensors
from clara_jax.convert.tensors import build_tree, extract
from clara_jax.model import Transformer, init_backbone, init_lora


def _config(values):
    return model_config_from_hf(values, "config.json")


def _zeros(tensors):
    return build_tree(tensors, lambda t: np.zeros(t.shape), np.float32)


def _shapes(tree):
    return jax.tree.map(lambda a: tuple(a.shape), tree)


@pytest.mark.parametrize("names", [hf_tensors, gguf_tensors])
def test_round_trip(hf_values, names):
    tensors = names(_config(hf_values))
    rng = np.random.default_rng(0)
    stored = {t.name: rng.normal(size=t.shape).astype(np.float32) for t in tensors}
    assert len(stored) == len(tensors)
    tree = build_tree(tensors, lambda tensor: stored[tensor.name], np.float32)
    for tensor in tensors:
        np.testing.assert_array_equal(extract(tree, tensor), stored[tensor.name])


def test_tree_is_the_models(hf_values):
    config = _config(hf_values)
    model = Transformer(config, text_vocab=config.vocab_size)
    params = jax.eval_shape(lambda: init_backbone(model, jax.random.key(0)))
    assert _shapes(_zeros(hf_tensors(config))) == _shapes(params)


@pytest.mark.parametrize("layers", [("all",), ("query", "down", "gate_up")])
def test_lora_tree_is_the_models(hf_values, layers):
    config = _config(hf_values)
    settings = LoraConfig(rank=3, layers=layers)
    model = Transformer(config, text_vocab=config.vocab_size, lora=settings)
    lora = jax.eval_shape(lambda: init_lora(model, jax.random.key(0)))
    assert _shapes(_zeros(lora_tensors(config, settings))) == _shapes(lora)


def test_lora_names_and_orientation(llama_values):
    config = _config(llama_values)
    tensors = {t.name: t for t in lora_tensors(config, LoraConfig(rank=3), "base.")}
    a = tensors["base.model.layers.2.self_attn.k_proj.lora_A.weight"]
    b = tensors["base.model.layers.2.self_attn.k_proj.lora_B.weight"]
    assert (a.shape, b.shape) == ((3, 16), (8, 3))
    assert a.path == ("layers", "attention", "key", "a") and a.layer == 2


def test_gguf_names_are_those_of_the_format(hf_values):
    arch = {
        "Llama": gguf.MODEL_ARCH.LLAMA,
        "Mistral": gguf.MODEL_ARCH.LLAMA,
        "Qwen2": gguf.MODEL_ARCH.QWEN2,
        "Qwen3": gguf.MODEL_ARCH.QWEN3,
        "SmolLM3": gguf.MODEL_ARCH.SMOLLM3,
        "Gemma3": gguf.MODEL_ARCH.GEMMA3,
        "Phi3": gguf.MODEL_ARCH.PHI3,
    }[hf_values["architectures"][0].removesuffix("ForCausalLM")]
    config = _config(hf_values)
    mapping = gguf.get_tensor_name_map(arch, config.num_layers)
    pairs = zip(hf_tensors(config), gguf_tensors(config), strict=True)
    for theirs, ours in pairs:
        name = mapping.get_name(theirs.name, try_suffixes=(".weight", ".bias"))
        assert ours.name == name

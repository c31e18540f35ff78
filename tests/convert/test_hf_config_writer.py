import dataclasses

import pytest
import transformers

from clara_jax.config import ModelConfig, RopeConfig
from clara_jax.convert import hf_from_model_config, model_config_from_hf
from clara_jax.errors import ClaraError
from clara_jax.model import PRESETS

LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 3.0],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 4.5,
    "original_max_position_embeddings": 32,
}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 5}
CHANGES = {
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
    "mistral window": {"architectures": ["MistralForCausalLM"], "sliding_window": 7},
    "llama": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "llama biases": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama mlp bias": {"architectures": ["LlamaForCausalLM"], "mlp_bias": True},
    "llama linear": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama3": {"architectures": ["LlamaForCausalLM"], "rope_scaling": LLAMA3},
    "llama yarn": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "mscale": 2.0,
            "mscale_all_dim": 0.5,
            "beta_fast": 16,
        },
    },
    "llama longrope": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {
            **LONG,
            "factor": 3.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 1.25,
        },
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 1e6},
    "qwen2 window": {
        "architectures": ["Qwen2ForCausalLM"],
        **QWEN_WINDOW,
        "max_window_layers": 0,
    },
    "qwen2 mixed": {
        "architectures": ["Qwen2ForCausalLM"],
        **QWEN_WINDOW,
        "max_window_layers": 2,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8},
    "qwen3 mixed": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        **QWEN_WINDOW,
    },
    "phi3": {"architectures": ["Phi3ForCausalLM"], "sliding_window": 9},
    "phi4": {
        "architectures": ["Phi3ForCausalLM"],
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 32,
        "rope_scaling": {**LONG, "short_factor": [1.0], "long_factor": [2.0]},
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_read_as_it_was(llama_values, name):
    values = {**llama_values, **CHANGES[name], "torch_dtype": "bfloat16"}
    config = model_config_from_hf(values, "x")
    written = hf_from_model_config(config, f"some/{name}")
    assert model_config_from_hf(written, "x") == config
    assert written["architectures"] == CHANGES[name]["architectures"]
    architecture = written["architectures"][0].removesuffix("ForCausalLM")
    assert written["model_type"] == architecture.lower()


@pytest.mark.parametrize("name", CHANGES)
def test_transformers_reads_the_same(llama_values, name):
    """Its own reading, written by itself, is ours."""
    config = model_config_from_hf({**llama_values, **CHANGES[name]}, "x")
    written = hf_from_model_config(config, f"some/{name}")
    kind = transformers.AutoConfig.for_model(written["model_type"])
    theirs = type(kind).from_dict(dict(written)).to_dict()
    theirs.pop("dtype", None)
    assert model_config_from_hf(theirs, "x") == config


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    config = PRESETS[preset]
    written = hf_from_model_config(config, preset)
    read = model_config_from_hf(written, "x")
    assert read.rope.max_position > 0
    assert hf_from_model_config(read, preset) == written
    rope = dataclasses.replace(read.rope, max_position=config.rope.max_position)
    if rope.kind == "longrope":
        assert (rope.factor, rope.attention_factor) == pytest.approx((32, 1.1902), 1e-4)
        rope = dataclasses.replace(rope, factor=0.0, attention_factor=0.0)
    assert dataclasses.replace(read, dtype=config.dtype, rope=rope) == config
    if rope.kind == "longrope":  # what transformers 4 takes for Phi-3
        assert set(written["rope_scaling"]) == set(LONG)


def test_mistral_or_llama(llama_values):
    config = model_config_from_hf(llama_values, "x")
    for name, architecture in [("Mistral-7B", "Mistral"), ("smollm", "Llama")]:
        written = hf_from_model_config(config, name)
        assert written["architectures"] == [f"{architecture}ForCausalLM"]


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"fused_qkv": True}, "as Phi3, 'fused_gate_up' would be True, not False"),
        ({"output_bias": True}, "as Llama, 'output_bias' would be False"),
        ({"sliding_window": 3, "full_layers": (1,)}, "as Qwen3, 'qk_norm'"),
        ({"qkv_bias": True, "mlp_bias": True}, "as Qwen2, 'mlp_bias'"),
        ({"rope": RopeConfig(fraction=0.5)}, "only Phi-3 rotates a part"),
        (
            {
                "fused_qkv": True,
                "fused_gate_up": True,
                "rope": RopeConfig(kind="linear", factor=2.0),
            },
            "Phi-3 with rope kind 'linear'",
        ),
    ],
)
def test_shapes_without_a_form(changes, pattern):
    sizes = {"vocab_size": 9, "width": 16, "num_layers": 2, "num_heads": 2}
    config = ModelConfig(**sizes, num_kv_heads=2, head_dim=8, mlp_dim=4, **changes)
    with pytest.raises(ClaraError, match=f"no Hugging Face form: .*{pattern}"):
        hf_from_model_config(config)

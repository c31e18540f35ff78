import math

import pytest

from clara_jax.convert import model_config_from_hf
from clara_jax.errors import ClaraError

LONGROPE = {"type": "longrope", "short_factor": [1.0] * 2, "long_factor": [2.0] * 2}


def _read(values, **changes):
    return model_config_from_hf({**values, **changes}, "dir/config.json")


def _fails(values, pattern, **changes):
    with pytest.raises(ClaraError, match=pattern) as caught:
        _read(values, **changes)
    assert str(caught.value).startswith("dir/config.json: ")
    assert "\n" not in str(caught.value)


def test_families(llama_values):
    def read(name, **changes):
        return _read(llama_values, architectures=[f"{name}ForCausalLM"], **changes)

    llama = read("Llama", sliding_window=9, attention_bias=True)
    assert llama.sliding_window is None
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, False)
    assert read("Mistral").sliding_window == 4096
    assert read("Mistral", sliding_window=None).sliding_window is None
    qwen2 = read("Qwen2")
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = read("Qwen3")
    assert (qwen3.qkv_bias, qwen3.head_dim, qwen3.qk_norm) == (False, 128, True)
    phi3 = read("Phi3", head_dim=None)
    assert (phi3.fused_qkv, phi3.fused_gate_up, phi3.head_dim) == (True, True, 4)


def test_sizes_and_defaults(llama_values):
    config = _read(
        {k: v for k, v in llama_values.items() if k != "num_key_value_heads"},
        torch_dtype="bfloat16",
        tie_word_embeddings=True,
    )
    assert (config.num_kv_heads, config.head_dim, config.mlp_dim) == (4, 4, 24)
    assert config.tied and config.param_dtype == "bfloat16"
    assert config.rope.theta == 10000 and config.rope.max_position == 128
    assert _read(llama_values, dtype="float16").param_dtype == "float16"


def test_qwen_windows(llama_values):
    qwen = {**llama_values, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 5}
    used = {"use_sliding_window": True}
    assert _read(qwen).sliding_window is None
    assert _read(qwen, **used).sliding_window is None
    assert _read(qwen, **used, max_window_layers=0).sliding_window == 5
    sliding = ["sliding_attention"] * 3
    assert _read(qwen, **used, layer_types=sliding).sliding_window == 5
    mixed = _read(qwen, **used, max_window_layers=1)
    assert (mixed.sliding_window, mixed.full_layers) == (5, (0,))
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    mixed = _read(qwen, **used, layer_types=kinds)
    assert (mixed.sliding_window, mixed.full_layers) == (5, (1, 2))
    for wrong in (sliding, ["chunked_attention"] * 3, ["full_attention"], "full"):
        _fails(qwen, "each of 3 layers", layer_types=wrong)


@pytest.mark.parametrize("version", [4, 5])
def test_rope_kinds(llama_values, version):
    def read(theta=5000.0, fraction=1.0, **group):
        if version == 5:
            group |= {"rope_theta": theta, "partial_rotary_factor": fraction}
            return _read(llama_values, rope_parameters=group).rope
        scaling = group if group.get("rope_type") != "default" else None
        top = {"rope_theta": theta, "partial_rotary_factor": fraction}
        return _read(llama_values, rope_scaling=scaling, **top).rope

    plain = read(rope_type="default", fraction=0.5)
    assert (plain.kind, plain.theta, plain.fraction) == ("default", 5000, 0.5)
    assert read(rope_type="linear", factor=3).factor == 3
    llama3 = read(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.5,
        high_freq_factor=4.5,
        original_max_position_embeddings=32,
    )
    assert (llama3.low_frequency, llama3.high_frequency) == (1.5, 4.5)
    assert (llama3.factor, llama3.original_max_position) == (8, 32)
    yarn = read(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert (yarn.beta_fast, yarn.beta_slow) == (32, 1)


def test_longrope_of_phi3(llama_values):
    phi = {
        **llama_values,
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": 32,
    }
    for kind in ("longrope", "su", "yarn"):
        rope = _read(phi, rope_scaling={**LONGROPE, "type": kind}).rope
        assert (rope.kind, rope.factor, rope.original_max_position) == (
            "longrope",
            4.0,
            32,
        )
        expected = math.sqrt(1 + math.log(4) / math.log(32))
        assert rope.attention_factor == pytest.approx(expected)
        assert (rope.short_factors, rope.long_factors) == ((1.0, 1.0), (2.0, 2.0))
    _fails(phi, "'short_factor' must hold 1 numbers", rope_scaling=LONGROPE, head_dim=2)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "unknown architecture 'GemmaFor"),
        ({"architectures": [], "model_type": "bert"}, "unknown architecture 'bert'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only silu"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope kind 'dynamic' is not supp"),
        ({"rope_parameters": {"full_attention": {}}}, "one plain group"),
        ({"rope_scaling": {"type": "linear"}}, "field 'factor' is missing"),
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        ({"hidden_size": "16"}, "field 'hidden_size' must be a whole number, not"),
        ({"num_hidden_layers": 2.5}, "'num_hidden_layers' must be a whole number"),
        ({"mlp_bias": 1}, "field 'mlp_bias' must be true or false"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantized"),
        ({"head_dim": 5}, "must be even"),
    ],
)
def test_refusals_name_the_field(llama_values, changes, pattern):
    _fails(llama_values, pattern, **changes)


def test_model_type_stands_in_for_architectures(llama_values):
    del llama_values["architectures"]
    assert _read(llama_values, model_type="qwen3").qk_norm

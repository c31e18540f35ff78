import dataclasses
import math

import pytest
import transformers

from clara_jax.config import ModelConfig, RopeConfig
from clara_jax.convert import hf_from_model_config, model_config_from_hf
from clara_jax.errors import ClaraError
from clara_jax.model import PRESETS

GEMMA = {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 6}
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


def test_layers_of_smollm3(llama_values):
    smollm3 = {**llama_values, "architectures": ["SmolLM3ForCausalLM"]}
    plain = _read(smollm3, num_hidden_layers=8)
    assert (plain.unrotated_layers, plain.sliding_window) == ((3, 7), None)
    assert plain.tied and plain.rope.theta == 2e6
    listed = _read(smollm3, no_rope_layers=[0, 1, 1, 0])
    assert listed.unrotated_layers == (0,)  # the list may be longer than needed
    used = {"use_sliding_window": True, "sliding_window": 5}
    slides = _read(smollm3, no_rope_layers=[0, 1, 1], **used)
    assert (slides.sliding_window, slides.full_layers) == (5, (1, 2))
    for wrong in ([1, 1], [1, 0, 2], "all"):
        _fails(smollm3, "no_rope_layers must give each of 3", no_rope_layers=wrong)


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
        ({**GEMMA, "final_logit_softcapping": 30.0}, "'final_logit_softcapping' is 30"),
        ({**GEMMA, "attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is 50"),
        ({**GEMMA, "use_bidirectional_attention": True}, "bidirectional_attention' is"),
        ({**GEMMA, "hidden_activation": "relu"}, "hidden_activation is 'relu'; only"),
        ({**GEMMA, "query_pre_attn_scalar": 0}, "must be a whole number above 0"),
        ({**GEMMA, "sliding_window": 0}, "with a window in use"),
        ({**GEMMA, "rope_parameters": {"rope_theta": 5.0}}, "one group for each of"),
        ({**GEMMA, "rope_parameters": {"full_attention": 5.0}}, "one group for each"),
    ],
)
def test_refusals_name_the_field(llama_values, changes, pattern):
    _fails(llama_values, pattern, **changes)


def test_ropes_of_gemma(llama_values):
    linear = {"rope_type": "linear", "factor": 8.0}

    def ropes(**changes):
        config = _read({**llama_values, **GEMMA}, **changes)
        assert config.window_rope is not None
        both = (config.rope, config.window_rope)
        return [(rope.kind, rope.factor, rope.theta) for rope in both]

    usual = ("default", 0.0, 1e4)
    assert ropes() == [("default", 0.0, 1e6), usual]
    groups = {"full_attention": {**linear, "rope_theta": 7e4}}
    old = ropes(rope_theta=7e4, rope_scaling=linear)
    assert old == ropes(rope_parameters=groups) == [("linear", 8.0, 7e4), usual]
    groups["sliding_attention"] = {"rope_type": "default", "rope_theta": 300.0}
    assert ropes(rope_parameters=groups)[1] == ("default", 0.0, 300.0)
    whole = _read({**llama_values, **GEMMA}, layer_types=["full_attention"] * 3)
    assert (whole.sliding_window, whole.window_rope) == (None, None)


def test_text_part_of_gemma(llama_values):
    text = {**llama_values, **GEMMA}
    del text["architectures"]
    both = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"hidden_size": 7},
        "dtype": "bfloat16",
    }
    alone = _read(text, architectures=["Gemma3ForCausalLM"], dtype="bfloat16")
    assert _read(both) == alone
    short = {k: text[k] for k in text if not k.startswith("num_") and k != "head_dim"}
    short["num_hidden_layers"] = 7
    usual = _read({**both, "text_config": short})
    assert (usual.num_heads, usual.num_kv_heads, usual.head_dim) == (8, 4, 256)
    assert usual.full_layers == (5,) and usual.score_dim == 0
    _fails(both, "field 'hidden_size' is missing", text_config=None)
    _fails(both, "the weights are quantized", quantization_config={"bits": 4})


def test_model_type_stands_in_for_architectures(llama_values):
    del llama_values["architectures"]
    assert _read(llama_values, model_type="qwen3").qk_norm


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
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layer_interval": 2,
        "rope_theta": 5000000.0,
    },
    "smollm3 windows": {
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layers": [1, 0, 1],
        "attention_bias": True,
        "mlp_bias": True,
        **QWEN_WINDOW,
    },
    "smollm3 all rotated": {
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layers": [1, 1, 1],
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        **QWEN_WINDOW,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 8,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
    },
    "gemma3 large": {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 8,
        "query_pre_attn_scalar": 24,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_theta": 70000.0,
        "rope_local_base_freq": 900.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
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
    kind = "gemma3_text" if architecture == "Gemma3" else architecture.lower()
    assert written["model_type"] == kind


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
        ({"qk_norm": True, "unrotated_layers": (1,)}, "as Qwen3, 'unrotated_layers'"),
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

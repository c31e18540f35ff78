"""``config.json`` of a Hugging Face model as a `ModelConfig`, and back.

Versions 4 and 5 of transformers are read; what version 4 writes, version 5 reads too,
and so it is written.

Source: transformers
``configuration_{llama,mistral,qwen2,qwen3,smollm3,gemma3,phi3}.py``, defaults included.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clara_jax.config import DTYPES, ModelConfig
from clara_jax.convert.config_fields import Fields
from clara_jax.convert.hf_rope import (
    LAYER_KINDS,
    filled,
    no_form,
    read_rope,
    read_ropes,
    written_rope,
)
from clara_jax.errors import ClaraError

_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "Llama": {"max_position_embeddings": 2048},
    "Mistral": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "Qwen2": _QWEN,
    "Qwen3": {**_QWEN, "head_dim": 128},
    "SmolLM3": {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2000000.0,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
    "Gemma3": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": True,
    },
    "Phi3": {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
}
"""Families that can be read, and what their config assumes for absent fields."""

_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}
"""Fields of `ModelConfig` that every family gives, and what they are called there."""

_ALIASES = {"gemma3_text": "Gemma3", "Gemma3ForConditionalGeneration": "Gemma3"}
"""Names of families beside those that follow from the table above."""

_LAYERED = ("Qwen2", "Qwen3", "SmolLM3", "Gemma3")
"""Families whose layers may differ in the keys that they see."""

_BIASED = ("Llama", "Qwen3", "SmolLM3", "Gemma3")
"""Families whose attention may have biases, and all of them then."""


def model_config_from_hf(
    values: Mapping[str, Any], where: str, param_dtype: str = ""
) -> ModelConfig:
    """Translate the values of a ``config.json``; errors begin with `where`.

    Weights are kept in `param_dtype`; empty takes the file's own type.

    Raises:
      ClaraError: an architecture, activation, rope, attention pattern or quantization
        that the backbone does not have; a field that is missing or mistyped.
    """
    family = _read_family(values, where)
    gemma, text = family == "Gemma3", values.get("text_config")
    if gemma and isinstance(text, Mapping):  # beside a part for images
        values = {**text, **{k: v for k, v in values.items() if v is not None}}
    fields = Fields({**_DEFAULTS[family], **values}, where)
    name, *known = _activations(gemma)
    activation = fields.get(name, str, known[0])
    if activation not in known:
        raise fields.error(f"{name} is '{activation}'; only {known[0]} is supported")
    if values.get("quantization_config"):
        raise fields.error(
            "the weights are quantized (quantization_config); use the unquantized "
            "model or a GGUF file"
        )
    sizes: dict = {ours: fields.get(theirs, int) for ours, theirs in _SIZES.items()}
    heads = sizes["num_heads"]
    head_dim = fields.get("head_dim", int, 0) or sizes["width"] // max(heads, 1)
    bias = family in _BIASED and fields.get("attention_bias", bool, False)
    unrotated = _read_unrotated(fields) if family == "SmolLM3" else ()
    window, full_layers = _read_window(fields, family, unrotated)
    stored = str(values.get("dtype") or values.get("torch_dtype"))
    stored = stored.removeprefix("torch.")
    dtype: Any = param_dtype or (stored if stored in DTYPES else "float32")
    if gemma:
        more: dict[str, Any] = _read_gemma(fields, head_dim, window)
    else:
        more = {"rope": read_rope(fields, head_dim, family == "Phi3")}
    return ModelConfig(
        **sizes,
        num_kv_heads=fields.get("num_key_value_heads", int, 0) or heads,
        head_dim=head_dim,
        norm_eps=fields.get("rms_norm_eps", float, 1e-6),
        tied=fields.get("tie_word_embeddings", bool, False),
        qkv_bias=bias or family == "Qwen2",
        output_bias=bias,
        mlp_bias=family in ("Llama", "SmolLM3") and fields.get("mlp_bias", bool, False),
        qk_norm=family in ("Qwen3", "Gemma3"),
        fused_qkv=family == "Phi3",
        fused_gate_up=family == "Phi3",
        sliding_window=window,
        full_layers=full_layers,
        unrotated_layers=unrotated,
        param_dtype=dtype,
        **more,
    )


def _read_family(values: Mapping[str, Any], where: str) -> str:
    name = values.get("architectures") or values.get("model_type")
    name = name[0] if isinstance(name, list) else name
    classes = {f"{family}ForCausalLM": family for family in _DEFAULTS}
    known = classes | {family.lower(): family for family in _DEFAULTS} | _ALIASES
    if name is None:
        raise ClaraError(
            f"{where}: names neither an architecture nor a model_type; give the folder "
            "of a Hugging Face model, a model folder or a finished run"
        )
    if not isinstance(name, str) or name not in known:
        raise ClaraError(
            f"{where}: unknown architecture '{name}'; "
            f"supported are {', '.join(classes)}"
        )
    return known[name]


def _activations(gemma: bool) -> tuple[str, ...]:
    """Return the field that names the activation, and its values, the usual first."""
    if gemma:
        return "hidden_activation", "gelu_pytorch_tanh"
    return "hidden_act", "silu", "swish"


def _read_gemma(fields: Fields, head_dim: int, window: int | None) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that only Gemma has, and both of its ropes."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        fields.only(name, None)
    fields.only("use_bidirectional_attention", None, False)
    score_dim = fields.positive("query_pre_attn_scalar")
    rope, window_rope = read_ropes(fields, head_dim)
    return {
        "activation": "gelu_tanh",
        "centered_norms": True,
        "output_norms": True,
        "scaled_embeddings": True,
        "score_dim": 0 if score_dim == head_dim else score_dim,
        "rope": rope,
        "window_rope": window_rope if window else None,
    }


def _read_unrotated(fields: Fields) -> tuple[int, ...]:
    """Return the layers that do without rotary positions."""
    layers = fields.get("num_hidden_layers", int)
    rotated = fields.values.get("no_rope_layers")
    if rotated is None:
        interval = fields.positive("no_rope_layer_interval")
        rotated = [int((i + 1) % interval != 0) for i in range(layers)]
    listed = isinstance(rotated, list) and len(rotated) >= layers
    if not listed or any(type(one) is not int or one not in (0, 1) for one in rotated):
        raise fields.error(
            f"no_rope_layers must give each of {layers} layers 1 (with rotary "
            f"positions) or 0, not {rotated!r}"
        )
    return tuple(i for i in range(layers) if not rotated[i])


def _read_window(
    fields: Fields, family: str, unrotated: tuple[int, ...]
) -> tuple[int | None, tuple[int, ...]]:
    """Return the sliding window, and the layers that do without it."""
    if family == "Llama":
        return None, ()
    window = fields.get("sliding_window", int, 0) or None
    if family not in _LAYERED:
        return window, ()
    if family != "Gemma3" and not fields.get("use_sliding_window", bool, False):
        window = None
    layers = fields.get("num_hidden_layers", int)
    kinds = fields.values.get("layer_types")
    if kinds is None:
        slides = ()
        if window and family == "SmolLM3":
            slides = unrotated
        elif family == "Gemma3":
            pattern = fields.positive("sliding_window_pattern")
            slides = [i for i in range(layers) if (i + 1) % pattern]
        elif window:
            slides = range(fields.get("max_window_layers", int), layers)
        kinds = [LAYER_KINDS[i in slides] for i in range(layers)]
    known = LAYER_KINDS[: 1 + bool(window)]
    listed = isinstance(kinds, list) and len(kinds) == layers
    if not listed or any(kind not in known for kind in kinds):
        raise fields.error(
            f"layer_types must give each of {layers} layers one of full_attention and "
            f"(with a window in use) sliding_attention, not {kinds!r}"
        )
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    return (None, ()) if len(full) == layers else (window, full)


def hf_from_model_config(config: ModelConfig, name: str = "") -> dict[str, Any]:
    """Return the ``config.json`` that `model_config_from_hf` reads as `config`.

    The `name` of the base model tells Mistral from Llama where the shape does not. A
    shape that no supported architecture has is refused.
    """
    family = _written_family(config, name)
    # A model must declare some length; it changes no result.
    longest = config.rope.max_position or 2048
    rope = filled(dataclasses.replace(config.rope, max_position=longest))
    window_rope, gemma = config.window_rope, family == "Gemma3"
    activation, usual, *_ = _activations(gemma)
    values = {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": "gemma3_text" if gemma else family.lower(),
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        activation: usual,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": longest,
        "torch_dtype": config.param_dtype,
    }
    if family in _BIASED:
        values["attention_bias"] = config.qkv_bias
    if family in ("Llama", "SmolLM3"):
        values["mlp_bias"] = config.mlp_bias
    if family != "Llama":
        values["sliding_window"] = config.sliding_window
    if family in _LAYERED:
        values |= _written_layers(config, family)
    if family == "SmolLM3":
        layers = range(config.num_layers)
        values["no_rope_layers"] = [
            int(i not in config.unrotated_layers) for i in layers
        ]
    values |= written_rope(rope, family == "Phi3")
    if gemma:
        values["query_pre_attn_scalar"] = config.score_dim or config.head_dim
    if window_rope is not None:
        window_rope = dataclasses.replace(window_rope, max_position=longest)
        values["rope_local_base_freq"] = window_rope.theta
    read = model_config_from_hf(values, "config.json")
    wanted = dataclasses.replace(config, rope=rope, window_rope=window_rope)
    found = dataclasses.replace(read, dtype=config.dtype, remat=config.remat)
    for name, ours in vars(wanted).items():
        theirs = getattr(found, name)
        if ours != theirs:
            raise no_form(f"as {family}, '{name}' would be {theirs!r}, not {ours!r}")
    return values


def _written_family(config: ModelConfig, name: str) -> str:
    if config.fused_qkv or config.fused_gate_up:
        return "Phi3"
    if config.centered_norms:
        return "Gemma3"
    if config.qk_norm:
        return "Qwen3"
    if config.qkv_bias and not config.output_bias:
        return "Qwen2"
    if config.unrotated_layers or config.full_layers:
        return "SmolLM3"
    plain = not (config.qkv_bias or config.mlp_bias)
    named = "mistral" in name.lower() and plain
    return "Mistral" if config.sliding_window or named else "Llama"


def _written_layers(config: ModelConfig, family: str) -> dict[str, Any]:
    window, layers = config.sliding_window, range(config.num_layers)
    full = layers if window is None else config.full_layers
    values: dict[str, Any] = {
        "layer_types": [LAYER_KINDS[i not in full] for i in layers]
    }
    if family != "Gemma3":
        first = next((i for i in layers if i not in full), len(layers))
        values["use_sliding_window"] = window is not None
        values["max_window_layers"] = first
    return values

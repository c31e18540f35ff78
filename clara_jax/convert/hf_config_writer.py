"""A `ModelConfig` as ``config.json`` of a Hugging Face model.

The inverse of `clara_jax.convert.hf_config`, with rope in the words of transformers 4,
which version 5 reads too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from clara_jax.config import ModelConfig, RopeConfig
from clara_jax.convert.hf_config import (
    longrope_attention_factor,
    model_config_from_hf,
)
from clara_jax.errors import ClaraError
from clara_jax.model.rope import attention_factor

_SOME_LENGTH = 2048
"""Declared by models that declare no longest length; it changes no result."""


def hf_from_model_config(config: ModelConfig, name: str = "") -> dict[str, Any]:
    """Translate the shape of a backbone.

    Args:
      config: the shape.
      name: of the base model; tells Mistral from Llama where the shape does not.

    Returns:
      The content of a ``config.json`` that `model_config_from_hf` reads as `config`
      (but for compute type and rematerialisation, which are no part of it).

    Raises:
      ClaraError: no supported architecture has this shape.
    """
    architecture = _architecture(config, name)
    longest = config.rope.max_position or _SOME_LENGTH
    rope = _filled(dataclasses.replace(config.rope, max_position=longest))
    values = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": architecture.lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": longest,
        "torch_dtype": config.param_dtype,
        **_biases(config, architecture),
        **_window(config, architecture),
        **_rope(rope, architecture == "Phi3"),
    }
    read = model_config_from_hf(values, "config.json")
    wanted = dataclasses.replace(config, rope=rope)
    found = dataclasses.replace(read, dtype=config.dtype, remat=config.remat)
    if found != wanted:
        raise ClaraError(
            f"the backbone has no Hugging Face form: as {architecture}, "
            f"{_difference(wanted, found)}"
        )
    return values


def _architecture(config: ModelConfig, name: str) -> str:
    if config.fused_qkv or config.fused_gate_up:
        return "Phi3"
    if config.qk_norm:
        return "Qwen3"
    if config.qkv_bias and not config.output_bias:
        return "Qwen2"
    plain = not (config.qkv_bias or config.mlp_bias)
    if config.full_layers and plain:
        return "Qwen3"  # which is refused: without query norms there is no such model
    named = "mistral" in name.lower() and plain
    return "Mistral" if config.sliding_window or named else "Llama"


def _biases(config: ModelConfig, architecture: str) -> dict[str, Any]:
    if architecture == "Qwen3":
        return {"attention_bias": config.qkv_bias}
    if architecture == "Llama":
        return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    return {}


def _window(config: ModelConfig, architecture: str) -> dict[str, Any]:
    window = config.sliding_window
    if architecture == "Llama":
        return {}
    if not architecture.startswith("Qwen"):
        return {"sliding_window": window}
    layers, full = config.num_layers, config.full_layers
    if window is None:
        full = tuple(range(layers))
    kinds = ["sliding_attention"] * layers
    for layer in full:
        kinds[layer] = "full_attention"
    first = kinds.index("sliding_attention") if window is not None else layers
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": first,
        "layer_types": kinds,
    }


def _rope(rope: RopeConfig, phi: bool) -> dict[str, Any]:
    if not phi and rope.fraction != 1.0:
        raise ClaraError(
            "the backbone has no Hugging Face form: only Phi-3 rotates a part of each "
            f"head ({rope.fraction})"
        )
    if phi and rope.kind not in ("default", "longrope"):
        raise ClaraError(
            f"the backbone has no Hugging Face form: Phi-3 with rope kind '{rope.kind}'"
        )
    original = rope.original_max_position
    values: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if phi:
        values["partial_rotary_factor"] = rope.fraction
        values["original_max_position_embeddings"] = original or rope.max_position
    if rope.kind == "default":
        return values
    group: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind != "linear":
        group["original_max_position_embeddings"] = original
    if rope.kind == "llama3":
        group["low_freq_factor"] = rope.low_frequency
        group["high_freq_factor"] = rope.high_frequency
    if rope.kind == "yarn":
        group["beta_fast"] = rope.beta_fast
        group["beta_slow"] = rope.beta_slow
        group["attention_factor"] = rope.attention_factor
    if rope.kind == "longrope":
        factors = {
            "short_factor": list(rope.short_factors),
            "long_factor": list(rope.long_factors),
        }
        # transformers 4 wants exactly these three for Phi-3.
        group = {"type": "longrope", **factors} if phi else {**group, **factors}
        if rope.attention_factor != longrope_attention_factor(rope.factor, original):
            group["attention_factor"] = rope.attention_factor
    return {**values, "rope_scaling": group}


def _filled(rope: RopeConfig) -> RopeConfig:
    """The same rope with what its kind fills in by rule."""
    if rope.kind == "longrope" and not rope.factor:
        ratio = rope.max_position / rope.original_max_position
        rope = dataclasses.replace(rope, factor=ratio)
    if rope.kind in ("longrope", "yarn"):
        rope = dataclasses.replace(rope, attention_factor=attention_factor(rope))
    return rope


def _difference(wanted: ModelConfig, found: ModelConfig) -> str:
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if ours != theirs:
            return f"'{field.name}' would be {theirs!r}, not {ours!r}"
    return "nothing differs"

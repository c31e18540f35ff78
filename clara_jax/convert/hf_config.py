"""``config.json`` of a Hugging Face model, versions 4 and 5, as a `ModelConfig`.

Source: transformers ``configuration_{llama,mistral,qwen2,qwen3,phi3}.py`` and
``modeling_rope_utils.py``, defaults included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clara_jax.config import DTYPES, ModelConfig, RopeConfig
from clara_jax.errors import ClaraError

_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048},
    "MistralForCausalLM": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "Qwen2ForCausalLM": _QWEN,
    "Qwen3ForCausalLM": {**_QWEN, "head_dim": 128},
    "Phi3ForCausalLM": {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
}
"""Architectures that can be read, and what their class assumes for absent fields."""

_MODEL_TYPES = {name.removesuffix("ForCausalLM").lower(): name for name in DEFAULTS}


def model_config_from_hf(
    values: Mapping[str, Any], where: str, param_dtype: str = ""
) -> ModelConfig:
    """Translate a parsed ``config.json``.

    Args:
      values: the file's content.
      where: the file, put before every error.
      param_dtype: type to keep weights in; empty takes the file's own.

    Returns:
      The shape of the backbone.

    Raises:
      ClaraError: an architecture, activation, rope kind, attention pattern or
        quantization that the backbone does not have, or a field that is missing or of
        the wrong type.
    """
    architecture = _architecture(values, where)
    fields = _Fields({**DEFAULTS[architecture], **values}, where)
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ClaraError(
            f"{where}: hidden_act is '{activation}'; only silu is supported"
        )
    if values.get("quantization_config"):
        raise ClaraError(
            f"{where}: the weights are quantized (quantization_config); "
            "use the unquantized model or a GGUF file"
        )
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", 0) or width // max(heads, 1)
    phi = architecture == "Phi3ForCausalLM"
    attention_bias = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and (
        fields.flag("attention_bias")
    )
    window, full_layers = _window(fields, architecture)
    stored = str(values.get("dtype") or values.get("torch_dtype") or "")
    stored = stored.removeprefix("torch.")
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        width=width,
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", 0) or heads,
        head_dim=head_dim,
        mlp_dim=fields.integer("intermediate_size"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied=fields.flag("tie_word_embeddings"),
        qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
        output_bias=attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and fields.flag("mlp_bias"),
        qk_norm=architecture == "Qwen3ForCausalLM",
        fused_qkv=phi,
        fused_gate_up=phi,
        sliding_window=window,
        full_layers=full_layers,
        rope=_rope(fields, head_dim, phi),
        param_dtype=param_dtype or (stored if stored in DTYPES else "float32"),
    )


def _architecture(values: Mapping[str, Any], where: str) -> str:
    names = values.get("architectures")
    if names:
        name = names[0] if isinstance(names, list) else names
    else:
        name = _MODEL_TYPES.get(str(values.get("model_type")), values.get("model_type"))
    if name is None:
        raise ClaraError(
            f"{where}: names neither an architecture nor a model_type; give the folder "
            "of a Hugging Face model, a model folder or a finished run"
        )
    if not isinstance(name, str) or name not in DEFAULTS:
        raise ClaraError(
            f"{where}: unknown architecture '{name}'; "
            f"supported are {', '.join(DEFAULTS)}"
        )
    return name


def _window(fields: _Fields, architecture: str) -> tuple[int | None, tuple[int, ...]]:
    """The sliding window, and the layers that do without it."""
    if architecture == "LlamaForCausalLM":
        return None, ()
    window = fields.integer("sliding_window", 0) or None
    if not architecture.startswith("Qwen"):
        return window, ()
    if not fields.flag("use_sliding_window"):
        window = None
    layers = fields.integer("num_hidden_layers")
    kinds = fields.values.get("layer_types")
    if kinds is None:
        first = fields.integer("max_window_layers") if window else layers
        kinds = ["full_attention"] * min(first, layers)
        kinds += ["sliding_attention"] * (layers - len(kinds))
    known = ["full_attention", *["sliding_attention"] * bool(window)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or any(kind not in known for kind in kinds)
    ):
        raise ClaraError(
            f"{fields.where}: layer_types must give each of {layers} layers one of "
            f"full_attention and (with use_sliding_window) sliding_attention, "
            f"not {kinds!r}"
        )
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    if len(full) == layers:
        return None, ()
    return window, full


def _rope(fields: _Fields, head_dim: int, phi: bool) -> RopeConfig:
    values = fields.values
    group = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(group, Mapping) or any(
        isinstance(value, Mapping) for value in group.values()
    ):
        raise ClaraError(
            f"{fields.where}: rope_parameters must be one plain group for all layers"
        )
    inner = ("rope_theta", "partial_rotary_factor")
    rope = _Fields({**{k: values.get(k) for k in inner}, **group}, fields.where)
    kind = rope.text("rope_type", "") or rope.text("type", "default")
    if phi and kind in ("su", "yarn"):
        kind = "longrope"
    fraction = rope.number("partial_rotary_factor", 1.0)
    rotated = int(head_dim * fraction)
    if rotated <= 0 or rotated % 2:
        raise ClaraError(
            f"{fields.where}: {rotated} of {head_dim} features per head would be "
            "rotated (head_dim, partial_rotary_factor); the number must be even"
        )
    longest = fields.integer("max_position_embeddings")
    if longest < 2:
        raise ClaraError(
            f"{fields.where}: field 'max_position_embeddings' is {longest}; no text is "
            "that short"
        )
    common = {
        "theta": rope.number("rope_theta", 10000.0),
        "fraction": fraction,
        "max_position": longest,
    }
    if kind == "default":
        return RopeConfig(**common)
    if kind == "linear":
        return RopeConfig(kind="linear", factor=rope.number("factor"), **common)
    top = fields.integer("original_max_position_embeddings", 0)
    original = top or rope.integer("original_max_position_embeddings", 0) or longest
    if original < 2 or rope.number("factor", 1.0) <= 0:
        raise ClaraError(
            f"{fields.where}: rope kind '{kind}' needs a factor above 0 and an "
            "original_max_position_embeddings above 1"
        )
    if kind == "llama3":
        return RopeConfig(
            kind="llama3",
            factor=rope.number("factor"),
            original_max_position=original,
            low_frequency=rope.number("low_freq_factor"),
            high_frequency=rope.number("high_freq_factor"),
            **common,
        )
    if kind == "yarn":
        if rope.values.get("truncate") is False:
            raise ClaraError(
                f"{fields.where}: rope kind 'yarn' with truncate off is not supported"
            )
        factor = rope.number("factor", 0.0) or longest / original
        return RopeConfig(
            kind="yarn",
            factor=factor,
            original_max_position=original,
            beta_fast=rope.number("beta_fast", 32.0),
            beta_slow=rope.number("beta_slow", 1.0),
            attention_factor=_yarn_attention_factor(rope, factor),
            **common,
        )
    if kind == "longrope":
        ratio = longest / original
        factor = ratio if top else rope.number("factor", 0.0) or ratio
        return RopeConfig(
            kind="longrope",
            factor=factor,
            original_max_position=original,
            short_factors=rope.numbers("short_factor", rotated // 2),
            long_factors=rope.numbers("long_factor", rotated // 2),
            attention_factor=rope.number("attention_factor", 0.0)
            or longrope_attention_factor(factor, original),
            **common,
        )
    raise ClaraError(
        f"{fields.where}: rope kind '{kind}' is not supported; "
        "supported are default, linear, llama3, yarn, longrope"
    )


def longrope_attention_factor(factor: float, original: int) -> float:
    """What multiplies cosines and sines of ``longrope`` (LongRoPE, section 3.2)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _yarn_attention_factor(rope: _Fields, factor: float) -> float:
    def scale(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    given = rope.number("attention_factor", 0.0)
    above, below = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if given:
        return given
    return scale(above) / scale(below) if above and below else scale(1.0)


class _Fields:
    """Typed access to a mapping; a null counts as absent where there is a default."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def _get(self, name: str, kinds: tuple[type, ...], default: Any, what: str) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise ClaraError(f"{self.where}: field '{name}' is missing")
            return default
        if not isinstance(value, kinds) or (
            isinstance(value, bool) and bool not in kinds
        ):
            raise ClaraError(
                f"{self.where}: field '{name}' must be {what}, not {value!r}"
            )
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        return self._get(name, (int,), default, "a whole number")

    def number(self, name: str, default: float | None = None) -> float:
        return float(self._get(name, (int, float), default, "a number"))

    def text(self, name: str, default: str) -> str:
        return self._get(name, (str,), default, "a text")

    def flag(self, name: str) -> bool:
        return self._get(name, (bool,), False, "true or false")

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        value = self._get(name, (list, tuple), None, "a list")
        if len(value) != length or not all(
            isinstance(v, (int, float)) and v > 0 for v in value
        ):
            raise ClaraError(
                f"{self.where}: field '{name}' must hold {length} numbers above 0"
            )
        return tuple(float(v) for v in value)

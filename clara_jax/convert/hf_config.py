"""``config.json`` of a Hugging Face model as a `ModelConfig`, and back.

Versions 4 and 5 of transformers are read; rope is written in the words of version 4,
which version 5 reads too.

Source: transformers ``configuration_{llama,mistral,qwen2,qwen3,smollm3,phi3}.py``
and ``modeling_rope_utils.py``, defaults included.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from clara_jax.config import DTYPES, ModelConfig, RopeConfig
from clara_jax.errors import ClaraError
from clara_jax.model.rope import attention_factor

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

_LAYERED = ("Qwen2", "Qwen3", "SmolLM3")
"""Families whose layers may differ in the keys that they see."""

_KINDS = ("full_attention", "sliding_attention")

_ROPE_KINDS: dict[Any, str] = {
    "default": "",
    "linear": "factor",
    "llama3": "factor original_max_position low_frequency high_frequency",
    "yarn": "factor original_max_position beta_fast beta_slow attention_factor",
    "longrope": "factor original_max_position short_factors long_factors "
    "attention_factor",
}
"""Kinds of rope, and the fields of `RopeConfig` that each has."""

_ROPE_NAMES = {
    "original_max_position": "original_max_position_embeddings",
    "low_frequency": "low_freq_factor",
    "high_frequency": "high_freq_factor",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
"""What these fields are called there, where it is something else."""

_ROPE_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 0.0}

_TYPES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
}

T = TypeVar("T", int, float, str, bool)


class Fields:
    """Typed values of the file `where`; null is absent where there is a default."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def error(self, text: str) -> ClaraError:
        """Return an error about the file."""
        return ClaraError(f"{self.where}: {text}")

    def only(self, name: str, *values: Any) -> None:
        """Refuse all other values of this field; absent is None."""
        value = self.values.get(name)
        if value not in values:
            raise self.error(f"field '{name}' is {value!r}, which is not supported")

    def required(self, name: str) -> Any:
        """Return any value that is not null."""
        if self.values.get(name) is None:
            raise self.error(f"field '{name}' is missing")
        return self.values[name]

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of this type, or the default."""
        if default is not None and self.values.get(name) is None:
            return default
        value = self.required(name)
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (type(value) is bool and kind is not bool):
            raise self.error(f"field '{name}' must be {_TYPES[kind]}, not {value!r}")
        return value

    def positive(self, name: str, default: int | None = None) -> int:
        """Return a whole number above 0."""
        value = self.values.get(name, default)
        if type(value) is not int or value < 1:
            wanted = "a whole number above 0"
            raise self.error(f"field '{name}' must be {wanted}, not {value!r}")
        return value

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """Return a list of `length` numbers above 0."""
        value = self.required(name)
        if not isinstance(value, list | tuple):
            raise self.error(f"field '{name}' must be a list, not {value!r}")
        good = all(isinstance(v, int | float) and v > 0 for v in value)
        if len(value) != length or not good:
            raise self.error(f"field '{name}' must hold {length} numbers above 0")
        return tuple(float(v) for v in value)


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
    fields = Fields({**_DEFAULTS[family], **values}, where)
    activation = fields.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        raise fields.error(f"hidden_act is '{activation}'; only silu is supported")
    if values.get("quantization_config"):
        raise fields.error(
            "the weights are quantized (quantization_config); use the unquantized "
            "model or a GGUF file"
        )
    sizes: dict = {ours: fields.get(theirs, int) for ours, theirs in _SIZES.items()}
    heads = sizes["num_heads"]
    head_dim = fields.get("head_dim", int, 0) or sizes["width"] // max(heads, 1)
    biased = family in ("Llama", "Qwen3", "SmolLM3")
    bias = biased and fields.get("attention_bias", bool, False)
    unrotated = _read_unrotated(fields) if family == "SmolLM3" else ()
    window, full_layers = _read_window(fields, family, unrotated)
    stored = str(values.get("dtype") or values.get("torch_dtype"))
    stored = stored.removeprefix("torch.")
    dtype: Any = param_dtype or (stored if stored in DTYPES else "float32")
    return ModelConfig(
        **sizes,
        num_kv_heads=fields.get("num_key_value_heads", int, 0) or heads,
        head_dim=head_dim,
        norm_eps=fields.get("rms_norm_eps", float, 1e-6),
        tied=fields.get("tie_word_embeddings", bool, False),
        qkv_bias=bias or family == "Qwen2",
        output_bias=bias,
        mlp_bias=family in ("Llama", "SmolLM3") and fields.get("mlp_bias", bool, False),
        qk_norm=family == "Qwen3",
        fused_qkv=family == "Phi3",
        fused_gate_up=family == "Phi3",
        sliding_window=window,
        full_layers=full_layers,
        unrotated_layers=unrotated,
        rope=_read_rope(fields, head_dim, family == "Phi3"),
        param_dtype=dtype,
    )


def _read_family(values: Mapping[str, Any], where: str) -> str:
    name = values.get("architectures") or values.get("model_type")
    name = name[0] if isinstance(name, list) else name
    classes = {f"{family}ForCausalLM": family for family in _DEFAULTS}
    known = classes | {family.lower(): family for family in _DEFAULTS}
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
    if not fields.get("use_sliding_window", bool, False):
        window = None
    layers = fields.get("num_hidden_layers", int)
    kinds = fields.values.get("layer_types")
    if kinds is None:
        if family == "SmolLM3":
            slides = unrotated
        else:
            slides = range(fields.get("max_window_layers", int), layers)
        kinds = [_KINDS[window is not None and i in slides] for i in range(layers)]
    known = _KINDS[: 1 + bool(window)]
    listed = isinstance(kinds, list) and len(kinds) == layers
    if not listed or any(kind not in known for kind in kinds):
        raise fields.error(
            f"layer_types must give each of {layers} layers one of full_attention and "
            f"(with use_sliding_window) sliding_attention, not {kinds!r}"
        )
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    return (None, ()) if len(full) == layers else (window, full)


def _read_rope(fields: Fields, head_dim: int, phi: bool) -> RopeConfig:
    values = fields.values
    group = values.get("rope_parameters") or values.get("rope_scaling") or {}
    plain = isinstance(group, Mapping)
    if not plain or any(isinstance(value, Mapping) for value in group.values()):
        raise fields.error("rope_parameters must be one plain group for all layers")
    inner = ("rope_theta", "partial_rotary_factor")
    rope = Fields({**{k: values.get(k) for k in inner}, **group}, fields.where)
    kind: Any = rope.get("rope_type", str, "") or rope.get("type", str, "default")
    if phi and kind in ("su", "yarn"):
        kind = "longrope"
    if kind not in _ROPE_KINDS:
        known = ", ".join(_ROPE_KINDS)
        raise fields.error(
            f"rope kind '{kind}' is not supported; supported are {known}"
        )
    fraction = rope.get("partial_rotary_factor", float, 1.0)
    rotated = int(head_dim * fraction)
    if rotated <= 0 or rotated % 2:
        raise fields.error(
            f"{rotated} of {head_dim} features per head would be rotated (head_dim, "
            "partial_rotary_factor); the number must be even"
        )
    longest = fields.get("max_position_embeddings", int)
    if longest < 2:
        name = "max_position_embeddings"
        raise fields.error(f"field '{name}' is {longest}; no text is that short")
    theta = rope.get("rope_theta", float, 10000.0)
    found: dict = {"theta": theta, "fraction": fraction, "max_position": longest}
    if kind not in ("default", "linear"):
        name = "original_max_position_embeddings"
        top = fields.get(name, int, 0)
        original = top or rope.get(name, int, 0) or longest
        factor = rope.get("factor", float, 0.0)
        if original < 2 or factor < 0 or rope.values.get("factor") == 0:
            raise fields.error(
                f"rope kind '{kind}' needs a factor above 0 and an {name} above 1"
            )
        found["original_max_position"] = original
        if kind != "llama3":
            by_length = bool(top) and kind == "longrope"
            found["factor"] = longest / original if by_length or not factor else factor
    for ours in _ROPE_KINDS[kind].split():
        theirs = _ROPE_NAMES.get(ours, ours)
        if ours in ("short_factors", "long_factors"):
            found[ours] = rope.numbers(theirs, rotated // 2)
        elif ours not in found:
            found[ours] = rope.get(theirs, float, _ROPE_DEFAULTS.get(ours))
    if kind == "yarn":
        if rope.values.get("truncate") is False:
            raise fields.error("rope kind 'yarn' with truncate off is not supported")
        above = rope.get("mscale", float, 0.0)
        below = rope.get("mscale_all_dim", float, 0.0)
        if above and below and not found["attention_factor"]:
            log = math.log(max(found["factor"], 1.0))
            scale = (0.1 * above * log + 1.0) / (0.1 * below * log + 1.0)
            found["attention_factor"] = scale
    return filled(RopeConfig(kind=kind, **found))


def filled(rope: RopeConfig) -> RopeConfig:
    """Return the same rope with what its kind fills in by rule."""
    if rope.kind == "longrope" and not rope.factor:
        ratio = rope.max_position / rope.original_max_position
        rope = dataclasses.replace(rope, factor=ratio)
    if rope.kind in ("longrope", "yarn"):
        rope = dataclasses.replace(rope, attention_factor=attention_factor(rope))
    return rope


def hf_from_model_config(config: ModelConfig, name: str = "") -> dict[str, Any]:
    """Return the ``config.json`` that `model_config_from_hf` reads as `config`.

    The `name` of the base model tells Mistral from Llama where the shape does not. A
    shape that no supported architecture has is refused.
    """
    family = _written_family(config, name)
    # A model must declare some length; it changes no result.
    longest = config.rope.max_position or 2048
    rope = filled(dataclasses.replace(config.rope, max_position=longest))
    values = {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": longest,
        "torch_dtype": config.param_dtype,
    }
    if family in ("Llama", "Qwen3", "SmolLM3"):
        values["attention_bias"] = config.qkv_bias
    if family in ("Llama", "SmolLM3"):
        values["mlp_bias"] = config.mlp_bias
    if family != "Llama":
        values["sliding_window"] = config.sliding_window
    if family in _LAYERED:
        values |= _written_layers(config)
    if family == "SmolLM3":
        layers = range(config.num_layers)
        values["no_rope_layers"] = [
            int(i not in config.unrotated_layers) for i in layers
        ]
    values |= _written_rope(rope, family == "Phi3")
    read = model_config_from_hf(values, "config.json")
    wanted = dataclasses.replace(config, rope=rope)
    found = dataclasses.replace(read, dtype=config.dtype, remat=config.remat)
    for name, ours in vars(wanted).items():
        theirs = getattr(found, name)
        if ours != theirs:
            raise _no_form(f"as {family}, '{name}' would be {theirs!r}, not {ours!r}")
    return values


def _no_form(why: str) -> ClaraError:
    return ClaraError(f"the backbone has no Hugging Face form: {why}")


def _written_family(config: ModelConfig, name: str) -> str:
    if config.fused_qkv or config.fused_gate_up:
        return "Phi3"
    if config.qk_norm:
        return "Qwen3"
    if config.qkv_bias and not config.output_bias:
        return "Qwen2"
    if config.unrotated_layers or config.full_layers:
        return "SmolLM3"
    plain = not (config.qkv_bias or config.mlp_bias)
    named = "mistral" in name.lower() and plain
    return "Mistral" if config.sliding_window or named else "Llama"


def _written_layers(config: ModelConfig) -> dict[str, Any]:
    window, layers = config.sliding_window, range(config.num_layers)
    full = layers if window is None else config.full_layers
    return {
        "use_sliding_window": window is not None,
        "max_window_layers": next((i for i in layers if i not in full), len(layers)),
        "layer_types": [_KINDS[i not in full] for i in layers],
    }


def _written_rope(rope: RopeConfig, phi: bool) -> dict[str, Any]:
    if not phi and rope.fraction != 1.0:
        raise _no_form(f"only Phi-3 rotates a part of each head ({rope.fraction})")
    if phi and rope.kind not in ("default", "longrope"):
        raise _no_form(f"Phi-3 with rope kind '{rope.kind}'")
    values: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if phi:
        values["partial_rotary_factor"] = rope.fraction
        original = rope.original_max_position or rope.max_position
        values["original_max_position_embeddings"] = original
    if rope.kind == "default":
        return values
    group: dict[str, Any] = {"rope_type": rope.kind}
    for ours in _ROPE_KINDS[rope.kind].split():
        value = getattr(rope, ours)
        value = list(value) if isinstance(value, tuple) else value
        group[_ROPE_NAMES.get(ours, ours)] = value
    if rope.kind == "longrope":
        if rope == filled(dataclasses.replace(rope, attention_factor=0.0)):
            del group["attention_factor"]
        if phi:  # for which transformers 4 wants exactly these
            kept = ("short_factor", "long_factor", "attention_factor")
            group = {"type": "longrope", **{k: group[k] for k in kept if k in group}}
    return {**values, "rope_scaling": group}
